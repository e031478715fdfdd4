"""The paper path computes what mini computes: the trained miniatures, in the paper's on-disk formats, through profile=paper.

Random weights cannot show a wrong layer, padding, activation or key; trained ones can. Each such mistake is made here on purpose too,
and must be seen.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import tiny_models as tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fsad_lib import pipeline, runs
from fsad_lib.adp import stages
from fsad_lib.datasets import minifab
from fsad_lib.datasets.minifab import defects, render
from fsad_lib.errors import FsadError
from fsad_lib.foundation.clip import _read_once, clip_of, load_clip
from fsad_lib.foundation.diffusion import load_diffusion, text_encoder_from_clip, write_tokenizer
from fsad_lib.foundation.miniatures.export import export_paper_layout
from fsad_lib.profiles import load_profile, missing_checkpoints

ROOT = Path(__file__).parents[1]
MINI = ROOT / "data/models/mini"
NOTEBOOK = Path("notebooks/40_evaluate_adp.ipynb")
SAME, OTHER = 1e-5, 1e-3  # "equal", and what a mistake must exceed
END = "<|endoftext|>"
FEW = {
    "adp.steps_ti": 2, "adp.steps_normal": 3, "adp.steps_anomaly": 3, "adp.n_pseudo": 2, "adp.n_pseudo_tuning": 2,
    "adp.num_inference_steps": 4, "adp.batch_size": 2, "adp.templates": 3,
}  # fmt: skip
PROMPTS = ["a photo of a damaged <c>", "a photo with damage", ""]


def as_text(overrides):
    return ",".join(f"{key}={json.dumps(value)}" for key, value in overrides.items())


def like_mini():
    """Overrides that give profile=paper mini's hyper-parameters; checkpoints and architectures stay the paper's."""
    mini, paper = (load_profile(name).model_dump(mode="json") for name in ("mini", "paper"))
    return {
        f"{section}.{key}": value
        for section in ("adp", "winclip", "backbone", "diffusion")
        for key, value in mini[section].items()
        if key not in ("checkpoint", "source") and value != paper[section][key]
    }


def write_parts(folder):
    """A few MiniFab images of one development category, in MVTec AD's layout."""
    design = minifab.category_design("development", "nut")
    for part, count in (("train/good", 2), ("test/good", 2), ("test/scratch", 1), ("test/hole", 1)):
        for i in range(count):
            rng = np.random.default_rng([7, len(part), i])
            scene = render.sample_scene(design, rng)
            kind = part.partition("/")[2]
            (folder / part).mkdir(parents=True, exist_ok=True)
            if kind == "good":
                image = render.photograph(render.render(scene), scene.seed + 2)
            else:
                image, mask = defects.apply(scene, kind, rng)
                (folder / "ground_truth" / kind).mkdir(parents=True)
                Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "ground_truth" / kind / f"{i}_mask.png")
            Image.fromarray(image).save(folder / part / f"{i}.png")


def forget():
    _read_once.cache_clear(), stages._diffusion.cache_clear(), runs.forget_inputs()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The miniatures as the paper's checkpoints lie on disk."""
    return export_paper_layout(MINI, tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def evaluated(hub, tmp_path_factory):
    """profile -> (what the last stage gives, its profile, words, weights), made by the real stages."""
    root = tmp_path_factory.mktemp("project")
    (root / "data/models").mkdir(parents=True)
    (root / "data/models/mini").symlink_to(MINI)
    write_parts(root / "parts/nut")
    checkpoints = {"clip.checkpoint": hub["clip"], "winclip_clip.checkpoint": hub["clip"], "diffusion.checkpoint": hub["diffusion"]}
    overrides = {"mini": FEW, "paper": like_mini() | FEW | {key: str(path) for key, path in checkpoints.items()}}
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSAD_HOME", str(root))
        forget()
        for profile, changes in overrides.items():
            run = runs.open_run("40_evaluate", "adp", profile=profile, dataset="folder", category="nut", shots=2, seed=0,
                                data_root=str(root / "parts"), overrides=as_text(changes))  # fmt: skip
            result = stages.evaluate(run)
            words = stages.personalize(run.upstream("10_personalize"))
            found[profile] = result, run.profile, words, stages.synthesize(run.upstream("20_synthesize"))
    forget()
    return found


def test_hyperparameters_are_minis_and_checkpoints_the_papers(evaluated, hub):
    mini, paper = evaluated["mini"][1], evaluated["paper"][1]
    assert (mini.name, paper.name) == ("mini", "paper")
    assert (mini.adp, mini.winclip, mini.backbone) == (paper.adp, paper.winclip, paper.backbone)
    assert paper.path("clip") == hub["clip"] and paper.path("diffusion") == hub["diffusion"], "absolute paths stay as they are"
    assert paper.clip.architecture == "ViT-H-14", "a folder brings its own configuration"


def test_paper_gives_minis_scores(evaluated):
    mini, paper = (evaluated[name][0].predictions for name in ("mini", "paper"))
    keys = ["path", "method", "part"]
    both = mini.merge(paper, on=keys, suffixes=("", "_paper"), validate="one_to_one")
    assert len(both) == len(mini) == len(paper) and {"adp", "adp_l", "ti", "winclip"} <= set(both.method)
    assert (both.score - both.score_paper).abs().max() <= SAME
    spread = both.groupby(["method", "part"]).score.agg(np.ptp)
    assert (spread > 1e-4).all(), "scores that do not vary would agree for no reason"
    maps, other = evaluated["mini"][0].maps, evaluated["paper"][0].maps
    assert all(np.abs(maps[name] - other[name]).max() <= SAME for name in maps)


def test_paper_gives_minis_words_pictures_and_weights(evaluated):
    (_, _, a, tuned), (_, _, b, tuned_b) = evaluated["mini"], evaluated["paper"]
    for name, word in a.concepts.items():
        torch.testing.assert_close(b.concepts[name], word, atol=SAME, rtol=0)
    assert (a.concepts["<ti>"] - a.concepts["<c_n>"]).abs().max() > SAME, "the steps moved the words"
    np.testing.assert_allclose(b.trace.denoising_loss, a.trace.denoising_loss, atol=SAME)
    assert (a.pseudo.x - b.pseudo.x).abs().max() <= 1 / 255 + SAME
    assert tuned.weights == pytest.approx(tuned_b.weights, abs=SAME)


def test_paper_gives_minis_scores_for_the_trained_inpainting_miniature(hub, tmp_path, monkeypatch):
    """AnomalySD: fine-tuned a little, two scales and the prototype-guided mask, from the hub's layout with a text encoder of its own."""
    from fsad_lib.anomalysd import stages as anomalysd
    from fsad_lib.foundation.miniatures.train_inpainting import export_paper_layout as export_inpainting

    (tmp_path / "data/models").mkdir(parents=True)
    (tmp_path / "data/models/mini").symlink_to(MINI)
    write_parts(tmp_path / "parts/nut")
    export_inpainting(MINI, tmp_path / "inpainting")
    few = {"anomalysd.steps_unet": 2, "anomalysd.steps_decoder": 2, "anomalysd.scales": [2, 4], "anomalysd.train_batch_size": 2}
    own = {f"anomalysd.{k}": v for k, v in load_profile("mini").anomalysd.model_dump(mode="json").items()} | few
    own |= {k: v for k, v in like_mini().items() if k.partition(".")[0] in ("winclip", "backbone")} | {"inpainting.image_size": 128}
    own |= {"clip.checkpoint": hub["clip"], "winclip_clip.checkpoint": hub["clip"], "inpainting.checkpoint": tmp_path / "inpainting"}
    own = {key: str(value) if isinstance(value, Path) else value for key, value in own.items()}
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    found = {}
    for profile, changes in {"mini": few, "paper": own}.items():
        forget()
        run = runs.open_run("41_evaluate", "anomalysd", profile=profile, dataset="folder", category="all", shots=2, seed=0,
                            data_root=str(tmp_path / "parts"), overrides=as_text(changes))  # fmt: skip
        found[profile] = anomalysd.evaluate(run).predictions
    forget()
    both = found["mini"].merge(found["paper"], on=["path", "method", "part"], suffixes=("", "_paper"), validate="one_to_one")
    assert len(both) == len(found["mini"]) == len(found["paper"]) and {"anomalysd", "scale_4", "alpha_1", "roundtrip"} <= set(both.method)
    assert (both.score - both.score_paper).abs().max() <= SAME
    assert both[both.method == "anomalysd"].groupby("part").score.agg(np.ptp).min() > 1e-3, "scores that do not vary would agree for no reason"


def test_paper_generates_minis_images_with_the_trained_vqgan(tmp_path, monkeypatch):
    """TGVIG: sampled, updated and sampled again, from a taming-transformers checkpoint that holds generator, discriminator and LPIPS."""
    from fsad_lib.foundation.vqgan import export_taming, load_vqgan
    from fsad_lib.tgvig import stages as tgvig

    (tmp_path / "data/models").mkdir(parents=True)
    (tmp_path / "data/models/mini").symlink_to(MINI)
    (tmp_path / "data/wordnet").symlink_to(ROOT / "data/wordnet")
    write_parts(tmp_path / "parts/nut")
    export_taming(load_vqgan(MINI / "vqgan", MINI / "lpips"), tmp_path / "taming")
    few = {"tgvig.iterations": 2, "tgvig.images": 2, "tgvig.augmented": 3, "tgvig.lr": 0.001}
    own = {f"tgvig.{k}": v for k, v in load_profile("mini").tgvig.model_dump(mode="json").items()} | few
    own |= {"vqgan.checkpoint": tmp_path / "taming", "vqgan.image_size": 128, "tgvig_clip.checkpoint": MINI / "clip", "tgvig_clip.architecture": None}
    own |= {"perceptual.checkpoint": MINI / "lpips", "inception.name": "tf_efficientnet_lite0", "inception.checkpoint": None}
    own = {key: str(value) if isinstance(value, Path) else value for key, value in own.items()}
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    found = {}
    for profile, changes in {"mini": few, "paper": own}.items():
        run = runs.open_run("22_synthesize", "tgvig", profile=profile, dataset="folder", category="nut", shots=2, seed=0,
                            data_root=str(tmp_path / "parts"), overrides=as_text(changes))  # fmt: skip
        found[profile] = tgvig.synthesize(run)
    mini, paper = found["mini"], found["paper"]
    assert mini.prompts == paper.prompts and mini.chosen == paper.chosen
    for kind, x in mini.sets.items():
        assert (x - paper.sets[kind]).abs().max() <= 1 / 255 + SAME, "kept at 8 bits"
        assert (x[0] - x[1]).abs().mean() > 1e-3 and 0.01 < x.std() < 0.5, "images that show nothing would agree for no reason"
    losses = [name for name in mini.trace.columns if name not in ("iteration", "seconds")]
    np.testing.assert_allclose(paper.trace[losses].to_numpy(float), mini.trace[losses].to_numpy(float), atol=SAME, rtol=1e-4)


# -------------------------------------------------------------------- the text-to-image model, part by part
def signature(diffusion):
    """Text states, latents and losses that depend on every part of the model."""
    noise = torch.Generator().manual_seed(0)
    vector = torch.randn(diffusion.token_dim, generator=noise) * 0.03
    x = torch.rand(1, 3, 128, 128, generator=noise)
    side = diffusion.image_size // diffusion.factor
    z, eps = (torch.randn(2, 4, side, side, generator=noise) for _ in range(2))
    with torch.no_grad():
        text = diffusion.encode_prompt(PROMPTS, {"<c>": vector})
        loss = diffusion.denoising_loss(z, text[:2], torch.tensor([150, 700]), eps)
        return {"text": text, "loss": loss, "latents": diffusion.posterior(x)[0]}


@pytest.fixture(scope="module")
def mini_signature():
    clip = load_clip(MINI / "clip")
    return signature(load_diffusion(MINI / "diffusion", clip=clip)), clip


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def other_padding(folder, clip):
    write_tokenizer(folder / "tokenizer", pad_token=END)


def other_depth(skip_last):
    def write(folder, clip):
        shutil.rmtree(folder / "text_encoder")
        text_encoder_from_clip(clip, skip_last=skip_last).save_pretrained(folder / "text_encoder")

    return write


def config(part, **values):
    names = {"scheduler": "scheduler_config.json"}
    return lambda folder, clip: change(folder / part / names.get(part, "config.json"), **values)


def test_the_export_is_the_miniature(hub, mini_signature):
    want, clip = mini_signature
    layers = json.loads((hub["diffusion"] / "text_encoder/config.json").read_text())["num_hidden_layers"]
    assert layers == clip.model.transformer.layers - 1, "as SD 2.1's 23 of 24"
    got = signature(load_diffusion(hub["diffusion"]))
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, atol=SAME, rtol=0)


MISTAKES = {
    "padding with the end of text": (other_padding, "text"),
    "QuickGELU": (config("text_encoder", hidden_act="quick_gelu"), "text"),
    "the whole tower": (other_depth(0), "text"),
    "one layer too few": (other_depth(2), "text"),
    "epsilon for v": (config("scheduler", prediction_type="epsilon"), "loss"),
    "another noise schedule": (config("scheduler", beta_schedule="linear"), "loss"),
    "another latent scale": (config("vae", scaling_factor=0.18215), "latents"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_changes_the_numbers(mistake, hub, mini_signature, tmp_path):
    make, where = MISTAKES[mistake]
    folder = tmp_path / "diffusion"
    shutil.copytree(hub["diffusion"], folder)
    make(folder, mini_signature[1])
    got, want = signature(load_diffusion(folder)), mini_signature[0]
    differs = {name: (got[name] - value).abs().max().item() for name, value in want.items()}
    assert differs[where] > OTHER, differs
    if where == "text":
        assert differs["loss"] > SAME, "the U-Net attends to all 77 positions"


def test_key_names_of_the_hub_are_read(hub, mini_signature, tmp_path):
    """SD 2.1's text encoder was saved with a prefix and a table of positions, its tokenizer with two files that name a pad token."""
    folder = tmp_path / "diffusion"
    shutil.copytree(hub["diffusion"], folder)
    weights = folder / "text_encoder/model.safetensors"
    state = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(weights).items()}
    save_file(state | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, weights, {"format": "pt"})
    change(folder / "text_encoder/config.json", projection_dim=512, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    change(folder / "tokenizer/tokenizer_config.json", pad_token=END)
    got, want = signature(load_diffusion(folder)), mini_signature[0]
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, atol=SAME, rtol=0)


def test_older_key_names_of_the_vae_are_read(tmp_path):
    """Stable Diffusion's VAE was saved before diffusers renamed the attention's layers; the miniature has no such layer."""
    from diffusers import AutoencoderKL

    sd = tiny.diffusion(tiny.open_clip_model())
    assert isinstance(sd.vae, AutoencoderKL) and sd.vae.config.mid_block_add_attention
    tiny.save_diffusion(sd, tmp_path)
    weights = tmp_path / "vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(weights)
    for key in [key for key in state if ".attentions." in key]:
        name = key
        for new, former in old.items():
            name = name.replace(f".{new}.", f".{former}.")
        state[name] = state.pop(key)
    assert any("proj_attn" in key for key in state)
    save_file(state, weights, {"format": "pt"})
    x = tiny.images(1)
    torch.testing.assert_close(load_diffusion(tmp_path).posterior(x)[0], sd.posterior(x)[0], atol=SAME, rtol=0)


# -------------------------------------------------------------------- CLIP
def embeddings(clip):
    noise = torch.Generator().manual_seed(0)
    x, vector = torch.rand(2, 3, 160, 128, generator=noise), torch.randn(clip.token_dim, generator=noise) * 0.03
    with torch.no_grad():
        return {"f": clip.encode_image(x), "g": clip.encode_text(PROMPTS, {"<c>": vector})}


@pytest.fixture
def tiny_vit_h(hub, tmp_path):
    """open_clip believes that the papers' architectures are the miniature's, so that their names can be used with small files.

    The fixture open_clip_registry of conftest.py puts them back.
    """
    model = json.loads((hub["clip"] / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "configs").mkdir()
    for name in ("ViT-H-14", "ViT-B-16-plus-240"):
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps(model))
    open_clip.add_model_config(tmp_path / "configs")


def test_single_files_of_the_papers_architectures(hub, tiny_vit_h, tmp_path, monkeypatch):
    state = load_file(hub["clip"] / "open_clip_model.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "vit-h.bin")
    save_file(state, tmp_path / "vit-b.safetensors")
    files = {"clip.checkpoint": str(tmp_path / "vit-h.bin"), "winclip_clip.checkpoint": str(tmp_path / "vit-b.safetensors")}
    profile = load_profile("paper", as_text(like_mini() | files | {"diffusion.checkpoint": str(hub["diffusion"])}))
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    missing_checkpoints(profile)
    loaded, opened, load = [], [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **more: opened.append(more) or load(*args, **more))
    forget()
    clip, diffusion = stages.load_models(profile)
    loaded += [clip, clip_of(profile, "winclip_clip")]
    forget()
    assert [more["weights_only"] for more in opened] == [True]
    assert diffusion.image_size == 128 and diffusion.prediction_type == "v_prediction"
    want = embeddings(load_clip(MINI / "clip"))
    for model in loaded:
        for name, value in embeddings(model).items():
            torch.testing.assert_close(value.cpu(), want[name], atol=SAME, rtol=0)


def test_a_bin_with_code_in_it_is_refused(tiny_vit_h, tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    torch.save({"state_dict": {"visual.proj": Trap()}}, tmp_path / "vit-h.bin")
    with pytest.raises(FsadError, match="cannot be read"):
        load_clip(tmp_path / "vit-h.bin", "ViT-H-14")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("mistake", ["QuickGELU", "other channel means", "one layer too many"])
def test_a_mistake_in_clip_changes_the_numbers(mistake, hub, tmp_path):
    shutil.copytree(hub["clip"], tmp_path / "clip")
    file = tmp_path / "clip/open_clip_config.json"
    whole = json.loads(file.read_text())
    if mistake == "QuickGELU":
        whole["model_cfg"]["quick_gelu"] = True
    elif mistake == "other channel means":
        whole["preprocess_cfg"] |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    else:
        whole["model_cfg"]["text_cfg"]["layers"] += 1
    file.write_text(json.dumps(whole))
    if mistake == "one layer too many":
        with pytest.raises(FsadError, match="do not fit"):
            load_clip(tmp_path / "clip")
        return
    got, want = embeddings(load_clip(tmp_path / "clip")), embeddings(load_clip(MINI / "clip"))
    assert (got["f"] - want["f"]).abs().max() > OTHER


# -------------------------------------------------------------------- nothing on disk
def expected_names(root):
    models = root / "data/models/paper"
    sd, h, b = (models / load_profile("paper").model_dump()[s]["checkpoint"] for s in ("diffusion", "clip", "winclip_clip"))
    files = [folder / name for folder in (h, b) for name in ("open_clip_config.json", "open_clip_model.safetensors")]
    files += [sd / "model_index.json", sd / "scheduler/scheduler_config.json", sd / "tokenizer/vocab.json", sd / "tokenizer/merges.txt"]
    files += [sd / "tokenizer/tokenizer_config.json"]
    files += [sd / part / "config.json" for part in ("unet", "vae", "text_encoder")]
    files += [sd / part / "diffusion_pytorch_model.safetensors" for part in ("unet", "vae")]
    files += [sd / "text_encoder/model.safetensors"]
    return files


def check_message(text, root):
    for file in expected_names(root):
        assert str(file) in text, file
    for words in ("laion/CLIP-ViT-H-14", "vit_base_patch16_plus", "stable-diffusion-2-1"):
        assert words in text, "where each comes from"
    assert str(root / "data/datasets/mvtec_ad") in text and "mvtec.com" in text


@pytest.mark.parametrize("stage", ["10_personalize", "20_synthesize", "40_evaluate"])
def test_without_checkpoints_and_data_a_stage_names_each_missing_thing(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    run = runs.open_run(stage, "adp", profile="paper", dataset="mvtec_ad", category="bottle", shots=4, seed=0)
    with pytest.raises(FsadError) as caught:
        getattr(stages, stage[3:])(run)
    check_message(str(caught.value), tmp_path)
    assert not (tmp_path / "data").exists(), "nothing is written"


def test_the_runner_names_each_missing_thing(tmp_path, monkeypatch):
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    with pytest.raises(FsadError) as caught:
        pipeline.execute(ROOT / NOTEBOOK, {"profile": "paper", "dataset": "mvtec_ad", "category": "bottle"})
    check_message(str(caught.value), tmp_path)


def test_the_command_stops_within_seconds(tmp_path):
    command = [sys.executable, "-m", "fsad_lib", "run", str(NOTEBOOK), "-p", "profile", "paper", "-p", "dataset", "mvtec_ad",
               "-p", "category", "bottle"]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"FSAD_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr, done.stderr
    check_message(done.stderr, tmp_path)
    # processor time, so that a busy machine does not matter
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20


def test_each_file_is_missed_by_name(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    profile, files = load_profile("paper"), expected_names(tmp_path)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    missing_checkpoints(profile)
    for file in files:
        file.unlink()
        with pytest.raises(FsadError) as caught:
            missing_checkpoints(profile)
        told = [line.split("missing: ")[1] for line in str(caught.value).splitlines() if "missing: " in line]
        assert told == [str(file)]
        file.touch()


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"),
        ("vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin"),
        ("text_encoder/model.safetensors", "text_encoder/pytorch_model.bin"),
        ("tokenizer/vocab.json", "tokenizer/tokenizer.json"),
        ("tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json"),
    ],
)
def test_every_form_that_can_be_loaded_counts_as_there(name, instead, tmp_path, monkeypatch):
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    files = expected_names(tmp_path)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    folder = load_profile("paper").path("diffusion")
    (folder / name).rename(folder / instead)
    missing_checkpoints(load_profile("paper"))

"""The miniatures' captions, batches, training scripts, export, and the questions that are asked of them."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from fsad_lib.datasets import minifab
from fsad_lib.datasets.minifab import defects
from fsad_lib.datasets.minifab.designs import NOUNS
from fsad_lib.errors import FsadError
from fsad_lib.foundation.backbones import load_backbone
from fsad_lib.foundation.clip import CLIP, load_clip
from fsad_lib.foundation.diffusion import load_diffusion
from fsad_lib.foundation.images import resize
from fsad_lib.foundation.miniatures import captions, export, inspect, pool, train_clip, train_unet, train_vae
from fsad_lib.foundation.perceptual import Lpips, load_lpips
from fsad_lib.profiles import load_profile
from fsad_lib.runs import project_root

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 128, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
TINY_VAE = train_vae.MODEL | {"block_out_channels": [8] * len(train_vae.MODEL["block_out_channels"]), "norm_num_groups": 4}
TINY_UNET = train_unet.MODEL | {
    "block_out_channels": [16, 32], "cross_attention_dim": 16, "attention_head_dim": 8, "norm_num_groups": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip


@pytest.fixture(scope="module")
def small_pool(tmp_path_factory):
    """A pool of one chunk of 8 pairs; `asked` lists the kinds of defect that were drawn."""
    folder, asked, apply = tmp_path_factory.mktemp("pool"), [], defects.apply
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "CHUNK", 8)
        patch.setattr(pool.defects, "apply", lambda scene, kind, *rest: asked.append(kind) or apply(scene, kind, *rest))
        pool.make_chunk(folder, 0)
    return SimpleNamespace(folder=folder, asked=asked)


def tiny_model():
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY_CLIP).eval()
    model.visual.output_tokens = True
    return model


# --------------------------------------------------------------------------------------------------------------- captions
def random_captions(n=400):
    rng = np.random.default_rng(0)
    nouns, colours = rng.integers(len(NOUNS), size=n), rng.integers(len(captions.COLOUR_NAMES), size=n)
    kinds = rng.integers(-1, len(defects.SEEN), n)
    made = [
        captions.make_caption(rng, NOUNS[i], captions.COLOUR_NAMES[j], None if k < 0 else defects.SEEN[k])
        for i, j, k in zip(nouns, colours, kinds, strict=True)
    ]
    return made, nouns, colours, kinds


def test_a_caption_is_true_of_its_own_image_and_truth_equals_the_slow_rule():
    made, nouns, colours, kinds = random_captions()
    true = captions.is_true(made, nouns, colours, kinds)
    assert true.diagonal().all() and 0.01 < true.mean() < 0.9
    for i in range(0, len(made), 7):
        noun, colour, kind = NOUNS[nouns[i]], captions.COLOUR_NAMES[colours[i]], None if kinds[i] < 0 else defects.SEEN[kinds[i]]
        for j in range(0, len(made), 5):
            c = made[j]
            expected = noun in c.nouns and c.colour in (None, colour) and c.damaged in (None, kind is not None) and c.kind in (None, kind)
            assert true[i, j] == expected, (c, noun, colour, kind)


def test_captions_say_what_they_claim():
    made, *_ = random_captions()
    flawless = [state.format("").strip() for state in captions.NORMAL]
    for caption in made:
        text = caption.text
        assert (caption.colour or "") in text and len(open_clip.tokenize([text])[0].nonzero()) <= train_clip.CONTEXT + 1
        if caption.damaged is False:
            assert any(words in text for words in flawless)
        if caption.damaged is None:
            assert not any(words in text for words in (*flawless, "damage", "broken", "defective", "with"))
        if caption.kind:
            assert any(words.format("").strip() in text for words in captions.KIND_WORDS[caption.kind]) or caption.kind in text
    assert {c.damaged for c in made} == {True, False, None} and {c.effect for c in made} >= {"", *captions.EFFECTS}


def test_no_caption_names_an_unseen_kind():
    assert set(captions.KIND_WORDS) == set(defects.SEEN) and not set(captions.KIND_WORDS) & defects.UNSEEN
    words = ("dent", "bend", "bent", "misprint", "missing", "swapped", "count")
    assert not [c.text for c in random_captions(1500)[0] if set(c.text.split()) & set(words)]
    with pytest.raises(KeyError):
        for seed in range(200):
            captions.make_caption(np.random.default_rng(seed), "gear", "red", "dent")


def test_state_pairs_differ_in_the_state_alone():
    for seed in range(200):
        pair = captions.state_pair(np.random.default_rng(seed), "gear")
        fits = [
            (n, a)
            for n in captions.NORMAL
            for a in captions.ANOMALOUS
            if n.format("gear") in pair[0] and pair[0].replace(n.format("gear"), "X") == pair[1].replace(a.format("gear"), "X")
        ]
        assert fits, pair


# ---------------------------------------------------------------------------------------------------------- pool, batches
def test_the_pool_holds_pairs_with_seen_defects_alone(small_pool):
    images, labels, cells = pool.open_pool(small_pool.folder)
    assert images[0].shape == (8, 2, 128, 128, 3) and labels.shape == (8, 3) and cells.shape == (8, 16, 16)
    assert len(small_pool.asked) == 8 and set(small_pool.asked) <= set(defects.SEEN)
    assert [defects.SEEN[k] for k in labels[:, 2]] == small_pool.asked
    change = np.abs(images[0][:, 1].astype(int) - images[0][:, 0]).max(3) > 7
    outside = cells.repeat(8, 1).repeat(8, 2) == 0
    assert not change[outside].any() and all((cells[i] > 0).any() for i in range(8))


def test_a_finished_chunk_is_kept_and_a_missing_pool_says_how_to_make_one(small_pool, tmp_path, monkeypatch):
    path = small_pool.folder / "images-000.npy"
    stamp = path.stat().st_mtime_ns
    assert pool.make_chunk(small_pool.folder, 0) == path and path.stat().st_mtime_ns == stamp
    with pytest.raises(FsadError, match="miniatures.pool --folder"):
        pool.open_pool(tmp_path)


def test_batches_depend_on_the_step_alone(small_pool):
    first, second = train_clip.Batches(small_pool.folder, 3), train_clip.Batches(small_pool.folder, 3)
    first(0), first(1)
    a, b, other = first(7), second(7), second(8)
    assert torch.equal(a[0], b[0]) and a[1] == b[1] and (a[2] == b[2]).all() and a[7] == b[7] and torch.equal(a[5], b[5])
    assert [c.text for c in a[1]] != [c.text for c in other[1]]
    x, texts, true, nouns, kinds, cells, local, pairs = a
    assert x.shape == (6, 3, 128, 128) and x.min() >= 0 and x.max() <= 1
    assert true.shape == (6, 6) and true.diagonal().all() and kinds.tolist()[::2] == [-1] * 3
    assert (cells[::2] == 0).all() and len(pairs) == 1 + len(NOUNS) and nouns.max() < len(NOUNS)
    for row, caption in enumerate(texts):
        assert local[row] or caption.effect in ("cropped", "large", "small")


def test_a_model_with_smaller_patches_starts_from_one_with_larger_patches(monkeypatch):
    monkeypatch.setattr(train_clip, "MODEL", TINY_CLIP)
    old, new = train_clip.make_model(128, 16, 2), train_clip.make_model(96, 8, 1)
    with torch.no_grad():
        new.visual.conv1.weight.zero_()  # what is left is the old kernel, resized
    train_clip.grow(new, old.state_dict())
    for name, value in old.state_dict().items():
        if name in new.state_dict() and name not in ("visual.conv1.weight", "visual.positional_embedding"):
            assert torch.equal(value, new.state_dict()[name]), name
    x = torch.rand(1, 3, 1, 1).expand(1, 3, 128, 128)  # on a flat image both see the same in every patch
    torch.testing.assert_close(new.visual.conv1(x[..., :96, :96])[..., :1, :1], old.visual.conv1(x)[..., :1, :1])
    assert train_clip.prepare(torch.rand(2, 3, 128, 128), new).shape == (2, 3, 96, 96) and new.visual(torch.rand(2, 3, 96, 96))[0].shape == (2, 16)


def test_losses_fall_when_image_and_text_agree(small_pool):
    """One batch learned by heart: every one of the five losses falls."""
    model, head = tiny_model().train(), torch.nn.Linear(32, 1 + train_clip.TEACHER_WIDTH)
    teacher = load_backbone(image_size=32, stages=(2,))
    batch = train_clip.Batches(small_pool.folder, 3)(0)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=3e-3)
    values = []
    for _ in range(30):
        parts = train_clip.losses(model, head, batch, None, ranking=1.0, teacher=teacher)
        values.append([float(p.detach()) for p in parts])
        optimizer.zero_grad()
        sum(parts).backward()
        optimizer.step()
    assert all(after < before for before, after in zip(values[0], values[-1], strict=True))


@pytest.mark.parametrize("effect", ["", *captions.EFFECTS])
def test_photo_effects_keep_shape_and_range_and_do_what_they_say(effect):
    x = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    y = train_clip.photo_effect(x, effect, np.random.default_rng(0))
    assert y.shape == x.shape and y.min() >= -1e-6 and y.max() <= 1 + 1e-6
    assert torch.equal(x, y) == (effect == "")
    if effect == "dark":
        assert y.mean() < 0.7 * x.mean()
    if effect == "bright":
        assert y.mean() > x.mean() + 0.1
    if effect == "blurry":
        assert y.diff(dim=2).abs().mean() < 0.5 * x.diff(dim=2).abs().mean()


def test_the_text_tower_with_a_cut_context_equals_the_whole_one():
    model = tiny_model()
    texts = ["a photo of a damaged gear", "flawless object", random_captions(1)[0][0].text]
    with torch.no_grad():
        ids = train_clip.tokenize(texts)
        assert ids.shape[1] < 20
        cut, whole = train_clip.encode_text(model, ids), F.normalize(model.encode_text(open_clip.tokenize(texts)), dim=-1)
    torch.testing.assert_close(cut, whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(CLIP(model).encode_text(texts), whole, atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------- training, export
@pytest.fixture
def scripts(monkeypatch, small_pool):
    """Call a training script's main() with tiny models on the small pool."""
    monkeypatch.setattr(train_clip, "MODEL", TINY_CLIP)
    monkeypatch.setattr(train_vae, "MODEL", TINY_VAE)
    monkeypatch.setattr(train_unet, "MODEL", TINY_UNET)
    monkeypatch.setattr(train_unet, "CHUNK", 8)
    monkeypatch.setattr(train_clip, "development_auroc", lambda model, folder: {"noun_seen": 0.5})
    quality = train_vae.quality
    monkeypatch.setattr(train_vae, "quality", lambda *args: quality(*args, n=2))

    def call(module, out, *words):
        arguments = ["--pool", small_pool.folder, "--out", out, "--amp", "none", *words]
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        module.main()
        return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]

    return call


def test_recolouring_leaves_shapes_and_range_and_the_share_asked_for():
    x = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = train_vae.recolour(x, np.random.default_rng(0), 0.4)
    changed = (y != x).flatten(1).any(1)
    assert y.shape == x.shape and y.abs().max() <= 1 and 0.3 < changed.float().mean() < 0.5
    grey = (y[changed].amax(1) == y[changed].amin(1)).flatten(1).all(1)
    assert 0.25 < grey.float().mean() < 0.55
    assert torch.equal(train_vae.recolour(x, np.random.default_rng(0), 0.0), x)


def test_the_vaes_quality_counts_colour():
    class Plain:
        """Encodes nothing; decodes to the picture itself, or to its grey mean."""

        def __init__(self, grey):
            self.grey = grey

        def encode(self, x):
            return SimpleNamespace(latent_dist=SimpleNamespace(mean=x))

        def decode(self, z):
            return SimpleNamespace(sample=z.mean(1, keepdim=True).expand_as(z) if self.grey else 0.999 * z)

    rng = np.random.default_rng(0)
    images, cells = [rng.integers(0, 255, (4, 2, 128, 128, 3), dtype=np.uint8)], np.ones((4, pool.GRID, pool.GRID))
    kept, lost = (train_vae.quality(Plain(grey), images, cells, n=4) for grey in (False, True))
    assert kept["colour"] == pytest.approx(1, abs=1e-3) and kept["contrast_kept"] == pytest.approx(0.999) and lost["colour"] < 0.01


def test_a_decoder_trained_alone_leaves_every_latent_as_it_was(scripts, tmp_path):
    first = AutoencoderKL(**TINY_VAE)
    first.save_pretrained(tmp_path / "start")
    step = ("--steps", 1, "--batch", 2, "--side", 32, "--decoder-only", "--perceptual", 0.5, "--perceptual-side", 48, "--mini", project_root() / "data/models/mini")
    scripts(train_vae, tmp_path / "vae", *step, "--start", tmp_path / "start")
    after = torch.load(tmp_path / "vae/checkpoint.pt", weights_only=True)["model"]
    moved = {name for name, value in first.state_dict().items() if not torch.equal(value, after[name])}
    assert moved and all(name.startswith(("decoder.", "post_quant_conv.")) for name in moved)
    with pytest.raises(FsadError, match="--start"):
        scripts(train_vae, tmp_path / "none", *step)
    shutil.copytree(tmp_path / "start", tmp_path / "mini/inpainting/vae")
    scripts(train_vae, tmp_path / "vae", "--export", "--mini", tmp_path / "mini")
    shipped = AutoencoderKL.from_pretrained(tmp_path / "mini/inpainting/vae", torch_dtype=torch.float32)
    assert dict(shipped.config) | {"_name_or_path": ""} == dict(AutoencoderKL.from_pretrained(tmp_path / "start").config) | {"_name_or_path": ""}
    for name, value in shipped.state_dict().items():
        torch.testing.assert_close(value, after[name], atol=1e-4, rtol=1e-3, msg=name)


def test_an_anchor_keeps_the_latents_near_where_they_were(scripts, tmp_path):
    torch.manual_seed(0)
    AutoencoderKL(**TINY_VAE).save_pretrained(tmp_path / "start")
    first = AutoencoderKL.from_pretrained(tmp_path / "start")
    x = torch.rand(2, 3, 32, 32) * 2 - 1

    def moved(name, *words):
        scripts(train_vae, tmp_path / name, "--steps", 30, "--batch", 2, "--side", 32, "--lr", 3e-3, "--start", tmp_path / "start", *words)
        now = AutoencoderKL(**TINY_VAE)
        now.load_state_dict(torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"])
        with torch.no_grad():
            return float((now.encode(x).latent_dist.mean - first.encode(x).latent_dist.mean).square().mean())

    free, anchored = moved("free"), moved("anchored", "--anchor", 1000)
    assert 0 < anchored < 0.3 * free
    with pytest.raises(FsadError, match="--start"):
        scripts(train_vae, tmp_path / "none", "--steps", 1, "--anchor", 1)


@pytest.mark.parametrize("side", [None, 48])
def test_lpips_sees_images_of_the_side_asked_for(side, scripts, tmp_path, monkeypatch):
    AutoencoderKL(**TINY_VAE).save_pretrained(tmp_path / "start")
    seen, distance = [], Lpips.distance
    monkeypatch.setattr(Lpips, "distance", lambda self, x, y: seen.extend([x.shape[-1], y.shape[-1]]) or distance(self, x, y))
    more = ("--perceptual-side", side) if side else ()
    mini = project_root() / "data/models/mini"
    scripts(train_vae, tmp_path / "vae", "--steps", 1, "--batch", 2, "--side", 32, "--perceptual", 0.5, "--mini", mini, "--start", tmp_path / "start", *more)
    assert seen == [side or 32] * 2


def test_the_unets_training_says_what_it_starts_from(scripts, tmp_path, capsys):
    with pytest.raises(SystemExit):
        scripts(train_unet, tmp_path / "unet", "--steps", 1)
    assert "--start" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        scripts(train_unet, tmp_path / "unet", "--steps", 1, "--start", tmp_path, "--max-snr", 0)
    assert "--max-snr 0.0" in capsys.readouterr().err


@pytest.mark.parametrize("twins", [1, 2])
def test_the_unet_is_told_of_damage_where_there_is_some(twins):
    labels = np.array([[NOUNS.index("gear"), 0, kind] for kind in range(3)])
    index, damaged, captions, told = train_unet.draw(np.random.default_rng(0), labels, 300, twins)
    assert len(index) == len(damaged) == len(captions) == len(told) == 300 * twins
    assert 0.05 < np.mean([c == "" for c in captions]) < 0.15 and 0.4 < damaged.mean() < 0.6
    assert not told[damaged == 0].any() and 0.65 < told[damaged == 1].mean() < 0.85, "not where a caption is dropped or says nothing of the state"
    states = ("damage", "flaw", "defect", "broken", *(defects.SEEN[kind][:5] for kind in range(3)))
    assert all(any(word in caption for word in states) for caption, yes in zip(captions, told) if yes)
    assert (index[::2] == index[1::2]).all() == (twins == 2)


def test_train_export_and_load_the_whole_chain(scripts, tmp_path, capsys):
    log = scripts(train_clip, tmp_path / "clip", "--steps", 50, "--pairs", 2, "--every", 50, "--freeze-text-at", 50)
    assert [row["step"] for row in log] == [50] and log[0]["noun_seen"] == 0.5 and log[0]["contrastive"] > 0
    frozen = tmp_path / "clip/frozen_text.pt"
    log = scripts(train_vae, tmp_path / "vae", "--steps", 100, "--batch", 2, "--side", 32, "--every", 100)
    assert log[-1]["step"] == 100 and {"psnr", "contrast_kept", "kl"} <= set(log[-1])
    log = scripts(train_unet, tmp_path / "unet", "--steps", 50, "--batch", 2, "--every", 50, "--chunks", 1, "--vae", tmp_path / "vae", "--clip", frozen)
    assert log[-1]["step"] == 50 and 0 < log[-1]["loss"] < 5

    export.export_clip(tmp_path / "clip", tmp_path / "mini/clip")
    export.export_diffusion(tmp_path / "vae", tmp_path / "unet", tmp_path / "mini/diffusion")
    clip = load_clip(tmp_path / "mini/clip")
    trained = torch.load(tmp_path / "clip/checkpoint.pt", weights_only=True)["model"]
    table = clip.model.token_embedding.weight
    torch.testing.assert_close(table, trained["token_embedding.weight"], atol=1e-3, rtol=1e-2)  # shipped rows in float16, the others by rule
    assert (tmp_path / "mini/clip/open_clip_model.safetensors").stat().st_size < 0.3 * 4 * table.numel()
    x = torch.rand(2, 3, 128, 128)
    made = load_diffusion(tmp_path / "mini/diffusion", clip=clip).generate(["a photo of a gear"], num_inference_steps=2)
    assert clip.encode_image(x).isfinite().all() and made.shape == (1, 3, 128, 128) and made.isfinite().all()

    # Training goes on from what was exported; without a step worth the name, the same weights come out, and the VAE stays as it is.
    still = ("--steps", 50, "--every", 50, "--lr", 0)
    scripts(train_clip, tmp_path / "more/clip", *still, "--pairs", 2, "--freeze-text-at", 0, "--start", tmp_path / "mini/clip")
    scripts(train_unet, tmp_path / "more/unet", *still, "--batch", 2, "--chunks", 1, "--defect-weight", 4, "--max-snr", 5, "--unpaired", "--start", tmp_path / "mini")
    before = {p: load_file(p) for p in (tmp_path / "mini").rglob("*.safetensors")}
    export.export_clip(tmp_path / "more/clip", tmp_path / "mini/clip")
    export.export_diffusion(tmp_path / "more/vae", tmp_path / "more/unet", tmp_path / "mini/diffusion")
    for path, old in before.items():
        for name, value in load_file(path).items():
            torch.testing.assert_close(value, old[name], atol=1e-3, rtol=1e-2, msg=f"{path.name} {name}")

    # What was not trained stays to the last byte.
    shutil.rmtree(tmp_path / "more/clip")
    shipped = (tmp_path / "mini/clip/open_clip_model.safetensors").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["export", "--training", str(tmp_path / "more"), "--out", str(tmp_path / "mini")])
        export.main()
    assert (tmp_path / "mini/clip/open_clip_model.safetensors").read_bytes() == shipped


def test_an_interrupted_training_ends_as_if_it_had_not_been(scripts, tmp_path, monkeypatch, capsys):
    words = ("--steps", 100, "--pairs", 2, "--every", 50, "--freeze-text-at", 100)
    scripts(train_clip, tmp_path / "whole", *words)
    with monkeypatch.context() as patch:
        draw = train_clip.Batches.__call__

        def stop(self, step):
            if step == 53:
                raise KeyboardInterrupt
            return draw(self, step)

        patch.setattr(train_clip.Batches, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            scripts(train_clip, tmp_path / "cut", *words)
    log = scripts(train_clip, tmp_path / "cut", *words)
    assert [row["step"] for row in log] == [50, 100]
    whole, cut = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"] for name in ("whole", "cut"))
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_no_shipped_configuration_names_a_place_on_a_disk():
    paths = sorted((project_root() / "data/models/mini").rglob("*.json"))
    assert len(paths) >= 10 and [p.name for p in paths if '": "/' in p.read_text(encoding="utf-8")] == []


def test_both_diffusion_models_have_one_autoencoder_and_it_keeps_looks_and_colours():
    mini = project_root() / "data/models/mini"
    files = [mini / model / "vae" / name for name in ("config.json", "diffusion_pytorch_model.safetensors") for model in ("diffusion", "inpainting")]
    assert files[0].read_bytes() == files[1].read_bytes() and files[2].read_bytes() == files[3].read_bytes()
    scenes = inspect.pairs(1, nouns=["gear", "nut", "plate", "mesh"])
    lpips, diffusion = load_lpips(mini / "lpips"), load_diffusion(mini / "diffusion", load_clip(mini / "clip"))
    back = diffusion.decode(diffusion.posterior(scenes.good)[0])
    blurred = F.interpolate(F.avg_pool2d(scenes.good, 2), scale_factor=2, mode="bilinear")  # twice as coarse, and no coarser than the latents
    assert (lpips.distance(back, scenes.good) < 0.7 * lpips.distance(blurred, scenes.good)).all()
    chroma = train_vae.chroma(scenes.good)
    assert (train_vae.chroma(back) - chroma).square().mean() < 0.1 * (chroma - chroma.mean((2, 3), keepdim=True)).square().mean(), "nine tenths of the colours' variance"


# ---------------------------------------------------------------------------------------------------------------- inspect
@pytest.fixture
def scenes():
    return inspect.pairs(1, nouns=["gear", "wood"])


def test_pairs_are_reproducible_new_designs_with_masks(scenes):
    again = inspect.pairs(1, nouns=["gear", "wood"])
    assert torch.equal(scenes.good, again.good) and scenes.labels.equals(again.labels)
    assert not torch.equal(inspect.pairs(1, nouns=["gear"], seed=1).good, scenes.good[:1])
    outside = ~scenes.mask[:, None].expand_as(scenes.good)
    assert scenes.mask.any((1, 2)).all() and (scenes.bad - scenes.good).abs()[outside].max() < 8 / 255
    held_out = {(r.noun, r.colour) for r in scenes.labels.itertuples()}
    assert all((NOUNS.index(n) + captions.COLOUR_NAMES.index(c)) % 5 == 0 for n, c in held_out)


class Oracle:
    """A CLIP that knows the answers: an image is a one-hot of its noun, its colour and its state, a text the same."""

    logit_scale, image_size = 10.0, 128

    def __init__(self, scenes, wrong=()):
        self.known = {}
        for x, damaged in ((scenes.good, 0.0), (scenes.bad, 1.0)):
            for image, row in zip(x, scenes.labels.itertuples(), strict=True):
                noun = "key" if row.noun in wrong else row.noun
                self.known[image.sum().item()] = self.vector(f"{row.colour} {noun}", damaged)

    def vector(self, text, damaged=None):
        v, words = torch.zeros(len(NOUNS) + 13), set(text.split())
        for i, word in enumerate((*NOUNS, *captions.COLOUR_NAMES)):
            v[i] = word in words
        v[-2], v[-1] = (float("flawless" in words), float("damaged" in words)) if damaged is None else (1 - damaged, damaged)
        return v

    def encode_image(self, x):
        return torch.stack([self.known[image.sum().item()] for image in x])

    def encode_text(self, prompts):
        return torch.stack([self.vector(p) for p in prompts])


def test_recognition_of_a_model_that_knows_is_complete_and_errors_are_named(scenes):
    table = inspect.recognition(Oracle(scenes), scenes)
    assert table["correct"].tolist() == [1.0] * 4 and table["choices"].tolist() == [28, 11, 2, 2]
    table = inspect.recognition(Oracle(scenes, wrong=["wood"]), scenes)
    assert table["correct"].tolist()[:2] == [0.5, 1.0] and table.attrs["confusions"] == ["wood called key (1)"]


def test_p_damaged_is_the_two_way_softmax(scenes):
    clip = CLIP(tiny_model())
    f, g = clip.encode_image(scenes.good), clip.encode_text(["a photo of a flawless gear", "a photo of a damaged gear"])
    expected = torch.softmax(clip.logit_scale * f @ g.T, 1)[:, 1]
    torch.testing.assert_close(inspect.p_damaged(clip, scenes.good, "gear"), expected)
    torch.testing.assert_close(inspect.p_damaged(clip, scenes.good, ["gear", "object"])[:1], expected[:1])


def test_state_table_equals_the_number_that_training_logged(tmp_path, monkeypatch):
    for name, value in (("TRAIN_GOOD", 1), ("TEST_GOOD", 4), ("PER_KIND", 1)):
        monkeypatch.setattr(minifab, name, value)
    monkeypatch.setitem(minifab.CATEGORIES, "development", ["nut"])
    model = tiny_model()
    logged = train_clip.development_auroc(model, tmp_path / "minifab_dev")
    table = inspect.state_table(CLIP(model), tmp_path)
    assert table.index.tolist() == ["nut", "mean"]
    for name in table:
        assert table.loc["mean", name] == pytest.approx(logged[name], abs=1e-6)


class Copier:
    """A diffusion model whose autoencoder keeps the share `keep` of an image; an edit darkens by its strength."""

    device = "cpu"

    def __init__(self, keep=1.0):
        self.keep = keep

    def posterior(self, x):
        return self.keep * x, torch.zeros_like(x)

    def decode(self, z):
        return z

    def sdedit(self, x, prompts, *, strength, **settings):
        return x * (1 - strength)


def test_round_trip_measures_psnr_and_the_contrast_kept(scenes):
    same = inspect.round_trip(Copier(), scenes)
    assert same.psnr > 100 and torch.allclose(same.kept, torch.ones(2), atol=1e-5)
    half = inspect.round_trip(Copier(0.5), scenes)
    mse = torch.cat([scenes.good, scenes.bad]).div(2).square().mean()
    assert torch.allclose(half.kept, torch.full((2,), 0.5), atol=1e-5) and half.together == pytest.approx(0.5, abs=1e-5)
    assert half.psnr == pytest.approx(float(-10 * mse.log10()), abs=1e-3)


def test_edits_report_each_strength(scenes):
    clip, nouns = CLIP(tiny_model()), scenes.labels["noun"].tolist()
    settings = {"guidance_scale": 4.0, "num_inference_steps": 2}
    made, table = inspect.edits(clip, Copier(), scenes.good, nouns, ["a photo with damage"] * 2, [0.25, 0.5], **settings)
    assert list(made) == [0.25, 0.5] and table["strength"].tolist() == ["original", 0.25, 0.5]
    assert table["changed"].tolist() == pytest.approx([0, *(s * float(scenes.good.mean()) for s in (0.25, 0.5))], rel=1e-4)
    with pytest.raises(FsadError, match="2 images, 1 nouns"):
        inspect.edits(clip, Copier(), scenes.good, ["gear"], ["x"] * 2, [0.5], **settings)


class Large(Copier):
    """The same as a model of 256 pixels would do it."""

    def posterior(self, x):
        return super().posterior(resize(x, 256))

    def sdedit(self, x, prompts, **settings):
        return super().sdedit(resize(x, 256), prompts, **settings)


def test_larger_models_are_asked_about_the_same_scenes(scenes):
    trip = inspect.round_trip(Large(), scenes)
    assert trip.decoded_good.shape == scenes.good.shape and trip.psnr > 25
    made, _ = inspect.edits(
        CLIP(tiny_model()), Large(), scenes.good, ["gear", "wood"], ["x"] * 2, [0.5], guidance_scale=1.0, num_inference_steps=2
    )
    assert (made[0.5] - scenes.good / 2).abs().mean() < 0.02


def test_the_students_took_over_more_than_untrained_networks_have():
    scenes = inspect.pairs(1, nouns=["gear", "wood", "board", "nut"])  # of few scenes even random networks' maps are alike
    table, apart = inspect.students(load_profile("mini"), scenes)
    assert table["network"].tolist() == ["resnet18"] * 3 + ["patch network"]
    assert (table["alike"] > table["untrained"] + 0.1).all() and (table["alike"] < 1).all()
    for name, maps in apart.items():
        inside = [d[m].mean() / d[~m].mean() for d, m in zip(inspect.at_side(maps, 128), scenes.mask, strict=True)]
        assert min(inside) > 3, name


def test_what_a_profile_lacks_is_said():
    assert inspect.missing(load_profile("mini"), "vqgan") == ""
    said = inspect.missing(load_profile("mini", {"vqgan.checkpoint": "nowhere"}), "vqgan")
    assert said.startswith("Passed over") and "nowhere" in said


def test_logs_are_read_once_a_step_and_hours_estimated(tmp_path):
    rows = [{"step": 50, "loss": 1.0, "samples_per_s": 16}, {"step": 100, "loss": 9.0, "samples_per_s": 1}, {"step": 100, "loss": 0.5, "samples_per_s": 32}]
    (tmp_path / "unet.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    logs = inspect.read_logs(tmp_path)
    assert list(logs) == ["unet"] and logs["unet"]["loss"].tolist() == [1.0, 0.5]
    table = inspect.training_table(logs)
    assert table.loc["unet", "samples"] == 3200 and table.loc["unet", "hours"] == round((50 * 32 / 16 + 50 * 32 / 32) / 3600, 2)
    assert len(inspect.training_curves(logs).axes) == 1
    (tmp_path / "unet.jsonl").write_text("oops\n")
    with pytest.raises(FsadError, match="unet.jsonl is not a training log"):
        inspect.read_logs(tmp_path)
    with pytest.raises(FsadError, match="no training log"):
        inspect.training_curves({})


def test_commands_come_from_the_card(tmp_path):
    (tmp_path / "README.md").write_text("# Card\n\n```bash\npython -m a\npython -m b\n```\n\n```\nother\n```\n")
    assert inspect.read_commands(tmp_path / "README.md") == "python -m a\npython -m b"
    assert inspect.read_commands(tmp_path / "nowhere.md") == ""


def test_the_miniatures_are_as_large_as_their_card_says():
    folder = project_root() / "data/models/mini"
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    told = int(re.search(r"Together they take (\d+) MiB \(no file above 16\)", (folder / "README.md").read_text())[1])
    assert round(sum(sizes) / 2**20) == told and max(sizes) <= 16 * 2**20

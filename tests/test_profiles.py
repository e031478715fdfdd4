"""Profiles: strict keys and values, overrides, missing checkpoints."""

import pytest
import torch

from fsad_lib.errors import FsadError
from fsad_lib.profiles import (
    damaged_checkpoints,
    load_profile,
    missing_checkpoints,
    names,
    parse_overrides,
    sections,
)


def test_profiles_have_the_same_keys_and_differ_in_values():
    mini, paper = (load_profile(name).model_dump() for name in names())
    assert {k: set(v) if isinstance(v, dict) else 0 for k, v in mini.items()} == {
        k: set(v) if isinstance(v, dict) else 0 for k, v in paper.items()
    }
    assert mini["clip"]["checkpoint"] != paper["clip"]["checkpoint"]


@pytest.mark.parametrize(
    "overrides, word",
    [
        ("adp.alfa=1", "adp.alpha"),
        ("alpha=1", "no key"),
        ("adp.alpha=x", "valid number"),
        ("adp.gamma=2", "less than or equal"),
        ("adp.batch_size=0", "greater than 0"),
        ("adp.batch_size=2.5", "integer"),
        ("adp.alpha", "key=value"),
        ("adp.alpha=1,adp.alpha=2", "twice"),
        ("adp.crop_scale=[0.5]", "crop_scale"),
        ({"adp.alpha": None}, "valid number"),
        ("name=other", "no key"),
        ("adp.alpha=.inf", "adp.alpha: found inf; input should be a finite number"),
        ("winclip.tau=.nan", "winclip.tau: found nan"),
        ("tgvig.weights=[1,1,.inf]", "tgvig.weights.2: found inf"),
        ("adp.crop_scale=[0.9,0.1]", "adp.crop_scale: found .0.9, 0.1.; expected the least share first"),
        ("anomalysd.area=[0.5,0.05]", "anomalysd.area: .*least share first"),
        ("adp.strength=0.01", "num_inference_steps: found 20; at strength 0.01 that is less than one step: raise it to at least 100, .* least 0.05"),
        ("anomalysd.strength=0.1", "anomalysd.num_inference_steps: found 5; .*less than one step"),
        ("tgvig.diffusion_steps=3", "tgvig.diffusion_steps: found 3; .*less than one step"),
        ("anomalysd.scales=[2,2]", "anomalysd.scales: .*different numbers"),
        ("anomalysd.scales=[2,200]", "anomalysd: found scales of 200 cells a side; expected at most 128"),
        ("winclip.scales=[]", "winclip.scales: .*at least 1 item"),
        ("adp.prompts_tuning=[]", "adp.prompts_tuning: .*at least 1 item"),
        ("adp.alpha=true", "adp.alpha: found True; true and false .* no value"),
        ("adp.steps_ti=true", "adp.steps_ti: found True; true and false"),
        ("adp.crop_scale=[0.5,yes]", "adp.crop_scale: found .0.5, True.; true and false"),
        ("tgvig.shift=no", "tgvig.shift: found False; true and false"),
        (f"adp.n_pseudo={10**30}", "adp.n_pseudo: found 10*; input should be less than or equal to 10000000"),
        ("adp.steps_ti=10000001", "adp.steps_ti: .*less than or equal to 10000000"),
        (f"adp.alpha=0x{'f' * 5000}", "adp.alpha: found a number of thousands of digits"),
        ("adp.prompts_pseudo=[a photo of a <c_a>]", "adp.prompts_pseudo: .*the learned word <c_a> does not exist .*none of the form"),
        ("adp.prompts_tuning=[a <c_b> beside a <c_a>]", "adp.prompts_tuning: .*the learned word <c_b> does not exist .*only <ti>, <c_n>, <c_a>"),
    ],
)
def test_bad_overrides_say_what_is_wrong(overrides, word):
    with pytest.raises(FsadError, match=word):
        load_profile("mini", overrides)


@pytest.mark.parametrize(
    "value", ["[1", "9999-99-99", "0b_", "!!bool x", "!!int ''", "!!float ''", "!!timestamp x", "9" * 5000, "[" * 3000], ids=lambda value: value[:12]
)
def test_what_yaml_cannot_read_is_named_and_cut(value):
    with pytest.raises(FsadError, match="the value of 'adp.alpha' is not valid YAML: ") as caught:
        parse_overrides(f"adp.alpha={value}")
    assert len(str(caught.value)) < 300


def test_a_long_key_is_cut():
    with pytest.raises(FsadError, match="no key 'xx") as caught:
        load_profile("mini", f"{'x' * 5000}=1")
    assert len(str(caught.value)) < 6000, "the valid keys, and not the key found"
    with pytest.raises(FsadError, match="expected key=value") as caught:
        parse_overrides("x" * 5000)
    assert len(str(caught.value)) < 300


def test_truth_values_stand_where_they_are_asked_for():
    profile = load_profile("mini", "anomalysd.packed=false,tgvig.gradient_checkpointing=yes")
    assert profile.anomalysd.packed is False and profile.tgvig.gradient_checkpointing is True


def test_placeholders_are_told_as_the_text_encoder_does():
    from fsad_lib import profiles
    from fsad_lib.adp.stages import WORDS
    from fsad_lib.foundation.tokens import PLACEHOLDER

    assert profiles._PLACEHOLDER.pattern == PLACEHOLDER.pattern
    assert set(profiles._CONCEPTS) == set(WORDS.values()) - {"object"}
    assert load_profile("mini", "adp.prompts_tuning=[a damaged <c_n>, a < b]").adp.prompts_tuning == ("a damaged <c_n>", "a < b")


def test_overrides_keep_commas_inside_values():
    text = 'adp.prompts_pseudo=["a photo, with damage"],adp.tau=0.2'
    assert load_profile("mini", text).adp.prompts_pseudo == ("a photo, with damage",)
    assert parse_overrides("") == {}


def test_unknown_profile():
    with pytest.raises(FsadError, match="Did you mean 'mini'"):
        load_profile("mimi")


def test_a_profile_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        load_profile("mini").adp.alpha = 3


def test_every_missing_checkpoint_is_named_with_source_and_place(tmp_path, monkeypatch):
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    with pytest.raises(FsadError) as caught:
        missing_checkpoints(load_profile("paper"))
    text = str(caught.value)
    for part in ("laion/CLIP-ViT-H-14", "vit_base_patch16_plus", "sd2-community", "unet/config.json", str(tmp_path)):
        assert part in text
    assert "text_encoder" in text, "paper never borrows the CLIP text tower"


def test_nothing_is_missing_when_the_files_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    root = tmp_path / "data/models/mini"
    fake_models(root)
    missing_checkpoints(load_profile("mini"))
    (root / "diffusion/unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FsadError, match="unet"):
        missing_checkpoints(load_profile("mini"))


HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
WHOLE = len(HEADER).to_bytes(8, "little") + HEADER + bytes(8)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("unet/diffusion_pytorch_model.safetensors", WHOLE[:-1], "no whole safetensors file"),
        ("unet/diffusion_pytorch_model.safetensors", WHOLE[:20], "no whole safetensors file"),
        ("unet/diffusion_pytorch_model.safetensors", b"", "no whole safetensors file"),
        ("unet/diffusion_pytorch_model.safetensors", b"\x80\x04\x95\x0b" + bytes(90), "no whole safetensors file"),
        ("vae/diffusion_pytorch_model.safetensors", b"version https://git-lfs.github.com/spec/v1", "git LFS"),
        ("vae/diffusion_pytorch_model.safetensors", b"\3" + bytes(7) + b"[1]", "no whole safetensors file"),
        ("unet/diffusion_pytorch_model.safetensors.index.json", b'{"weight_map": {"a": "model-1.safetensors"}}', "model-1.safetensors are missing"),
        ("unet/config.json", b"[1]", "not a JSON object"),
        ("scheduler/scheduler_config.json", b"<html>", "not what its name says"),
        ("safety_checker/model.safetensors", b"", ""),
        ("unet/diffusion_pytorch_model.fp16.safetensors", b"", ""),  # the whole one stands beside it
    ],
)
def test_a_damaged_checkpoint_is_named(name, content, word, tmp_path, monkeypatch):
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    fake_models(root := tmp_path / "data/models/mini")
    for file in root.rglob("*.safetensors"):
        file.write_bytes(WHOLE)
    damaged_checkpoints(profile := load_profile("mini"))
    (root / "diffusion" / name).parent.mkdir(exist_ok=True)
    (root / "diffusion" / name).write_bytes(content)
    if not word:
        return damaged_checkpoints(profile)
    with pytest.raises(FsadError) as caught:
        damaged_checkpoints(profile)
    assert f"diffusion/{name}: " in str(caught.value) and word in str(caught.value) and "get them again" in str(caught.value)


def test_a_pickle_cut_short_is_named(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "w.bin")
    profile = load_profile("mini", {"clip.checkpoint": str(tmp_path / "w.bin")})
    damaged_checkpoints(profile, ("clip",))
    (tmp_path / "w.bin").write_bytes((tmp_path / "w.bin").read_bytes()[:-500])
    with pytest.raises(FsadError, match="the beginning of a file only"):
        damaged_checkpoints(profile, ("clip",))


@pytest.mark.parametrize("method", ["adp", "anomalysd", "tgvig"])
def test_the_miniatures_are_whole(method):
    profile = load_profile("mini")
    damaged_checkpoints(profile, sections(method, profile))


def fake_models(root):
    names = ["clip/open_clip_config.json", "clip/open_clip_model.safetensors", "diffusion/model_index.json"]
    names += ["diffusion/scheduler/scheduler_config.json"]  # no text encoder, no tokenizer: CLIP has them
    names += [f"diffusion/{p}/{f}" for p in ("vae", "unet") for f in ("config.json", "diffusion_pytorch_model.safetensors")]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"{}")


def test_a_strength_of_one_step_and_equal_ends_of_a_range_will_do():
    profile = load_profile("mini", "adp.strength=0.05,adp.crop_scale=[1,1]")
    assert profile.adp.strength == 0.05 and profile.adp.crop_scale == (1.0, 1.0)


def test_the_home_directory_in_a_checkpoint_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_profile("mini", "clip.checkpoint=~/my/clip").path("clip") == tmp_path / "my/clip"
    assert load_profile("mini", {"models_root": "~/models"}).path("clip") == tmp_path / "models/clip"


def test_what_no_loader_reads_changes_no_hash(tmp_path):
    from fsad_lib import runs

    for name in ("unet/diffusion_pytorch_model.safetensors", "unet/config.json", "tokenizer/merges.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    before = runs._model_hash("diffusion", tmp_path)
    assert [name for name, _ in before] == ["tokenizer/merges.txt", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    (tmp_path / "README.md").write_text("read me")
    (tmp_path / "v2-1_768-ema-pruned.ckpt").write_text("the same weights in another format")
    assert runs._model_hash("diffusion", tmp_path) == before
    (tmp_path / "tokenizer/merges.txt").write_text("y")
    assert runs._model_hash("diffusion", tmp_path) != before
    (tmp_path / "pictures/web_image").mkdir(parents=True)
    (tmp_path / "pictures/web_image/gear.png").write_text("a picture")
    (tmp_path / "pictures/sources.txt").write_text("where it is from")
    assert {name for name, _ in runs._model_hash("outside", tmp_path / "pictures")} == {"web_image/gear.png", "sources.txt"}


def test_a_backbone_that_timm_does_not_know_is_named_before_training():
    from fsad_lib.profiles import missing_checkpoints

    with pytest.raises(FsadError, match="backbone.name: timm knows no model 'resnet999'; did you mean"):
        missing_checkpoints(load_profile("mini", "backbone.name=resnet999"))
    with pytest.raises(FsadError, match="backbone.name: no checkpoint for resnet18"):
        missing_checkpoints(load_profile("mini", "backbone.name=resnet18"))
    missing_checkpoints(load_profile("mini"))


@pytest.mark.parametrize("key", ["diffusion.image_size", "inpainting.image_size", "vqgan.image_size", "backbone.image_size", "baselines.efficientad_image_size"])
def test_a_side_that_no_memory_holds_is_refused(key):
    with pytest.raises(FsadError, match=key.replace(".", r"\.") + ".*4096"):
        load_profile("mini", f"{key}=31968")

"""The benchmarks stay runnable, and the configurations in them are those of the published models."""

import argparse
import importlib.util
from pathlib import Path

import open_clip
import pytest
import tiny_models as tiny
import torch

from fsad_lib import runs
from fsad_lib.adp import stages
from fsad_lib.foundation.clip import _read_once, load_clip

FOLDER = Path(__file__).parents[1] / "benchmarks"
PUBLISHED = {
    "CLIP ViT-H-14": 986_109_441, "CLIP ViT-B-16-plus-240": 208_377_345, "SD 2.1 text encoder": 340_387_840,
    "SD 2.1 U-Net": 865_910_724, "SD 2.1 VAE": 83_653_863, "SD 1.5 inpainting text encoder": 123_060_480,
    "SD 1.5 inpainting U-Net": 859_535_364, "SD 1.5 inpainting VAE": 83_653_863, "CLIP ViT-B-16-quickgelu": 149_620_737,
    "resnet18": 11_689_512,
}  # fmt: skip
"""Parameters as open_clip's and timm's tables and the model cards of Stable Diffusion give them."""


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def paper_sizes():
    return load("paper_sizes")


def test_true_sizes(paper_sizes):
    every = {what: part for method in paper_sizes.STAGES for what, part in paper_sizes.parts(method).items()}
    found = {what: paper_sizes.count(make) for what, (_, _, make) in every.items()}
    assert {what: found[what] for what in PUBLISHED} == PUBLISHED and found.keys() - PUBLISHED.keys() == {"VQGAN", "inception_v3"}


@pytest.fixture
def shrunk(paper_sizes, monkeypatch, tmp_path):
    """The same script over tiny configurations."""
    small = dict(block_out_channels=[32, 32], layers_per_block=1)
    for unet in ("UNET", "UNET_15"):
        monkeypatch.setattr(paper_sizes, unet, getattr(paper_sizes, unet) | small | dict(
            sample_size=8, attention_head_dim=8, cross_attention_dim=tiny.WIDTH,
            down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        ))  # fmt: skip
    monkeypatch.setattr(paper_sizes, "VAE", paper_sizes.VAE | small | dict(
        sample_size=16, down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    ))  # fmt: skip
    for text in ("TEXT", "TEXT_15"):
        monkeypatch.setattr(paper_sizes, text, getattr(paper_sizes, text) | dict(
            hidden_size=tiny.WIDTH, intermediate_size=4 * tiny.WIDTH, num_hidden_layers=2, num_attention_heads=2,
        ))  # fmt: skip
    monkeypatch.setattr(paper_sizes, "VQ", paper_sizes.VQ | dict(
        block_out_channels=[32, 32, 64], layers_per_block=1, latent_channels=8, vq_embed_dim=8, num_vq_embeddings=32,
        down_block_types=["DownEncoderBlock2D"] * 2 + ["AttnDownEncoderBlock2D"], up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 2,
    ))  # fmt: skip
    for name in ("ViT-H-14", "ViT-B-16-plus-240", "ViT-B-16-quickgelu"):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, tiny.ARCHITECTURE | {"quick_gelu": "quick" in name})
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    _read_once.cache_clear(), stages._diffusion.cache_clear(), runs.forget_inputs()
    yield paper_sizes
    _read_once.cache_clear(), stages._diffusion.cache_clear(), runs.forget_inputs()


@pytest.mark.parametrize("method", ["adp", "anomalysd", "tgvig"])
def test_every_stage_runs_on_what_the_script_writes(shrunk, tmp_path, method):
    shrunk.write_checkpoints(tmp_path / "models", torch.float16, method)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "models").rglob("*") if file.suffix in (".safetensors", ".ckpt")}
    assert len(before) == len(shrunk.parts(method))
    shrunk.write_checkpoints(tmp_path / "models", torch.float16, method)
    assert before == {file: file.stat().st_mtime_ns for file in before}, "what is written stays"
    args = argparse.Namespace(
        folder=tmp_path / "models", method=method, device="cpu", image_size=16 if method == "adp" else 32, steps=1, batch_size=1,
        templates=2, precision="float32",
    )
    for stage in shrunk.STAGES[method]:
        measured = shrunk.run_stage(stage, args)
        assert measured["seconds"] > 0 and measured["rss_gib"] > 0 and measured["parameters"] > 10_000


SMALL_UNET = dict(
    block_out_channels=[32, 32], layers_per_block=1, sample_size=8, attention_head_dim=8, cross_attention_dim=16,
    down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
)  # fmt: skip


def test_memory_budget_counts_weights_gradients_and_adamw(monkeypatch):
    """At the least what the parameters, their gradients and AdamW's two moments take, four bytes a number; more for a larger image."""
    monkeypatch.syspath_prepend(FOLDER)
    budget = load("memory_budget")
    config = budget.UNET_15 | SMALL_UNET
    weights = 4 * sum(p.numel() for p in budget._unet(config).parameters()) / 2**30
    small, large = (budget.peak(False, side, 1, config) for side in (8, 64))
    assert small["Parameter"] == pytest.approx(weights, rel=0.02) and small["Total"] > 3.5 * weights
    assert large["Total"] > 2 * small["Total"], "activations of a larger image"
    assert budget.peak(True, 64, 1, config)["Total"] < large["Total"], "checkpointing keeps fewer of them"
    assert budget.flops(16, config) > 3.5 * budget.flops(8, config) > 0, "four times the pixels"
    assert budget.peak(False, 8, 1, config, foreach=True)["Total"] > small["Total"], "a copy of what AdamW works on"
    passes = 1 + 4 + 16 + 64 + 1  # the cells of scales 1, 2, 4, 8, and the prototype-guided region
    assert budget.cost() == (passes, passes * 20 * 2, passes + 1, passes), "20 steps of 50, with guidance; a twin for every mask"


def test_tgvig_s_iteration_grows_with_both_numbers_of_images(monkeypatch):
    from diffusers import VQModel

    monkeypatch.syspath_prepend(FOLDER)
    budget = load("memory_budget")
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}

    def cost(augmented, images, checkpointing=False, side=64):
        return budget.iteration(augmented, images, checkpointing, side, lambda: VQModel(block_out_channels=(8, 8), norm_num_groups=4, **blocks), clip=None)

    few, augmented, images = cost(2, 2), cost(4, 2), cost(2, 4)
    weights = 4 * sum(p.numel() for part in (budget.VggLpips(), budget.PatchDiscriminator()) for p in part.parameters()) / 2**30
    assert few[0] > weights and few[1] < images[1] < augmented[1], "an augmented image is encoded and judged, too"
    assert few[0] < augmented[0] and cost(2, 2, side=128)[0] > few[0]
    assert cost(2, 2, True)[1] > few[1], "activations are computed twice"


def test_a_words_step_keeps_less_with_checkpointing_and_computes_more(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    budget = load("memory_budget")
    config = budget.UNET | SMALL_UNET
    (plain, work), (kept, more) = (budget.concept_step(on, 4, 64, config, layers=1, clip=None) for on in (False, True))
    held = 4 * sum(p.numel() for p in [*budget._unet(config).parameters(), *budget._vae().parameters()]) / 2**30
    assert held < kept < plain and more > work > 0
    assert budget.concept_step(False, 8, 64, config, layers=1, clip=None)[0] > plain


def test_live_counts_a_tensor_while_it_lives(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    budget, held = load("memory_budget"), torch.zeros(100)
    with budget.Live([held, held]) as live:
        assert live.now == 400
        x = torch.ones(1000)
        view = x[:10]
        assert live.now == 4400
        del x
        assert live.now == 4400, "a view keeps it"
        del view
        y = torch.ones(10)
    assert live.now == 440 and live.peak == 4400 and len(y) == 10


def test_a_perfect_twin_of_a_good_image_is_its_round_trip_and_of_a_damaged_one_finds_the_damage():
    from fsad_lib.anomalysd.detector import AnomalySD, Category, Settings
    from fsad_lib.foundation.inpainting import load_inpainting
    from fsad_lib.foundation.miniatures.inspect import pairs
    from fsad_lib.foundation.perceptual import load_lpips

    limit, mini = load("repainting_limit"), FOLDER.parent / "data/models/mini"
    model = load_inpainting(mini / "inpainting", load_clip(mini / "clip"))
    settings = Settings(strength=0.6, scales=(2,), alpha=0.0, num_inference_steps=2, merged=True, packed=True)
    detector = AnomalySD(model, load_lpips(mini / "lpips"), {"nut": Category("A perfect nut.")}, settings)
    scene = pairs(1, nouns=["nut"])
    same = limit.maps(detector, scene.good, scene.good, "nut")
    assert torch.equal(same["perfect"], same["none"]) and not torch.equal(same["its own"], same["none"])
    found = limit.maps(detector, scene.bad, scene.good, "nut")
    assert found["perfect"][scene.mask].mean() > 1.1 * found["none"][scene.mask].mean(), "the damage is not in the twin"
    path = Path("nut/test/good/000.png")
    assert limit.flawless(path, "nut", scene.good) is scene.good
    assert limit.flawless(Path("nut/test/stain/001.png"), "nut", scene.good).shape == (1, 3, 128, 128)

"""The mini VQGAN's training: the codebook's care, a step, resuming, export in both layouts."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_vqgan import tiny_vqgan

from fsad_lib.errors import FsadError
from fsad_lib.foundation import vqgan as v
from fsad_lib.foundation.miniatures import train_vqgan as t

LPIPS = Path(__file__).parents[1] / "data/models/mini"


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Three scenes: smooth colours, the defective twin with a dark bar."""
    folder = tmp_path_factory.mktemp("pool")
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, 128)
    good = np.stack([(60 + 120 * (rng.random(3) * ramp[:, None, None] + rng.random(3) * ramp[None, :, None]) / 2).astype(np.uint8) for _ in range(3)])
    bad = good.copy()
    bad[:, 40:48, 30:90] = 10
    cells = np.zeros((3, 16, 16), np.float16)
    cells[:, 5, 4:11] = 1
    np.save(folder / "images-000.npy", np.stack([good, bad], 1))
    np.save(folder / "labels-000.npy", np.zeros((3, 3), np.int64))
    np.save(folder / "cells-000.npy", cells)
    return folder


@pytest.fixture
def run(pool, monkeypatch):
    def call(out, *options):
        monkeypatch.setattr(sys, "argv", ["train_vqgan", "--out", str(out), "--mini", str(LPIPS), *(["--pool", str(pool)] if "--export" not in options else []), *options])
        t.main()
        return torch.load(out / "checkpoint.pt", weights_only=True) if "--export" not in options else None

    return call


SHORT = ["--steps", "6", "--warm-up", "2", "--judge-from", "0.5", "--batch", "2", "--side", "64", "--factor", "8", "--codes", "64", "--amp", "none"]


def test_training_resumes_to_the_same_weights_and_exports(run, tmp_path, pool, monkeypatch):
    whole = run(tmp_path / "a", *SHORT)
    run(tmp_path / "b", *SHORT, "--until", "4")
    state = run(tmp_path / "b", *SHORT)
    assert state["step"] == 6
    for part in ("model", "average", "discriminator"):
        assert all(torch.equal(whole[part][k], state[part][k]) for k in whole[part]), part
    row = json.loads((tmp_path / "a/log.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 6 and {"psnr", "psnr_without_codes", "lpips", "perplexity", "discriminator", "codebook"} <= set(row)
    assert 1 <= row["perplexity"] <= 64

    with pytest.raises(FsadError, match="factor 8 and 64 codes"):
        run(tmp_path / "a", *SHORT[:-4], "--codes", "32")
    out = t.export(tmp_path / "a", tmp_path / "mini")
    loaded = v.load_vqgan(out, LPIPS / "lpips")
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    exact = v.VQGAN(t.make_model(8, 64).eval())
    exact.model.load_state_dict({k: w.half().float() for k, w in whole["average"].items()})
    assert torch.equal(loaded.reconstruct(x), exact.reconstruct(x)) and loaded.factor == 8
    # the paper's layout gives the same images
    assert torch.equal(v.load_vqgan(v.export_taming(loaded, tmp_path / "paper")).reconstruct(x), loaded.reconstruct(x))


@pytest.mark.parametrize("factor", [4, 8])
def test_the_miniature_is_small(factor, tmp_path):
    v.save_vqgan(v.VQGAN(t.make_model(factor), v.PatchDiscriminator(**t.JUDGE)), tmp_path)
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 3_200_000
    with torch.no_grad():
        z = t.make_model(factor).encode(torch.zeros(1, 3, 128, 128)).latents
    assert z.shape == (1, 8, 128 // factor, 128 // factor)


def test_dead_codes_become_latents_and_living_ones_stay():
    model = t.make_model(8, 8)
    book = t.Codebook(model, keep=0.5)
    before = model.quantize.embedding.weight.detach().clone()
    for _ in range(20):
        book.count(torch.tensor([[[0, 1], [2, 3]]]))
    assert torch.allclose(book.usage, torch.tensor([0.25] * 4 + [0.0] * 4), atol=1e-4)
    z = torch.randn(2, 8, 3, 3)
    assert book.renew(z, np.random.default_rng(0), 0.05) == 4
    after = model.quantize.embedding.weight.detach()
    cells = {tuple(c.tolist()) for c in z.permute(0, 2, 3, 1).reshape(-1, 8)}
    assert torch.equal(after[:4], before[:4]) and all(tuple(c.tolist()) in cells for c in after[4:])
    assert book.renew(z, np.random.default_rng(0), 0.05) == 0, "they get time to be used"


def test_steps_lower_the_loss_with_and_without_the_codebook():
    vqgan = tiny_vqgan(seed=2)  # its codes suit the images: with others the codebook alone decides how far the loss can fall
    vqgan.perceptual = None
    x = torch.rand(4, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(4, 3, 32, 32).contiguous()
    optimizers = {"model": torch.optim.Adam(vqgan.model.parameters(), 1e-3), "discriminator": torch.optim.Adam(vqgan.discriminator.parameters(), 1e-3)}
    for quantize in (False, True):
        losses = [t.train_step(vqgan, optimizers, x, v.LossWeights(0, 1, 0), quantize)[0]["absolute"] for _ in range(40)]
        assert losses[-1] < 0.8 * losses[0]
    judge = {k: w.clone() for k, w in vqgan.discriminator.state_dict().items()}
    parts, z, index = t.train_step(vqgan, optimizers, x, v.LossWeights(0, 1, 0.2))
    assert {"adversarial", "discriminator"} <= set(parts) and index.shape == (4, 8, 8) and z.shape == (4, 5, 8, 8)
    assert not torch.equal(judge["main.0.weight"], vqgan.discriminator.main[0].weight)


def test_pool_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["x", "--out", str(tmp_path), "--mini", str(LPIPS)])
    with pytest.raises(FsadError, match="--pool is missing"):
        t.main()

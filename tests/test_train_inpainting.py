"""The mini inpainting U-Net's training: where it starts, what it sees, its export in both layouts."""

import json

import numpy as np
import pytest
import tiny_inpainting as tiny
import tiny_models
import torch

from fsad_lib.datasets.minifab.designs import NOUNS
from fsad_lib.errors import FsadError
from fsad_lib.foundation.diffusion import generator
from fsad_lib.foundation.inpainting import load_inpainting
from fsad_lib.foundation.miniatures import inspect
from fsad_lib.foundation.miniatures import train_inpainting as t


def test_a_twin_of_the_same_width_starts_as_the_same_function():
    torch.manual_seed(0)
    narrow = tiny.unet(channels=4).eval()
    wide = t.nine_channels(narrow).eval()
    z, more, text = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 16, 16), torch.randn(2, 77, tiny_models.WIDTH)
    with torch.no_grad():
        expected = narrow(z, 300, encoder_hidden_states=text).sample
        got = wide(torch.cat([z, more], 1), 300, encoder_hidden_states=text).sample
    assert torch.allclose(got, expected, atol=1e-6)


def test_a_narrower_twin_copies_what_fits_and_shares_its_start():
    source = tiny.unet(channels=4)
    twin, again = t.nine_channels(source, (16, 24)), t.nine_channels(source, (16, 24))
    assert sum(p.numel() for p in twin.parameters()) < sum(p.numel() for p in source.parameters())
    theirs, copied = dict(source.state_dict()), []
    for name, value in twin.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), "the random part repeats"
        if name != "conv_in.weight" and theirs[name].shape == value.shape:
            copied.append(name)
            assert torch.equal(value, theirs[name])
    assert "conv_out.weight" in copied and "mid_block.resnets.0.conv1.weight" not in copied
    assert torch.equal(twin.conv_in.weight[:, :4], source.conv_in.weight) and not twin.conv_in.weight[:, 4:].any()


def test_masks_are_of_every_kind_and_never_empty():
    masks = [t.random_mask(np.random.default_rng(i), 64) for i in range(300)]
    share = np.array([m.mean() for m in masks])
    assert share.min() > 0 and (share == 1).any() and (share < 0.05).any() and 0.1 < np.median(share) < 0.4


def test_captions_hold_both_levels_and_no_damage():
    rng = np.random.default_rng(0)
    texts = [t.caption(rng, noun, "red") for noun in NOUNS for _ in range(20)]
    assert "" in texts and "A perfect gear." in texts and any("with intact teeth" in text for text in texts)
    assert "A perfect object." in texts
    assert not any(word in text for text in texts for word in ("damaged", "with damage", "broken", "scratch"))


@pytest.fixture
def pool(tmp_path):
    """Four scenes whose photographs are plain: good 50, defective 200."""
    images = np.stack([np.full((4, 32, 32, 3), value, np.uint8) for value in (50, 200)], 1)
    folder = tmp_path / "pool"
    folder.mkdir()
    np.save(folder / "images-000.npy", images)
    np.save(folder / "labels-000.npy", np.zeros((4, 3), np.int64))
    np.save(folder / "cells-000.npy", np.zeros((4, 16, 16), np.float16))
    return folder


def test_the_answer_under_the_mask_is_always_good(pool, tmp_path):
    model = tiny.model()
    model.vae.quant_conv.weight[4:] = 0  # log variances: next to no noise
    model.vae.quant_conv.bias[4:] = -20
    batches = t.Batches(pool, tmp_path, model, None, 64, variants=32)
    z, eps, steps, m_z, z_masked, text = batches(0)
    assert all(torch.equal(a, b) for a, b in zip(batches(0), (z, eps, steps, m_z, z_masked, text), strict=True))
    good, bad = (model.posterior(torch.full((1, 3, 32, 32), value / 255))[0] for value in (50, 200))
    whole = m_z.flatten(1).amin(1) > 0

    def nearer_to_good(where):
        """Share of latents, noisy as they are, that lie nearer to the good image's."""
        return float((((z - good).square() < (z - bad).square()) & where.bool().expand_as(z)).sum() / where.expand_as(z).sum())

    surroundings = [nearer_to_good((1 - m_z) * (torch.arange(64) == i).view(-1, 1, 1, 1)) for i in range(64) if not whole[i]]
    assert nearer_to_good(m_z) > 0.98
    assert all(share > 0.95 or share < 0.05 for share in surroundings)
    assert 0.1 < sum(share < 0.5 for share in surroundings) / len(surroundings) < 0.45  # every fourth shows the defective twin


def test_masked_latents_from_the_cache_belong_to_their_masks(pool, tmp_path):
    model = tiny.model()
    batches = t.Batches(pool, tmp_path, model, None, 8, variants=2)
    for pair, variant in ((0, 0), (3, 1)):
        m, bad = t.draw_mask(0, pair, variant, model.image_size)
        x = torch.from_numpy(np.array(batches.images[0][pair, bad])).permute(2, 0, 1)[None].float() / 255
        fresh = model.masked_latents(x, torch.from_numpy(m)[None, None])[1]
        kept = torch.from_numpy(np.array(batches.masked[0][variant][pair])).float()
        assert torch.allclose(kept, fresh[0], atol=0.05 * float(fresh.abs().max()))
    masks = [torch.from_numpy(t.draw_mask(0, i, v, 32)[0])[None, None].float() for i in range(4) for v in range(2)]
    pairs = {float(m.sum()) for m in batches(0)[3]}
    kept = {float(t.F.interpolate(m, scale_factor=1 / model.factor).sum()) for m in masks}
    assert pairs <= kept, "a batch's masks are those whose latents were kept"


def test_the_loss_weighs_what_is_repainted(pool, tmp_path):
    model = tiny.model()
    z, eps, steps, m_z, z_masked, text = t.Batches(pool, tmp_path, model, None, 8)(0)
    usual = model.denoising_loss(z, text, steps, eps, m_z, z_masked).mean()
    assert torch.allclose(t.masked_loss(model, z, text, steps, eps, m_z, z_masked, 1.0), usual, rtol=1e-5)
    a = model.alphas_cumprod[steps].view(-1, 1, 1, 1)
    target = eps if model.prediction_type == "epsilon" else a.sqrt() * eps - (1 - a).sqrt() * z
    error = (model.predict(a.sqrt() * z + (1 - a).sqrt() * eps, steps, m_z, z_masked, text) - target).square().mean(1)
    assert torch.allclose(t.masked_loss(model, z, text, steps, eps, m_z, z_masked, 0.0), error[m_z[:, 0] > 0].mean(), rtol=1e-4)


def test_min_snr_counts_the_error_of_the_image(pool, tmp_path):
    model = tiny.model()
    z, eps, _, m_z, z_masked, text = t.Batches(pool, tmp_path, model, None, 8)(0)
    for step in (10, 900):  # signal far above the noise, and far below
        steps = torch.full((8,), step)
        a = model.alphas_cumprod[step]
        z_t = a.sqrt() * z + (1 - a).sqrt() * eps
        prediction = model.predict(z_t, steps, m_z, z_masked, text)
        x0 = (z_t - (1 - a).sqrt() * prediction) / a.sqrt() if model.prediction_type == "epsilon" else a.sqrt() * z_t - (1 - a).sqrt() * prediction
        expected = min(float(a / (1 - a)), 1) * (x0 - z).square().mean()
        torch.testing.assert_close(t.masked_loss(model, z, text, steps, eps, m_z, z_masked, 1.0, min_snr=1.0), expected, rtol=1e-3, atol=1e-6)


def test_the_timesteps_asked_more_often_lie_where_they_should(pool, tmp_path):
    model = tiny.model()
    usual, focused, never = (t.Batches(pool, tmp_path, model, None, 400, focus=focus)(0)[2] for focus in (None, (0.2, 0.4, 0.9), (0.2, 0.4, 0.0)))
    low, high = 0.2 * model.num_train_timesteps, 0.4 * model.num_train_timesteps
    share = lambda steps: float(((steps >= low) & (steps < high)).float().mean())  # noqa: E731
    assert 0.12 < share(usual) < 0.28 and share(focused) > 0.85
    assert torch.equal(usual, never) and focused.max() > high, "the others still lie anywhere"


def test_training_resumes_and_exports(pool, tmp_path, monkeypatch):
    """The command itself, on a tiny model in the shipped layout."""
    model = tiny.model()
    mini = tmp_path / "mini"
    folder = mini / "diffusion"
    tiny.unet(channels=4).save_pretrained(folder / "unet")
    model.vae.save_pretrained(folder / "vae")
    model.scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    tiny_models.save_clip(mini / "clip", tiny_models.open_clip_model())

    def train(out, *more):
        words = ["train", "--pool", pool, "--mini", mini, "--out", out, "--steps", 4, "--batch", 2, "--amp", "none", "--channels", 16, 24, *more]
        monkeypatch.setattr("sys.argv", [str(word) for word in words])
        t.main()
        return torch.load(out / "checkpoint.pt", weights_only=True)["average"]

    straight = train(tmp_path / "a")
    train(tmp_path / "b", "--until", 2)
    resumed = train(tmp_path / "b")
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)
    train(tmp_path / "a", "--export")
    shipped = load_inpainting(mini / "inpainting", clip=tiny_models.clip())
    assert str(tmp_path) not in (mini / "inpainting/unet/config.json").read_text(), "where the training lay is nobody's concern"
    assert "StableDiffusionInpaintPipeline" in (mini / "inpainting/model_index.json").read_text()
    assert shipped.unet.config.in_channels == 9 and list(shipped.unet.config.block_out_channels) == [16, 24]
    with pytest.raises(FsadError, match="asked for are"):
        train(tmp_path / "b", "--channels", 16, 16)
    for wrong in (["--focus", 0.5, 0.2, 0.5], ["--focus", 0.1, 0.2, 2], ["--min-snr", 0]):
        with pytest.raises(SystemExit):
            train(tmp_path / "b", *wrong)
    again = train(tmp_path / "c", "--start", mini / "inpainting/unet", "--lr", 0)
    for name, value in shipped.unet.state_dict().items():
        torch.testing.assert_close(again[name], value, atol=1e-4, rtol=1e-3, msg=f"{name}: training goes on from what was exported")
    exported = load_inpainting(t.export_paper_layout(mini, tmp_path / "paper"))
    x, m = tiny.images(1), tiny.masks(1)
    noise = torch.randn(1, 4, 16, 16, generator=generator(0))
    settings = dict(strength=0.5, noise=noise, num_inference_steps=2)
    a, b = (loaded.inpaint(x, m, ["A perfect gear."], **settings) for loaded in (shipped, exported))
    assert torch.allclose(a, b, atol=1e-5)
    with torch.no_grad():
        shipped.vae.encoder.conv_in.weight.add_(1.0)
    shipped.vae.save_pretrained(mini / "inpainting/vae")
    assert torch.equal(t.load_start(mini, "cpu", [16, 24]).vae.encoder.conv_in.weight, shipped.vae.encoder.conv_in.weight), "the autoencoder of inpainting/, once there is one"
    train(tmp_path / "a", "--export")
    kept = load_inpainting(mini / "inpainting", clip=tiny_models.clip()).vae.encoder.conv_in.weight
    assert torch.equal(kept, shipped.vae.encoder.conv_in.weight), "an export of the U-Net leaves it alone"


def test_repainting_is_measured_against_the_photograph_without_defect():
    scenes, lpips = inspect.pairs(1, nouns=["gear", "wood"]), tiny.lpips()

    class Oracle:
        """Paints what was there before the defect; at strength 0 what it is given."""

        image_size, factor, device, vae = 128, 4, torch.device("cpu"), tiny.vae()

        def inpaint(self, x, m, prompts, *, strength, noise, num_inference_steps):
            assert (m.bool() >= scenes.mask[:, None]).all() and m.float().mean() < 0.9 and len(prompts) == len(x) == len(noise)
            return torch.where(m > 0.5, scenes.good, x) if strength else x

    made, m, table = inspect.repaint(Oracle(), lpips, scenes, ["a", "b"], [0.0, 1.0], num_inference_steps=2)
    table = table.set_index("in the rectangle")
    assert table.error["strength 1"] == 0 == table.perceptual["strength 1"] and (table.loc["strength 0"] == table.loc["the defect"]).all()
    assert table.error["the defect"] > 0 and 0 < table.error["interpolated"] < 1
    outside = (~m).expand_as(scenes.bad)
    assert torch.allclose(made["interpolated"][outside], scenes.bad[outside], atol=1e-6)

"""The inpainting model: against diffusers' own pipeline, what it keeps, loading in both layouts, and bad input."""

import re

import pytest
import tiny_inpainting as tiny
import tiny_models
import torch
from diffusers import StableDiffusionInpaintPipeline

from fsad_lib.errors import FsadError
from fsad_lib.foundation import diffusion as d
from fsad_lib.foundation.inpainting import Inpainting, load_inpainting

PROMPTS = ["A perfect gear.", "A perfect nut.", "a gear"]


def noise(n, seed=0):
    return torch.cat([torch.randn(1, 4, 16, 16, generator=d.generator(seed, i)) for i in range(n)])


def pipeline(model):
    """diffusers' pipeline on the same parts; the posterior's mean instead of a sample."""
    pipe = StableDiffusionInpaintPipeline(
        vae=model.vae, text_encoder=model.text_encoder, tokenizer=model.tokenizer, unet=model.unet, scheduler=model.scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    scale = model.vae.config.scaling_factor
    pipe._encode_vae_image = lambda image, generator: scale * model.vae.encode(image).latent_dist.mean
    return pipe


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("strength", "guidance"), [(0.5, 1.0), (0.6, 3.0), (1.0, 3.0)])
def test_equals_the_pipeline(prediction_type, strength, guidance):
    model, x, m = tiny.model(prediction_type), tiny.images(3), tiny.masks(3)
    text = model.encode_prompt(PROMPTS)
    expected = pipeline(model)(
        image=x, mask_image=m, prompt_embeds=text, negative_prompt_embeds=model.encode_prompt([""] * 3), strength=strength,
        guidance_scale=guidance, num_inference_steps=5, height=32, width=32, output_type="pt",
        generator=[d.generator(0, i) for i in range(3)],
    ).images  # fmt: skip
    settings = dict(strength=strength, guidance_scale=guidance, num_inference_steps=5, noise=noise(3))
    raw = model.inpaint(x, m, PROMPTS, composite=False, **settings)
    assert torch.allclose(raw, expected, atol=2e-6)
    kept = model.inpaint(x, m, text, **settings)
    assert torch.equal(kept[(m == 0).expand_as(x)], x[(m == 0).expand_as(x)])
    assert torch.equal(kept[(m == 1).expand_as(x)], raw[(m == 1).expand_as(x)])


@pytest.mark.parametrize("n", [1, 3, 7, 9, 11, 12, 50, 1000])
def test_the_advice_of_a_refused_strength_can_be_followed(n):
    sd = tiny.model()
    with pytest.raises(FsadError, match="less than one step") as refused:
        sd.steps(0.5 / n, n)
    steps, strength = re.search(r"at least (\d+), or the strength to at least ([\d.]+)\.", str(refused.value)).groups()
    assert sd.steps(0.5 / n, int(steps)) >= 1 and sd.steps(float(strength), n) >= 1


@pytest.mark.parametrize("steps", [5, 50])
def test_the_noise_begins_at_lambda_of_the_schedule(steps):
    """T~ = lambda T (AnomalySD), also with few steps: the first U-Net call is at noise level lambda T - 1."""
    model, x, m, seen = tiny.model(), tiny.images(1), tiny.masks(1), []
    predict = model.predict
    model.predict = lambda z, t, *rest: seen.append(int(t)) or predict(z, t, *rest)
    for strength in (0.2, 0.4, 0.8, 1.0):
        seen.clear()
        model.inpaint(x, m, ["a"], strength=strength, num_inference_steps=steps, noise=noise(1))
        assert seen[0] == round(strength * model.num_train_timesteps) - 1 and len(seen) == round(strength * steps)


def test_masked_latents_are_the_pipelines():
    model, x, m = tiny.model(), tiny.images(2), tiny.masks(2)
    mask, latents = pipeline(model).prepare_mask_latents(
        m, (2 * x - 1) * (m < 0.5), 2, 32, 32, torch.float32, "cpu", None, False
    )
    m_z, z_masked = model.masked_latents(x, m)
    assert torch.equal(m_z, mask)
    assert torch.allclose(z_masked, latents, atol=1e-6)
    other = torch.where(m > 0, torch.rand_like(x), x)
    assert torch.equal(model.masked_latents(other, m)[1], z_masked)  # nothing of the masked region gets through


def test_batch_size_changes_only_last_bits():
    model, x, m = tiny.model(), tiny.images(5), tiny.masks(5)
    settings = dict(strength=0.5, num_inference_steps=4, guidance_scale=2.0, noise=noise(5))
    whole = model.inpaint(x, m, ["a gear"], batch_size=5, **settings)
    z = model.posterior(x)[0]
    assert torch.allclose(model.inpaint(x, m, ["a gear"], batch_size=2, z=z, **settings), whole, atol=1e-5)
    assert torch.equal(model.inpaint(x, m, ["a gear"], batch_size=5, **settings), whole)


def test_strength_zero_is_the_round_trip_and_strength_one_forgets_the_region():
    model, x, m = tiny.model(), tiny.images(2), tiny.masks(2)
    settings = dict(num_inference_steps=2, noise=noise(2), composite=False)
    assert torch.allclose(model.inpaint(x, m, ["a"], strength=0, **settings), model.decode(model.posterior(x)[0]), atol=1e-6)
    other = torch.where(m > 0, torch.rand_like(x), x)
    first, second = (model.inpaint(image, m, ["a"], strength=1, **settings) for image in (x, other))
    assert torch.equal(first, second)
    first, second = (model.inpaint(image, m, ["a"], strength=0.5, **settings) for image in (x, other))
    assert not torch.equal(first, second)


def test_loss_is_the_error_of_the_nine_channel_prediction():
    for kind in ("epsilon", "v_prediction"):
        model, x, m = tiny.model(kind), tiny.images(2), tiny.masks(2)
        z, (m_z, z_masked), eps = model.posterior(x)[0], model.masked_latents(x, m), noise(2)
        t, text = torch.tensor([10, 900]), model.encode_prompt(PROMPTS[:2])
        for i in range(2):
            a = model.alphas_cumprod[t[i]]
            z_t = a.sqrt() * z[i] + (1 - a).sqrt() * eps[i]
            target = eps[i] if kind == "epsilon" else a.sqrt() * eps[i] - (1 - a).sqrt() * z[i]
            seen = torch.cat([z_t, m_z[i], z_masked[i]])[None]
            expected = (model.unet(seen, t[i], text[i : i + 1]).sample[0] - target).square().mean()
            got = model.denoising_loss(z, text, t, eps, m_z, z_masked)[i]
            assert torch.allclose(got, expected, rtol=1e-4)


def save(model, folder):
    model.unet.save_pretrained(folder / "unet")
    model.vae.save_pretrained(folder / "vae")
    model.scheduler.save_pretrained(folder / "scheduler")


def test_both_layouts_load_and_agree(tmp_path):
    model, x, m = tiny.model(pad_token="<|endoftext|>"), tiny.images(1), tiny.masks(1)
    save(model, tmp_path / "hub")
    model.text_encoder.save_pretrained(tmp_path / "hub/text_encoder")
    d.write_tokenizer(tmp_path / "hub/tokenizer", "<|endoftext|>")
    save(model, tmp_path / "mini")
    d.write_tokenizer(tmp_path / "mini/tokenizer", "<|endoftext|>")
    settings = dict(strength=0.5, num_inference_steps=2, noise=noise(1))
    expected = model.inpaint(x, m, ["A perfect nut."], **settings)
    hub, mini = load_inpainting(tmp_path / "hub"), load_inpainting(tmp_path / "mini", clip=tiny_models.clip())
    for loaded in (hub, mini):
        assert torch.allclose(loaded.inpaint(x, m, ["A perfect nut."], **settings), expected, atol=1e-6)
        assert loaded.tokenize(["a"])[0, -1] == 49407  # SD 1.5 pads with the end of text


def test_a_text_to_image_unet_is_refused(tmp_path):
    model = tiny.model()
    model.unet = tiny.unet(channels=4)
    save(model, tmp_path)
    with pytest.raises(FsadError, match="takes 4 channels"):
        load_inpainting(tmp_path, clip=tiny_models.clip())
    with pytest.raises(FsadError, match="lacks"):
        load_inpainting(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"m": torch.ones(2, 1, 16, 16)}, "found images"), ({"m": torch.full((2, 1, 32, 32), 0.5)}, "other than 0"),
        ({"x": torch.rand(2, 3, 16, 16)}, "found images"), ({"strength": 1.5}, "strength"), ({"strength": 0.1}, "less than one step"),
        ({"num_inference_steps": 0}, "at least 1 step"), ({"noise": torch.zeros(2, 4, 8, 8)}, "noise"),
        ({"z": torch.zeros(1, 4, 16, 16)}, "latents"), ({"prompts": ["a"] * 3}, "3 prompts"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(change, words):
    good = dict(x=tiny.images(2), m=tiny.masks(2), prompts=["a", "b"], strength=0.5, noise=noise(2), num_inference_steps=4)
    with pytest.raises(FsadError, match=words):
        tiny.model().inpaint(**(good | change))


def test_what_an_inpainting_model_is_not():
    model = tiny.model()
    assert isinstance(model, Inpainting)
    for call in (lambda: model.generate(["a"]), lambda: model.sdedit(tiny.images(1), ["a"], strength=0.5)):
        with pytest.raises(FsadError, match="inpaint"):
            call()
    with pytest.raises(FsadError, match="masked latent"):
        model.denoising_loss(noise(1), model.encode_prompt(["a"]), torch.tensor([1]), noise(1))

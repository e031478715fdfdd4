"""The diffusion wrapper against diffusers, transformers and open_clip, on tiny random models."""

import copy
import json
import re

import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file
from tiny_models import WIDTH, images, open_clip_model
from tiny_models import diffusion as tiny_diffusion
from transformers import CLIPTokenizer

from fsad_lib.adp.prompts import TEMPLATES, state_prompts
from fsad_lib.errors import FsadError
from fsad_lib.foundation import diffusion as d

PROMPTS = ["a photo of a <c>", "a <c> beside a damaged <c>", "a photo with damage"]


@pytest.fixture(scope="module")
def model():
    return open_clip_model()


@pytest.fixture(scope="module")
def sd(model):
    return tiny_diffusion(model)


# ------------------------------------------------------------------ tokenizer
def test_tokenizer_gives_open_clips_ids_for_all_our_prompts(tmp_path):
    texts = [
        p
        for word in ("object", "metal nut", "solar cell", "pcb1")
        for side in state_prompts(word)
        for p in side
    ]
    texts += [T.format("object") for T in TEMPLATES] + [
        "a photo with damage",
        "a photo of an object with damage",
        "",
        "it's a close-up photo, 3 nuts; Café\n",
        "word " * 100,
    ]
    expected = SimpleTokenizer()(texts)
    read = CLIPTokenizer.from_pretrained(d.write_tokenizer(tmp_path / "tokenizer"), local_files_only=True)
    for tokenizer in (d.clip_tokenizer(), read):
        assert tokenizer.pad_token_id == 0
        ids = tokenizer(
            texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        assert torch.equal(ids, expected)


def test_tokenizer_of_sd1_pads_with_end_of_text(model, tmp_path):
    tokenizer = d.clip_tokenizer("<|endoftext|>")
    assert tokenizer(["a"], padding="max_length", max_length=5).input_ids == [
        [49406, 320, 49407, 49407, 49407]
    ]
    read = CLIPTokenizer.from_pretrained(d.write_tokenizer(tmp_path, "<|endoftext|>"))
    assert read.pad_token_id == 49407


# ------------------------------------------------------------------ text encoder
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_text_encoder_is_the_tower_without_its_last_block(quick_gelu):
    model = open_clip_model(quick_gelu)
    encoder = d.text_encoder_from_clip(model)
    assert encoder.config.hidden_act == ("quick_gelu" if quick_gelu else "gelu")
    assert encoder.config.num_hidden_layers == 2
    ids = SimpleTokenizer()(["a photo of a damaged object", ""])
    h = model.token_embedding(ids) + model.positional_embedding
    for block in model.transformer.resblocks[:-1]:
        h = block(h, attn_mask=model.attn_mask)
    torch.testing.assert_close(encoder(ids).last_hidden_state, model.ln_final(h), atol=1e-5, rtol=0)
    # and it is not the whole tower
    whole = model.ln_final(model.transformer.resblocks[-1](h, attn_mask=model.attn_mask))
    assert (encoder(ids).last_hidden_state - whole).abs().max() > 1e-2


def test_text_encoder_from_a_separate_text_tower(model):
    torch.manual_seed(0)
    separate = open_clip.CustomTextCLIP(
        embed_dim=24, vision_cfg=dict(image_size=32, patch_size=8, width=32, layers=1, head_width=16),
        text_cfg=dict(context_length=77, vocab_size=49408, width=WIDTH, heads=2, layers=2),
    ).eval()  # fmt: skip
    ids = SimpleTokenizer()(["a photo"])
    tower = separate.text
    h = tower.transformer.resblocks[0](
        tower.token_embedding(ids) + tower.positional_embedding, attn_mask=tower.attn_mask
    )
    out = d.text_encoder_from_clip(separate)(ids).last_hidden_state
    torch.testing.assert_close(out, tower.ln_final(h), atol=1e-5, rtol=0)


def test_towers_that_do_not_fit_are_refused(model):
    other = open_clip.CLIP(
        embed_dim=8, vision_cfg=dict(image_size=32, patch_size=16, width=16, layers=1, head_width=16),
        text_cfg=dict(context_length=77, vocab_size=100, width=16, heads=1, layers=1, ls_init_value=0.1),
    )  # fmt: skip
    with pytest.raises(FsadError, match="standard causal transformer"):
        d.text_encoder_from_clip(other)
    with pytest.raises(FsadError, match="3 blocks"):
        d.text_encoder_from_clip(model, skip_last=3)


@pytest.mark.parametrize("pad", ["!", "<|endoftext|>"])
def test_injected_vector_equals_an_added_token(model, pad):
    sd = tiny_diffusion(model)
    sd.tokenizer = d.clip_tokenizer(pad)
    vector = torch.randn(WIDTH)
    injected = sd.encode_prompt(PROMPTS, {"<c>": vector})

    tokenizer, encoder = d.clip_tokenizer(pad), copy.deepcopy(sd.text_encoder)
    assert tokenizer.add_tokens(["<c>"]) == 1
    encoder.resize_token_embeddings(49409, mean_resizing=False)
    encoder.get_input_embeddings().weight.data[49408] = vector
    ids = tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert (ids == 49408).sum(1).tolist() == [1, 2, 0]
    torch.testing.assert_close(injected, encoder(ids).last_hidden_state, atol=1e-6, rtol=0)
    assert injected.shape == (3, 77, WIDTH)


def test_states_are_differentiable_in_the_vector_and_the_hook_is_gone(sd):
    c = torch.zeros(WIDTH, requires_grad=True)
    sd.encode_prompt(PROMPTS, {"<c>": c}).square().sum().backward()
    assert c.grad.abs().sum() > 0
    assert not sd.text_encoder.get_input_embeddings()._forward_hooks
    with pytest.raises(FsadError, match="shape"):
        sd.encode_prompt(PROMPTS, {"<c>": torch.zeros(5)})
    assert not sd.text_encoder.get_input_embeddings()._forward_hooks
    with pytest.raises(FsadError, match="<d>"):
        sd.encode_prompt(["a <d>"], {"<c>": torch.zeros(WIDTH)})


# ------------------------------------------------------------------ latents and loss
def test_posterior_and_decode_follow_the_vae(sd):
    x = images(3)
    mean, std = sd.posterior(x, batch_size=2)
    expected = sd.vae.encode(2 * x - 1).latent_dist
    torch.testing.assert_close(mean, 0.5 * expected.mean)
    torch.testing.assert_close(std, 0.5 * expected.std)
    torch.testing.assert_close(
        sd.decode(mean), (sd.vae.decode(expected.mean).sample / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0
    )
    assert sd.posterior(images(1, 24))[0].shape == mean[:1].shape  # resized


@pytest.mark.parametrize(("size", "at_once"), [(512, 1), (496, 3)])
def test_images_of_512_pixels_and_more_pass_the_vae_one_by_one(sd, size, at_once):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4,) * 4, norm_num_groups=4, latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, mid_block_add_attention=False,
    )  # fmt: skip
    large, rows = d.Diffusion(sd.tokenizer, sd.text_encoder, vae, sd.unet, sd.scheduler, size), []
    for conv in (vae.encoder.conv_in, vae.decoder.conv_in):
        conv.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    x = images(3, size)
    mean, std = large.posterior(x)
    decoded = large.decode(mean)
    assert rows == [at_once] * (6 // at_once)
    vae.disable_slicing()
    expected = vae.encode(2 * x - 1).latent_dist
    scale = vae.config.scaling_factor
    torch.testing.assert_close((mean, std), (scale * expected.mean, scale * expected.std), atol=1e-5, rtol=0)
    torch.testing.assert_close(decoded, (vae.decode(expected.mean).sample / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_denoising_loss_equals_diffusers(model, kind):
    sd = tiny_diffusion(model, kind)
    assert sd.prediction_type == kind
    reference = DDPMScheduler.from_config(sd.scheduler.config)
    z, eps = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    t, text = torch.tensor([0, 10, 500, 999]), sd.encode_prompt(["a photo", "", "b", "c"])
    noisy = reference.add_noise(z, eps, t)
    target = eps if kind == "epsilon" else reference.get_velocity(z, eps, t)
    prediction = sd.unet(noisy, t, encoder_hidden_states=text).sample
    expected = torch.stack(
        [torch.nn.functional.mse_loss(p, q) for p, q in zip(prediction, target, strict=True)]
    )
    torch.testing.assert_close(sd.denoising_loss(z, text, t, eps), expected)


def test_a_perfect_v_prediction_recovers_the_image_and_has_no_loss(model):
    sd = tiny_diffusion(model, "v_prediction")
    z, eps, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([100, 900])
    a = sd.alphas_cumprod[t].view(-1, 1, 1, 1)
    v = a.sqrt() * eps - (1 - a).sqrt() * z
    z_t = a.sqrt() * z + (1 - a).sqrt() * eps
    torch.testing.assert_close(a.sqrt() * z_t - (1 - a).sqrt() * v, z)

    class Perfect(torch.nn.Module):
        def forward(self, given, time, encoder_hidden_states):
            torch.testing.assert_close(given, z_t)
            return type("Out", (), {"sample": v})

    sd.unet = Perfect()
    assert sd.denoising_loss(z, None, t, eps).max() < 1e-10


# ------------------------------------------------------------------ sampling
def test_sdedit_does_not_depend_on_the_batch_size(sd):
    x, prompts = images(3), ["a photo with damage", "a photo", "a photo with damage"]
    arguments = dict(strength=0.5, guidance_scale=3.0, num_inference_steps=4, seed=7)
    one, all_ = (sd.sdedit(x, prompts, batch_size=b, **arguments) for b in (1, 8))
    torch.testing.assert_close(one, all_, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        sd.sdedit(x[2:], prompts[2:], first_index=2, **arguments), all_[2:], atol=1e-5, rtol=0
    )
    assert (all_[0] - sd.sdedit(x, prompts, **{**arguments, "seed": 8})[0]).abs().max() > 1e-3
    assert all_.min() >= 0 and all_.max() <= 1 and all_.shape == x.shape


def test_sdedit_equals_literal_ddim(sd):
    """Noise to the first timestep, guided DDIM back: written out from the papers' formulas."""
    x, n, strength, w = images(1), 4, 0.5, 3.0
    out = sd.sdedit(x, ["a photo"], strength=strength, guidance_scale=w, num_inference_steps=n, seed=1)
    noise = d.generator(1, "sdedit", 0)
    mean, std = sd.posterior(x)
    z = mean + std * torch.randn(mean.shape, generator=noise)
    eps = torch.randn(mean.shape, generator=noise)
    a = sd.alphas_cumprod
    times = [i * (1000 // n) + 1 for i in range(n)][::-1][n - int(n * strength) :]
    z = a[times[0]].sqrt() * z + (1 - a[times[0]]).sqrt() * eps
    text, empty = sd.encode_prompt(["a photo"]), sd.encode_prompt([""])
    for t in times:
        e_c, e_0 = (sd.unet(z, t, encoder_hidden_states=s).sample for s in (text, empty))
        e = e_0 + w * (e_c - e_0)
        z0 = (z - (1 - a[t]).sqrt() * e) / a[t].sqrt()
        before = a[t - 1000 // n] if t >= 1000 // n else a[0]
        z = before.sqrt() * z0 + (1 - before).sqrt() * e
    torch.testing.assert_close(out, sd.decode(z), atol=1e-4, rtol=0)


def test_an_image_that_rounding_left_below_zero_does_not_change_its_batch(sd):
    x = images(2)
    how = dict(strength=0.5, num_inference_steps=4, guidance_scale=1.0, seed=3)
    right = sd.sdedit(x, ["a", "b"], **how)
    x[0, 0, 0, 0] = -1e-4  # diffusers takes a batch with a negative value for images in [-1, 1]
    assert torch.allclose(sd.sdedit(x, ["a", "b"], **how)[1], right[1], atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: 255 * x, "expected \\[0, 1\\]"),
        (lambda x: 2 * x - 1, "expected \\[0, 1\\]"),
        (lambda x: (255 * x).byte(), "uint8"),
        (lambda x: x * torch.nan, "nan"),
        (lambda x: x[:, :1], "\\(2, 1, "),
        (lambda x: x.numpy(), "a ndarray"),
    ],
)
def test_images_of_another_kind_are_refused(sd, bad, message):
    x = bad(images(2))
    for call in (lambda: sd.posterior(x), lambda: sd.sdedit(x, ["a", "b"], strength=0.5, num_inference_steps=4)):
        with pytest.raises(FsadError, match=message):
            call()


def test_images_of_other_floats_and_none_at_all(sd):
    x = torch.rand(2, 3, 16, 16)
    mean, std = sd.posterior(x)
    for kind in (torch.float64, torch.bfloat16):
        assert torch.allclose(sd.posterior(x.to(kind))[0], mean, atol=0.2) and sd.sdedit(x.to(kind), ["a", "b"], strength=0).dtype == torch.float32
    assert torch.equal(sd.posterior(x.double())[0], mean)
    assert len(sd.sdedit(x[:0], [], strength=0.5)) == len(sd.generate([])) == 0


def test_a_sentence_is_not_a_list_of_letters(sd):
    for call in (lambda: sd.generate("ab"), lambda: sd.sdedit(images(2), "ab", strength=1.0)):
        with pytest.raises(FsadError, match="list of sentences"):
            call()


def test_strength_edges_and_bounds(sd):
    x = images(2)
    arguments = dict(num_inference_steps=4, guidance_scale=1.0)
    none = sd.sdedit(x, ["a", "b"], strength=0, **arguments)
    torch.testing.assert_close(none, sd.decode(sd.posterior(x)[0]))
    assert sd.sdedit(x, ["a", "b"], strength=1, **arguments).shape == x.shape
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(FsadError, match=r"expected a strength in \[0, 1\]"):
            sd.sdedit(x, ["a", "b"], strength=strength, **arguments)
    with pytest.raises(FsadError, match="num_inference_steps to at least 5"):
        sd.sdedit(x, ["a", "b"], strength=0.2, **arguments)
    sd.sdedit(x, ["a", "b"], strength=0.2, num_inference_steps=5, guidance_scale=1.0)
    with pytest.raises(FsadError, match="found 2 images and 1 prompts"):
        sd.sdedit(x, ["a"], strength=0.5, **arguments)
    with pytest.raises(FsadError, match="at least 1"):
        sd.sdedit(x, ["a", "b"], strength=0.5, num_inference_steps=0)


def test_generate_with_prompts_or_states_in_any_batch(sd, capfd):
    arguments = dict(num_inference_steps=2, guidance_scale=2.0, seed=3)
    seen = []
    whole = sd.generate(["a", "b", "a"], progress=lambda *a: seen.append(a), batch_size=2, **arguments)
    assert (
        whole.shape == (3, 3, 16, 16) and whole.min() >= 0 and whole.max() <= 1 and seen == [(2, 3), (3, 3)]
    )
    states = sd.encode_prompt(["a", "b", "a"])
    torch.testing.assert_close(sd.generate(states, batch_size=3, **arguments), whole, atol=1e-5, rtol=0)
    assert (whole[0] - whole[2]).abs().max() > 1e-3  # same prompt, other noise
    assert "%|" not in "".join(capfd.readouterr())  # no progress bars


# ------------------------------------------------------------------ loading
def save(sd, folder, half=False, with_text=True):
    unet, vae = copy.deepcopy(sd.unet), copy.deepcopy(sd.vae)
    kwargs = dict(variant="fp16") if half else {}
    (unet.half() if half else unet).save_pretrained(folder / "unet", **kwargs)
    (vae.half() if half else vae).save_pretrained(folder / "vae", **kwargs)
    sd.scheduler.save_pretrained(folder / "scheduler")
    if with_text:
        sd.text_encoder.save_pretrained(folder / "text_encoder")
        d.write_tokenizer(folder / "tokenizer")


def test_load_hub_folder_gives_the_same_model(sd, model, tmp_path):
    save(sd, tmp_path)
    read = d.load_diffusion(tmp_path)
    x, prompts = images(2), ["a photo of a <c>"] * 2
    arguments = dict(
        strength=0.5, num_inference_steps=4, guidance_scale=2.0, concepts={"<c>": torch.ones(WIDTH)}
    )
    torch.testing.assert_close(
        read.sdedit(x, prompts, **arguments), sd.sdedit(x, prompts, **arguments), atol=1e-6, rtol=0
    )
    assert read.image_size == 16 and read.token_dim == WIDTH
    assert not any(p.requires_grad for m in (read.unet, read.vae, read.text_encoder) for p in m.parameters())
    assert d.load_diffusion(tmp_path, image_size=32).generate(["a"], num_inference_steps=1).shape[-1] == 32


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("scheduler/scheduler_config.json", "{", "scheduler cannot be read"),
        ("scheduler/scheduler_config.json", "[]", "scheduler cannot be read"),
        ("tokenizer/vocab.json", '{"a": 1', "tokenizer cannot be read"),
        ("tokenizer", None, 'tokenizer turns "a photo" into'),
    ],
)
def test_a_damaged_folder_is_named(name, content, says, sd, tmp_path):
    save(sd, tmp_path)
    if content is None:  # an empty folder: transformers makes a tokenizer that knows no word
        for file in (tmp_path / name).iterdir():
            file.unlink()
    else:
        (tmp_path / "tokenizer/tokenizer.json").unlink(missing_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(FsadError, match=says):
        d.load_diffusion(tmp_path)


def test_load_text_encoder_as_stable_diffusion_2_1_ships_it(sd, tmp_path):
    """Keys under ``text_model.``, stored position ids, the legacy ``eos_token_id`` 2, fp32 in a .bin beside nothing else."""
    save(sd, tmp_path)
    folder = tmp_path / "text_encoder"
    (folder / "model.safetensors").unlink()
    state = {f"text_model.{name}": tensor for name, tensor in sd.text_encoder.state_dict().items()}
    torch.save(
        {**state, "text_model.embeddings.position_ids": torch.arange(77)[None]}, folder / "pytorch_model.bin"
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1})
    )
    read, c = d.load_diffusion(tmp_path), {"<c>": torch.ones(WIDTH)}
    assert torch.equal(read.encode_prompt(PROMPTS, c), sd.encode_prompt(PROMPTS, c))


def test_load_half_precision_folder_with_clips_text_tower(sd, model, tmp_path):
    save(sd, tmp_path, half=True, with_text=False)
    with pytest.raises(FsadError, match="no text_encoder/"):
        d.load_diffusion(tmp_path)
    read = d.load_diffusion(tmp_path, clip=model)
    assert next(read.unet.parameters()).dtype == torch.float32
    assert torch.equal(read.encode_prompt(["a photo"]), sd.encode_prompt(["a photo"]))


def test_load_names_what_is_missing(sd, tmp_path):
    with pytest.raises(FsadError, match="unet/config.json"):
        d.load_diffusion(tmp_path / "nowhere")
    save(sd, tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FsadError, match=r"expected diffusion_pytorch_model.safetensors .* found config.json"):
        d.load_diffusion(tmp_path)


@pytest.mark.parametrize(("part", "file"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")])
def test_weights_that_are_cut_short_incomplete_or_of_another_shape_are_refused(sd, tmp_path, part, file):
    save(sd, tmp_path)
    path = tmp_path / part / f"{file}.safetensors"
    whole, state = path.read_bytes(), {k: v.clone() for k, v in load_file(path).items()}  # its own memory: the file is written over
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FsadError, match=rf"{part}.*Copy the folder again"):
        d.load_diffusion(tmp_path)
    name, value = next((k, v) for k, v in state.items() if v.dim() == 2)
    save_file({k: v for k, v in state.items() if k != name}, path, {"format": "pt"})
    with pytest.raises(FsadError, match=rf"lacks 1 of the weights .* {re.escape(name.removeprefix('text_model.'))}"):
        d.load_diffusion(tmp_path)
    save_file(state | {name: torch.cat([value, value])}, path, {"format": "pt"})
    with pytest.raises(FsadError, match=rf"{part}.*Copy the folder again"):
        d.load_diffusion(tmp_path)
    path.write_bytes(whole)
    d.load_diffusion(tmp_path)


def test_models_that_do_not_fit_are_refused(sd, model, tmp_path):
    save(sd, tmp_path)
    config = tmp_path / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": "sample"}))
    with pytest.raises(FsadError, match="'epsilon' or 'v_prediction'"):
        d.load_diffusion(tmp_path)
    with pytest.raises(FsadError, match="multiple of 4"):
        d.Diffusion(sd.tokenizer, sd.text_encoder, sd.vae, sd.unet, sd.scheduler, image_size=18)
    wide = copy.deepcopy(sd.text_encoder)
    wide.config.hidden_size = 64
    with pytest.raises(FsadError, match="64 numbers a token"):
        d.Diffusion(sd.tokenizer, wide, sd.vae, sd.unet, sd.scheduler)


def test_pndm_checkpoints_are_sampled_with_their_own_noise_levels(model):
    pndm = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
        prediction_type="v_prediction",
    )  # fmt: skip
    sd = tiny_diffusion(model, noise=pndm)
    assert torch.equal(sd.alphas_cumprod, pndm.alphas_cumprod) and sd.prediction_type == "v_prediction"
    assert not sd.scheduler.config.clip_sample


def test_generator_key():
    draw = [
        torch.rand(1, generator=d.generator(*key)).item()
        for key in ((0, "a", 1), (0, "a", 1), (0, "a", 2), (1, "a", 1))
    ]
    assert draw[0] == draw[1] and len(set(draw)) == 3

"""Tiny random CLIP and Stable Diffusion that share their text tower; milliseconds a step."""

import json
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

from fsad_lib.foundation import diffusion as d
from fsad_lib.foundation.clip import CLIP

WIDTH = 32
ARCHITECTURE = dict(
    embed_dim=24,
    vision_cfg=dict(image_size=32, patch_size=8, width=32, layers=2, head_width=16),
    text_cfg=dict(context_length=77, vocab_size=49408, width=WIDTH, heads=2, layers=3),
)


def open_clip_model(quick_gelu=False):
    torch.manual_seed(0)
    return open_clip.CLIP(**ARCHITECTURE, quick_gelu=quick_gelu).eval().requires_grad_(False)


def clip():
    return CLIP(open_clip_model())


def scheduler(prediction_type="epsilon"):
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction_type,
    )  # fmt: skip


def diffusion(model, prediction_type="epsilon", noise=None):
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=WIDTH,
        attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=16, scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return d.Diffusion(
        d.clip_tokenizer(), d.text_encoder_from_clip(model), vae, unet, noise or scheduler(prediction_type)
    )


def images(n, size=16, seed=5):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def save_clip(folder, model):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": ARCHITECTURE}))
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )


def save_diffusion(sd, folder, with_text=True):
    folder = Path(folder)
    sd.unet.save_pretrained(folder / "unet")
    sd.vae.save_pretrained(folder / "vae")
    sd.scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    if with_text:
        sd.text_encoder.save_pretrained(folder / "text_encoder")
    d.write_tokenizer(folder / "tokenizer")

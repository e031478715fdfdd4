"""A tiny random inpainting model of 32 pixels (LPIPS needs 31) that shares the text tower of tiny_models' CLIP."""

import timm
import tiny_models
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from fsad_lib.foundation import diffusion as d
from fsad_lib.foundation.backbones import Backbone
from fsad_lib.foundation.inpainting import Inpainting
from fsad_lib.foundation.perceptual import Lpips


def unet(channels=9):
    return UNet2DConditionModel(
        sample_size=16, in_channels=channels, out_channels=4, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=tiny_models.WIDTH, attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def vae():
    return AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=32, scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def model(prediction_type="epsilon", pad_token="!"):
    torch.manual_seed(2)
    text_encoder = d.text_encoder_from_clip(tiny_models.open_clip_model())
    return Inpainting(d.clip_tokenizer(pad_token), text_encoder, vae(), unet(), tiny_models.scheduler(prediction_type))


def lpips():
    torch.manual_seed(3)
    return Lpips()


def backbone():
    torch.manual_seed(4)
    return Backbone(timm.create_model("resnet10t"), "resnet10t", 64)


def images(n, seed=5):
    return tiny_models.images(n, 32, seed)


def masks(n, seed=6):
    """One random rectangle each, (n, 1, 32, 32) float."""
    draw = torch.Generator().manual_seed(seed)
    m = torch.zeros(n, 1, 32, 32)
    for i in range(n):
        top, left = torch.randint(0, 16, (2,), generator=draw).tolist()
        m[i, :, top : top + 12, left : left + 10] = 1
    return m

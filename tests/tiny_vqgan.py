"""Tiny random VQGANs; milliseconds a step."""

import torch
from diffusers import VQModel

from fsad_lib.foundation.perceptual import Lpips
from fsad_lib.foundation.vqgan import VQGAN, PatchDiscriminator


def tiny_vqgan(factor=4, codes=32, latent=6, dim=5, seed=0) -> VQGAN:
    torch.manual_seed(seed)
    levels = factor.bit_length()
    model = VQModel(
        down_block_types=["DownEncoderBlock2D"] * (levels - 1) + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * (levels - 1),
        block_out_channels=[8, 16, 24][:levels], layers_per_block=1, latent_channels=latent, vq_embed_dim=dim,
        num_vq_embeddings=codes, norm_num_groups=4,
    ).eval()  # fmt: skip
    with torch.no_grad():  # codes as far apart as the latents are
        model.quantize.embedding.weight.normal_()
    return VQGAN(model, PatchDiscriminator(8, 2).eval(), Lpips())

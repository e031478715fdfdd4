"""Tiny random open_clip models for tests."""

import open_clip
import torch

from fsad_lib.foundation.clip import CLIP

VISION = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
TEXT = {"width": 64, "heads": 2, "layers": 2}


def config(vision: dict | None = None, text: dict | None = None, **rest) -> dict:
    return {"embed_dim": 48, "vision_cfg": VISION | (vision or {}), "text_cfg": TEXT | (text or {}), **rest}


def build_model(vision: dict | None = None, text: dict | None = None, custom: bool = False, seed: int = 0, **rest):
    torch.manual_seed(seed)
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config(vision, text, **rest)).eval()
    with torch.no_grad():
        # Larger weights than at initialisation, so that every token and layer matters.
        for name, p in model.named_parameters():
            if p.ndim >= 2 and "conv1" not in name:
                p.mul_(3)
    return model


def tiny_clip(**kwargs) -> CLIP:
    return CLIP(build_model(**kwargs))

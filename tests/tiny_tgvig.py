"""A project of its own for TGVIG: tiny random models on disk in the miniatures' layout, a folder of two made-up products."""

import shutil
from pathlib import Path

import timm
import tiny_inpainting
import tiny_models
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_project import COLOURS, write_part
from tiny_vqgan import tiny_vqgan

from fsad_lib.foundation.vqgan import save_vqgan

OVERRIDES = (
    "vqgan.image_size=32,baseline_backbone.name=resnet18,baseline_backbone.checkpoint=backbones/resnet18.safetensors,"
    "baseline_backbone.image_size=64,distillation_backbone.image_size=64,inception.image_size=64,tgvig.iterations=3,tgvig.images=3,"
    "tgvig.augmented=2,tgvig.depth=1,tgvig.rival_steps=2,tgvig.rival_cutouts=2,baselines.coreset_size=40,baselines.cflow_blocks=1,"
    "baselines.cflow_condition=8,baselines.cflow_steps=2,baselines.distillation_steps=2,baselines.distillation_batch_size=2,"
    "baselines.efficientad_steps=2"
)
"""Small and quick; tgvig.shift of null needs no change: the tiny VQGAN's cells are 4 pixels."""


def write_project(root):
    """The models below ``root/data/models/mini``, the products below ``root/parts``."""
    shutil.copytree(Path(__file__).parents[1] / "data/wordnet", root / "data/wordnet")
    mini = root / "data/models/mini"
    tiny_models.save_clip(mini / "clip", tiny_models.open_clip_model())
    save_vqgan(tiny_vqgan(), mini / "vqgan", dtype=torch.float32)
    (mini / "lpips").mkdir()
    save_file({k: v.contiguous() for k, v in tiny_inpainting.lpips().state_dict().items()}, mini / "lpips/lpips_alex.safetensors")
    (mini / "backbones").mkdir()
    torch.manual_seed(0)
    save_file(timm.create_model("resnet18").state_dict(), mini / "backbones/resnet18.safetensors")
    for offset, (name, value) in enumerate(COLOURS.items()):
        part = root / "parts" / name
        for i in range(4):
            write_part(part / f"train/good/{i}.png", value, False, 100 * offset + i)
        for i in range(2):
            write_part(part / f"test/good/{i}.png", value, False, 100 * offset + 10 + i)
            mask = write_part(part / f"test/hole/{i}.png", value, True, 100 * offset + 20 + i)
            (part / "ground_truth/hole").mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(part / f"ground_truth/hole/{i}_mask.png")

"""A project of its own for AnomalySD: tiny random models on disk in the miniatures' layout, a folder of two made-up products."""

import numpy as np
import tiny_inpainting as tiny
import tiny_models
from PIL import Image
from safetensors.torch import save_file

OVERRIDES = (
    "inpainting.image_size=32,backbone.image_size=64,anomalysd.steps_unet=3,anomalysd.steps_decoder=2,anomalysd.train_batch_size=2,"
    "anomalysd.scales=[1,2],anomalysd.num_inference_steps=5,anomalysd.perceptual_size=null"
)
COLOURS = {"gear": 100, "nut": 200}


def write_part(path, value, damaged, seed):
    pixels = np.random.default_rng(seed).integers(value - 10, value + 10, (32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    if damaged:
        mask[8:18, 8:18] = 255
        pixels[mask > 0] = 250 - value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return mask


def write_project(root):
    """The models below ``root/data/models/mini``, the products below ``root/parts``."""
    mini, model = root / "data/models/mini", tiny.model()
    tiny_models.save_clip(mini / "clip", tiny_models.open_clip_model())
    for part in ("unet", "vae", "scheduler"):
        getattr(model, part).save_pretrained(mini / "inpainting" / part)
    (mini / "inpainting/model_index.json").write_text('{"_class_name": "StableDiffusionInpaintPipeline"}')
    (mini / "lpips").mkdir()
    save_file({k: v.contiguous() for k, v in tiny.lpips().state_dict().items()}, mini / "lpips/lpips_alex.safetensors")
    for offset, (name, value) in enumerate(COLOURS.items()):
        part = root / "parts" / name
        for i in range(3):
            write_part(part / f"train/good/{i}.png", value, False, 100 * offset + i)
        for i in range(2):
            write_part(part / f"test/good/{i}.png", value, False, 100 * offset + 10 + i)
            mask = write_part(part / f"test/hole/{i}.png", value, True, 100 * offset + 20 + i)
            (part / "ground_truth/hole").mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(part / f"ground_truth/hole/{i}_mask.png")

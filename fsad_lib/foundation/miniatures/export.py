"""Write the trained miniatures: in the small form that ships with the project, and in the paper's on-disk formats.

    python -m fsad_lib.foundation.miniatures.export --training data/training --out data/models/mini

The shipped form is float16 and holds only the token rows that captions trained. `export_paper_layout` turns it into what
`profile=paper` reads, a hub folder and an open_clip folder in float32: the proof that the paper path computes the same scores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

from ...datasets.minifab.designs import NOUNS
from ..clip import load_clip
from ..diffusion import load_diffusion, write_tokenizer
from . import train_clip, train_unet, train_vae

PREPROCESS = {"mode": "RGB", "mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD), "interpolation": "bicubic", "resize_mode": "squash"}


def _half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in state.items()}


def _write_clip_config(folder: Path, model_config: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_config, "preprocess_cfg": {"size": model_config["vision_cfg"]["image_size"]} | PREPROCESS}, indent=2) + "\n")


def export_clip(training: Path, out: Path) -> None:
    """The mini CLIP from `training`/checkpoint.pt (see train_clip) to `out`, as float16 with the trained token rows alone."""
    state = torch.load(training / "checkpoint.pt", weights_only=True, map_location="cpu")["model"]
    table = state.pop("token_embedding.weight")
    fresh = torch.randn(table.shape, generator=torch.Generator().manual_seed(0)) * 0.02
    ids = ((table - fresh).abs().amax(1) > 1e-6).nonzero()[:, 0]
    state = _half({k: v for k, v in state.items() if k != "attn_mask"})
    state |= {"token_embedding.rows": table[ids].half().contiguous(), "token_embedding.ids": ids.to(torch.int32)}
    _write_clip_config(out, train_clip.MODEL)
    save_file(state, out / "open_clip_model.safetensors", {"trained_on": "MiniFab, pretraining split", "nouns": ", ".join(NOUNS)})
    (out / "open_clip_model.safetensors").chmod(0o644)


def export_diffusion(vae: Path, unet: Path, out: Path) -> None:
    """The mini Stable Diffusion from its training folders to `out` (hub layout without text encoder and tokenizer: CLIP has them).

    A VAE that was not trained there (the U-Net then went on from exported miniatures) stays as it is in `out`."""
    trained = torch.load(unet / "checkpoint.pt", weights_only=True, map_location="cpu")
    parts = {"unet": (UNet2DConditionModel(**train_unet.MODEL), trained["average"])}
    if (vae / "checkpoint.pt").exists():
        weights = torch.load(vae / "checkpoint.pt", weights_only=True, map_location="cpu")["model"]
        parts["vae"] = (AutoencoderKL(**train_vae.MODEL, scaling_factor=round(trained["scaling_factor"], 6)), weights)
    for name, (model, state) in parts.items():
        model.save_config(out / name)
        save_file(_half(state), out / name / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    DDIMScheduler(**train_unet.SCHEDULER).save_pretrained(out / "scheduler")
    write_index(out, "StableDiffusionPipeline", text_encoder=False)
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)


def write_index(out: Path, pipeline: str, text_encoder: bool) -> None:
    """The model_index.json of a hub folder: the diffusers class `pipeline` and its parts, with or without text encoder and tokenizer."""
    index = {"_class_name": pipeline, "scheduler": ["diffusers", "DDIMScheduler"], "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
             "feature_extractor": [None, None], "safety_checker": [None, None], "requires_safety_checker": False}
    if text_encoder:
        index |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def export_paper_layout(mini: str | Path, out: str | Path) -> dict[str, Path]:
    """Write the shipped miniatures as the paper's checkpoints lie on disk, in float32.

    Args:
        mini: the folder with `clip/` and `diffusion/` (data/models/mini). out: a new folder.

    Returns:
        {"clip": an open_clip folder with the whole token table, "diffusion": a complete hub folder with its own text encoder
        (one block fewer than CLIP's tower, as SD 2.1's has 23 of 24) and tokenizer}.
    """
    mini, out = Path(mini), Path(out)
    clip = load_clip(mini / "clip")
    diffusion = load_diffusion(mini / "diffusion", clip=clip)
    config = json.loads((mini / "clip/open_clip_config.json").read_text())
    _write_clip_config(out / "clip", config["model_cfg"])
    save_file({k: v.contiguous() for k, v in clip.model.state_dict().items()}, out / "clip/open_clip_model.safetensors", {"format": "pt"})
    for name in ("vae", "unet", "text_encoder"):
        getattr(diffusion, name).save_pretrained(out / "diffusion" / name)
    DDIMScheduler.from_pretrained(mini / "diffusion/scheduler").save_pretrained(out / "diffusion/scheduler")
    write_tokenizer(out / "diffusion/tokenizer")
    write_index(out / "diffusion", "StableDiffusionPipeline", text_encoder=True)
    return {"clip": out / "clip", "diffusion": out / "diffusion"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, required=True, help="folder with clip/, vae/ and unet/; what was not trained there stays as it is in --out")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if (args.training / "clip/checkpoint.pt").exists():
        export_clip(args.training / "clip", args.out / "clip")
    export_diffusion(args.training / "vae", args.training / "unet", args.out / "diffusion")


if __name__ == "__main__":
    main()

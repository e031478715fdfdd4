"""Train the mini VAE (diffusers `AutoencoderKL`, 4 latent channels, down-sampling by 4) on MiniFab.

    python -m fsad_lib.foundation.miniatures.train_vae --pool data/pool --out data/training/vae --steps 8000

Loss: L1 + L2 + edges (L1 of image gradients) + colours (L1 of 16 x 16 means) + a small KL term; `--defect-weight` lets the pixels of a defect count more. First on crops, half of
them around the defect, since the model is convolutional; then on whole images (`--side 128`), since group normalisation looks at the whole
image: trained on crops alone, flat backgrounds change their colour. What the VAE blurs, no later stage can see. Down-sampling by 8, as in Stable Diffusion, was tried first: after 40,000
crops it kept 0.63 of the defects' contrast (`contrast_projected`) at 23 dB, below the gate of 0.70.

With `--start`, training goes on from exported weights. `--decoder-only` leaves the encoder as it is, so that U-Nets trained on its latents stay valid. `--anchor` lets
the encoder move, but holds its latents near the old ones, measured in each channel's own standard deviation: what the latents carry changes little, what they leave unused is free.
LPIPS (`--perceptual`) makes the decoder draw sharply what the latents hold.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from ...errors import FsadError
from ...runs import replacing
from ..perceptual import load_lpips
from .options import check_pool, learning_rate, save_atomically, training_parser
from .pool import GRID, open_pool

MODEL = dict(in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3, block_out_channels=[16, 48, 96],
             layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=128, mid_block_add_attention=False)


def crops(images, cells: np.ndarray, rng: np.random.Generator, batch: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random crops x (batch, 3, side, side) in [-1, 1], every second one centred near a defect, and where they are defective (batch, 1, side, side)."""
    out, where, per_chunk, cell = [], [], len(images[0]), 128 // GRID
    for j in range(batch):
        i = int(rng.integers(len(cells)))
        pair = images[i // per_chunk][i % per_chunk]
        top, left = (int(a) for a in rng.integers(0, 128 - side + 1, 2))
        if j % 2:
            y, x = np.argwhere(cells[i] > 0)[0] * cell if (cells[i] > 0).any() else (64, 64)
            top, left = (int(np.clip(a - rng.integers(8, side - 8), 0, 128 - side)) for a in (y, x))
        out.append(pair[j % 2, top : top + side, left : left + side])
        defect = (cells[i] > 0).repeat(cell, 0).repeat(cell, 1) & (j % 2 == 1)
        where.append(defect[top : top + side, left : left + side])
    x = torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float() / 127.5 - 1
    m, turn = torch.from_numpy(np.stack(where))[:, None].float(), int(rng.integers(4))
    x, m = torch.rot90(x, turn, (2, 3)), torch.rot90(m, turn, (2, 3))
    return (x.flip(3), m.flip(3)) if rng.random() < 0.5 else (x, m)


def recolour(x: torch.Tensor, rng: np.random.Generator, share: float) -> torch.Tensor:
    """Every image of x (B, 3, H, W) in [-1, 1] in other colours with probability `share`: grey or its channels changed about, and all brighter or
    darker with more or less contrast, within [-1, 1]. MiniFab's paints and lamp are few; a user's photographs have others."""
    out = x.clone()
    for image in out:
        if rng.random() >= share:
            continue
        image.copy_(image.mean(0, keepdim=True).expand_as(image) if rng.random() < 0.4 else image[torch.from_numpy(rng.permutation(3))])
        image.mul_(rng.uniform(0.5, 1.2)).add_(rng.uniform(-0.5, 0.3)).clamp_(-1, 1)
    return out


def gradients(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Horizontal and vertical differences."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def chroma(x: torch.Tensor) -> torch.Tensor:
    """Red minus green and blue minus green, means over 4 x 4 pixels: (B, 2, H / 4, W / 4)."""
    x = F.avg_pool2d(x, 4)
    return x[:, [0, 2]] - x[:, 1:2]


@torch.no_grad()
def quality(vae: AutoencoderKL, images, cells: np.ndarray, device: str = "cpu", n: int = 48) -> dict[str, float]:
    """On the last n pairs of the pool: PSNR (dB) of the round trip, and the share of the defects' contrast that survives it:
    |decoded(defective) - decoded(good)| / |defective - good|, summed over defective cells (the gate is 0.70); colour: the share of the variance of
    :func:`chroma` that survives."""
    pair = np.stack([images[-1][-1 - i] for i in range(n)])
    x = torch.from_numpy(pair).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    mask = torch.from_numpy((cells[-n:][::-1] > 0.1).astype(np.float32).copy()).repeat_interleave(128 // GRID, 1).repeat_interleave(128 // GRID, 2)[:, None]
    y = torch.cat([vae.decode(vae.encode(b.to(device)).latent_dist.mean).sample.cpu() for b in x.flatten(0, 1).split(16)]).clamp(-1, 1).view_as(x)
    mse = ((x - y) ** 2).mean().item() / 4
    before, after = ((a[:, 1] - a[:, 0]).abs() * mask for a in (x, y))
    signed = ((y[:, 1] - y[:, 0]) * (x[:, 1] - x[:, 0]) * mask).sum() / ((x[:, 1] - x[:, 0]) ** 2 * mask).sum()
    true, found = (chroma(a.flatten(0, 1)) for a in (x, y))
    colour = 1 - ((found - true) ** 2).sum() / ((true - true.mean((0, 2, 3), keepdim=True)) ** 2).sum()
    return {"psnr": -10 * math.log10(mse), "contrast_kept": float(after.sum() / before.sum()), "contrast_projected": float(signed), "colour": float(colour)}


def export(training: Path, mini: Path, model: str = "inpainting") -> Path:
    """Write a training that went on from ``mini``/`model`/vae back there, float16; its config, the latents' scale in it, stays."""
    state = torch.load(training / "checkpoint.pt", weights_only=True, map_location="cpu")["model"]
    target = mini / model / "vae/diffusion_pytorch_model.safetensors"
    with replacing(target) as temporary:
        save_file({k: v.half().contiguous() for k, v in state.items()}, temporary, {"format": "pt"})
    return target


def main() -> None:
    parser = training_parser(__doc__, steps=8000, lr=1e-3, every=500, pool=False)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--defect-weight", type=float, default=1.0)
    parser.add_argument("--colour-weight", type=float, default=2.0)
    parser.add_argument("--recolour", type=float, default=0.0, metavar="SHARE", help="of the images that are shown in other colours or in grey")
    parser.add_argument("--decoder-only", action="store_true", help="leave the encoder, and with it every latent, as --start has it")
    parser.add_argument("--anchor", type=float, default=0.0, metavar="WEIGHT", help="of the latents' distance to those of --start, in standard deviations of its posterior, channel by channel")
    parser.add_argument("--perceptual", type=float, default=0.0, metavar="WEIGHT", help="of LPIPS, read from --mini")
    parser.add_argument("--perceptual-side", type=int, metavar="PIXELS", help="images are enlarged to this side for LPIPS, as AnomalySD's D does; default: not at all")
    parser.add_argument("--mini", type=Path, default=Path("data/models/mini"), help="the shipped miniatures: lpips/ is read, --export writes the vae/ of --model")
    parser.add_argument("--model", choices=["inpainting", "diffusion"], default="inpainting", help="whose autoencoder --export replaces; the other keeps its own")
    parser.add_argument("--start", type=Path, help="an exported VAE (data/models/mini/inpainting/vae) to start from")
    parser.add_argument("--export", action="store_true", help="write the trained VAE into --mini and stop")
    args = parser.parse_args()
    if args.export:
        print(export(args.out, args.mini, args.model))
        return
    check_pool(args.pool)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    images, _, cells = open_pool(args.pool)
    vae = AutoencoderKL.from_pretrained(args.start, torch_dtype=torch.float32) if args.start else AutoencoderKL(**MODEL)
    vae = vae.to(args.device)
    if args.decoder_only:
        if args.start is None:
            raise FsadError("--decoder-only needs --start, an exported VAE whose encoder is kept.")
        vae.requires_grad_(False), vae.decoder.requires_grad_(True), vae.post_quant_conv.requires_grad_(True)
    if args.anchor and args.start is None:
        raise FsadError("--anchor needs --start, an exported VAE whose latents the new ones stay near to.")
    anchor = AutoencoderKL.from_pretrained(args.start, torch_dtype=torch.float32).to(args.device).requires_grad_(False) if args.anchor else None
    lpips = load_lpips(args.mini / "lpips").to(args.device) if args.perceptual else None
    optimizer = torch.optim.AdamW([p for p in vae.parameters() if p.requires_grad], lr=args.lr, weight_decay=0.0, betas=(0.9, 0.95))
    step, checkpoint = 0, args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")  # step counts stay there: on a GPU, AdamW would wait for each
        vae.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    start, first, total = time.time(), step, 0.0
    while step < (args.until or args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        rng = np.random.default_rng([1, step])
        x, defect = crops(images, cells, rng, args.batch, args.side)
        x, defect = recolour(x, rng, args.recolour).to(args.device), defect.to(args.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=args.amp == "bfloat16"):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        y, kl = y.float(), 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        edges = sum(F.l1_loss(a, b) for a, b in zip(gradients(y), gradients(x)))
        weight = 1 + (args.defect_weight - 1) * defect
        colours = F.l1_loss(F.avg_pool2d(y, 16), F.avg_pool2d(x, 16))  # group normalisation removes the mean; this keeps a flat background's colour
        loss = (weight * ((y - x).abs() + (y - x) ** 2)).mean() + edges + args.colour_weight * colours + 1e-4 * kl
        if anchor:
            with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=args.amp == "bfloat16"):
                before = anchor.encode(x).latent_dist
            scale = before.std.float().mean((0, 2, 3), keepdim=True)  # a channel's: a cell's own can be next to nothing
            loss = loss + args.anchor * ((posterior.mean - before.mean).float() / scale).square().mean()
        if lpips:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=args.amp == "bfloat16"):
                side = args.perceptual_side or args.side
                pair = [F.interpolate(a / 2 + 0.5, (side, side), mode="bicubic", align_corners=False) for a in (y, x)]
                loss = loss + args.perceptual * lpips.distance(*pair).float().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step, total = step + 1, total + float(loss.detach())
        last = step in (args.steps, args.until)
        if step % 100 == 0 or last:
            since = step - max(first, (step - 1) // 100 * 100)
            row = {"step": step, "loss": total / since, "kl": float(kl.detach()), "batch": args.batch, "crops_per_s": (step - first) * args.batch / (time.time() - start)}
            total = 0.0
            if step % args.every == 0 or last:
                row |= quality(vae, images, cells, args.device)
                save_atomically({"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, checkpoint)
            row = {k: round(v, 4) for k, v in row.items()}
            with (args.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()

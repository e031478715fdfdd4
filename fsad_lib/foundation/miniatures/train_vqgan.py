"""Train the mini VQGAN (diffusers `VQModel`) on MiniFab with the VQGAN loss.

    python -m fsad_lib.foundation.miniatures.train_vqgan --pool data/pool --out data/training/vqgan --mini data/models/mini --steps 6200 --side 64 --until 5500
    python -m fsad_lib.foundation.miniatures.train_vqgan --pool data/pool --out data/training/vqgan --mini data/models/mini --steps 6200 --batch 6
    python -m fsad_lib.foundation.miniatures.train_vqgan --out data/training/vqgan --mini data/models/mini --export

Loss: |x - x_hat| + LPIPS + codebook + adversarial, as in `foundation.vqgan` (Esser et al. 2021). Three things are added for so short a training:
the first `--warm-up` steps leave the codebook out, and its codes are then drawn from the latents that were learned; codes that are
hardly used are drawn anew for the first 60 % of the steps; and what is kept is a moving average of the weights. The discriminator sets in
at `--judge-from` of the steps. First on crops, which cost a quarter, then on whole images, as the VAE (see train_vae). Down-sampling by 4 (32 x 32 cells at 128 pixels) or 8 (16 x 16, as many cells as the ImageNet model's
256-pixel images have).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import VQModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...errors import FsadError
from ..perceptual import load_lpips
from ..vqgan import VQGAN, LossWeights, PatchDiscriminator, save_vqgan
from .options import check_pool, follow, learning_rate, save_atomically, training_parser
from .pool import open_pool
from .train_vae import crops

CHANNELS = {4: [16, 32, 64], 8: [16, 32, 64, 80]}
CODES = 1024
JUDGE = dict(width=24, layers=2)


def make_model(factor: int, codes: int = CODES) -> VQModel:
    """The architecture: attention at the coarsest resolution, as in the ImageNet model.

    >>> sum(p.numel() for p in make_model(4).parameters()) < 1.4e6
    True
    """
    levels = len(CHANNELS[factor])
    return VQModel(
        down_block_types=["DownEncoderBlock2D"] * (levels - 1) + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * (levels - 1),
        block_out_channels=CHANNELS[factor], layers_per_block=1, latent_channels=8, vq_embed_dim=8, num_vq_embeddings=codes,
        norm_num_groups=8, sample_size=128,
    )  # fmt: skip


class Codebook:
    """Keeps the codes in use: counts how often each was taken, and draws hardly used ones anew from latents.

    Attributes:
        usage: (codes,) moving average of each code's share of all cells.
    """

    def __init__(self, model: VQModel, keep: float = 0.99) -> None:
        self.table, self.keep = model.quantize.embedding.weight, keep
        self.usage = torch.full((len(self.table),), 1 / len(self.table), device=self.table.device)

    def count(self, index: torch.Tensor) -> None:
        """Take note of one batch's codes, (B, h, w) numbers."""
        share = torch.bincount(index.flatten(), minlength=len(self.usage)).float() / index.numel()
        self.usage.lerp_(share, 1 - self.keep)

    @torch.no_grad()
    def renew(self, z: torch.Tensor, rng: np.random.Generator, least: float) -> int:
        """Codes whose share is below `least` / codes become latents of z (B, C, h, w), drawn at random; returns how many."""
        dead = (self.usage < least / len(self.usage)).nonzero()[:, 0]
        cells = z.detach().float().permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        picked = torch.from_numpy(rng.integers(0, len(cells), len(dead))).to(z.device)
        self.table[dead] = cells[picked]
        self.usage[dead] = 1 / len(self.usage)
        return len(dead)


def perplexity(index: torch.Tensor, codes: int) -> float:
    """exp of the entropy of the codes' frequencies: how many codes are in use, were they all used alike.

    >>> round(perplexity(torch.tensor([0, 1, 2, 3]), 8), 6)
    4.0
    """
    share = torch.bincount(index.flatten(), minlength=codes).double() / index.numel()
    return float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum()))


def train_step(
    vqgan: VQGAN, optimizers: dict[str, torch.optim.Optimizer], x: torch.Tensor, weights: LossWeights, quantize: bool = True, amp: bool = False
) -> tuple[dict[str, float], torch.Tensor, torch.Tensor | None]:
    """One step of the autoencoder and, where its weight is not 0, of the discriminator on x (B, 3, H, W) in [0, 1].

    Returns:
        the loss's parts, the latents before the codebook, and the codes' indices (None without the codebook).
    """
    with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
        z, index = vqgan.encode(x), None
        codes, codebook = z, z.new_zeros(())
        if quantize:
            codes, codebook, index = vqgan.quantize(z.float())
        loss = vqgan.loss(x, weights, (codes, codebook))
    optimizers["model"].zero_grad(set_to_none=True)
    loss.total.backward()
    torch.nn.utils.clip_grad_norm_(vqgan.model.parameters(), 1.0)
    optimizers["model"].step()
    parts = {"loss": float(loss.total.detach()), **loss.parts}
    if weights.adversarial:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            judged = vqgan.discriminator_loss(x, loss.x_hat)
        optimizers["discriminator"].zero_grad(set_to_none=True)
        judged.backward()
        optimizers["discriminator"].step()
        parts["discriminator"] = float(judged.detach())
    return parts, z, index


@contextmanager
def weights_of(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> Iterator[None]:
    """The module with other weights for a while."""
    own = {k: v.clone() for k, v in module.state_dict().items()}
    module.load_state_dict(state)
    try:
        yield
    finally:
        module.load_state_dict(own)


@torch.no_grad()
def quality(vqgan: VQGAN, images, n: int = 48) -> dict[str, float]:
    """On the last n scenes of the pool, good and defective: PSNR (dB) and LPIPS of the round trip through the codes, PSNR without them, and
    the perplexity of the codes."""
    pair = np.stack([images[-1][-1 - i] for i in range(min(n, len(images[-1])))])
    x = torch.from_numpy(pair).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    squared, plain, far, used = 0.0, 0.0, 0.0, []
    for part in x.split(16):
        part = part.to(vqgan.device)
        z = vqgan.encode(part)
        codes, _, index = vqgan.quantize(z)
        y = vqgan.decode(codes).clamp(0, 1)
        squared += float((y - part).square().mean((1, 2, 3)).sum())
        plain += float((vqgan.decode(z).clamp(0, 1) - part).square().mean((1, 2, 3)).sum())
        far += float(vqgan.perceptual.distance(y, part).sum())
        used.append(index.cpu())
    return {"psnr": -10 * math.log10(squared / len(x)), "psnr_without_codes": -10 * math.log10(plain / len(x)), "lpips": far / len(x),
            "perplexity": perplexity(torch.cat(used), vqgan.codes)}  # fmt: skip


def export(training: Path, mini: Path) -> Path:
    """Write the moving average of a training, and its discriminator, to ``mini``/vqgan in float16."""
    state = torch.load(training / "checkpoint.pt", weights_only=True, map_location="cpu")
    model, judge = make_model(state["factor"], state["codes"]), PatchDiscriminator(**JUDGE)
    model.load_state_dict(state["average"]), judge.load_state_dict(state["discriminator"])
    save_vqgan(VQGAN(model, judge), mini / "vqgan", metadata={"trained_on": "MiniFab, pretraining split", "steps": str(state["step"])})
    return mini / "vqgan"


def main() -> None:
    parser = training_parser(__doc__, steps=6200, lr=1e-3, every=500, pool=False)
    parser.add_argument("--mini", type=Path, required=True, help="the shipped miniatures: lpips/ is read, vqgan/ is written by --export")
    parser.add_argument("--export", action="store_true", help="write the trained VQGAN into --mini and stop")
    parser.add_argument("--factor", type=int, choices=sorted(CHANNELS), default=4)
    parser.add_argument("--codes", type=int, default=CODES)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=128, help="side of the crops in pixels; 128: whole images")
    parser.add_argument("--warm-up", type=int, default=300, help="steps before the codebook comes in")
    parser.add_argument("--judge-from", type=float, default=0.4, help="share of --steps after which the discriminator comes in")
    parser.add_argument("--judge-lr", type=float, default=2e-4)
    parser.add_argument("--adversarial", type=float, default=0.2, help="weight of the adversarial part")
    parser.add_argument("--perceptual", type=float, default=1.0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.export:
        print(export(args.out, args.mini))
        return
    check_pool(args.pool)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    images, _, cells = open_pool(args.pool)
    vqgan = VQGAN(make_model(args.factor, args.codes), PatchDiscriminator(**JUDGE), load_lpips(args.mini / "lpips")).to(args.device)
    average = {k: v.clone() for k, v in vqgan.model.state_dict().items()}
    optimizers = {
        "model": torch.optim.Adam(vqgan.model.parameters(), args.lr, betas=(0.9, 0.95)),
        "discriminator": torch.optim.Adam(vqgan.discriminator.parameters(), args.judge_lr, betas=(0.5, 0.9)),
    }
    book = Codebook(vqgan.model)
    step, checkpoint = 0, args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")  # step counts stay there: on a GPU, Adam would wait for each
        if (state["factor"], state["codes"]) != (args.factor, args.codes):
            raise FsadError(f"{checkpoint} was trained with factor {state['factor']} and {state['codes']} codes. Give those, or another --out.")
        vqgan.model.load_state_dict(state["model"]), vqgan.discriminator.load_state_dict(state["discriminator"])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        average, step = {k: v.to(args.device) for k, v in state["average"].items()}, state["step"]
        book.usage.copy_(state["usage"])
    start, first, total = time.time(), step, {}
    while step < (args.until or args.steps):
        for group in optimizers["model"].param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        rng = np.random.default_rng([5, step])
        x = (crops(images, cells, rng, args.batch, args.side)[0] / 2 + 0.5).to(args.device)
        judge = step >= args.judge_from * args.steps
        weights = LossWeights(args.perceptual, 1.0, args.adversarial)
        vqgan.model.train(), vqgan.discriminator.train()
        # on the CPU that trained the miniatures the plain attention is the one whose backward pass is fast in bfloat16
        with sdpa_kernel(SDPBackend.MATH) if args.device == "cpu" else nullcontext():
            parts, z, index = train_step(vqgan, optimizers, x, weights if judge else replace(weights, adversarial=0.0), step >= args.warm_up, args.amp == "bfloat16")
        step += 1
        if index is not None:
            book.count(index)
        if step == args.warm_up:
            book.renew(z, rng, math.inf)  # all of them
        elif step % 50 == 0 and args.warm_up < step < 0.6 * args.steps:
            book.renew(z, rng, 0.05)
        follow(average, vqgan.model, step)
        for k, v in parts.items():
            total.setdefault(k, []).append(v)
        last = step in (args.steps, args.until)
        if step % 100 == 0 or last:
            row = {"step": step, **{k: float(np.mean(v)) for k, v in total.items()}, "batch": args.batch, "images_per_s": (step - first) * args.batch / (time.time() - start)}
            total = {}
            if step % args.every == 0 or last:
                vqgan.model.eval()
                with weights_of(vqgan.model, average):
                    row |= quality(vqgan, images)
                save_atomically(
                    {"model": vqgan.model.state_dict(), "average": average, "discriminator": vqgan.discriminator.state_dict(), "usage": book.usage, "step": step,
                     "factor": args.factor, "codes": args.codes, "optimizers": {name: o.state_dict() for name, o in optimizers.items()}},
                    checkpoint,
                )  # fmt: skip
            row = {k: round(v, 4) for k, v in row.items()}
            with (args.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()

"""Train the mini inpainting U-Net, nine channels, narrower than the mini text-to-image U-Net, on the shipped VAE and text encoder.

    python -m fsad_lib.foundation.miniatures.train_inpainting --pool data/pool --mini data/models/mini --out data/training/inpainting --steps 3000
    python -m fsad_lib.foundation.miniatures.train_inpainting --export --mini data/models/mini --out data/training/inpainting

What it learns: the region under the mask is always painted as in the photograph without defect. The surroundings are those of the same
photograph; in every fourth sample the defective twin's, so that a defect that reaches out of the mask is not carried on into it. No
sample ever shows a defect where the answer is the good pixel: to remove what it sees is not taught, only to paint what is normal.
Cells that are not repainted count little: the answer stands in the input. Painting into a given picture is easier than drawing one, so half
of the text-to-image model's numbers do; whatever has the same shape there is copied (the fine levels), the rest starts at random. The
autoencoder is that of --mini's inpainting/ where there is one, else that of diffusion/; in the shipped miniatures they are the same. Every tenth
caption is dropped, for classifier-free guidance. What is kept is the moving average of the weights. Resumable: run the same command again.
`--device cuda` is all that a GPU needs.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...anomalysd.prompts import hierarchy, training_prompts
from ...datasets.minifab.designs import NOUNS
from ...errors import FsadError
from ..clip import load_clip
from ..diffusion import load_diffusion, write_tokenizer
from ..inpainting import Inpainting, load_inpainting
from .captions import COLOUR_NAMES, make_caption
from .export import write_index
from .options import check_pool, follow, learning_rate, save_atomically, training_parser
from .pool import open_pool

CHANNELS = (32, 64, 96, 96)  # 3.5 million numbers
HEAD_WIDTH = 32  # channels of an attention head
GRIDS = (2, 3, 4, 8)  # cells a side of the grid masks


def nine_channels(unet: UNet2DConditionModel, channels: Sequence[int] | None = None, seed: int = 0) -> UNet2DConditionModel:
    """The inpainting twin of a text-to-image U-Net: the mask and the masked latent are further input channels, which start without effect.

    Args:
        channels: block_out_channels; None: those of `unet`, and the twin then starts as the same function. seed: of the weights that have
            no counterpart of the same name and shape.

    Example:
        >>> small = UNet2DConditionModel(block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        ...     norm_num_groups=8, cross_attention_dim=8, attention_head_dim=8)
        >>> nine_channels(small).config.in_channels, nine_channels(small, (16,)).config.block_out_channels
        (9, (16,))
    """
    latent = unet.config.in_channels
    config = {k: v for k, v in unet.config.items() if k not in ("_use_default_values", "_name_or_path")}  # the first puts defaults back, the second says where the source lay
    config |= {"in_channels": 2 * latent + 1}
    if channels is not None:
        config |= {"block_out_channels": tuple(channels), "attention_head_dim": tuple(max(1, c // HEAD_WIDTH) for c in channels)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        twin = UNet2DConditionModel.from_config(config)
    state, source = twin.state_dict(), dict(unet.state_dict())
    weight = source["conv_in.weight"]
    source["conv_in.weight"] = torch.cat([weight, weight.new_zeros(len(weight), latent + 1, *weight.shape[2:])], dim=1)
    twin.load_state_dict({k: source[k] if k in source and source[k].shape == v.shape else v for k, v in state.items()})
    return twin


def random_mask(rng: np.random.Generator, size: int) -> np.ndarray:
    """A mask (size, size) bool as fine-tuning and inference use them: one to three rectangles, one cell of a grid, cells that do not
    touch, or everything.

    >>> bool(0 < random_mask(np.random.default_rng(0), 32).mean() <= 1)
    True
    """
    m, u = np.zeros((size, size), bool), rng.random()
    if u < 0.05:
        return ~m
    if u < 0.5:
        for _ in range(int(rng.integers(1, 4))):
            area, aspect = rng.uniform(0.02, 0.4) * size**2, 2.0 ** rng.uniform(-1, 1)
            h, w = (int(np.clip(round(a), 2, size)) for a in ((area * aspect) ** 0.5, (area / aspect) ** 0.5))
            top, left = int(rng.integers(size - h + 1)), int(rng.integers(size - w + 1))
            m[top : top + h, left : left + w] = True
        return m
    k = int(rng.choice(GRIDS))
    row, column = (np.arange(size) * k // size)[:, None], (np.arange(size) * k // size)[None]
    i, j = (int(a) for a in rng.integers(k, size=2))
    if u < 0.75:
        return (row == i) & (column == j)
    return (row % 2 == i % 2) & (column % 2 == j % 2)


def caption(rng: np.random.Generator, noun: str, colour: str) -> str:
    """A caption of the good photograph: the two levels of AnomalySD's prompts, or a true caption of the text-to-image model."""
    u = rng.random()
    if u < 0.1:
        return ""
    if u < 0.55:
        return str(rng.choice(training_prompts(hierarchy("minifab", noun if rng.random() < 0.8 else "object"))))
    return make_caption(rng, noun, colour, None, effects=False).text


@torch.no_grad()
def cache_latents(folder: Path, images: list[np.ndarray], model: Inpainting, chunks: list[int]) -> list[np.ndarray]:
    """Scaled posterior mean and standard deviation of the pool's chunks, (n, pair, mean or std, 4, h, w) float16 each, memory-mapped."""
    out = []
    for index in chunks:
        file = folder / f"latents-{index:03d}.npy"
        if not file.exists():
            parts = []
            for start in range(0, len(images[index]), 32):
                x = torch.from_numpy(np.array(images[index][start : start + 32])).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
                with torch.autocast(model.device.type, torch.bfloat16):
                    moments = torch.stack(model.posterior(x, 64), 1)
                parts.append(moments.float().cpu().numpy().astype(np.float16).reshape(-1, 2, *moments.shape[1:]))
            part = file.with_suffix(".part.npy")
            np.save(part, np.concatenate(parts))
            part.rename(file)
            print("latents of chunk", index, flush=True)
        out.append(np.load(file, mmap_mode="r"))
    return out


def draw_mask(chunk: int, pair: int, variant: int, size: int) -> tuple[np.ndarray, int]:
    """The mask of a pair's variant, and whether the good (0) or the defective photograph (1) surrounds it."""
    rng = np.random.default_rng([5, chunk, pair, variant])
    return random_mask(rng, size), int(rng.random() < 0.25)


@torch.no_grad()
def cache_masked(folder: Path, images: list[np.ndarray], model: Inpainting, chunks: list[int], variants: int) -> list[list[np.ndarray]]:
    """Latents of the masked photographs, [chunk][variant] -> (n, 4, h, w) float16, memory-mapped: to encode them is nearly half of a step."""
    out = []
    for index in chunks:
        of_chunk = []
        for v in range(variants):
            file = folder / f"masked-{index:03d}-{v}.npy"
            if not file.exists():
                parts = []
                for start in range(0, len(images[index]), 64):
                    drawn = [draw_mask(index, i, v, model.image_size) for i in range(start, min(start + 64, len(images[index])))]
                    x = torch.stack([
                        torch.from_numpy(np.array(images[index][start + n, bad])).permute(2, 0, 1).float() / 255 for n, (_, bad) in enumerate(drawn)
                    ])  # fmt: skip
                    m = torch.from_numpy(np.stack([m for m, _ in drawn]))[:, None]
                    with torch.autocast(model.device.type, torch.bfloat16):
                        parts.append(model.masked_latents(x, m, 64)[1].float().cpu().numpy().astype(np.float16))
                part = file.with_suffix(".part.npy")
                np.save(part, np.concatenate(parts))
                part.rename(file)
                print("masked latents of chunk", index, "variant", v, flush=True)
            of_chunk.append(np.load(file, mmap_mode="r"))
        out.append(of_chunk)
    return out


class Batches:
    """Random batches; the step number alone decides what is drawn."""

    def __init__(self, pool: Path, folder: Path, model: Inpainting, chunks: int | None, batch: int, variants: int = 2, focus: tuple[float, float, float] | None = None):
        self.focus = focus
        self.images, self.labels, _ = open_pool(pool)
        # evenly spread over the pool, whose parts were made with different settings
        self.chunks = sorted({int(i) for i in np.linspace(0, len(self.images) - 1, min(chunks or len(self.images), len(self.images)))})
        self.latents, self.model, self.batch = cache_latents(folder, self.images, model, self.chunks), model, batch
        self.masked, self.variants = cache_masked(folder, self.images, model, self.chunks, variants), variants

    def __call__(self, step: int) -> tuple[torch.Tensor, ...]:
        """z, z's noise eps, t, mask and masked latent, text states."""
        model, rng = self.model, np.random.default_rng([3, step])
        z, m_z, z_masked, captions = [], [], [], []
        for _ in range(self.batch):
            c = int(rng.integers(len(self.chunks)))
            i, v = int(rng.integers(len(self.latents[c]))), int(rng.integers(self.variants))
            m, bad = draw_mask(self.chunks[c], i, v, model.image_size)
            moments = torch.from_numpy(np.array(self.latents[c][i])).float()
            mean, std = moments.unbind(1)
            sample = mean + std * torch.from_numpy(rng.standard_normal(mean.shape[1:], dtype=np.float32))
            m_z.append(F.interpolate(torch.from_numpy(m)[None, None].float(), scale_factor=1 / model.factor)[0])
            z.append(torch.where(m_z[-1] > 0, sample[0], sample[bad]))  # good under the mask, what is shown around it
            z_masked.append(torch.from_numpy(np.array(self.masked[c][v][i])).float())
            noun, colour, _ = self.labels[sum(len(chunk) for chunk in self.images[: self.chunks[c]]) + i]
            captions.append(caption(rng, NOUNS[noun], COLOUR_NAMES[colour]))
        z, m_z, z_masked = (torch.stack(part).to(model.device) for part in (z, m_z, z_masked))
        eps = torch.from_numpy(rng.standard_normal(z.shape, dtype=np.float32)).to(z)
        t = rng.integers(0, model.num_train_timesteps, self.batch)
        if self.focus:  # these shares of the schedule are asked more often
            low, high, share = self.focus
            within = rng.integers(int(low * model.num_train_timesteps), int(high * model.num_train_timesteps), self.batch)
            t = np.where(rng.random(self.batch) < share, within, t)
        t = torch.from_numpy(t).to(z.device)
        with torch.no_grad():
            text = model.encode_prompt(captions)
        return z, eps, t, m_z, z_masked, text


def masked_loss(model: Inpainting, z, text, t, eps, m_z, z_masked, outside: float, min_snr: float | None = None) -> torch.Tensor:
    """The denoising loss, where a cell that is not repainted counts `outside` as much as one that is (1: the usual loss).

    `min_snr`: the error of the image, in place of the noise's, with weight min(SNR, min_snr), SNR = abar_t / (1 - abar_t) (Hang et al. 2023, min-SNR
    weighting): the grain of the last steps, which nobody can predict, then counts little."""
    a = model.alphas_cumprod[t].view(-1, 1, 1, 1)
    target = eps if model.prediction_type == "epsilon" else a.sqrt() * eps - (1 - a).sqrt() * z
    error = (model.predict(a.sqrt() * z + (1 - a).sqrt() * eps, t, m_z, z_masked, text) - target).square()
    weight = (m_z + outside * (1 - m_z)).expand_as(error)
    if min_snr is not None:
        snr = a / (1 - a)
        error = error * snr.clamp(max=min_snr) / (snr if model.prediction_type == "epsilon" else snr + 1)
    return (weight * error).sum() / weight.sum()


def load_start(mini: Path, device: str, channels: Sequence[int] | None = CHANNELS) -> Inpainting:
    """The inpainting twin of the text-to-image U-Net, see `nine_channels`, with the autoencoder of inpainting/ where there is one."""
    d = load_diffusion(mini / "diffusion", load_clip(mini / "clip"), device)
    if (own := mini / "inpainting/vae").is_dir():
        d.vae = AutoencoderKL.from_pretrained(own, torch_dtype=torch.float32).to(device).eval().requires_grad_(False)
    return Inpainting(d.tokenizer, d.text_encoder, d.vae, nine_channels(d.unet, channels).to(device), d.scheduler, d.image_size)


def export(training: Path, mini: Path) -> Path:
    """Write the moving average of a training to ``mini``/inpainting/unet, float16; what that folder lacks is the text-to-image model's."""
    saved = torch.load(training / "checkpoint.pt", weights_only=True, map_location="cpu")
    state, unet = saved["average"], load_start(mini, "cpu", saved["channels"]).unet
    unet.load_state_dict(state)
    out = mini / "inpainting"
    for part in ("vae", "scheduler"):
        if not (out / part).is_dir():
            shutil.copytree(mini / "diffusion" / part, out / part)
    write_index(out, "StableDiffusionInpaintPipeline", text_encoder=False)
    unet.save_config(out / "unet")
    target = out / "unet/diffusion_pytorch_model.safetensors"
    save_file({k: v.detach().half().contiguous() for k, v in state.items()}, target, {"format": "pt"})
    target.chmod(0o644)
    return out


def export_paper_layout(mini: str | Path, out: str | Path) -> Path:
    """Write the shipped mini inpainting model as an inpainting checkpoint lies on disk (a complete hub folder, float32).

    Args:
        mini: the folder with ``clip/`` and ``inpainting/`` (data/models/mini). out: a new folder.
    """
    mini, out = Path(mini), Path(out)
    model = load_inpainting(mini / "inpainting", clip=load_clip(mini / "clip"))
    for name in ("vae", "unet", "text_encoder"):
        getattr(model, name).save_pretrained(out / name)
    shutil.copytree(mini / "inpainting/scheduler", out / "scheduler", dirs_exist_ok=True)
    write_tokenizer(out / "tokenizer")
    write_index(out, "StableDiffusionInpaintPipeline", text_encoder=True)
    return out


def main() -> None:
    parser = training_parser(__doc__, steps=3000, lr=5e-4, every=200, pool=False)
    parser.add_argument("--mini", type=Path, required=True, help="the shipped miniatures: clip/, diffusion/ and, for its autoencoder, inpainting/")
    parser.add_argument("--export", action="store_true", help="write the trained U-Net into --mini and stop")
    parser.add_argument("--start", type=Path, help="an exported inpainting U-Net (data/models/mini/inpainting/unet) to start from")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--channels", type=int, nargs="+", default=list(CHANNELS), help="width of the U-Net's levels")
    parser.add_argument("--chunks", type=int, default=None, help="use this many chunks of the pool")
    parser.add_argument("--variants", type=int, default=2, help="masks of every photograph")
    parser.add_argument("--outside-weight", type=float, default=0.2, help="weight of the cells that are not repainted")
    parser.add_argument("--min-snr", type=float, help="min-SNR weighting of the loss over timesteps; default: all alike")
    parser.add_argument("--focus", type=float, nargs=3, metavar=("LOW", "HIGH", "SHARE"), help="draw SHARE of the timesteps between these parts of the schedule, those that AnomalySD's strength asks")
    args = parser.parse_args()
    if args.focus and not (0 <= args.focus[0] < args.focus[1] <= 1 and 0 <= args.focus[2] <= 1):
        parser.error(f"--focus {args.focus}: LOW < HIGH and SHARE lie within 0 and 1.")
    if args.min_snr is not None and args.min_snr <= 0:
        parser.error(f"--min-snr {args.min_snr}: a number above 0.")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.export:
        print(export(args.out, args.mini))
        return
    check_pool(args.pool)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True, map_location="cpu") if checkpoint.exists() else None  # step counts stay there: on a GPU, AdamW would wait for each
    if state and state["channels"] != args.channels:
        raise FsadError(f"{checkpoint} holds a U-Net of the channels {state['channels']}, asked for are {args.channels}; give another --out.")
    model = load_start(args.mini, args.device, args.channels)
    model.amp = torch.bfloat16 if args.amp == "bfloat16" else None
    batches = Batches(args.pool, args.out, model, args.chunks, args.batch, args.variants, args.focus)
    if args.start:
        model.unet.load_state_dict(load_file(args.start / "diffusion_pytorch_model.safetensors"))
    unet = model.unet.train().requires_grad_(True)
    average = {k: v.clone() for k, v in unet.state_dict().items()}
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.lr, weight_decay=1e-4, betas=(0.9, 0.99))
    step = 0
    if state:
        unet.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
        average, step = {k: v.to(args.device) for k, v in state["average"].items()}, state["step"]
    start, first, total, summed = time.time(), step, 0.0, 0
    while step < (args.until or args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        z, eps, t, m_z, z_masked, text = batches(step)
        # on the CPU that trained the miniatures the plain attention is the one whose backward pass is fast in bfloat16
        with sdpa_kernel(SDPBackend.MATH) if args.device == "cpu" else nullcontext():
            loss = masked_loss(model, z, text, t, eps, m_z, z_masked, args.outside_weight, args.min_snr)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        step, total, summed = step + 1, total + float(loss.detach()), summed + 1
        follow(average, unet, step)
        last = step in (args.steps, args.until)
        if step % 50 == 0 or last:
            row = {"step": step, "loss": round(total / summed, 4), "samples_per_s": round((step - first) * args.batch / (time.time() - start), 1)}
            total, summed = 0.0, 0
            if step % args.every == 0 or last:
                state = {"model": unet.state_dict(), "average": average, "optimizer": optimizer.state_dict(), "step": step, "channels": args.channels}
                save_atomically(state, checkpoint)
            with (args.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()

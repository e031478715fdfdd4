"""Train the mini text-to-image U-Net (diffusers `UNet2DConditionModel`, v-prediction) on MiniFab's latents.

    python -m fsad_lib.foundation.miniatures.train_unet --pool data/pool --vae data/training/vae --clip data/training/clip/frozen_text.pt --out data/training/unet

The text encoder is the mini CLIP's text tower without its last block, as Stable Diffusion 2.1 uses ViT-H/14's; it stays frozen. Every
tenth caption is dropped, for classifier-free guidance. What is kept is the moving average of the weights. With --start, training goes on
from exported miniatures, VAE and text tower included.

A batch holds scenes twice, flawless and damaged, under the same noise: at high noise only the caption tells them apart. --unpaired gives
every image a scene of its own: shapes are learned faster. A defect covers a hundredth of the image, and so of the loss; --defect-weight
makes its cells count that many times more where the caption tells of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...datasets.minifab.defects import SEEN
from ...datasets.minifab.designs import NOUNS
from ..clip import load_clip
from ..diffusion import CONTEXT, text_encoder_from_clip
from . import train_clip, train_vae
from .captions import COLOUR_NAMES, make_caption
from .options import follow, learning_rate, save_atomically, training_parser
from .pool import CHUNK, open_pool

MODEL = dict(sample_size=32, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=[32, 64, 128, 160],
             down_block_types=["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
             up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
             cross_attention_dim=192, attention_head_dim=[1, 2, 4, 5], norm_num_groups=16)
SCHEDULER = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction")


@torch.no_grad()
def cache_latents(folder: Path, pool: Path, vae: AutoencoderKL, chunks: Sequence[int], device: str) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and standard deviation of the pool's chunks of these numbers: (N, 2, 4, 32, 32) float16 each, kept on disk."""
    images, _, _ = open_pool(pool)
    out = ([], [])
    for index in chunks:
        chunk = images[index]
        files = [folder / f"{name}-{index:03d}.npy" for name in ("mean", "std")]
        if not all(f.exists() for f in files):
            parts = ([], [])
            for start in range(0, len(chunk), 64):
                x = torch.from_numpy(np.array(chunk[start : start + 64])).flatten(0, 1).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
                with torch.autocast(x.device.type, torch.bfloat16):
                    posterior = vae.encode(x).latent_dist
                for part, value in zip(parts, (posterior.mean, posterior.std)):
                    part.append(value.float().cpu().numpy().astype(np.float16).reshape(-1, 2, *value.shape[1:]))
            for file, part in zip(files, parts):
                np.save(file, np.concatenate(part))
            print("latents of chunk", index, flush=True)
        for part, file in zip(out, files):
            part.append(np.load(file))
    return np.concatenate(out[0]), np.concatenate(out[1])


def draw(rng: np.random.Generator, labels: np.ndarray, scenes: int, twins: int) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Scenes of a batch and what is said of them.

    Args:
        labels: (N, 3) of the pool, see :func:`fsad_lib.foundation.miniatures.pool.make_chunk`. twins: 2 for both photographs of a scene, the
            flawless one first; 1 for one of them by chance.

    Returns:
        Four of scenes * twins: the scenes' numbers, 1 where the damaged photograph is meant (0 else), the captions, every tenth of them empty,
        and True where the caption tells of the damage.

    >>> index, damaged, captions, told = draw(np.random.default_rng(0), np.array([[0, 1, 2], [3, 4, 5]]), scenes=2, twins=2)
    >>> bool(index[0] == index[1]), damaged.tolist(), len(captions), told[::2].any()
    (True, [0, 1, 0, 1], 4, np.False_)
    """
    index = rng.integers(0, len(labels), scenes).repeat(twins)
    damaged = np.tile([0, 1], scenes) if twins == 2 else rng.integers(0, 2, scenes)
    said = [
        make_caption(rng, NOUNS[noun], COLOUR_NAMES[colour], SEEN[kind] if d else None, effects=False)
        for (noun, colour, kind), d in zip(labels[index], damaged, strict=True)
    ]
    dropped = rng.random(len(said)) < 0.1
    captions = ["" if drop else caption.text for caption, drop in zip(said, dropped, strict=True)]
    return index, damaged, captions, np.array([bool(caption.damaged) for caption in said]) & ~dropped


def spread_timesteps(rng: np.random.Generator, count: int, total: int) -> np.ndarray:
    """`count` timesteps (count,) below `total`, one in each of `count` equal parts of the schedule, in random order: batches then differ less.

    >>> np.sort(spread_timesteps(np.random.default_rng(0), 4, 1000) // 250)
    array([0, 1, 2, 3])
    """
    return ((rng.permutation(count) + rng.random(count)) * total / count).astype(np.int64)


def snr_weight(abar: torch.Tensor, max_snr: float) -> torch.Tensor:
    """Weight of v's error at abar, so that the error of the image counts nowhere more than at the signal-to-noise ratio `max_snr`.

    v's squared error is that of the image times SNR + 1, SNR = abar / (1 - abar): unweighted, the grain of the last steps, which nobody can predict, counts most.

    >>> snr_weight(torch.tensor([0.1, 0.5, 0.8, 0.99]), max_snr=4)  # SNR 1/9, 1, 4, 99
    tensor([1.0000, 1.0000, 1.0000, 0.0500])
    """
    return ((max_snr + 1) * (1 - abar)).clamp(max=1)


def main() -> None:
    parser = training_parser(__doc__, steps=4000, lr=1e-3, every=200)
    parser.add_argument("--vae", type=Path, help="training folder of the VAE; with --start, in place of the exported one")
    parser.add_argument("--clip", type=Path, help="frozen_text.pt of train_clip; needed without --start")
    parser.add_argument("--start", type=Path, help="exported miniatures (data/models/mini) to start from, instead of --vae and --clip")
    parser.add_argument("--batch", type=int, default=32, help="images a step, an even number")
    parser.add_argument("--defect-weight", type=float, default=0.0)
    parser.add_argument("--unpaired", action="store_true", help="every image of a batch shows a scene of its own")
    parser.add_argument("--max-snr", type=float, help="where the signal-to-noise ratio is higher, the error of the image counts as at this one; default: no limit")
    parser.add_argument("--chunks", type=int, default=6, help="how many chunks of the pool, evenly spread over it")
    parser.add_argument("--compile", action="store_true", help="compile the U-Net: minutes once, then 1.3 (batches of 32) to 1.5 (of 64) times as fast on a CPU")
    args = parser.parse_args()
    if not args.start and not (args.vae and args.clip):
        parser.error("give --start (exported miniatures), or --vae and --clip (training folders).")
    if args.max_snr is not None and args.max_snr <= 0:
        parser.error(f"--max-snr {args.max_snr}: a number above 0.")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    unet = UNet2DConditionModel(**MODEL)
    if args.vae:
        vae = AutoencoderKL(**train_vae.MODEL)
        vae.load_state_dict(torch.load(args.vae / "checkpoint.pt", weights_only=True, map_location="cpu")["model"])
    else:
        vae = AutoencoderKL.from_pretrained(args.start / "diffusion/vae", torch_dtype=torch.float32)
    if args.start:
        clip = load_clip(args.start / "clip").model
        unet.load_state_dict(load_file(args.start / "diffusion/unet/diffusion_pytorch_model.safetensors"))
    else:
        clip = open_clip.CLIP(**train_clip.MODEL)
        text = {k: v for k, v in torch.load(args.clip, weights_only=True, map_location="cpu")["model"].items() if not k.startswith("visual.")}
        clip.load_state_dict(clip.state_dict() | text)  # the image tower is not needed
    # on the CPU that trained it this memory format and the plain attention are the ones whose backward passes are fast in bfloat16: twice the samples a second
    unet, vae = unet.to(args.device, memory_format=torch.channels_last), vae.eval().to(args.device)
    text_encoder = text_encoder_from_clip(clip).to(args.device)
    images, labels, cells = open_pool(args.pool)
    chunks = np.unique(np.linspace(0, len(images) - 1, args.chunks).round().astype(int))
    mean, std = cache_latents(args.out, args.pool, vae, chunks, args.device)
    labels, cells = (np.concatenate([a[i * CHUNK : (i + 1) * CHUNK] for i in chunks]) for a in (labels, cells))
    if not args.vae:
        factor = vae.config.scaling_factor
    else:
        factor = float(1 / np.sqrt(mean[::7].astype(np.float32).var() + (std[::7].astype(np.float32) ** 2).mean()))
    forward = torch.compile(unet) if args.compile else unet
    scheduler = DDIMScheduler(**SCHEDULER)
    alphas = scheduler.alphas_cumprod.to(args.device)
    average = {k: v.clone() for k, v in unet.state_dict().items()}
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.lr, weight_decay=1e-4, betas=(0.9, 0.99), fused=True)
    twins = 1 if args.unpaired else 2
    step, checkpoint = 0, args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")  # step counts stay there: on a GPU, AdamW would wait for each
        unet.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
        average, step = {k: v.to(args.device) for k, v in state["average"].items()}, state["step"]
    start, first, total = time.time(), step, 0.0
    while step < (args.until or args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        rng = np.random.default_rng([2, step])
        scenes = args.batch // twins
        index, damaged, captions, told = draw(rng, labels, scenes, twins)
        posterior_noise, eps = torch.from_numpy(rng.standard_normal((2, scenes, *mean.shape[2:]), dtype=np.float32)).to(args.device).repeat_interleave(twins, 1)
        m, s = (torch.from_numpy(a[index, damaged].astype(np.float32)).to(args.device) for a in (mean, std))
        z = factor * (m + s * posterior_noise)
        t = torch.from_numpy(spread_timesteps(rng, scenes, len(alphas))).to(args.device).repeat_interleave(twins)
        weight = 1 + args.defect_weight * torch.from_numpy((cells[index] > 0) * told[:, None, None]).to(args.device).float()
        weight = F.interpolate(weight[:, None], size=z.shape[-1])
        a = alphas[t].view(-1, 1, 1, 1)
        if args.max_snr is not None:
            weight = weight * snr_weight(a, args.max_snr)
        with torch.no_grad():
            text = text_encoder(open_clip.tokenize(captions, context_length=CONTEXT).to(args.device)).last_hidden_state
        with sdpa_kernel(SDPBackend.MATH) if args.device == "cpu" else nullcontext():
            with torch.autocast(z.device.type, torch.bfloat16, enabled=args.amp == "bfloat16"):
                prediction = forward(a.sqrt() * z + (1 - a).sqrt() * eps, t, encoder_hidden_states=text).sample
            loss = (weight * (prediction.float() - (a.sqrt() * eps - (1 - a).sqrt() * z)) ** 2).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        step, total = step + 1, total + float(loss.detach())
        follow(average, unet, step)
        last = step in (args.steps, args.until)
        if step % 50 == 0 or last:
            since = step - max(first, (step - 1) // 50 * 50)
            row = {"step": step, "loss": round(total / since, 4), "samples_per_s": round((step - first) * args.batch / (time.time() - start), 1)}
            total = 0.0
            if step % args.every == 0 or last:
                save_atomically({"model": unet.state_dict(), "average": average, "optimizer": optimizer.state_dict(), "step": step, "scaling_factor": factor}, checkpoint)
            with (args.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()

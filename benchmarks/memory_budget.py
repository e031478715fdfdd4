"""What AnomalySD needs with Stable Diffusion 1.5 inpainting at 512 pixels, memory and work, computed without a GPU and without allocating it.

    python benchmarks/memory_budget.py

Tensors are fake (shapes without numbers); PyTorch's tracker adds up what two training steps would hold at their peak: batch 1, AdamW in
float32 parameter by parameter (as on a CPU) or on all of them at once (``foreach``, as on a GPU), autocast to bfloat16, with and without gradient
checkpointing. A GPU adds its context, kernels' workspace and fragmentation, and text encoder, VAE and LPIPS (0.8 GiB in float32) stay beside it.
Work: floating-point operations of the U-Net's evaluations and of the VAE's encodings and decodings of an image, at a speed that is assumed, not measured.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parent))
from paper_sizes import UNET_15, _unet, _vae  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.distributed._tools.mem_tracker import MemTracker  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from fsad_lib.anomalysd.detector import AnomalySD, Category, Cost, Settings  # noqa: E402
from fsad_lib.datasets import mvtec_ad, visa  # noqa: E402
from fsad_lib.foundation.diffusion import count_steps  # noqa: E402
from fsad_lib.profiles import load_profile  # noqa: E402

SPEED = 100e12
"""Operations per second assumed."""
IMAGES = {"MVTec AD": mvtec_ad.COUNTS, "VisA": visa.COUNTS}


def cost(image_size: int = 512) -> Cost:
    """The work for one image in the paper profile, of a model that has nothing but a size."""
    a = load_profile("paper").anomalysd
    settings = Settings(**{name: getattr(a, name) for name in Settings.__dataclass_fields__ if name != "seed"})
    model = SimpleNamespace(image_size=image_size, factor=8, steps=count_steps, encode_prompt=lambda prompts: None)
    return AnomalySD(model, None, {"part": Category("", memory=object())}, settings).cost


def peak(checkpointing: bool, side: int = 64, batch: int = 1, config: dict = UNET_15, foreach: bool = False) -> dict[str, float]:
    """GiB at the peak of a training step by kind, "Total" included. side: of the latent, an eighth of the image's; foreach: of AdamW."""
    with FakeTensorMode():
        unet = _unet(config).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, foreach=foreach)
        tracker = MemTracker()
        tracker.track_external(unet, optimizer)
        with tracker:
            for step in range(2):  # AdamW's state exists from the second step on
                z, text = torch.randn(batch, config["in_channels"], side, side), torch.randn(batch, 77, config["cross_attention_dim"])
                with torch.autocast("cpu", torch.bfloat16):
                    loss = unet(z, torch.full((batch,), 500), text).sample.float().square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if step == 0:
                    tracker.reset_mod_stats()
        (found,) = tracker.get_tracker_snapshot("peak").values()
    return {getattr(kind, "value", str(kind)): size / 2**30 for kind, size in found.items()}


def flops(side: int = 64, config: dict = UNET_15) -> int:
    """Floating-point operations of one U-Net evaluation; a multiplication and an addition count as two."""
    with FakeTensorMode(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        _unet(config)(torch.randn(1, config["in_channels"], side, side), torch.full((1,), 500), torch.randn(1, 77, config["cross_attention_dim"]))
    return counter.get_total_flops()


def vae_flops(image_size: int = 512) -> tuple[int, int]:
    """Floating-point operations of one encoding and of one decoding."""
    found = []
    with FakeTensorMode(), torch.no_grad():
        vae = _vae()
        for work in (lambda: vae.encode(torch.randn(1, 3, image_size, image_size)), lambda: vae.decode(torch.randn(1, 4, image_size // 8, image_size // 8))):
            with FlopCounterMode(display=False) as counter:
                work()
            found.append(counter.get_total_flops())
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=1)
    args = parser.parse_args()
    for foreach in (False, True):
        for checkpointing in (True, False):
            found = peak(checkpointing, args.image_size // 8, args.batch_size, foreach=foreach)
            parts = ", ".join(f"{kind} {size:.1f}" for kind, size in found.items() if size > 0.05 and kind != "Total")
            of = f"AdamW {'on all parameters at once' if foreach else 'parameter by parameter'}, gradient checkpointing {'on' if checkpointing else 'off'}"
            print(f"{of}: {found['Total']:.1f} GiB ({parts})", flush=True)
    work, unet, (encoding, decoding) = cost(args.image_size), flops(args.image_size // 8), vae_flops(args.image_size)
    vae = work.encodings * encoding + work.decodings * decoding
    seconds = (work.unet * unet + vae) / SPEED
    print(f"{unet / 1e12:.2f} TFLOP a U-Net evaluation, {encoding / 1e12:.2f} an encoding, {decoding / 1e12:.2f} a decoding")
    print(
        f"an image: {work.passes} passes, {work.unet} evaluations, {work.encodings} encodings, {work.decodings} decodings: {work.unet * unet / 1e15:.2f} + {vae / 1e15:.2f} PFLOP, "
        f"{seconds:.0f} s at {SPEED / 1e12:.0f} TFLOP/s"
    )
    for name, counts in IMAGES.items():
        images = sum(good + bad for _, good, bad in counts.values())
        print(f"{name}'s {images:,} test images: {images * seconds / 3600:.0f} hours")


if __name__ == "__main__":
    main()

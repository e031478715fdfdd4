"""What AnomalySD needs with Stable Diffusion 1.5 inpainting at 512 pixels, memory and work, computed without a GPU and without allocating it.

    python benchmarks/memory_budget.py

Tensors are fake (shapes without numbers); PyTorch's tracker adds up what two training steps would hold at their peak: batch 1, AdamW in
float32, autocast to bfloat16, with and without gradient checkpointing. A GPU adds its context, kernels' workspace and fragmentation, and
text encoder, VAE and LPIPS (0.8 GiB in float32) stay beside it. Work: floating-point operations of one U-Net evaluation times the evaluations
of an image, at a speed that is assumed, not measured.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from paper_sizes import UNET_15, _unet  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.distributed._tools.mem_tracker import MemTracker  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

EVALUATIONS, IMAGES, SPEED = 3440, 1725, 100e12
"""U-Net evaluations of an image in the paper profile (86 passes, 20 steps, guidance), MVTec AD's test images, operations per second assumed."""


def peak(checkpointing: bool, side: int = 64, batch: int = 1, config: dict = UNET_15) -> dict[str, float]:
    """GiB at the peak of a training step by kind, "Total" included. side: of the latent, an eighth of the image's."""
    with FakeTensorMode():
        unet = _unet(config).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, foreach=False)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=1)
    args = parser.parse_args()
    for checkpointing in (True, False):
        found = peak(checkpointing, args.image_size // 8, args.batch_size)
        parts = ", ".join(f"{kind} {size:.1f}" for kind, size in found.items() if size > 0.05 and kind != "Total")
        print(f"gradient checkpointing {'on' if checkpointing else 'off'}: {found['Total']:.1f} GiB ({parts})", flush=True)
    one = flops(args.image_size // 8)
    seconds = EVALUATIONS * one / SPEED
    print(
        f"one U-Net evaluation: {one / 1e12:.2f} TFLOP; an image: {EVALUATIONS} evaluations, {EVALUATIONS * one / 1e15:.1f} PFLOP, {seconds:.0f} s at "
        f"{SPEED / 1e12:.0f} TFLOP/s; MVTec AD's {IMAGES} test images: {IMAGES * seconds / 3600:.0f} hours"
    )


if __name__ == "__main__":
    main()

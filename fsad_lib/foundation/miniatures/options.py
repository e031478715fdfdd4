"""What the training scripts share: their command line, the course of the learning rate, checkpoints."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from ...errors import FsadError
from ...runs import replacing


def training_parser(doc: str, *, steps: int, lr: float, every: int, pool: bool = True) -> argparse.ArgumentParser:
    """Options of every training script, with the script's defaults; `pool`: whether --pool must be given.

    >>> training_parser("", steps=10, lr=0.1, every=5).parse_args(["--pool", "p", "--out", "o"]).steps
    10
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, required=pool)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--until", type=int, default=None, help="stop at this step (the learning rate still follows --steps)")
    parser.add_argument("--every", type=int, default=every, help="steps between checkpoints")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", choices=("none", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=None)
    return parser


def check_pool(pool: Path | None) -> None:
    """Raise FsadError where a script that can also export was asked to train without --pool."""
    if pool is None:
        raise FsadError("--pool is missing: the folder of python -m fsad_lib.foundation.miniatures.pool.")


def learning_rate(step: int, steps: int, lr: float, warm_up: int = 200) -> float:
    """The rate of a step, counted from 0: a linear rise over ``warm_up`` steps, and half a cosine from ``lr`` to almost 0 over all ``steps``.

    >>> [round(learning_rate(step, 4000, 1e-3), 6) for step in (0, 200, 2000, 4000)]
    [6e-06, 0.000995, 0.000501, 1e-06]
    """
    return lr * min(1.0, (step + 1) / warm_up) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-6


@torch.no_grad()
def follow(average: dict[str, torch.Tensor], module: torch.nn.Module, step: int) -> None:
    """The moving average of a module's weights after ``step`` steps, in place; short at first, so that the random start is forgotten.

    >>> average, layer = {"weight": torch.zeros(1, 1)}, torch.nn.Linear(1, 1, bias=False)
    >>> _ = layer.weight.data.fill_(11.0)
    >>> follow(average, layer, step=1)
    >>> round(average["weight"].item(), 4)
    9.0
    """
    keep = min(0.998, (1 + step) / (10 + step))
    for name, value in module.state_dict().items():
        average[name].lerp_(value, 1 - keep)


def save_atomically(state: dict, path: Path) -> None:
    """torch.save that never leaves a half-written checkpoint."""
    with replacing(path) as temporary:
        torch.save(state, temporary)

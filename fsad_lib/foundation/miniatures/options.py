"""The command line that the training scripts share."""

from __future__ import annotations

import argparse
from pathlib import Path


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

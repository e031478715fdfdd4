"""A counter for long work that is watched; logs, CI and notebooks stay quiet."""

import sys
from collections.abc import Callable


def counter(label: str) -> Callable[..., None] | None:
    """``show(done, total)``, which rewrites one line of the terminal; None where standard error is none."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int, *_: object) -> None:
        print(f"\r{label} {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show

"""Unfinished trainings on disk: which training a state belongs to, and how it is read back without unpickling."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsad_lib.errors import FsadError

__all__ = ["digest", "read_state"]


def digest(*tensors: Tensor, **settings: Any) -> str:
    """SHA-256 of tensors (shapes and values, as float32) and of settings that JSON can hold.

    Example:
        >>> x = torch.ones(2)
        >>> digest(x, lr=0.1) == digest(x.clone(), lr=0.1), digest(x, lr=0.1) == digest(x, lr=0.2)
        (True, False)
    """
    h = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for tensor in tensors:
        h.update(str(tuple(tensor.shape)).encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()


def read_state(checkpoint: str | Path | None, key: str) -> dict[str, Any] | None:
    """What ``torch.save`` wrote into ``checkpoint``, on the CPU; None if there is no file, or one whose entry "key" is another training's.

    Example:
        >>> read_state("no/such/file.pt", "key") is None
        True

    Raises:
        FsadError: a file that cannot be read, or holds no state.
    """
    if checkpoint is None or not Path(checkpoint).is_file():
        return None
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        return state if state["key"] == key else None
    except Exception as error:
        raise FsadError(f"{checkpoint} is not a readable checkpoint ({error}). Delete it and run again.") from error

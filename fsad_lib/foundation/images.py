"""What every model here expects of a batch of images, said once."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fsad_lib.errors import FsadError

__all__ = ["check_images", "resize"]

ROUNDING = 1e-3  # what arithmetic may leave an image outside [0, 1]


def check_images(x: Any, empty: bool = True) -> Tensor:
    """The batch itself, clamped to [0, 1] where rounding has left it a little outside; its gradient passes as if nothing had been clamped.

    Args:
        x: float images (B, 3, H, W) in [0, 1]. empty: whether B may be 0.

    Example:
        >>> import torch
        >>> check_images(torch.full((1, 3, 2, 2), 1.0001)).max()
        tensor(1.)
        >>> check_images(torch.full((1, 3, 2, 2), 255.0))
        Traceback (most recent call last):
        fsad_lib.errors.FsadError: images hold values from 255 to 255, expected [0, 1]; read them with fsad_lib.datasets.read_images.

    Raises:
        FsadError: another type, shape or range, a value that is not finite, or no image where there must be one.
    """
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
        found = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise FsadError(f"expected a float image batch (B, 3, H, W) in [0, 1], found {found}; read images with fsad_lib.datasets.read_images.")
    if not len(x) and not empty:
        raise FsadError("no image found; expected at least one.")
    if not x.numel():
        return x
    low, high = (float(edge) for edge in x.detach().aminmax())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # false for nan, too
        raise FsadError(f"images hold values from {low:g} to {high:g}, expected [0, 1]; read them with fsad_lib.datasets.read_images.")
    if low >= 0 and high <= 1:
        return x
    return x.detach().clamp(0, 1) + (x - x.detach()) if x.requires_grad else x.clamp(0, 1)


def resize(x: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] as (B, 3, size, size) or (B, 3, *size); bicubic, antialiased; the same tensor if they have that size already.

    Example:
        >>> import torch
        >>> resize(torch.ones(1, 3, 8, 6), 4).shape
        torch.Size([1, 3, 4, 4])
    """
    size = (size, size) if isinstance(size, int) else tuple(size)
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)

"""AnomalySD's anomaly score, formula by formula. All maps are (H, W) or (B, H, W), at least 0, higher = more anomalous.

The paper's equations are known from secondary sources without their numbers, so they are named here by their symbols.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fsad_lib.errors import FsadError
from fsad_lib.patch_memory import top_share_mean

__all__ = ["EPSILON", "fuse", "harmonic_mean", "image_score", "scale_map"]

EPSILON = 1e-6
"""Least value that enters the harmonic mean, where a single zero would silence every other scale."""


def scale_map(d: Tensor, m: Tensor) -> Tensor:
    """S^(k): every pixel's difference is taken from the pass that masked it.

    Args:
        d: (P, H, W) the differences D(x, x_hat_p) of the scale's passes. m: (P, H, W) bool, their masks; each pixel in exactly one.

    Returns:
        (H, W).

    Raises:
        FsadError: masks that leave out a pixel or cover one twice.

    Example:
        >>> m = torch.tensor([[[True, False]], [[False, True]]])
        >>> scale_map(torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), m).tolist()
        [[1.0, 4.0]]
    """
    if d.shape != m.shape or not (m.sum(0) == 1).all():
        raise FsadError(
            f"found differences {tuple(d.shape)} and masks {tuple(m.shape)} that cover a pixel {int(m.sum(0).min())} to "
            f"{int(m.sum(0).max())} times; expected equal shapes and every pixel covered exactly once."
        )
    # S^(k) = sum_ij M^(k)_ij * D(x, x_hat^(k)_ij)
    return torch.where(m, d, 0).sum(0)


def harmonic_mean(maps: Mapping[int, Tensor], epsilon: float = EPSILON) -> Tensor:
    """S_ms, the harmonic mean over the scales: only a place that every scale finds different scores high.

    Args:
        maps: k -> S^(k), all of one shape. epsilon: values below it count as it; above 0.

    Returns:
        S_ms, (H, W) or (B, H, W) as the maps, at least epsilon.

    Raises:
        FsadError: no scale, or an epsilon that is not above 0.

    Example:
        >>> harmonic_mean({2: torch.tensor([1.0, 0.0]), 4: torch.tensor([3.0, 3.0])}).tolist()
        [1.5, 1.99...e-06]
    """
    if not maps or not epsilon > 0:
        raise FsadError(f"found {len(maps)} scales and epsilon {epsilon}; expected at least one scale and epsilon above 0.")
    # S_ms = ( 1/|K| * sum_k 1 / S^(k) )^-1
    return torch.stack([s.clamp_min(epsilon) for s in maps.values()]).reciprocal().mean(0).reciprocal()


def fuse(s_ms: Tensor, s_pg: Tensor | None, alpha: float) -> Tensor:
    """S_map: the scales' map and the prototype-guided one.

    Args:
        s_ms: multi-scale map. s_pg: difference inside the prototype-guided mask, 0 outside; None only with alpha = 0.
        alpha: in [0, 1].

    Returns:
        (1 - alpha) S_ms + alpha S_pg, of their shape.

    Raises:
        FsadError: an alpha outside [0, 1], or above 0 without a prototype-guided map.

    Example:
        >>> fuse(torch.tensor([2.0]), torch.tensor([4.0]), 0.25).tolist()
        [2.5]
    """
    if not 0 <= alpha <= 1 or (s_pg is None and alpha > 0):
        raise FsadError(
            f"alpha is {alpha}, expected a number in [0, 1], and 0 where there is no prototype-guided map."
        )
    # S_map = (1 - alpha) S_ms + alpha S_pg
    return s_ms if s_pg is None else (1 - alpha) * s_ms + alpha * s_pg


def image_score(s_map: Tensor, share: float = 0.0) -> Tensor:
    """The image's score, which the sources at hand do not define: the map's largest value.

    Args:
        s_map: (B, H, W). share: 0: the largest value; else the mean over this share of the largest values, in (0, 1].

    Returns:
        (B,).

    Raises:
        FsadError: a share outside [0, 1].

    Example:
        >>> image_score(torch.tensor([[[1.0, 5.0], [3.0, 0.0]]])).tolist(), image_score(torch.tensor([[[1.0, 5.0], [3.0, 0.0]]]), 0.5).tolist()
        ([5.0], [4.0])
    """
    if not 0 <= share <= 1:
        raise FsadError(f"the share of the image score is {share}, expected 0 (the maximum) or a share up to 1.")
    return s_map.flatten(1).amax(1) if share == 0 else top_share_mean(s_map, share)

"""Masks m: where to repaint. Foreground and random rectangles for fine-tuning; grids and the prototype-guided mask for inference.

Sizes, thresholds and shapes are not known from the sources at hand; every default is an own choice.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fsad_lib.errors import FsadError

__all__ = ["Pass", "foreground", "grid_cells", "grid_passes", "prototype_mask", "random_rectangle"]

SIDE = 128  # the foreground is estimated at this side
RING = 5  # width of the border that is taken for background, in pixels at that side


class Pass(NamedTuple):
    """One image to repaint: its mask m (H, W) bool, the scale k (0: prototype-guided) and the names of its cells, e.g. "0-1,0-3"."""

    m: Tensor
    k: int
    cells: str


# -------------------------------------------------------------------- fine-tuning
def foreground(x: Tensor) -> Tensor:
    """Where the object is; everywhere on a texture.

    The border is taken for background if a plane in (row, column) describes its colour; what differs from that plane, by Otsu's
    threshold, is foreground, with holes filled. The whole image is returned where that gives no object: what differs lies along the border
    or meets all four sides, or is hardly different, or is a speck, or nearly everything.

    Args:
        x: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 1, H, W) bool, on the device of x.

    Raises:
        FsadError: another shape or dtype.

    Example:
        >>> x = torch.full((1, 3, 64, 64), 0.2)
        >>> x[..., 20:40, 20:44] = 0.8
        >>> foreground(x)[0, 0].float().mean().item() < 0.3, foreground(torch.rand(1, 3, 64, 64)).all().item()
        (True, True)
    """
    if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
        raise FsadError(f"expected float images (B, 3, H, W) in [0, 1], found {x.dtype} {tuple(x.shape)}.")
    small = F.interpolate(x.detach().float().cpu(), (SIDE, SIDE), mode="bilinear", antialias=True)
    found = np.stack([_foreground(image) for image in small.permute(0, 2, 3, 1).numpy()])
    large = F.interpolate(torch.from_numpy(found).float()[:, None], x.shape[-2:], mode="bilinear")
    return (large >= 0.5).to(x.device)


def _foreground(image: np.ndarray) -> np.ndarray:
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    image = ndimage.gaussian_filter(image, (1.5, 1.5, 0))
    ring = np.ones((SIDE, SIDE), bool)
    ring[RING:-RING, RING:-RING] = False
    v, u = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    plane = np.stack([np.ones_like(u), u, v], -1)
    # twice: the second fit leaves out the half of the border that fits worst (an object that touches it)
    keep = ring
    for _ in range(2):
        colour = plane @ np.linalg.lstsq(plane[keep], image[keep], rcond=None)[0]
        distance = np.linalg.norm(image - colour, axis=-1)
        keep = ring & (distance <= np.median(distance[ring]))
    otsu = threshold_otsu(distance)
    body = distance > otsu
    if not body.any() or body.all():  # one colour all over
        return np.ones((SIDE, SIDE), bool)
    inside, outside = np.median(distance[body]), np.median(distance[~body])
    sides = (body[0], body[-1], body[:, 0], body[:, -1])
    if body[ring].mean() > 0.25 or all(side.any() for side in sides) or inside < 4 * outside or inside < 0.06:
        return np.ones((SIDE, SIDE), bool)
    labels, n = ndimage.label(ndimage.binary_fill_holes(ndimage.binary_closing(body, iterations=3)))
    if not n:
        return np.ones((SIDE, SIDE), bool)
    areas = ndimage.sum_labels(np.ones_like(labels), labels, range(1, n + 1))
    body = np.isin(labels, 1 + np.flatnonzero(areas >= max(0.1 * areas.max(), 0.01 * SIDE**2)))
    body = ndimage.binary_dilation(body, iterations=3)  # a stain may lie across the outline
    return body if 0.04 <= body.mean() <= 0.9 else np.ones((SIDE, SIDE), bool)


def random_rectangle(
    where: Tensor, generator: torch.Generator, area: tuple[float, float] = (0.05, 0.5)
) -> Tensor:
    """A random rectangle restricted to the foreground.

    Args:
        where: (H, W) bool, the foreground; all True: no restriction.
        generator: source of every random number.
        area: least and greatest area of the rectangle before the restriction, as a share of the foreground's bounding box.

    Returns:
        m (H, W) bool, at least one pixel: the rectangle, around a random foreground pixel, of proportions 1:2 to 2:1, cut to the foreground.

    Raises:
        FsadError: a foreground that is not (H, W) bool or is empty, shares that are not 0 < least <= greatest <= 1.

    Example:
        >>> where = torch.zeros(8, 8, dtype=torch.bool)
        >>> where[2:6, 2:6] = True
        >>> m = random_rectangle(where, torch.Generator().manual_seed(0))
        >>> bool(m.any()), bool((m & ~where).any())
        (True, False)
    """
    low, high = area
    if not 0 < low <= high <= 1:
        raise FsadError(f"area is {tuple(area)}, expected two shares with 0 < least <= greatest <= 1.")
    if where.ndim != 2 or where.dtype != torch.bool or not where.any():
        raise FsadError(f"the foreground is {where.dtype} {tuple(where.shape)}; expected (H, W) bool with at least one pixel.")
    height, width = where.shape
    places = where.nonzero()
    top, left = places.amin(0).tolist()
    bottom, right = places.amax(0).tolist()
    u = torch.rand(3, generator=generator).tolist()
    size = (low + (high - low) * u[0]) * (bottom - top + 1) * (right - left + 1)
    aspect = 2 ** (2 * u[1] - 1)
    h, w = max(1, round((size * aspect) ** 0.5)), max(1, round((size / aspect) ** 0.5))
    y, x = places[int(u[2] * len(places))].tolist()
    m = torch.zeros_like(where)
    m[max(0, y - h // 2) : min(height, y - h // 2 + h), max(0, x - w // 2) : min(width, x - w // 2 + w)] = True
    return m & where


# -------------------------------------------------------------------- inference
def grid_cells(k: int, size: int | tuple[int, int]) -> Tensor:
    """The masks M^(k)_ij of one scale: k x k cells that together cover every pixel exactly once.

    Args:
        k: cells a side, at least 1. size: side of the image, or its height and width; it need not be a multiple of k.

    Returns:
        (k * k, H, W) bool, row by row.

    Raises:
        FsadError: a k that is not a whole number from 1 to the image's shorter side.

    Example:
        >>> grid_cells(2, 4).shape, grid_cells(3, 10).sum(0).unique().tolist()
        (torch.Size([4, 4, 4]), [1])
    """
    height, width = (size, size) if isinstance(size, int) else size
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= min(height, width):
        raise FsadError(f"found {k!r} cells a side; expected a whole number from 1 to the image's side ({min(height, width)}).")
    row = torch.arange(height) * k // height
    column = torch.arange(width) * k // width
    cell = row[:, None] * k + column
    return cell[None] == torch.arange(k * k)[:, None, None]


def grid_passes(scales: Sequence[int], size: int | tuple[int, int], packed: bool = False) -> list[Pass]:
    """What is repainted of every image: each cell of each scale in a pass of its own, as the secondary summary has it.

    Args:
        scales: the set K of cells a side. size: side of the image, or its height and width.
        packed: paint cells that do not touch, not even at a corner, in one pass: at most four passes a scale. Each cell still has its
            surroundings, but of its neighbours it sees the originals only in part.

    Returns:
        The passes, scale by scale: k² of each scale, or, packed, at most four.

    Raises:
        FsadError: no scale, one that is given twice, or one that :func:`grid_cells` refuses.

    Example:
        >>> len(grid_passes((1, 2, 4), 8)), len(grid_passes((1, 2, 4), 8, packed=True))
        (21, 9)
    """
    if not len(scales) or len(set(scales)) != len(scales):
        raise FsadError(f"scales is {tuple(scales)}; expected different numbers of cells a side, at least one, e.g. (2, 4, 8).")
    passes = []
    for k in scales:
        cells = grid_cells(k, size)
        groups: dict[tuple[int, int], list[int]] = {}
        for n in range(k * k):
            groups.setdefault((n // k % 2, n % k % 2) if packed else (n // k, n % k), []).append(n)
        for members in groups.values():
            passes.append(Pass(cells[members].any(0), k, ",".join(f"{n // k}-{n % k}" for n in members)))
    return passes


def prototype_mask(distance: Tensor, share: float, margin: float = 0.0) -> Tensor:
    """The prototype-guided mask M^(p): the places farthest from every normal prototype.

    Args:
        distance: (B, H, W) distance to the nearest prototype, at the image's resolution.
        share: share of the image that is masked before the margin, in (0, 1]. A share needs no threshold that few shots could not set;
            on a normal image it masks normal places, whose repainting changes little.
        margin: the mask is widened by this share of the image's side.

    Returns:
        (B, H, W) bool.

    Raises:
        FsadError: a share outside (0, 1] or a margin outside [0, 0.5).

    Example:
        >>> prototype_mask(torch.arange(16.0).view(1, 4, 4), 0.25)[0].int().sum(1).tolist()
        [0, 0, 0, 4]
    """
    if not 0 < share <= 1 or not 0 <= margin < 0.5:
        raise FsadError(f"found share {share} and margin {margin}; expected a share in (0, 1] and a margin in [0, 0.5).")
    flat = distance.flatten(1)
    count = max(1, round(share * flat.shape[1]))
    m = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, flat.topk(count, dim=1).indices, True)
    m = m.view_as(distance)
    radius = round(margin * distance.shape[-1])
    if radius:
        m = F.max_pool2d(m.float(), 2 * radius + 1, stride=1, padding=radius) > 0
    return m

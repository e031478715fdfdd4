"""Window features: the image tower run on a few neighbouring patches at a time."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fsad_lib.errors import FsadError
from fsad_lib.foundation.clip import CLIP
from fsad_lib.foundation.images import check_images

__all__ = ["Features", "extract", "harmonic_aggregation", "window_features", "window_index"]

TOKENS = 16_384  # tokens that pass through the transformer at once
CACHED = 4_096  # the same on a CPU, whose cache they should fit
EPSILON = 1e-7  # below float32's resolution of a cosine; keeps 1/score finite


class Features(NamedTuple):
    """All that WinCLIP reads from a batch of images.

    f: (B, D) image embeddings. windows: for each scale (B, W, D) window embeddings. patches: (B, N, width) patch
    features. grid: side of the patch grid.
    """

    f: Tensor
    windows: tuple[Tensor, ...]
    patches: Tensor
    grid: int


def window_index(grid: int, size: int) -> Tensor:
    """Patch numbers of each window, stride one patch.

    Args:
        grid: side of the square patch grid.
        size: side of the window, in patches.

    Returns:
        LongTensor (W, size²) with W = (grid - size + 1)², windows and patches in row order.

    Raises:
        FsadError: a window larger than the grid.

    Example:
        >>> window_index(3, 2).tolist()
        [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]
    """
    if not 1 <= size <= grid:
        raise FsadError(
            f"a window of {size}x{size} patches does not fit a grid of {grid}x{grid}; choose smaller scales or a "
            "model with more patches."
        )
    patches = torch.arange(grid * grid).reshape(grid, grid)
    return patches.unfold(0, size, 1).unfold(1, size, 1).reshape(-1, size * size)


@torch.no_grad()
def window_features(clip: CLIP, tokens: Tensor, size: int) -> Tensor:
    """Embedding of every window: the image tower's own run on the class token and that window's tokens.

    Args:
        clip: the model.
        tokens: (B, 1 + N, width) input tokens, from ``clip.embed_patches``.
        size: side of the window, in patches.

    Returns:
        (B, W, D) of unit norm.

    Raises:
        FsadError: a window larger than the patch grid.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> clip, x = load_clip("data/models/mini/clip"), torch.rand(2, 3, 96, 96)
        >>> tokens = clip.embed_patches(x)
        >>> clip.grid, window_features(clip, tokens, 10).shape[:2]  # 3 x 3 places for a window of 10 x 10
        (12, torch.Size([2, 9]))
        >>> torch.allclose(window_features(clip, tokens, 12)[:, 0], clip.encode_image(x), atol=1e-4)  # the largest sees it all
        True
    """
    index = window_index(clip.grid, size).to(tokens.device) + 1
    index = torch.cat([index.new_zeros(len(index), 1), index], dim=1)
    at_once = max(1, (min(TOKENS, CACHED) if tokens.device.type == "cpu" else TOKENS) // index.numel())
    return torch.cat([clip.encode_subsets(part, index) for part in tokens.split(at_once)])


@torch.no_grad()
def extract(clip: CLIP, x: Tensor, scales: Sequence[int] = (2, 3), batch_size: int = 16) -> Features:
    """Image, window and patch features of images (B, 3, H, W) in [0, 1].

    Args:
        clip: the model.
        x: the images.
        scales: window sides in patches.
        batch_size: images at once; the result does not depend on it.

    Raises:
        FsadError: a scale larger than the patch grid; a batch of another shape.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> clip, x = load_clip("data/models/mini/clip"), torch.rand(1, 3, 96, 96)
        >>> y = x.clone()
        >>> y[..., :8, :8] = 0  # the first of 12 x 12 patches
        >>> before, after = (extract(clip, image, scales=(2, 3)).windows for image in (x, y))
        >>> [(a - b).abs().amax(-1).gt(1e-4).nonzero().tolist() for a, b in zip(before, after)]  # only the windows over it have changed
        [[[0, 0]], [[0, 0]]]
    """
    parts = []
    for part in check_images(x).split(batch_size):
        tokens = clip.embed_patches(part)
        f, patches = clip.encode_tokens(tokens)
        parts.append((f, patches, *(window_features(clip, tokens, size) for size in scales)))
    f, patches, *windows = (torch.cat(items) for items in zip(*parts, strict=True))
    return Features(f, tuple(windows), patches, clip.grid)


def harmonic_aggregation(scores: Tensor, grid: int, size: int) -> Tensor:
    """Scores of windows spread over the patches: each patch gets the harmonic mean of the windows that cover it.

    Args:
        scores: (B, W) non-negative window scores.
        grid: side of the patch grid.
        size: side of the windows in patches, W = (grid - size + 1)².

    Returns:
        (B, grid, grid): the number of windows over a patch, divided by the sum of 1 / score over them. Scores
        below 1e-7 count as 1e-7.

    Raises:
        FsadError: a window larger than the grid.

    Example:
        >>> harmonic_aggregation(torch.tensor([[1.0, 0.75, 0.5, 0.25]]), 3, 2)[0, 1]
        tensor([0.6667, 0.4800, 0.3750])
    """
    index = window_index(grid, size).to(scores.device)
    covers = scores.new_zeros(len(index), grid * grid).scatter_(1, index, 1.0)
    inverse = scores.clamp_min(EPSILON).reciprocal() @ covers
    return (covers.sum(dim=0) / inverse).reshape(len(scores), grid, grid)

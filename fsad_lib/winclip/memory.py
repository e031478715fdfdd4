"""WinCLIP+'s feature association: how far an image's features are from those of a few normal images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fsad_lib.errors import FsadError
from fsad_lib.foundation.clip import CLIP
from fsad_lib.foundation.neighbours import nearest_cosine_distance
from fsad_lib.winclip.windows import Features, extract, harmonic_aggregation

__all__ = ["FeatureMemory"]


class FeatureMemory:
    """The three memories of WinCLIP+: windows of each scale, and patches (WinCLIP paper).

    Args:
        clip: the model whose features are kept.
        scales: window sides in patches.

    Attributes:
        shots: number of normal images remembered so far.

    Raises:
        FsadError: no scale, or one that is not from 1 to the side of the patch grid.

    Example:
        >>> import open_clip
        >>> vision = dict(image_size=32, layers=1, width=32, head_width=16, patch_size=8)
        >>> clip = CLIP(open_clip.CLIP(24, vision, dict(width=16, heads=2, layers=1)))
        >>> x = torch.rand(2, 3, 32, 32)
        >>> memory = FeatureMemory(clip).add_shots(x)
        >>> memory.maps(x).shape, bool(memory.maps(x).max() < 1e-6)
        (torch.Size([2, 4, 4]), True)
    """

    def __init__(self, clip: CLIP, scales: Sequence[int] = (2, 3)) -> None:
        self.clip, self.scales = clip, tuple(scales)
        if not scales or not all(1 <= size <= clip.grid for size in scales):
            raise FsadError(f"scales must lie in 1..{clip.grid} (patches of the grid), found {self.scales}.")
        self.shots = 0
        self._windows: list[Tensor] = []
        self._patches: Tensor | None = None

    def features(self, x: Tensor | Features) -> Features:
        """Features of images (B, 3, H, W) in [0, 1]; features of the same scales pass through.

        Raises:
            FsadError: features of other scales.
        """
        if not isinstance(x, Features):
            return extract(self.clip, x, self.scales)
        if [w.shape[1] for w in x.windows] != [(x.grid - size + 1) ** 2 for size in self.scales]:
            raise FsadError(f"features with {[w.shape[1] for w in x.windows]} windows found; expected those of the scales {self.scales}.")
        return x

    def add_shots(self, x: Tensor | Features) -> "FeatureMemory":
        """Adds normal images (k, 3, H, W) in [0, 1], at least one, or their features; returns itself.

        Raises:
            FsadError: no image, or features of other scales.
        """
        features = self.features(x)
        if not len(features.f):
            raise FsadError("no normal images to remember; give at least one.")
        patches, windows = features.patches.flatten(0, 1), [w.flatten(0, 1) for w in features.windows]
        if self.shots:
            patches = torch.cat([self._patches, patches])
            windows = [torch.cat(pair) for pair in zip(self._windows, windows, strict=True)]
        self._patches, self._windows = patches, windows
        self.shots += len(features.f)
        return self

    @torch.no_grad()
    def maps(self, x: Tensor | Features) -> Tensor:
        """Association maps (B, grid, grid) in [0, 1], higher where nothing similar was seen.

        Each feature scores 1/2 min (1 - cos) against its memory; window scores are spread over the patches by
        their harmonic mean; the maps of the scales and of the patches are averaged.

        Raises:
            FsadError: nothing is remembered yet, or features of other scales.
        """
        if not self.shots:
            raise FsadError("the memory is empty; add normal images with add_shots first.")
        features = self.features(x)
        maps = [self._association(features.patches, self._patches).unflatten(1, (features.grid, -1))]
        for size, windows, stored in zip(self.scales, features.windows, self._windows, strict=True):
            maps.append(harmonic_aggregation(self._association(windows, stored), features.grid, size))
        return torch.stack(maps).mean(dim=0)

    def score(self, x: Tensor | Features) -> Tensor:
        """Image scores (B,) in [0, 1]: the largest value of each map."""
        return self.maps(x).amax(dim=(-2, -1))

    @staticmethod
    def _association(features: Tensor, stored: Tensor) -> Tensor:
        # reference association: M_ij = min_r 1/2 (1 - <F_ij, r>)
        return nearest_cosine_distance(features, stored) / 2

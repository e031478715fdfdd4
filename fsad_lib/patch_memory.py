"""Training-free nearest neighbours over patch features: what a practitioner tries first.

Every patch of the normal images is remembered; a patch of a test image is as anomalous as it is far, in cosine
distance, from the nearest remembered one. With a vision transformer's last-layer tokens this is AnomalyDINO (Damm et
al., WACV 2025) without its masking and rotations; with a convolutional network the features are PatchCore's (Roth et
al., CVPR 2022): two middle stages, averaged over 3x3 neighbours, concatenated at the finer resolution; all patches are
kept instead of a coreset, few shots being few.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from fsad_lib.errors import FsadError
from fsad_lib.foundation.backbones import Backbone
from fsad_lib.foundation.neighbours import nearest_cosine_distance

__all__ = ["PatchMemory", "top_share_mean"]


class PatchMemory:
    """Memory of normal patches.

    Args:
        backbone: source of the feature maps.
        share: the image score is the mean over this share of the most distant patches (AnomalyDINO: 1 %).
        sigma: standard deviation of the Gaussian that smooths the pixel map, in pixels at 256 pixels a side; it
            scales with the size of the map (AnomalyDINO and PatchCore: 4).

    Attributes:
        shots: number of normal images remembered so far.

    Raises:
        FsadError: a share outside (0, 1] or a sigma below 0.

    Example:
        >>> import timm
        >>> backbone = Backbone(timm.create_model("resnet18"), "resnet18", 64)
        >>> x = torch.rand(2, 3, 64, 64)
        >>> memory = PatchMemory(backbone).add_shots(x)
        >>> image, maps = memory(x)
        >>> image.shape, maps.shape, bool(image.max() < 1e-6)
        (torch.Size([2]), torch.Size([2, 8, 8]), True)
    """

    def __init__(self, backbone: Backbone, share: float = 0.01, sigma: float = 4.0) -> None:
        if not 0 < share <= 1 or sigma < 0:
            raise FsadError(f"share must lie in (0, 1] and sigma be >= 0; found {share} and {sigma}.")
        self.backbone, self.share, self.sigma = backbone, share, sigma
        self.shots = 0
        self._patches: Tensor | None = None

    def patches(self, x: Tensor) -> Tensor:
        """Unit patch features (B, h, w, D) of images (B, 3, H, W) in [0, 1]."""
        maps = self.backbone.features(x)
        if not self.backbone.is_transformer:
            # PatchCore's locally aware features: the mean over each patch's 3x3 neighbours.
            maps = [F.avg_pool2d(m, 3, stride=1, padding=1) for m in maps]
        size = maps[0].shape[-2:]
        maps = [maps[0], *(F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps[1:])]
        return F.normalize(torch.cat(maps, dim=1).permute(0, 2, 3, 1), dim=-1)

    def add_shots(self, x: Tensor) -> "PatchMemory":
        """Adds normal images (k, 3, H, W) in [0, 1], at least one; returns itself."""
        if not len(x):
            raise FsadError("no normal images to remember; give at least one.")
        patches = self.patches(x).flatten(0, 2)
        self._patches = patches if self._patches is None else torch.cat([self._patches, patches])
        self.shots += len(x)
        return self

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image scores (B,) and patch distances (B, h, w), both in [0, 2], of images (B, 3, H, W) in [0, 1]."""
        maps = self.distances(self.patches(x))
        return top_share_mean(maps, self.share), maps

    def distances(self, patches: Tensor) -> Tensor:
        """Cosine distance (..., h, w) in [0, 2] of :meth:`patches` (..., h, w, D) to the nearest remembered one.

        Raises:
            FsadError: nothing is remembered yet.
        """
        if not self.shots:
            raise FsadError("the memory is empty; add normal images with add_shots first.")
        return nearest_cosine_distance(patches, self._patches)

    def score(self, x: Tensor) -> Tensor:
        """Image scores (B,) in [0, 2] of images (B, 3, H, W) in [0, 1]: the mean over the ``share`` of most distant patches, at least one patch."""
        return self(x)[0]

    def maps(self, x: Tensor, size: int | None = None) -> Tensor:
        """Patch distances (B, h, w) in [0, 2] of images (B, 3, H, W) in [0, 1]; with ``size``, upsampled (bilinear) and smoothed at (B, size, size)."""
        maps = self(x)[1]
        return maps if size is None else self.upsample(maps, size)

    def upsample(self, maps: Tensor, size: int) -> Tensor:
        """Patch maps (B, h, w) at pixel resolution (B, size, size): bilinear, then Gaussian."""
        maps = F.interpolate(maps.unsqueeze(1), (size, size), mode="bilinear", align_corners=False)
        sigma = self.sigma * size / 256
        radius = min(math.ceil(3 * sigma), size - 1)
        if radius > 0:
            maps = gaussian_blur(maps, [2 * radius + 1] * 2, [sigma, sigma])
        return maps.squeeze(1)


def top_share_mean(maps: Tensor, share: float = 0.01) -> Tensor:
    """Mean over the largest values of each map: a share of them, rounded up.

    Args:
        maps: (B, h, w).
        share: in (0, 1].

    Returns:
        (B,).

    Example:
        >>> top_share_mean(torch.arange(200.0).reshape(1, 10, 20)).tolist()
        [198.5]
    """
    flat = maps.flatten(1)
    return flat.topk(max(1, math.ceil(share * flat.shape[1] - 1e-6)), dim=1).values.mean(dim=1)

"""WinCLIP and WinCLIP+ (Jeong et al., CVPR 2023, arXiv 2303.14814)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fsad_lib.errors import FsadError
from fsad_lib.foundation.clip import CLIP
from fsad_lib.winclip.memory import FeatureMemory
from fsad_lib.winclip.prompts import prompt_ensemble
from fsad_lib.winclip.windows import EPSILON, Features, harmonic_aggregation

__all__ = ["Scores", "WinCLIP", "upsample"]


class Scores(NamedTuple):
    """Scores of a batch, all in [0, 1], higher = more anomalous.

    image: (B,) the method's image score. maps: (B, grid, grid) its map. text: (B,) zero-shot image score, zero_shot: (B, grid, grid) its map.
    memory: (B,) largest association score, few_shot: (B, grid, grid) its map; None without shots.
    """

    image: Tensor
    maps: Tensor
    text: Tensor
    zero_shot: Tensor
    memory: Tensor | None = None
    few_shot: Tensor | None = None


class WinCLIP:
    """Zero-shot from sentences about normal and damaged objects; few-shot (WinCLIP+) once shots are added.

    Args:
        clip: the model.
        class_name: the words for the object, e.g. ``"metal nut"``; None means "object".
        tau: temperature of the two-way softmax; None takes the model's own, 1 / logit_scale.
        scales: window sides in patches.

    Raises:
        FsadError: tau not positive; a scale larger than the patch grid.

    Example:
        >>> import open_clip
        >>> vision = dict(image_size=32, layers=1, width=32, head_width=16, patch_size=8)
        >>> clip = CLIP(open_clip.CLIP(24, vision, dict(width=16, heads=2, layers=1)))
        >>> detector = WinCLIP(clip, "gear").add_shots(torch.rand(2, 3, 32, 32))
        >>> scores = detector(torch.rand(1, 3, 32, 32))
        >>> scores.image.shape, scores.maps.shape
        (torch.Size([1]), torch.Size([1, 4, 4]))
    """

    def __init__(
        self,
        clip: CLIP,
        class_name: str | None = None,
        tau: float | None = 0.07,
        scales: Sequence[int] = (2, 3),
    ) -> None:
        self.clip, self.class_name = clip, class_name
        self.tau = 1 / clip.logit_scale if tau is None else tau
        if not self.tau > 0:
            raise FsadError(f"tau must be positive, found {tau}; WinCLIP uses 0.07.")
        self.memory = FeatureMemory(clip, scales)
        with torch.no_grad():
            # One prototype a state: the mean of its prompts' unit embeddings, normalised.
            means = [clip.encode_text(prompts).mean(dim=0) for prompts in prompt_ensemble(class_name)]
        self.prototypes = F.normalize(torch.stack(means), dim=-1)

    def add_shots(self, x: Tensor) -> "WinCLIP":
        """Adds normal images (k, 3, H, W) in [0, 1], at least one, or their features, to the memories; returns itself."""
        self.memory.add_shots(x)
        return self

    def probability(self, f: Tensor) -> Tensor:
        """P(anomalous) in [0, 1], (...), of embeddings (..., D): the softmax of the cosines to the two prototypes over tau."""
        return (F.normalize(f, dim=-1) @ self.prototypes.T / self.tau).softmax(dim=-1)[..., 1]

    def text_score(self, x: Tensor) -> Tensor:
        """Zero-shot image scores (B,) in [0, 1] of images (B, 3, H, W) in [0, 1]."""
        return self.probability(self.clip.encode_image(x))

    def __call__(self, x: Tensor | Features) -> Scores:
        """Scores of images (B, 3, H, W) in [0, 1], or of their features."""
        features = self.memory.features(x)
        text = self.probability(features.f)
        zero_shot = self._zero_shot_maps(features, text)
        if not self.memory.shots:
            return Scores(text, zero_shot, text, zero_shot)
        few_shot = self.memory.maps(features)
        memory = few_shot.amax(dim=(-2, -1))
        # WinCLIP+: image score 1/2 (text + max of the few-shot map); map: mean of the two maps.
        return Scores((text + memory) / 2, (zero_shot + few_shot) / 2, text, zero_shot, memory, few_shot)

    def maps(self, x: Tensor | Features, size: int | None = None) -> Tensor:
        """Anomaly maps (B, grid, grid) in [0, 1]; with ``size``, bilinear at (B, size, size)."""
        maps = self(x).maps
        return maps if size is None else upsample(maps, size)

    def _zero_shot_maps(self, features: Features, text: Tensor) -> Tensor:
        """Harmonic mean over the scales and the image score, which stands for the window of the whole image."""
        maps = [text.view(-1, 1, 1).expand(-1, features.grid, features.grid)]
        for size, windows in zip(self.memory.scales, features.windows, strict=True):
            maps.append(harmonic_aggregation(self.probability(windows), features.grid, size))
        inverse = torch.stack(maps).clamp_min(EPSILON).reciprocal()
        return len(maps) / inverse.sum(dim=0)


def upsample(maps: Tensor, size: int) -> Tensor:
    """Maps (B, h, w) at pixel resolution (B, size, size), bilinear.

    Example:
        >>> upsample(torch.zeros(1, 4, 4), 32).shape
        torch.Size([1, 32, 32])
    """
    return F.interpolate(maps.unsqueeze(1), (size, size), mode="bilinear", align_corners=False).squeeze(1)

"""The detector: eq. 7 with its sign turned, plus the patch-wise feature association with the shots (section 3.3)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fsad_lib.adp.concepts import p_clip
from fsad_lib.errors import FsadError
from fsad_lib.winclip.memory import FeatureMemory

__all__ = ["ADP", "Scores", "anomaly_probability"]


def anomaly_probability(f: Tensor, p_n: Tensor, p_a: Tensor, tau: float) -> Tensor:
    """P(anomalous), one minus eq. 7 (which, as printed, is the normal probability).

    Args:
        f: (B, D) image embeddings. p_n, p_a: (D,) prototypes of eq. 6. tau: temperature.

    Returns:
        (B,) float64 in [0, 1], higher = more anomalous.

    Example:
        >>> f = torch.eye(2)
        >>> anomaly_probability(f, f[0], f[1], tau=0.1)[1] > 0.99
        tensor(True)
    """
    # 1 - ADP(x) = exp(sim(f, p_a) / tau) / (exp(sim(f, p_n) / tau) + exp(sim(f, p_a) / tau)): the same softmax, seen from p_a.
    # In float64, since a small tau drives the scores of many images into float32's last digits, where they would tie.
    return p_clip(f.double(), p_a.to(f).double(), p_n.to(f).double(), tau)


class Scores(NamedTuple):
    """Scores of a batch, higher = more anomalous.

    image: (B,) text + visual_weight * memory, in [0, 1 + visual_weight]. maps: (B, grid, grid) the same sum place by place, so that its
    largest value is the image score. text: (B,) in [0, 1], eq. 7, sign turned. memory: (B,) in [0, 1], the largest association score.
    """

    image: Tensor
    maps: Tensor
    text: Tensor
    memory: Tensor


class ADP:
    """ADP's detector for one category.

    Args:
        clip: :class:`fsad_lib.foundation.clip.CLIP`.
        p_n, p_a: (D,) prototypes, :func:`fsad_lib.adp.self_tuning.prototypes`.
        shots: (K, 3, H, W) the normal images in [0, 1].
        tau: temperature of eq. 7; None: 1 / clip.logit_scale.
        visual_weight: factor of the association score, at least 0; the paper says "add".
        scales: window sides of WinCLIP+'s memories.

    Raises:
        FsadError: prototypes that are not (D,), a temperature, weight or scale out of range.

    Example:
        >>> import open_clip
        >>> from fsad_lib.foundation.clip import CLIP
        >>> vision = dict(image_size=32, layers=1, width=32, head_width=16, patch_size=8)
        >>> clip = CLIP(open_clip.CLIP(24, vision, dict(width=16, heads=2, layers=1)))
        >>> p_n, p_a = clip.encode_text(["a flawless gear", "a damaged gear"])
        >>> scores = ADP(clip, p_n, p_a, torch.rand(2, 3, 32, 32))(torch.rand(3, 3, 32, 32))
        >>> scores.image.shape, scores.maps.shape
        (torch.Size([3]), torch.Size([3, 4, 4]))
    """

    def __init__(
        self, clip: Any, p_n: Tensor, p_a: Tensor, shots: Tensor, *, tau: float | None = None, visual_weight: float = 1.0,
        scales: Sequence[int] = (2, 3),
    ):  # fmt: skip
        if not visual_weight >= 0:
            raise FsadError(f"visual_weight is {visual_weight}, expected at least 0.")
        self.clip, self.p_n, self.p_a = clip, p_n, p_a
        self.tau = 1 / clip.logit_scale if tau is None else tau
        p_clip(p_n.new_empty(0, clip.embed_dim), p_n, p_a, self.tau)  # refuses what no image could be judged by
        self.visual_weight = visual_weight
        self.memory = FeatureMemory(clip, scales).add_shots(shots)

    @torch.no_grad()
    def __call__(self, x: Any) -> Scores:
        """Scores of images (B, 3, H, W) in [0, 1], or of their :class:`fsad_lib.winclip.windows.Features`; FsadError for features of other scales."""
        features = self.memory.features(x)
        text = anomaly_probability(features.f, self.p_n, self.p_a, self.tau)
        few_shot = self.memory.maps(features)
        maps = text.view(-1, 1, 1) + self.visual_weight * few_shot
        return Scores(maps.amax((-2, -1)), maps, text, few_shot.amax((-2, -1)))

    def text_score(self, x: Tensor) -> Tensor:
        """Eq. 7 alone, sign turned: (B,) in [0, 1] for images (B, 3, H, W) in [0, 1]."""
        return anomaly_probability(self.clip.encode_image(x), self.p_n, self.p_a, self.tau)

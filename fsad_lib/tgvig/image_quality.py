"""How good and how different generated images are (Table 2): Inception Score, SSIM, PSNR, LPIPS.

SSIM, PSNR and the Inception Score's arithmetic are torchmetrics' (SSIM's mean over the places whose window lies within the image); LPIPS is :mod:`fsad_lib.foundation.perceptual`, which the tests
hold against torchmetrics'.

Two remarks on the paper's Table 2. An Inception Score is exp of a mutual information between image and class, so it lies between 1 and
the number of images: 22.59 is not possible with the 20 images that an iteration makes. And LPIPS values of 700 to 980 are not
LPIPS on its usual scale, where 1 is already far; no scale is given.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fsad_lib.errors import FsadError
from fsad_lib.foundation.backbones import Backbone, load_backbone
from fsad_lib.foundation.images import check_images
from fsad_lib.foundation.perceptual import Lpips

__all__ = ["Classifier", "Quality", "inception_score", "load_classifier", "quality"]

INCEPTION = "inception_v3.tf_in1k"
EDGE = 5  # pixels of an SSIM window of 11 beyond its centre


class Classifier(nn.Module):
    """ImageNet logits of images in [0, 1], for the Inception Score.

    Attributes:
        label: what stands beside the score; it says "proxy" unless the network is an Inception v3.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.label = "Inception Score" if backbone.name.startswith("inception_v3") else f"Inception Score (proxy: {backbone.name})"

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W) in [0, 1]."""
        return self.backbone.model(self.backbone.preprocess(x))


@dataclass(frozen=True)
class Quality:
    """One row of Table 2. A set is compared with its original image by image; the means are given.

    Attributes:
        inception: the score; `inception_label` names the network; `n` the number of images it was computed from, its upper bound.
        ssim, psnr, lpips: means over the n images. psnr is infinite where an image equals its original.
    """

    inception: float
    inception_label: str
    n: int
    ssim: float
    psnr: float
    lpips: float


def load_classifier(name: str = "efficientnet_lite0", checkpoint: str | Path | None = None, image_size: int | None = None, device: str = "cpu") -> Classifier:
    """A classifier for the score: EfficientNet-Lite0 as a named proxy, or Inception v3 with timm's weights from a local file.

    Args:
        name: "efficientnet_lite0", "inception_v3", or any name that :func:`fsad_lib.foundation.backbones.load_backbone` knows.
        checkpoint: a local weights file; only EfficientNet-Lite0 does without.
        image_size: side in pixels; None: the size that the weights were trained at. device: where to put it.

    Example:
        >>> load_classifier().label
        'Inception Score (proxy: tf_efficientnet_lite0)'

    Raises:
        FsadError: unknown name, missing file, weights that do not fit; nothing is downloaded.
    """
    if name == "inception_v3" and checkpoint is None:
        raise FsadError(f"no checkpoint for {name}: weights are never downloaded. Get timm/{INCEPTION} from Hugging Face and give its model.safetensors.")
    return Classifier(load_backbone(name, checkpoint, image_size, stages=(0,), device=device))


def inception_score(x: Tensor, classifier: nn.Module, batch_size: int = 16) -> float:
    """exp(mean_i KL(p(y | x_i) || p(y))) of images (n, 3, H, W) in [0, 1], in one split: between 1 and n.

    torchmetrics splits into ten parts by default, which with few images measures next to nothing.

    Args:
        classifier: images (B, 3, H, W) in [0, 1] -> logits (B, classes). batch_size: images classified at once.

    Raises:
        FsadError: no image, or values outside [0, 1].

    Example:
        >>> class Sure(nn.Module):  # each image a class of its own, beyond doubt
        ...     def forward(self, x):
        ...         return 100 * torch.eye(4)[: len(x)]
        >>> round(inception_score(torch.rand(4, 3, 8, 8), Sure()), 3)
        4.0
    """
    from torchmetrics.image.inception import InceptionScore

    x = check_images(x, empty=False)
    with warnings.catch_warnings():  # about the buffer's size, and about the standard deviation over a single split
        warnings.simplefilter("ignore", UserWarning)
        metric = InceptionScore(feature=classifier, splits=1)
        for part in x.split(batch_size):
            metric.update(part)
        return float(metric.compute()[0])


def quality(x: Tensor, originals: Tensor, origin: Tensor | Sequence[int], classifier: Classifier, lpips: Lpips, batch_size: int = 16) -> Quality:
    """Table 2's numbers of a set of generated images.

    Args:
        x: (n, 3, H, W) generated images in [0, 1]. originals: (K, 3, H, W) in [0, 1]. origin: (n,) number of each one's original.
        classifier: for the Inception Score. lpips: the perceptual distance. batch_size: images at once.

    Raises:
        FsadError: shapes that do not fit, values outside [0, 1], no image.

    Example:
        >>> from fsad_lib.foundation.perceptual import load_lpips
        >>> x = torch.rand(2, 3, 48, 48)
        >>> found = quality(x.flip(0), x, [1, 0], load_classifier(), load_lpips("data/models/mini/lpips"))  # copies of their originals
        >>> round(found.ssim, 3), found.psnr, round(found.lpips, 3), 1 <= round(found.inception, 3) <= found.n
        (1.0, inf, 0.0, True)
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    x, originals = check_images(x, empty=False), check_images(originals, empty=False)
    origin = torch.as_tensor(origin, device=originals.device)
    if origin.shape != (len(x),) or x.shape[1:] != originals.shape[1:] or not (int(origin.min()) >= 0 and int(origin.max()) < len(originals)):
        raise FsadError(f"{tuple(x.shape)} images of originals {tuple(originals.shape)} with {tuple(origin.shape)} origins found; expected one each, from 0 to {len(originals) - 1}")
    y = originals[origin].to(x)
    _, full = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none", return_full_image=True)
    inside = full[..., EDGE:-EDGE, EDGE:-EDGE] if min(x.shape[-2:]) > 2 * EDGE else full
    ssim = inside.mean((1, 2, 3))  # where the whole window lies within the image (Wang et al. 2004); torchmetrics' own mean includes a mirrored edge
    psnr = peak_signal_noise_ratio(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3))
    with torch.no_grad():
        far = torch.cat([lpips.distance(a, b) for a, b in zip(x.split(batch_size), y.split(batch_size))])
    score = inception_score(x, classifier, batch_size)
    return Quality(score, getattr(classifier, "label", "Inception Score"), len(x), float(ssim.mean()), float(psnr.mean()), float(far.mean()))

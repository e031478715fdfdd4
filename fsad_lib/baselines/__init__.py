"""The four detectors that TGVIG's images are added to: thin adapters over anomalib's torch models; see README.md here.

Each is fitted on a batch of normal images and then gives a score and a map for every image::

    detector = make("cflow", backbone=load_backbone("resnet18", "resnet18.safetensors", image_size=256))
    losses = detector.fit(x, steps=200, seed=0)      # x (N, 3, H, W) in [0, 1], normal images only
    scores, maps = detector(x_test)                  # (B,) and (B, size, size), higher = more anomalous

Importing anomalib takes some seconds; it happens when a detector is made.
"""

from __future__ import annotations

import warnings
from typing import Any

from fsad_lib.datasets._common import unknown

__all__ = ["BASELINES", "make"]

BASELINES = ("patchcore", "cflow", "efficientad", "reverse_distillation")


def make(name: str, **settings: Any) -> Any:
    """A detector by name; the settings are those of its class.

    >>> make("patchkore")
    Traceback (most recent call last):
    fsad_lib.errors.FsadError: unknown baseline 'patchkore'; did you mean 'patchcore'? Valid: patchcore, cflow, efficientad, ...

    Raises:
        FsadError: an unknown name, or settings that the detector refuses.
    """
    if name not in BASELINES:
        raise unknown("baseline", name, BASELINES)
    with warnings.catch_warnings():  # anomalib's own modules import each other's deprecated names
        warnings.simplefilter("ignore", FutureWarning)
        if name == "patchcore":
            from fsad_lib.baselines.patchcore import PatchCore as detector
        elif name == "cflow":
            from fsad_lib.baselines.cflow import CFlow as detector
        elif name == "efficientad":
            from fsad_lib.baselines.efficientad import EfficientAD as detector
        else:
            from fsad_lib.baselines.reverse_distillation import ReverseDistillation as detector
    return detector(**settings)

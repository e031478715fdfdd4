"""ADP's detector on images that are not test images: the pseudo-anomalies, and each shot judged by the other shots."""

from typing import Any

import numpy as np
from torch import Tensor

from fsad_lib import datasets
from fsad_lib.adp.detector import ADP
from fsad_lib.adp.stages import clip_model, synthesize
from fsad_lib.errors import FsadError
from fsad_lib.winclip.windows import Features, extract

__all__ = ["build_detector", "leave_one_out"]


def build_detector(run: Any, shots: Tensor | Features | None = None, method: str = "adp") -> ADP:
    """The detector of a run of stage "40_evaluate", from the prototypes of its stage 20.

    Args:
        run: the run; its earlier stages are made if they have not run.
        shots: (K, 3, H, W) normal images to remember, or their features; None: the run's own.
        method: whose prototypes: "adp", "adp_l", "ti", "c_n", "c_a", "object" or "label".

    Raises:
        FsadError: another method, or whatever an earlier stage refuses.
    """
    tuned = synthesize(run.upstream("20_synthesize"))
    if method not in tuned.prototypes:
        raise FsadError(f"Unknown method {method!r}; the methods are {', '.join(tuned.prototypes)}.")
    clip = clip_model(run.profile)
    x = datasets.read_images(run.shot_paths(), clip.image_size) if shots is None else shots
    adp = run.profile.adp
    return ADP(
        clip, *tuned.prototypes[method], x, tau=adp.tau, visual_weight=adp.visual_weight, scales=run.profile.winclip.scales
    )  # fmt: skip


def leave_one_out(run: Any, at_most: int = 8) -> np.ndarray:
    """Score of each of the first ``at_most`` shots when only the other shots are remembered: (min(K, at_most),), higher = more anomalous.

    The words were still learned from all shots, so these scores are, if anything, too low.

    Raises:
        FsadError: fewer than two shots.
    """
    if run.shots < 2:
        raise FsadError(f"Leave-one-out needs at least 2 shots; found {run.shots}.")
    clip = clip_model(run.profile)
    f = extract(clip, datasets.read_images(run.shot_paths(), clip.image_size), run.profile.winclip.scales)  # of each shot once
    scores = []
    for i in range(min(len(f.f), at_most)):
        others = _rows(f, [j for j in range(len(f.f)) if j != i])
        scores.append(float(build_detector(run, others)(_rows(f, [i])).image))
    return np.array(scores)


def _rows(features: Features, rows: list[int]) -> Features:
    return Features(features.f[rows], tuple(w[rows] for w in features.windows), features.patches[rows], features.grid)

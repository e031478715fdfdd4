"""Metrics on raw scores; score higher = more anomalous. Nothing here rescales or squashes a score.

Image level: AUROC, average precision, and F1 at the best threshold (an oracle: it looks at the test labels).
Pixel level: AUROC, and AUPRO after Bergmann et al. 2020, the area under the per-region overlap against the false
positive rate, up to a rate of 0.3. AUPRO follows anomalib's definition (8-connected regions, linear interpolation at the
limit, equal scores enter together); it is computed here in float64, without importing anomalib, which alone took ten seconds of CPU time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fsad_lib.errors import FsadError

if TYPE_CHECKING:
    import pandas as pd

FPR_LIMIT = 0.3


def _numpy(values, dtype=None) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=dtype)


def _labels_scores(label, score, names=None) -> tuple[np.ndarray, np.ndarray]:
    label, score = _numpy(label), _numpy(score, np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise FsadError(
            f"labels of shape {label.shape} and scores of shape {score.shape} found; expected (N,) and (N,)"
        )
    if names is not None and len(names) != len(label):
        raise FsadError(f"{len(names)} names for {len(label)} images found; expected one each")
    wrong = ~np.isfinite(score)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        name = names[i] if names is not None else f"number {i}"
        raise FsadError(
            f"score {score[i]} of image {name} is not finite ({int(wrong.sum())} of {len(score)} such); "
            "the detector diverged there"
        )
    if not np.isin(label, (0, 1)).all():
        odd = sorted({str(v) for v in label[~np.isin(label, (0, 1))]})
        raise FsadError(
            f"labels {', '.join(odd[:5])} found; expected 0 (normal) and 1 (defective). "
            "Unlabelled images (-1) have scores but no metrics: leave them out."
        )
    label = label.astype(np.int64)
    if len(np.unique(label)) < 2:
        raise FsadError(
            f"{int((label == 0).sum())} normal and {int((label == 1).sum())} defective images found; "
            "expected at least one of each, or no metric is defined"
        )
    return label, score


def image_metrics(label, score, names: Sequence[str] | None = None) -> dict[str, float]:
    """Image-level metrics.

    Args:
        label: (N,) 0 normal, 1 defective.
        score: (N,) any finite real numbers.
        names: (N,) the images' names, for the error message.

    Returns:
        image_auroc, image_ap, image_f1max, each in [0, 1]. F1-max takes the threshold that is best on these labels.

    >>> image_metrics([0, 0, 1, 1], [30, 40, 50, 60])  # separable, although far outside [0, 1]
    {'image_auroc': 1.0, 'image_ap': 1.0, 'image_f1max': 1.0}

    Raises:
        FsadError: a score is not finite (names the image), a label is not 0 or 1, or only one class is there.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    label, score = _labels_scores(label, score, names)
    return {
        "image_auroc": float(roc_auc_score(label, score)),
        "image_ap": float(average_precision_score(label, score)),
        "image_f1max": f1_max(label, score)[0],
    }


def f1_max(label, score) -> tuple[float, float]:
    """(the highest F1 over all thresholds `score >= threshold`, in [0, 1], that threshold) of labels (N,), 0 or 1, and scores (N,).

    >>> f1_max([0, 1, 0, 1], [0.1, 0.4, 0.5, 0.9])
    (0.8, 0.4)
    """
    label, score = _labels_scores(label, score)
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)  # images with equal scores are called together
    hits = np.cumsum(label[order])[last]
    called = np.flatnonzero(last) + 1
    f1 = 2 * hits / (called + label.sum())
    best = int(np.argmax(f1))
    return float(f1[best]), float(score[order][last][best])


def _masks_maps(masks, maps, names=None) -> tuple[np.ndarray, np.ndarray]:
    masks, maps = _numpy(masks), _numpy(maps)
    if masks.ndim != 3 or masks.shape != maps.shape:
        raise FsadError(
            f"masks of shape {masks.shape} and maps of shape {maps.shape} found; expected (N, H, W) twice"
        )
    if not np.isin(masks, (0, 1)).all():
        raise FsadError("mask values other than 0 and 1 found; expected boolean masks")
    wrong = ~np.isfinite(maps).all(axis=(1, 2))
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise FsadError(
            f"the anomaly map of image {names[i] if names is not None else f'number {i}'} holds values that are "
            f"not finite ({int(wrong.sum())} of {len(maps)} maps)"
        )
    masks = masks.astype(bool)
    if masks.all() or not masks.any():
        raise FsadError(
            f"{int(masks.sum())} defective of {masks.size} pixels found; expected both kinds of pixels"
        )
    return masks, maps


def pixel_metrics(masks, maps, names: Sequence[str] | None = None) -> dict[str, float]:
    """Pixel-level metrics over all pixels of all images together.

    Args:
        masks: (N, H, W) bool, True = defect; normal images are all False and belong in here.
        maps: (N, H, W) float, any finite values, at the masks' resolution.

    Returns:
        pixel_auroc and aupro (limit `FPR_LIMIT`), both in [0, 1].

    >>> m = np.zeros((2, 4, 4), bool); m[0, 1:3, 1:3] = True
    >>> pixel_metrics(m, m * 7.0 - 3)
    {'pixel_auroc': 1.0, 'aupro': 1.0}

    Raises:
        FsadError: shapes differ, a map is not finite (names the image), or only one kind of pixel is there.
    """
    masks, maps = _masks_maps(masks, maps, names)
    return {"pixel_auroc": auroc(masks.ravel(), maps.ravel()), "aupro": aupro(masks, maps)}


def auroc(label, score) -> float:
    """Area under the ROC curve by ranks, in [0, 1], ties counted half; equal to scikit-learn's, and quick for millions of pixels.

    Args:
        label: (N,) bool or 0 and 1. score: (N,) any finite real numbers, higher = more anomalous.

    >>> auroc([0, 1, 1], [0.2, 0.2, 0.9])
    0.75

    Raises:
        FsadError: a score that is not finite, labels other than 0 and 1, only one class, or shapes that are not (N,) and (N,).
    """
    label, score = _numpy(label), _numpy(score)
    if label.ndim != 1 or label.shape != score.shape or (label.dtype != bool and not np.isin(label, (0, 1)).all()):
        raise FsadError(f"labels {label.shape} and scores {score.shape} found; expected (N,) and (N,), and no label but 0 and 1 (leave unlabelled images out)")
    label = label.astype(bool)
    if label.all() or not label.any() or not np.isfinite(score).all():
        raise FsadError(
            f"{int(label.sum())} defective of {len(label)}, {int((~np.isfinite(score)).sum())} scores that are not finite; expected both kinds, all finite"
        )
    order = np.argsort(score)[::-1]
    ordered = score[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # of each group of equal scores, which enter together
    found = np.concatenate(([0], np.cumsum(label[order])[last]))
    seen = np.concatenate(([0], np.flatnonzero(last) + 1))
    false = seen - found
    # whole numbers, hence exact: twice the area below the staircase of counts
    return float((np.diff(false) * (found[1:] + found[:-1])).sum() / (2 * found[-1] * false[-1]))


def aupro(masks, maps, limit: float = FPR_LIMIT) -> float:
    """Area under the per-region overlap curve up to a false positive rate of `limit`, divided by `limit`.

    Args:
        masks: (N, H, W) bool. A region is an 8-connected set of defect pixels in one image.
        maps: (N, H, W) float, at the masks' resolution.
        limit: in (0, 1].

    Returns:
        a number in [0, 1].

    Raises:
        FsadError: a limit outside (0, 1], shapes that differ, a map that is not finite, or only one kind of pixel.

    >>> m = np.zeros((1, 4, 4), bool); m[0, 0, 0] = m[0, 2:, 2:] = True  # two regions; only the larger one is found
    >>> round(aupro(m, np.where(np.arange(16).reshape(1, 4, 4) > 9, m, 0) * 1.0), 3)  # overlap 0.5 at no false positive, 0.65 at 30 %
    0.575

    For every threshold, the overlap is the mean over regions of the share of the region's pixels above it, the false
    positive rate the share of normal pixels above it.
    """
    from scipy.ndimage import label as components

    if not 0 < limit <= 1:
        raise FsadError(f"false positive rate limit {limit} found; expected a number in (0, 1]")
    masks, maps = _masks_maps(masks, maps)
    weight = np.zeros(masks.shape)  # of a defect pixel: 1 / (pixels of its region)
    regions = 0
    for i in np.flatnonzero(masks.any(axis=(1, 2))):
        parts, n = components(masks[i], structure=np.ones((3, 3)))
        size = np.bincount(parts.ravel(), minlength=n + 1).astype(float)
        weight[i] = np.where(parts > 0, 1 / size[parts], 0)
        regions += n
    return _overlap_area(maps.ravel(), weight.ravel() / regions, ~masks.ravel(), limit)


def _overlap_area(score: np.ndarray, weight: np.ndarray, normal: np.ndarray, limit: float) -> float:
    """Area below the curve of sum(weight above t) against share(normal above t) up to `limit`, divided by it."""
    order = np.argsort(score)[::-1]  # ties in any order: they enter together
    sorted_scores = score[order]
    last = np.append(sorted_scores[1:] != sorted_scores[:-1], True)
    fpr = np.concatenate(([0.0], np.cumsum(normal[order])[last] / normal.sum()))
    pro = np.concatenate(([0.0], np.cumsum(weight[order])[last])).clip(max=1)
    inside = fpr <= limit
    at_limit = np.interp(limit, fpr[inside.sum() - 1 :], pro[inside.sum() - 1 :])
    x, y = np.append(fpr[inside], limit), np.append(pro[inside], at_limit)
    return float(np.trapezoid(y, x) / limit)


def au_spro(regions, maps, limit: float = 0.05) -> float:
    """Area under the saturated per-region overlap curve (Bergmann et al. 2022) up to a false positive rate of `limit`, divided
    by `limit`; the paper integrates to 0.05.

    A logical defect is found in full when `saturation` of its pixels are: sPRO of a region is
    min(pixels above the threshold / saturation, 1). Hence only the `saturation` highest scores of a region count.

    Args:
        regions: N lists, of image i the defects as (mask (H, W) bool, saturation in pixels, ...), as
            `fsad_lib.datasets.mvtec_loco.regions` reads them; an empty list for a good image.
        maps: N maps (H, W) float, each at its masks' size; images may differ in size.

    >>> m = np.zeros((4, 4), bool); m[:2] = True
    >>> score = np.where(np.arange(16).reshape(4, 4) < 4, 1.0, 0.0)  # half of the defect is found
    >>> au_spro([[(m, 4)]], [score]), au_spro([[(m, 8)]], [score]) < 0.6
    (1.0, True)

    Raises:
        FsadError: no region at all, no normal pixel, shapes that differ, or a score that is not finite.
    """
    if not 0 < limit <= 1:
        raise FsadError(f"false positive rate limit {limit} found; expected a number in (0, 1]")
    total = sum(len(r) for r in regions)
    if len(regions) != len(maps) or not total:
        raise FsadError(f"{len(regions)} images with {total} regions and {len(maps)} maps found; expected a map each and a region")
    scores, weights, normals = [], [], []
    for i, (found, score) in enumerate(zip(regions, maps)):
        score = _numpy(score, np.float64)
        weight, defective = np.zeros(score.shape), np.zeros(score.shape, bool)
        if not np.isfinite(score).all():
            raise FsadError(f"map number {i} is not finite; the detector diverged there")
        for m, saturation, *_ in found:
            m = _numpy(m).astype(bool)
            if m.shape != score.shape or not 1 <= saturation <= m.sum():
                raise FsadError(
                    f"map number {i} is {score.shape}, its mask {m.shape} of {int(m.sum())} pixels with saturation {saturation}; "
                    "expected one size, and a saturation from 1 to the area"
                )
            # The region's highest scores; where the last of them is tied, those pixels enter together and share what is left.
            inside = score[m]
            at = np.partition(inside, -saturation)[-saturation]
            share = (saturation - (inside > at).sum()) / (inside == at).sum()
            weight[m] += np.where(inside > at, 1.0, np.where(inside == at, share, 0.0)) / (saturation * total)
            defective |= m
        scores.append(score.ravel()), weights.append(weight.ravel()), normals.append(~defective.ravel())
    normal = np.concatenate(normals)
    if not normal.any():
        raise FsadError("no normal pixel found; expected some, or there is no false positive rate")
    return _overlap_area(np.concatenate(scores), np.concatenate(weights), normal, limit)


def metric_rows(
    predictions: pd.DataFrame,
    pixel: Mapping[tuple[str, str], dict[str, float]] | None = None,
    groups: bool = True,
) -> list[dict[str, Any]]:
    """Metrics of each method and part: all images, and with ``groups`` the seen and the unseen kinds of defect apart.

    The groups share the normal images. Unlabelled images are left out; a group without both classes has no row.

    Args:
        predictions: the columns method, part, path, label, seen, score.
        pixel: (method, part) -> pixel metrics, added to the row of group "all".

    Returns:
        rows with method, part, group, n, image_auroc, image_ap, image_f1max and, where given, pixel_auroc, aupro.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"path": list("abc"), "label": [0, 1, 1], "seen": [True, True, False], "score": [0.1, 0.9, 0.0]})
        >>> rows = metric_rows(table.assign(method="adp", part="sum"))
        >>> [(r["group"], r["n"], r["image_auroc"]) for r in rows]
        [('all', 3, 0.5), ('seen', 2, 1.0), ('unseen', 2, 0.0)]
    """
    rows = []
    labelled = predictions[predictions["label"] >= 0]
    for (method, part), table in labelled.groupby(["method", "part"], sort=False):
        for group in ("all", "seen", "unseen") if groups else ("all",):
            keep = table["label"].eq(0) | (group == "all") | (table["seen"] == (group == "seen"))
            chosen = table[keep]
            if chosen["label"].nunique() < 2:
                continue
            values = image_metrics(
                chosen["label"].to_numpy(), chosen["score"].to_numpy(), chosen["path"].tolist()
            )
            more = (pixel or {}).get((method, part), {}) if group == "all" else {}
            rows.append({"method": method, "part": part, "group": group, "n": len(chosen), **values, **more})
    return rows


def bootstrap_mean(
    values_by_category: Mapping[str, float | Sequence[float]], n: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over categories with a 95 % percentile interval from resampling the categories.

    Repeats (seeds) of a category are averaged first: they are not independent, so they do not narrow the interval.
    With a single category there is nothing to resample and the interval is nan; use `bootstrap_auroc` then.

    Args:
        values_by_category: name -> value, or the values of its seeds; all finite. n: resamples. seed: of the resampling.

    Returns:
        mean, 2.5 and 97.5 % percentile.

    Raises:
        FsadError: no category, or a value that is not finite.

    >>> [round(v, 3) for v in bootstrap_mean({"nut": [0.7, 0.9], "gear": [0.75, 0.85], "cap": [0.8]})]
    [0.8, 0.8, 0.8]
    """
    if not values_by_category:
        raise FsadError("no category to average; expected at least one")
    means = np.array([np.mean(_numpy(v, np.float64)) for _, v in sorted(values_by_category.items())])
    if not np.isfinite(means).all():
        raise FsadError(
            f"values that are not finite in {sorted(values_by_category)}; expected finite numbers in each"
        )
    mean = float(means.mean())
    if len(means) == 1:
        return mean, float("nan"), float("nan")
    pick = np.random.default_rng(seed).integers(len(means), size=(n, len(means)))
    low, high = np.percentile(means[pick].mean(axis=1), [2.5, 97.5])
    return mean, float(low), float(high)


def bootstrap_auroc(label, score, n: int = 2_000, seed: int = 0) -> tuple[float, float, float]:
    """Image AUROC of ONE category with a 95 % percentile interval from resampling its images, each class on its own.

    Args:
        label: (N,) 0 or 1.
        score: (N,) of one run, or (S, N) of S runs (seeds) on the same images: the AUROCs are averaged over runs
            within each resample.
        n: resamples. seed: of the resampling.

    Returns:
        AUROC, 2.5 and 97.5 % percentile, each in [0, 1].

    Raises:
        FsadError: see :func:`image_metrics`.

    >>> bootstrap_auroc([0, 0, 1, 1], [1, 2, 3, 4], n=10)
    (1.0, 1.0, 1.0)
    """
    label = _numpy(label)
    runs = [_labels_scores(label, s)[1] for s in np.atleast_2d(_numpy(score, np.float64))]
    good, bad = np.flatnonzero(label == 0), np.flatnonzero(label == 1)
    # wins[i, j]: share of runs in which defective image j scores above normal image i, ties half
    wins = np.mean(
        [(s[bad][None] > s[good][:, None]) + 0.5 * (s[bad][None] == s[good][:, None]) for s in runs], axis=0
    )
    rng = np.random.default_rng(seed)
    a = rng.multinomial(len(good), np.full(len(good), 1 / len(good)), size=n) / len(good)
    b = rng.multinomial(len(bad), np.full(len(bad), 1 / len(bad)), size=n) / len(bad)
    low, high = np.percentile(np.einsum("ng,gb,nb->n", a, wins, b, optimize=True), [2.5, 97.5])
    return float(wins.mean()), float(low), float(high)

"""Metrics against scikit-learn, anomalib and slow references written from the definitions."""

import numpy as np
import pytest
from scipy.ndimage import label as components
from sklearn.metrics import precision_recall_curve, roc_auc_score

from fsad_lib import metrics
from fsad_lib.errors import FsadError


def slow_auroc(label, score):
    """Share of (normal, defective) pairs in the right order, ties half."""
    good, bad = score[label == 0], score[label == 1]
    return np.mean([(b > g) + 0.5 * (b == g) for g in good for b in bad])


def slow_aupro(masks, maps, limit):
    """Threshold by threshold, region by region."""
    regions = []
    for m, s in zip(masks, maps, strict=True):
        parts, n = components(m, structure=np.ones((3, 3)))
        regions += [s[parts == i + 1] for i in range(n)]
    normal = maps[~masks]
    curve = [(0.0, 0.0)]
    for t in sorted(set(maps.ravel().tolist()), reverse=True):
        curve.append(((normal >= t).mean(), np.mean([(r >= t).mean() for r in regions])))
    area, (x0, y0) = 0.0, curve[0]
    for x1, y1 in curve[1:]:
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            return (area + (limit - x0) * (y0 + y1) / 2) / limit
        area += (x1 - x0) * (y0 + y1) / 2
        x0, y0 = x1, y1
    return (area + (limit - x0) * y0) / limit


def random_masks(rng, n=5, side=12):
    masks = np.zeros((n, side, side), bool)
    for m in masks[1:]:
        for _ in range(rng.integers(1, 4)):
            y, x = rng.integers(0, side - 3, 2)
            m[y : y + rng.integers(1, 4), x : x + rng.integers(1, 4)] = True
    return masks


@pytest.mark.parametrize("scale", [1, 1e-6, 1e6])
def test_image_metrics_match_the_definitions_on_raw_scores(scale):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 60)
    score = (np.round(rng.normal(label, 1), 1) + 5) * scale  # with ties
    found = metrics.image_metrics(label, score)
    assert found["image_auroc"] == pytest.approx(slow_auroc(label, score))
    f1 = [2 * (label[score >= t]).sum() / ((score >= t).sum() + label.sum()) for t in score]
    assert found["image_f1max"] == pytest.approx(max(f1))
    p, r, _ = precision_recall_curve(label, score)
    assert found["image_f1max"] == pytest.approx(np.max(2 * p * r / np.maximum(p + r, 1e-12)))
    assert found["image_ap"] == pytest.approx(-np.sum(np.diff(r) * p[:-1]))


@pytest.mark.parametrize(("label", "score"), [([0, 1], [0.1, np.nan]), ([0, 1], [0.1, np.inf]), ([1, 1], [0.1, 0.2]), ([0, 0], [0.1, 0.2])])
def test_auroc_refuses_what_has_no_order(label, score):
    with pytest.raises(FsadError, match="expected both kinds, all finite"):
        metrics.auroc(np.array(label), np.array(score))


@pytest.mark.parametrize(("label", "score"), [([-1, 0, 1], [0.1, 0.2, 0.3]), ([0, 2, 1], [0.1, 0.2, 0.3]), ([0, np.nan], [0.1, 0.2]), ([0, 1, 1], [0.1, 0.2]), ([[0, 1]], [[0.1, 0.2]])])
def test_auroc_refuses_other_labels_and_shapes(label, score):
    with pytest.raises(FsadError, match="no label but 0 and 1"):
        metrics.auroc(np.array(label), np.array(score))


def test_scores_outside_0_1_keep_their_order():
    assert metrics.image_metrics([0, 0, 1, 1], [30, 40, 50, 60])["image_auroc"] == 1
    assert metrics.image_metrics([0, 0, 1, 1], [-3e9, -2e9, -1e9, 0])["image_auroc"] == 1
    assert metrics.image_metrics([0, 1, 0, 1], [5, 5, 5, 5])["image_auroc"] == 0.5


def test_f1_threshold_reaches_the_f1_it_promises():
    rng = np.random.default_rng(3)
    label, score = rng.integers(0, 2, 40), rng.normal(size=40)
    f1, t = metrics.f1_max(label, score)
    called = score >= t
    assert f1 == pytest.approx(2 * (called & (label == 1)).sum() / (called.sum() + label.sum()))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("decimals", [1, 9])  # many ties, none
def test_aupro_matches_the_slow_reference(seed, limit, decimals):
    rng = np.random.default_rng(seed)
    masks = random_masks(rng)
    maps = np.round(rng.normal(size=masks.shape) + masks, decimals)
    assert metrics.aupro(masks, maps, limit) == pytest.approx(slow_aupro(masks, maps, limit), abs=1e-9)


def test_maps_of_whole_numbers_are_ranked_like_others():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 2:5, 2:5] = True
    for maps in ((200 * masks).astype(np.uint8), masks):
        assert metrics.pixel_metrics(masks, maps) == {"pixel_auroc": 1.0, "aupro": 1.0}


def test_aupro_matches_anomalib():
    torch = pytest.importorskip("torch")
    aupro = pytest.importorskip("anomalib.metrics.aupro")
    rng = np.random.default_rng(7)
    masks = random_masks(rng, n=6, side=24)
    maps = np.round(rng.normal(size=masks.shape) + masks, 1).astype(np.float32)
    other = aupro._AUPRO(fpr_limit=0.3)
    other.update(torch.from_numpy(maps), torch.from_numpy(masks).int())
    assert metrics.aupro(masks, maps) == pytest.approx(float(other.compute()), abs=1e-5)


def test_every_region_counts_the_same_whatever_its_size():
    masks = np.zeros((1, 20, 20), bool)
    masks[0, :10, :10] = True
    masks[0, 15, 15] = True
    maps = np.zeros(masks.shape)
    maps[0, :10, :10] = 1  # the large region is found, the single pixel lies in a sea of ties
    assert 0.5 < metrics.aupro(masks, maps) < 0.7


def test_pixel_metrics_bounds_and_monotone_invariance():
    rng = np.random.default_rng(1)
    masks = random_masks(rng)
    maps = rng.normal(size=masks.shape) + masks
    found = metrics.pixel_metrics(masks, maps)
    assert found["pixel_auroc"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()))
    assert metrics.pixel_metrics(masks, np.exp(maps * 3)) == pytest.approx(found)
    assert metrics.pixel_metrics(masks, masks * 2.0) == pytest.approx({"pixel_auroc": 1.0, "aupro": 1.0})
    assert metrics.pixel_metrics(masks, -1.0 * masks)["aupro"] == pytest.approx(0, abs=1e-12)


def test_torch_tensors_are_accepted():
    torch = pytest.importorskip("torch")
    assert metrics.image_metrics(torch.tensor([0, 1]), torch.tensor([0.1, 0.2]))["image_ap"] == 1
    m = torch.zeros(1, 4, 4, dtype=torch.bool)
    m[0, 0, 0] = True
    assert metrics.pixel_metrics(m, m.float())["aupro"] == 1


def test_bad_image_input():
    with pytest.raises(FsadError, match="b.png is not finite"):
        metrics.image_metrics([0, 1], [0.5, float("nan")], ["a.png", "b.png"])
    with pytest.raises(FsadError, match="inf"):
        metrics.image_metrics([0, 1], [0.5, float("inf")])
    with pytest.raises(FsadError, match="2 normal and 0 defective"):
        metrics.image_metrics([0, 0], [0.5, 0.6])
    with pytest.raises(FsadError, match="Unlabelled"):
        metrics.image_metrics([0, 1, -1], [0.5, 0.6, 0.7])
    with pytest.raises(FsadError, match="shape"):
        metrics.image_metrics([0, 1], [0.5, 0.6, 0.7])
    with pytest.raises(FsadError, match="1 names for 2"):
        metrics.image_metrics([0, 1], [0.5, 0.6], ["a"])


def test_bad_pixel_input():
    m = np.zeros((2, 4, 4), bool)
    s = np.zeros((2, 4, 4))
    with pytest.raises(FsadError, match="both kinds"):
        metrics.pixel_metrics(m, s)
    m[0, 0, 0] = True
    s[1, 2, 2] = np.nan
    with pytest.raises(FsadError, match="image two"):
        metrics.pixel_metrics(m, s, ["one", "two"])
    with pytest.raises(FsadError, match="shape"):
        metrics.pixel_metrics(m, s[:, :2])
    with pytest.raises(FsadError, match="limit"):
        metrics.aupro(m, np.zeros(m.shape), 0)


def test_bootstrap_over_categories_averages_seeds_first():
    values = {"a": [0.5, 0.7], "b": [0.9], "c": [0.8, 0.8, 0.8]}
    mean, low, high = metrics.bootstrap_mean(values)
    assert mean == pytest.approx((0.6 + 0.9 + 0.8) / 3)
    assert 0.6 <= low < mean < high <= 0.9
    assert (mean, low, high) == metrics.bootstrap_mean(
        dict(reversed(values.items()))
    )  # order and call do not matter
    repeated = {k: [float(np.mean(v))] * 50 for k, v in values.items()}
    assert metrics.bootstrap_mean(repeated) == pytest.approx((mean, low, high))  # repeats do not narrow it


def test_bootstrap_single_category_has_no_interval():
    mean, low, high = metrics.bootstrap_mean({"a": 0.7})
    assert mean == 0.7 and np.isnan(low) and np.isnan(high)
    with pytest.raises(FsadError, match="no category"):
        metrics.bootstrap_mean({})
    with pytest.raises(FsadError, match="finite"):
        metrics.bootstrap_mean({"a": float("nan"), "b": 1})


def test_bootstrap_over_images():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 40)
    runs = rng.normal(size=(3, 80)) + label
    mean, low, high = metrics.bootstrap_auroc(label, runs, n=500)
    assert mean == pytest.approx(np.mean([roc_auc_score(label, s) for s in runs]))
    assert low < mean < high
    naive = []
    for _ in range(500):
        i = np.concatenate([rng.integers(0, 40, 40), rng.integers(40, 80, 40)])
        naive.append(np.mean([roc_auc_score(label[i], s[i]) for s in runs]))
    assert (low, high) == pytest.approx(tuple(np.percentile(naive, [2.5, 97.5])), abs=0.02)


def slow_au_spro(regions, maps, limit):
    """From the definition: threshold by threshold, min(found / saturation, 1) of every region."""
    normal = np.concatenate([s[~np.logical_or.reduce([m for m, _ in r] or [np.zeros(s.shape, bool)])] for r, s in zip(regions, maps)])
    pairs = [(s[m], saturation) for r, s in zip(regions, maps) for m, saturation in r]
    curve = [(0.0, 0.0)]
    for t in sorted({v for s in maps for v in s.ravel().tolist()}, reverse=True):
        curve.append(((normal >= t).mean(), np.mean([min((v >= t).sum() / n, 1) for v, n in pairs])))
    x, y = np.array(curve).T
    inside = x <= limit
    x, y = np.append(x[inside], limit), np.append(y[inside], np.interp(limit, x[inside.sum() - 1 :], y[inside.sum() - 1 :]))
    return np.trapezoid(y, x) / limit


@pytest.mark.parametrize("levels", [4, 1000])  # many ties, hardly any
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_au_spro_against_its_definition(levels, limit):
    rng = np.random.default_rng(levels)
    shapes = [(9, 7), (6, 8), (8, 8), (5, 5)]
    maps = [rng.integers(0, levels, s) / levels for s in shapes]
    regions = []
    for i, shape in enumerate(shapes):
        found = []
        for _ in range(i):  # the first image is good; regions may overlap
            m = rng.random(shape) < 0.3
            maps[i] += 0.2 * m
            found.append((m, int(rng.integers(1, m.sum() + 1))))
        regions.append(found)
    assert metrics.au_spro(regions, maps, limit) == pytest.approx(slow_au_spro(regions, maps, limit), abs=1e-12)


def test_au_spro_is_aupro_when_every_region_has_to_be_found_whole():
    rng = np.random.default_rng(2)
    masks = random_masks(rng)
    maps = rng.random(masks.shape)
    regions = []
    for m in masks:
        parts, n = components(m, structure=np.ones((3, 3)))
        regions.append([(parts == i + 1, int((parts == i + 1).sum())) for i in range(n)])
    assert metrics.au_spro(regions, maps, 0.3) == pytest.approx(metrics.aupro(masks, maps, 0.3), abs=1e-12)
    half = [[(m, max(n // 2, 1)) for m, n in r] for r in regions]
    assert metrics.au_spro(half, maps, 0.3) > metrics.au_spro(regions, maps, 0.3)


@pytest.mark.parametrize(
    "regions,maps,match",
    [
        ([[]], [np.zeros((2, 2))], "a region"),
        ([[(np.ones((2, 2), bool), 1)]], [np.zeros((2, 2))], "no normal pixel"),
        ([[(np.eye(2, dtype=bool), 3)]], [np.zeros((2, 2))], "saturation 3"),
        ([[(np.eye(2, dtype=bool), 1)]], [np.zeros((3, 2))], "one size"),
        ([[(np.eye(2, dtype=bool), 1)]], [np.full((2, 2), np.nan)], "not finite"),
    ],
)
def test_au_spro_refuses(regions, maps, match):
    with pytest.raises(FsadError, match=match):
        metrics.au_spro(regions, maps)

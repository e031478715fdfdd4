"""How difficult MiniFab is: area and contrast of its defects, and how far plain pixels get.

    python -m fsad_lib.datasets.minifab.statistics        # measures both splits anew: data/results/minifab_difficulty.csv
"""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from ...metrics import auroc
from ...runs import project_root, replacing
from . import CATEGORIES, COLOURS, KINDS, NOUNS, PER_KIND, SEEN, UNSEEN, _rng, category_design, render, write
from .designs import CONSTRUCTIONS, Design

__all__ = ["PIXEL_LIMIT", "defects_of", "difficulty", "flawless_twin", "pixel_distance", "read_difficulty", "split_table"]

COLUMNS = ["split", "category", "defective", "median_area_%", "below_0.5_%", "contrast_low", "contrast_high", "pixel_auroc"]
PIXEL_LIMIT = 0.70  # the pixel distance to the mean normal image may reach this image AUROC on the development split, on average


@cache
def _design(split: str, category: str) -> Design:
    return category_design(split, category)


def flawless_twin(split: str, category: str, kind: str, index: int) -> np.ndarray:
    """The photograph of the scene behind test image `<kind>/<index>.png`, without its defect: uint8 (128, 128, 3).

    Pose, light and camera noise are the same, so that the two differ in the defect alone.

    >>> flawless_twin("development", "nut", "scratch", 0).shape
    (128, 128, 3)
    """
    scene = render.sample_scene(_design(split, category), _rng(split, category, kind, index))
    return render.photograph(render.render(scene), scene.seed + 2)


def defects_of(root: str | os.PathLike, split: str, category: str) -> pd.DataFrame:
    """One row for each defective image of a category, written to `root` if it is not there.

    Columns: category, kind, index, seen (whether the kind occurs in pretraining), area (share of the image), contrast (mean over
    the mask of the largest channel's change against the flawless twin, in [0, 1]).
    """
    folder, rows = write(root, split, category), []
    for kind in KINDS:
        for index in range(PER_KIND):
            path = folder / "test" / kind / f"{index:03d}.png"
            if not path.is_file():
                break
            mask = _read(folder / "ground_truth" / kind / f"{index:03d}_mask.png") > 0
            change = np.abs(_read(path).astype(float) - flawless_twin(split, category, kind, index)).max(2) / 255
            contrast = change[mask].mean() if mask.any() else 0.0
            rows.append((category, kind, index, kind not in UNSEEN, mask.mean(), contrast))
    return pd.DataFrame(rows, columns=["category", "kind", "index", "seen", "area", "contrast"])


def pixel_distance(root: str | os.PathLike, split: str, category: str) -> float:
    """Image AUROC of the mean absolute distance to the mean of train/good: what needs no model at all."""
    folder = write(root, split, category)
    mean = np.mean([_read(p) for p in sorted((folder / "train/good").glob("*.png"))], axis=0)
    paths = sorted((folder / "test").glob("*/*.png"))
    return auroc([p.parent.name != "good" for p in paths], [np.abs(_read(p) - mean).mean() for p in paths])


def difficulty(root: str | os.PathLike, split: str, categories: list[str] | None = None) -> pd.DataFrame:
    """One row a category (default: all of the split) and a last one, "all": medians and ranges over all images, the mean of the AUROCs.

    Columns: split, category, defective (images), median_area_% (of the image), below_0.5_% (share of the images whose defect is
    smaller than 0.5 % of the image), contrast_low and contrast_high (5th and 95th percentile), pixel_auroc (`pixel_distance`).
    """
    names = list(categories or CATEGORIES[split])
    parts = [defects_of(root, split, name) for name in names]
    pixels = [pixel_distance(root, split, name) for name in names]
    rows = []
    for name, table, value in zip([*names, "all"], [*parts, pd.concat(parts)], [*pixels, float(np.mean(pixels))], strict=True):
        low, high = table["contrast"].quantile([0.05, 0.95])
        small = (table["area"] < 0.005).mean()
        rows.append((split, name, len(table), 100 * table["area"].median(), 100 * small, low, high, value))
    return pd.DataFrame(rows, columns=COLUMNS).round(4)


def read_difficulty() -> pd.DataFrame:
    """The committed table of both splits: `difficulty` as measured when MiniFab was made."""
    return pd.read_csv(_stored())


def _stored() -> Path:
    return project_root() / "data/results/minifab_difficulty.csv"


def split_table() -> pd.DataFrame:
    """What each split holds: categories on disk, constructions, (noun, colour) pairs, defect kinds."""
    held_out = sum((i + j) % 5 == 0 for i in range(len(NOUNS)) for j in range(len(COLOURS)))
    rows = {}
    for split in CONSTRUCTIONS:
        training = split == "pretraining"
        rows[split] = {
            "constructions of a noun": ", ".join(map(str, CONSTRUCTIONS[split])),
            "(noun, colour) pairs": len(NOUNS) * len(COLOURS) - held_out if training else held_out,
            "defect kinds": f"{len(SEEN)} seen" if training else f"{len(SEEN)} seen, {len(UNSEEN)} unseen",
            "categories on disk": "none: every scene has a new design" if training else ", ".join(CATEGORIES[split]),
        }
    return pd.DataFrame(rows).T.rename_axis("split")


def _read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def main() -> None:
    with tempfile.TemporaryDirectory() as root:  # never images of an earlier version
        table = pd.concat([difficulty(Path(root) / split, split) for split in sorted(CATEGORIES)])
    with replacing(_stored()) as path:
        table.to_csv(path, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()

"""MVTec LOCO AD (Bergmann et al., IJCV 2022): 5 categories, structural and logical anomalies, several masks an image.

Licence: CC BY-NC-SA 4.0 (no commercial use), so it is not downloaded for you. Get it from
https://www.mvtec.com/company/research/datasets/mvtec-loco and unpack it so that the tree is::

    <data_root>/mvtec_loco/pushpins/train/good/000.png
    <data_root>/mvtec_loco/pushpins/validation/good/000.png
    <data_root>/mvtec_loco/pushpins/test/good/000.png
    <data_root>/mvtec_loco/pushpins/test/{logical_anomalies,structural_anomalies}/000.png
    <data_root>/mvtec_loco/pushpins/ground_truth/{logical_anomalies,structural_anomalies}/000/000.png
    <data_root>/mvtec_loco/pushpins/defects_config.json

An image's masks lie in a folder of its own, one file a defect. In the table, `mask_path` is that folder: `read_masks` gives
the union of its files, on which the pixel metrics are taken. sPRO needs more (each defect alone, and how much of it has to be
found): `regions` reads that, `fsad_lib.metrics.au_spro` computes it.

The 305 images of ``validation/good`` are neither shots nor test images; `validation_images` lists them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fsad_lib.datasets._common import (
    Benchmark,
    absolute,
    find_root,
    list_folders,
    list_images,
    load_benchmark,
    unknown,
)
from fsad_lib.datasets.images import open_image
from fsad_lib.errors import FsadError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

NAMES = ("mvtec_loco", "mvtec_loco_anomaly_detection", "MVTecLOCO", "MVTec_LOCO", "mvtec-loco")
KINDS = ("logical_anomalies", "structural_anomalies")
# train good, test good, test logical, test structural, as in the published archive: it holds 3,651 images, 7 more than the
# paper counts (splicing_connectors has 360 training and 60 validation images, not 354 and 59)
COUNTS: dict[str, tuple[int, int, int, int]] = {
    "breakfast_box": (351, 102, 83, 90), "juice_bottle": (335, 94, 142, 94), "pushpins": (372, 138, 91, 81),
    "screw_bag": (360, 122, 137, 82), "splicing_connectors": (360, 119, 108, 85),
}  # fmt: skip
VALIDATION = {"breakfast_box": 62, "juice_bottle": 54, "pushpins": 69, "screw_bag": 60, "splicing_connectors": 60}
CATEGORIES = sorted(COUNTS)
SOURCE = "https://www.mvtec.com/company/research/datasets/mvtec-loco"
CONFIG = "defects_config.json"

WHERE = """MVTec LOCO AD is not here and cannot be downloaded for you (licence CC BY-NC-SA 4.0).
  get it:  https://www.mvtec.com/company/research/datasets/mvtec-loco
  put it:  {root}/mvtec_loco/<category>/train/good/000.png
           {root}/mvtec_loco/<category>/test/{{good,logical_anomalies,structural_anomalies}}/000.png
           {root}/mvtec_loco/<category>/ground_truth/<kind of anomaly>/000/000.png
           {root}/mvtec_loco/<category>/defects_config.json"""


class Region(NamedTuple):
    """One defect of one image: its pixels, and how many of them must be found for it to count as found in full."""

    mask: np.ndarray
    """(H, W) bool, at the image's own size."""
    saturation: int
    """pixels, at least 1 and at most the mask's area"""
    defect: str
    """its name in defects_config.json"""


def rows_of(category: Path, name: str) -> list[tuple]:
    """The rows of one category's folder; `mask_path` is the folder of the image's masks, None where it is missing or empty."""
    rows: list[tuple] = [(p, name, "train", 0, "good", None) for p in list_images(category / "train" / "good")]
    rows += [(p, name, "test", 0, "good", None) for p in list_images(category / "test" / "good")]
    for kind in KINDS:
        for image in list_images(category / "test" / kind):
            masks = category / "ground_truth" / kind / image.stem
            rows.append((image, name, "test", 1, kind, masks if list_images(masks) else None))
    return rows


BENCHMARK = Benchmark(
    "MVTec LOCO", "category", NAMES, {name: (train, good, sum(bad)) for name, (train, good, *bad) in COUNTS.items()}, rows_of,
    "a folder of them, ground_truth/<kind of anomaly>/<image's name>", WHERE, SOURCE,
)  # fmt: skip


def load(data_root: str | Path, category: str | None = None) -> pd.DataFrame:
    """The table of one category, or of all 5 (None). `defect` is "good", "logical_anomalies" or "structural_anomalies"; what it raises,
    :func:`fsad_lib.datasets._common.load_benchmark` says."""
    return load_benchmark(BENCHMARK, data_root, category)


def validation_images(data_root: str | Path, category: str) -> list[Path]:
    """The good images of the official validation split, which the table leaves out; sorted.

    Raises:
        FsadError: an unknown category, or the data are missing.
    """
    if category not in COUNTS:
        raise unknown("MVTec LOCO category", category, CATEGORIES)
    root = find_root(absolute(data_root), NAMES, CATEGORIES)
    if root is None:
        raise FsadError(WHERE.format(root=absolute(data_root)))
    return list_images(root / category / "validation" / "good")


def read_config(category: Path) -> dict[int, dict]:
    """defects_config.json of a category's folder by pixel value: defect_name, saturation_threshold, relative_saturation.

    Raises:
        FsadError: the file is missing or not in the official form.
    """
    path = category / CONFIG
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FsadError(f"no {path}: it is part of the data set, and sPRO needs it. Copy it from {SOURCE}.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FsadError(f"cannot read {path}: {error}. Copy it again from {SOURCE}.") from error
    try:
        config = {
            int(e["pixel_value"]): {
                "defect_name": str(e["defect_name"]),
                "saturation_threshold": float(e["saturation_threshold"]),
                "relative_saturation": bool(e["relative_saturation"]),
            }
            for e in entries
        }
    except (TypeError, KeyError, ValueError) as error:
        raise FsadError(
            f"{path} is not in the official form ({type(error).__name__}: {error}); expected a list of defect_name, "
            f"pixel_value, saturation_threshold and relative_saturation. Copy it again from {SOURCE}."
        ) from error
    bad = [e["defect_name"] for e in config.values() if not e["saturation_threshold"] > 0]
    if bad or len(config) != len(entries):
        what = f"thresholds that are not positive ({', '.join(bad)})" if bad else "two defects with one pixel value"
        raise FsadError(f"{path} holds {what}. Copy it again from {SOURCE}.")
    return config


def regions(masks: str | Path) -> list[Region]:
    """The defects of one image, from its folder of masks (a `mask_path` of the table), one Region a file, sorted by name.

    A mask's one value above zero names its defect in defects_config.json. The saturation threshold counts pixels, or, where
    it is relative, the share of the mask's area.

    Raises:
        FsadError: no mask, an empty one, one with several values, or a value that the configuration does not name.
    """
    import numpy as np

    masks = Path(masks)
    config = read_config(masks.parents[2])
    found = []
    for path in list_images(masks):
        values = np.asarray(open_image(path))
        kinds = np.unique(values[values > 0])
        if values.ndim != 2 or len(kinds) != 1 or int(kinds[0]) not in config:
            raise FsadError(
                f"mask {path}: shape {values.shape}, values {kinds[:5].tolist()} above zero; expected one grey channel with one "
                f"of the values {sorted(config)} of {CONFIG}. Get the data again from {SOURCE}."
            )
        entry, m = config[int(kinds[0])], values > 0
        area, threshold = int(m.sum()), entry["saturation_threshold"]
        pixels = threshold * area if entry["relative_saturation"] else threshold
        found.append(Region(m, int(min(max(round(pixels), 1), area)), entry["defect_name"]))
    if not found:
        raise FsadError(f"no mask in {masks}; expected one image file a defect. Get the data again from {SOURCE}.")
    return found


def is_layout(root: Path) -> bool:
    """True for a folder whose categories look like MVTec LOCO's: one of its kinds of anomaly, or its configuration."""
    return any(
        (p / CONFIG).is_file() or any((p / "test" / k).is_dir() and list_folders(p / "ground_truth" / k) for k in KINDS)
        for p in (root / c for c in CATEGORIES)
    )

"""BTAD, beanTech Anomaly Detection (Mishra et al., ISIE 2021): three products, 2,540 images, pixel masks.

The images are not downloaded for you. Get ``btad.zip`` (linked from https://github.com/pankajmishra000/VT-ADL; its readme
names the licence CC BY-SA) and unpack it so that the tree is::

    <data_root>/btad/01/train/ok/0000.bmp
    <data_root>/btad/01/test/ok/0000.bmp
    <data_root>/btad/01/test/ko/0000.bmp
    <data_root>/btad/01/ground_truth/ko/0000.png
    <data_root>/btad/02/...        png images and png masks
    <data_root>/btad/03/...        bmp images and bmp masks

Its own words are "ok" for good and "ko" for defective; the table says "good" and "ko". Images and masks are PNG or BMP, mixed,
and pair by their names, whatever the ending. The 2,830 images that papers give are these 2,540 and their 290 masks.

Products have numbers instead of names. Their words for prompts, `WORDS`, are our own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fsad_lib.datasets._common import Benchmark, list_images, load_benchmark
from fsad_lib.datasets.folder import pair_masks

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("btad", "BTAD", "btech", "BTech_Dataset_transformed", "BTech_Dataset")
# train ok, test ok, test ko, as in the published archive
COUNTS: dict[str, tuple[int, int, int]] = {"01": (400, 21, 49), "02": (399, 30, 200), "03": (1000, 400, 41)}
CATEGORIES = sorted(COUNTS)
WORDS = {"01": "round metal part", "02": "wooden surface", "03": "round printed part"}
SOURCE = "https://github.com/pankajmishra000/VT-ADL"

WHERE = """BTAD is not here and is not downloaded for you.
  get it:  btad.zip, linked from https://github.com/pankajmishra000/VT-ADL
  put it:  {root}/btad/{{01,02,03}}/train/ok/*
           {root}/btad/{{01,02,03}}/test/{{ok,ko}}/*
           {root}/btad/{{01,02,03}}/ground_truth/ko/*      (png or bmp)"""


def rows_of(category: Path, name: str) -> list[tuple]:
    """The rows of one product's folder; a mask is paired by the image's name, None where there is none."""
    rows: list[tuple] = [(p, name, "train", 0, "good", None) for p in list_images(category / "train" / "ok")]
    rows += [(p, name, "test", 0, "good", None) for p in list_images(category / "test" / "ok")]
    masks = pair_masks(list_images(category / "test" / "ko"), category / "ground_truth" / "ko")
    return rows + [(p, name, "test", 1, "ko", m) for p, m in masks.items()]


BENCHMARK = Benchmark("BTAD", "product", NAMES, COUNTS, rows_of, "one of the same name in ground_truth/ko", WHERE, SOURCE)


def load(data_root: str | Path, category: str | None = None) -> pd.DataFrame:
    """The table of one product ("01", "02", "03"), or of all (None); what it raises, :func:`fsad_lib.datasets._common.load_benchmark` says."""
    return load_benchmark(BENCHMARK, data_root, category)


def is_layout(root: Path) -> bool:
    """True for a folder that holds at least one of BTAD's products in its own layout."""
    return any((root / c / "train" / "ok").is_dir() for c in CATEGORIES)

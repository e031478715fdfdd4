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

from fsad_lib.datasets._common import absolute, find_root, list_images, make_table, unknown
from fsad_lib.datasets.folder import pair_masks
from fsad_lib.datasets.mvtec_ad import check_counts, counts_of
from fsad_lib.errors import FsadError

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


def load(data_root: str | Path, category: str | None = None) -> pd.DataFrame:
    """The table of one product ("01", "02", "03"), or of all (None).

    Raises:
        FsadError: the data are missing (says where to get them), unknown product, a defective image without a mask, or another
            number of images.
    """
    if category is not None and category not in COUNTS:
        raise unknown("BTAD product", category, CATEGORIES)
    data_root = absolute(data_root)
    root = find_root(data_root, NAMES, CATEGORIES)
    if root is None:
        raise FsadError(WHERE.format(root=data_root))
    rows = []
    for name in [category] if category else CATEGORIES:
        if not (root / name).is_dir():
            raise FsadError(f"no folder {root / name}.\n{WHERE.format(root=data_root)}")
        part = rows_of(root / name, name)
        check_counts(f"BTAD {name}", counts_of(make_table(part, root)), COUNTS[name], SOURCE)
        without = [r[0] for r in part if r[3] == 1 and r[5] is None]
        if without:
            raise FsadError(
                f"BTAD {name}: {len(without)} defective images have no mask, the first: {without[0]}; expected one of the same "
                f"name in ground_truth/ko. Get the data again from {SOURCE}."
            )
        rows += part
    return make_table(rows, root)


def is_layout(root: Path) -> bool:
    """True for a folder that holds at least one of BTAD's products in its own layout."""
    return any((root / c / "train" / "ok").is_dir() for c in CATEGORIES)

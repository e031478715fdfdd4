"""MVTec AD (Bergmann et al., CVPR 2019): 15 categories, 5,354 images, pixel masks.

Licence: CC BY-NC-SA 4.0 (no commercial use), so it is not downloaded for you. Get it from
https://www.mvtec.com/company/research/datasets/mvtec-ad and unpack it so that the tree is::

    <data_root>/mvtec_ad/bottle/train/good/000.png
    <data_root>/mvtec_ad/bottle/test/good/000.png
    <data_root>/mvtec_ad/bottle/test/broken_large/000.png
    <data_root>/mvtec_ad/bottle/ground_truth/broken_large/000_mask.png
    <data_root>/mvtec_ad/cable/...

`data_root` may also be the data set's folder itself, and the folder may keep its archive's name
(``mvtec_anomaly_detection``). The numbers of images are checked against the paper's Table 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fsad_lib.datasets import folder
from fsad_lib.datasets._common import absolute, find_root, make_table, unknown
from fsad_lib.errors import FsadError

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("mvtec_ad", "mvtec_anomaly_detection", "MVTecAD", "MVTec", "mvtec")
# Bergmann et al. 2019, Table 1: train good, test good, test defective
COUNTS: dict[str, tuple[int, int, int]] = {
    "bottle": (209, 20, 63), "cable": (224, 58, 92), "capsule": (219, 23, 109), "carpet": (280, 28, 89),
    "grid": (264, 21, 57), "hazelnut": (391, 40, 70), "leather": (245, 32, 92), "metal_nut": (220, 22, 93),
    "pill": (267, 26, 141), "screw": (320, 41, 119), "tile": (230, 33, 84), "toothbrush": (60, 12, 30),
    "transistor": (213, 60, 40), "wood": (247, 19, 60), "zipper": (240, 32, 119),
}  # fmt: skip
CATEGORIES = sorted(COUNTS)

WHERE = """MVTec AD is not here and cannot be downloaded for you (licence CC BY-NC-SA 4.0).
  get it:  https://www.mvtec.com/company/research/datasets/mvtec-ad
  put it:  {root}/mvtec_ad/<category>/train/good/000.png
           {root}/mvtec_ad/<category>/test/<good or kind>/000.png
           {root}/mvtec_ad/<category>/ground_truth/<kind>/000_mask.png"""


def counts_of(table: pd.DataFrame) -> tuple[int, int, int]:
    """(train good, test good, test defective) of a table."""
    test = table[table["split"] == "test"]
    return (
        int((table["split"] == "train").sum()),
        int((test["label"] == 0).sum()),
        int((test["label"] == 1).sum()),
    )


def check_counts(name: str, found: tuple, expected: tuple, again: str) -> None:
    """Raise FsadError when a copy does not hold the official number of images.

    Args:
        name: of data set and category, for the message. found, expected: (train good, test good, test defective). again: where to get it.
    """
    if tuple(found) != tuple(expected):
        raise FsadError(
            f"{name}: found {'/'.join(map(str, found))} images (train good/test good/test defective), expected "
            f"{'/'.join(map(str, expected))}: this copy is incomplete or changed. Get it again from {again}, "
            "or read it as dataset 'folder', whose numbers are not the benchmark's."
        )


def load(data_root: str | Path, category: str | None = None) -> pd.DataFrame:
    """The table of one category, or of all 15 (None).

    Raises:
        FsadError: the data are missing (says where to get them), unknown category, or another number of images.
    """
    if category is not None and category not in COUNTS:
        raise unknown("MVTec AD category", category, CATEGORIES)
    data_root = absolute(data_root)
    root = find_root(data_root, NAMES, CATEGORIES)
    if root is None:
        raise FsadError(WHERE.format(root=data_root))
    rows = []
    for name in [category] if category else CATEGORIES:
        if not (root / name).is_dir():
            raise FsadError(f"no folder {root / name}.\n{WHERE.format(root=data_root)}")
        part = folder.rows_of(root / name, name)
        check_counts(f"MVTec AD {name}", counts_of(make_table(part, root)), COUNTS[name],
                     "https://www.mvtec.com/company/research/datasets/mvtec-ad")  # fmt: skip
        without = [r[0] for r in part if r[3] == 1 and r[5] is None]
        if without:
            raise FsadError(
                f"MVTec AD {name}: {len(without)} defective images have no mask, the first: {without[0]}; expected <name>_mask.png in "
                "ground_truth/<kind of defect>. Get the data again from https://www.mvtec.com/company/research/datasets/mvtec-ad."
            )
        rows += part
    return make_table(rows, root)

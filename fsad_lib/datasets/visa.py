"""VisA (Zou et al., ECCV 2022): 12 categories, 10,821 images, pixel masks; the official 1-class split.

Licence of the images: CC BY 4.0. They are not downloaded for you (1.9 GB). Get ``VisA_20220922.tar`` through
https://github.com/amazon-science/spot-diff and unpack it so that the tree is::

    <data_root>/visa/split_csv/1cls.csv
    <data_root>/visa/candle/Data/Images/Normal/0000.JPG
    <data_root>/visa/candle/Data/Images/Anomaly/000.JPG
    <data_root>/visa/candle/Data/Masks/Anomaly/000.png
    <data_root>/visa/capsules/...

``1cls.csv`` has the columns object, split, label, image, mask; its paths are relative to the data set's folder.
The masks hold class numbers; every value above zero is defect.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from fsad_lib.datasets._common import absolute, check_counts, find_root, inside, make_table, unknown
from fsad_lib.errors import FsadError

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("visa", "VisA", "VisA_20220922", "Visa")
# official 1cls.csv: train normal, test normal, test anomaly
COUNTS: dict[str, tuple[int, int, int]] = {
    "candle": (900, 100, 100), "capsules": (542, 60, 100), "cashew": (450, 50, 100), "chewinggum": (453, 50, 100),
    "fryum": (450, 50, 100), "macaroni1": (900, 100, 100), "macaroni2": (900, 100, 100), "pcb1": (904, 100, 100),
    "pcb2": (901, 100, 100), "pcb3": (905, 101, 100), "pcb4": (904, 101, 100), "pipe_fryum": (450, 50, 100),
}  # fmt: skip
CATEGORIES = sorted(COUNTS)
HEADER = ("object", "split", "label", "image", "mask")

WHERE = """VisA is not here and is not downloaded for you (images CC BY 4.0, 1.9 GB).
  get it:  https://github.com/amazon-science/spot-diff (VisA_20220922.tar)
  put it:  {root}/visa/split_csv/1cls.csv
           {root}/visa/<category>/Data/Images/{{Normal,Anomaly}}/*.JPG
           {root}/visa/<category>/Data/Masks/Anomaly/*.png"""


def split_file(root: Path) -> Path:
    """Where the official 1-class split lies."""
    return root / "split_csv" / "1cls.csv"


def read_split(root: Path) -> dict[str, list[tuple]]:
    """The rows of split_csv/1cls.csv by category; every path is checked to stay inside `root`.

    Raises:
        FsadError: the file is missing or not in the official form; the message names the line.
    """
    path = split_file(root)
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except FileNotFoundError:
        raise FsadError(
            f"no {path}: the official 1-class split is part of VisA's archive; copy it there"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FsadError(f"cannot read {path}: {error}. Copy it again from VisA's archive.") from error
    if not lines or tuple(c.strip() for c in lines[0]) != HEADER:
        raise FsadError(f"{path}: first line {lines[:1]}; expected {','.join(HEADER)}")
    rows: dict[str, list[tuple]] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        if len(line) != 5 or line[1] not in ("train", "test") or line[2] not in ("normal", "anomaly"):
            raise FsadError(
                f"{path}, line {number}: {','.join(line)!r}; expected object,train|test,normal|anomaly,image,mask"
            )
        name, split, label, image, mask = line
        if name not in COUNTS:
            raise FsadError(f"{path}, line {number}: {unknown('VisA category', name, CATEGORIES)}")
        if split == "train" and label != "normal":
            raise FsadError(
                f"{path}, line {number}: an anomaly in the training split; this is not the 1-class split"
            )
        bad = label == "anomaly"
        rows.setdefault(name, []).append(
            (inside(root, image), name, split, int(bad), "anomaly" if bad else "good",
             inside(root, mask) if bad and mask else None)
        )  # fmt: skip
    return rows


def load(data_root: str | Path, category: str | None = None) -> pd.DataFrame:
    """The table of one category, or of all 12 (None), after the official 1-class split.

    Raises:
        FsadError: the data are missing (says where to get them), unknown category, files missing, a defective image without a mask, other counts.
    """
    if category is not None and category not in COUNTS:
        raise unknown("VisA category", category, CATEGORIES)
    data_root = absolute(data_root)
    root = find_root(data_root, NAMES, ["split_csv", *CATEGORIES])
    if root is None:
        raise FsadError(WHERE.format(root=data_root))
    split = read_split(root)
    rows = []
    for name in [category] if category else CATEGORIES:
        part = split.get(name, [])
        found = tuple(
            sum(r[2] == s and r[3] == y for r in part) for s, y in (("train", 0), ("test", 0), ("test", 1))
        )
        check_counts(
            f"VisA {name} in {split_file(root)}",
            found,
            COUNTS[name],
            "https://github.com/amazon-science/spot-diff",
        )
        gone = [p for r in part for p in (r[0], r[5]) if p is not None and not p.is_file()]
        if gone:
            raise FsadError(f"VisA {name}: {len(gone)} files of the split are missing, the first: {gone[0]}.\n"
                            + WHERE.format(root=data_root))  # fmt: skip
        without = [r[0] for r in part if r[3] == 1 and r[5] is None]
        if without:
            raise FsadError(f"VisA {name}: {len(without)} defective images have no mask in {split_file(root)}, the first: {without[0]}.\n"
                            + WHERE.format(root=data_root))  # fmt: skip
        rows += part
    return make_table(rows, root)

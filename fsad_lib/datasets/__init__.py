"""One reader per data set, all returning the same table; reading images and masks; shots; checking a folder.

>>> from fsad_lib import datasets
>>> datasets.DATASETS
('minifab', 'minifab_dev', 'elpv', 'mvtec_ad', 'mvtec_loco', 'visa', 'btad', 'folder')

The table has one row per image:

========== =====================================================================================
path       absolute path of the image
category   e.g. "metal_nut"
split      "train" (always normal; shots are drawn from it) or "test"
label      0 normal, 1 defective, -1 not known (a user's unlabelled images)
defect     "good", the kind of defect, or "unknown"
mask_path  absolute path of the defect's mask, or None; in mvtec_loco the folder of an image's masks
========== =====================================================================================
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fsad_lib.datasets import btad, elpv, folder, mvtec_ad, mvtec_loco, visa
from fsad_lib.datasets._common import absolute, looking_into, safe_name, unknown
from fsad_lib.datasets.images import read_image, read_images, read_mask, read_masks
from fsad_lib.errors import FsadError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "DATASETS",
    "categories",
    "check_masks",
    "class_name",
    "default_root",
    "has_masks",
    "load",
    "measurable",
    "read_image",
    "read_images",
    "read_mask",
    "read_masks",
]

DATASETS = ("minifab", "minifab_dev", "elpv", "mvtec_ad", "mvtec_loco", "visa", "btad", "folder")
_ON_DISK = {"mvtec_ad": mvtec_ad, "mvtec_loco": mvtec_loco, "visa": visa, "btad": btad}
_SPLITS = {"minifab": "evaluation", "minifab_dev": "development"}


def default_root() -> Path:
    """Where data sets are looked for unless told otherwise: <project root>/data/datasets."""
    from fsad_lib.runs import project_root

    return project_root() / "data" / "datasets"


def _known(dataset: str) -> str:
    if dataset not in DATASETS:
        raise unknown("data set", dataset, DATASETS)
    return dataset


def _root(dataset: str, data_root: str | Path | None) -> Path:
    if data_root is not None and str(data_root):
        return absolute(data_root)
    if dataset == "folder":
        raise FsadError(f"data set 'folder' needs data_root, the folder with your images.\n{folder.TREE}")
    return default_root()


def categories(dataset: str, data_root: str | Path | None = None) -> list[str]:
    """The names of a data set's categories, sorted; of 'folder', those found under `data_root`.

    >>> categories("elpv")
    ['mono', 'poly']
    """
    _known(dataset)
    if dataset in _SPLITS:
        from fsad_lib.datasets import minifab

        return sorted(minifab.CATEGORIES[_SPLITS[dataset]])
    if dataset == "folder":
        with looking_into(root := _root(dataset, data_root)):
            return folder.categories(root)
    return list({"elpv": elpv, **_ON_DISK}[dataset].CATEGORIES)


def class_name(dataset: str, category: str) -> str:
    """The words for a category in a prompt: underscores become spaces, VisA's running numbers are dropped; BTAD's products,
    which are only numbered, get words of our own.

    >>> class_name("mvtec_ad", "metal_nut"), class_name("visa", "macaroni2"), class_name("elpv", "poly")
    ('metal nut', 'macaroni', 'solar cell')
    >>> class_name("mvtec_loco", "juice_bottle"), class_name("btad", "02")
    ('juice bottle', 'wooden surface')

    Raises:
        FsadError: a category that is no plain name, has no word in it, or "<" or ">", which mark learned words in prompts.
    """
    _known(dataset)
    safe_name("category", category)
    if dataset == "elpv":
        return "solar cell"
    if dataset == "btad" and category in btad.WORDS:
        return btad.WORDS[category]
    words = re.sub(r"[\s_\-]+", " ", category).strip()
    if not words or "<" in words or ">" in words:
        raise FsadError(f"category {category!r} gives no words for a prompt; expected a name with a letter or digit, without '<' and '>'. Rename it.")
    return re.sub(r"\d+$", "", words) if dataset == "visa" else words


def load(dataset: str, category: str | None = None, data_root: str | Path | None = None) -> pd.DataFrame:
    """The table of one category, or of all (None), sorted by category, training first, then by path.

    Args:
        dataset: one of `DATASETS`.
        category: one of `categories(dataset)`; for elpv also "mono_half", "poly_half".
        data_root: the folder that holds the data sets' folders, `default_root()` by default; for 'folder' the
            user's folder itself. MiniFab is written there on first use.

    Raises:
        FsadError: unknown names (the valid ones are listed), missing or incomplete data (what to do is said).

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("train/good/0.png", "test/good/1.png", "test/scratch/2.png"):
        ...         path = Path(root, "clamp", name)
        ...         path.parent.mkdir(parents=True)
        ...         Image.new("RGB", (32, 32)).save(path)
        ...     table = load("folder", "clamp", root)
        >>> table[["split", "label", "defect"]].values.tolist()
        [['train', 0, 'good'], ['test', 0, 'good'], ['test', 1, 'scratch']]
    """
    _known(dataset)
    if category is not None:
        safe_name("category", category)
    if dataset == "elpv":
        return elpv.load(category)
    root = _root(dataset, data_root)
    if dataset in _SPLITS:
        return _load_minifab(dataset, category, root)
    with looking_into(root):
        return {"folder": folder, **_ON_DISK}[dataset].load(root, category)


def _load_minifab(dataset: str, category: str | None, data_root: Path) -> pd.DataFrame:
    from fsad_lib.datasets import minifab
    from fsad_lib.datasets._common import make_table

    split, valid, root = _SPLITS[dataset], categories(dataset), data_root / dataset
    if category is not None and category not in valid:
        raise unknown(f"{dataset} category", category, valid)
    rows = []
    for name in [category] if category else valid:
        try:
            minifab.write(root, split, name)  # returns at once when the category is complete
        except OSError as error:
            raise FsadError(
                f"cannot write {root / name}: {error.strerror or error}. "
                "Free some space, allow writing there, or give another data_root."
            ) from error
        rows += folder.rows_of(root / name, name)
    return make_table(rows, root)


def has_masks(table: pd.DataFrame) -> bool:
    """True when every defective test image, of which there are some, has a mask, and none is unlabelled. Pixel metrics also need good images and
    leave unlabelled ones out: `measurable`.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"split": ["test", "test"], "label": [0, 1], "mask_path": [None, "hole/000_mask.png"]})
        >>> has_masks(table), has_masks(table.assign(mask_path=None)), has_masks(table[:1])  # a mask for every defect; none; no defect
        (True, False, False)
    """
    test = table[table["split"] == "test"]
    bad = test[test["label"] != 0]
    return bool(len(bad)) and bool((bad["label"] == 1).all()) and bool(bad["mask_path"].notna().all())


def measurable(table: pd.DataFrame) -> bool:
    """Whether pixel metrics can be computed on the labelled test images: good ones, and defective ones that all have a mask.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"split": "test", "label": [0, 1, -1], "mask_path": [None, "hole/000_mask.png", None]})
        >>> measurable(table), has_masks(table), measurable(table[1:])  # an unsorted image takes nothing away; no good image
        (True, False, False)
    """
    known = table[table["label"] >= 0]
    return has_masks(known) and bool(((known["split"] == "test") & (known["label"] == 0)).any())


@lru_cache(maxsize=100_000)
def _decodes(path: str, size: int, stamp: int) -> str:
    """What is wrong with an image file; "" if it can be read. Remembered as long as the file stays the same."""
    from fsad_lib.datasets.images import open_image, to_array

    try:
        to_array(open_image(path), path)  # values out of range, too
    except FsadError as error:
        return str(error)
    return ""


def check_readable(table: pd.DataFrame) -> None:
    """Decode every image of a table, so that a damaged one is named before anything is learned.

    Raises:
        FsadError: images that cannot be read; every one is named, up to five.
    """
    problems = []
    for path in table["path"]:
        try:
            stat = os.stat(path)
        except OSError as error:
            problems.append(f"cannot read {path}: {error.strerror}")
            continue
        if problem := _decodes(path, stat.st_size, stat.st_mtime_ns):
            problems.append(problem)
    if problems:
        raise FsadError("\n".join(problems[:5]) + (f"\n... and {len(problems) - 5} more images." if len(problems) > 5 else ""))


def check_masks(table: pd.DataFrame) -> None:
    """Read every mask of a table's defective images, so that a broken one is named before a run.

    Raises:
        FsadError: a defective image whose mask is empty, of another size, damaged or gone; every such file is named, up to five.

    Example:
        >>> import tempfile
        >>> import pandas as pd
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("hole.png", "mask.png"):
        ...         Image.new("L", (32, 32)).save(f"{root}/{name}")  # a mask that is black all over
        ...     check_masks(pd.DataFrame({"split": ["test"], "label": [1], "path": [f"{root}/hole.png"], "mask_path": [f"{root}/mask.png"]}))
        Traceback (most recent call last):
        fsad_lib.errors.FsadError: mask ... has no defective pixel, but its image ... is labelled defective; remove the mask or correct it.
    """
    from fsad_lib.datasets.images import checked_mask

    problems = []
    bad = table[(table["split"] == "test") & (table["label"] == 1) & table["mask_path"].notna()]
    for path, mask in zip(bad["path"], bad["mask_path"], strict=True):
        try:
            if not checked_mask(mask, path).any():
                problems.append(f"mask {mask} has no defective pixel, but its image {path} is labelled defective; remove the mask or correct it.")
        except FsadError as error:
            problems.append(str(error))
    if problems:
        raise FsadError("\n".join(problems[:5]) + (f"\n... and {len(problems) - 5} more masks." if len(problems) > 5 else ""))

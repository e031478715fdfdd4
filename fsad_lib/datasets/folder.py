"""Anyone's own images, in MVTec AD's layout; masks and labels are optional.

Expected tree (`<root>` may also be one category itself)::

    <root>/<category>/train/good/*.png          normal images, the few shots are drawn from them
    <root>/<category>/test/good/*.png           normal images to judge            (label 0)
    <root>/<category>/test/<kind>/*.png         defective images to judge         (label 1, defect <kind>)
    <root>/<category>/test/*.png                images to judge, answer unknown   (label -1, defect "unknown")
    <root>/<category>/ground_truth/<kind>/<name>_mask.png     optional masks, also <name>.png

The simplest layout is accepted too: ``<root>/good/*.png`` and, beside ``good``, a folder ``test`` or the images to judge.

Masks are paired by name, never by order. Images are PNG, JPEG, TIFF, BMP, WebP, PGM, PPM or GIF.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from fsad_lib.datasets._common import (
    UNLABELLED,
    absolute,
    list_folders,
    list_images,
    make_table,
    unknown,
)
from fsad_lib.errors import FsadError

if TYPE_CHECKING:
    import pandas as pd

TREE = """expected:
  <root>/<category>/train/good/*.png      normal images (or <root>/good/*.png)
  <root>/<category>/test/*                images to judge: test/good, test/<kind of defect>; unsorted ones directly in test, or in test/unknown
  <root>/<category>/ground_truth/<kind>/<name>_mask.png   (optional)"""


def train_folder(category: Path) -> Path | None:
    """The folder of normal images of one category: train/good, else good; None if there is neither."""
    for folder in (category / "train" / "good", category / "good"):
        if folder.is_dir():
            return folder
    return None


def category_folders(root: Path) -> dict[str, Path]:
    """The folders in `root` with normal images, by name. One that cannot be looked into counts: whoever reads it is told, and the
    others can be used."""

    def counts(folder: Path) -> bool:
        try:
            return train_folder(folder) is not None
        except OSError:
            return True

    return {p.name: p for p in list_folders(root) if counts(p)}


def categories(root: str | Path) -> list[str]:
    """The categories found in `root`, sorted; `root`'s own name when it is one category itself."""
    root = absolute(root)
    return sorted(_checked(name, root) for name in _folders(root))


def _checked(category: str, root: Path) -> str:
    """A category's name, refused when no run folder can be called so."""
    from fsad_lib.runs import check_name

    try:
        return check_name("category", category)
    except FsadError as error:
        raise FsadError(f"{error} Rename the folder in {root}.") from None


def _folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise FsadError(f"no folder {root}.\n{TREE}")
    if train_folder(root):
        return {root.name or "root": root}
    found = category_folders(root)
    if not found:
        inner = ", ".join(p.name for p in list_folders(root)[:8]) or "no folder"
        spelled = [p for p in root.glob("*/*/*") if p.as_posix().lower().endswith("/train/good")]
        hint = f" {spelled[0]} is spelled differently: rename it." if spelled else ""
        raise FsadError(f"no category in {root}: found {inner}, but no train/good inside.{hint}\n{TREE}")
    return found


def mask_of(image: Path, ground_truth: Path) -> Path | None:
    """The mask of an image by name: <stem>_mask.<any image suffix>, else <stem>.<any>; PNG is preferred."""
    return pair_masks([image], ground_truth)[image]


def _composed(name: str) -> str:
    """A name with its accents composed: a Mac stores them apart, and a keyboard types them together."""
    return unicodedata.normalize("NFC", name)


def pair_masks(images: list[Path], ground_truth: Path) -> dict[Path, Path | None]:
    """Every image's mask in the folder `ground_truth`, or None; see `mask_of`.

    Raises:
        FsadError: one mask for two images, such as x.png and x.jpg, or x.png and x_mask.png.
    """
    by_stem: dict[str, Path] = {}
    for mask in sorted(list_images(ground_truth), key=lambda p: (p.suffix.lower() != ".png", p.name)):
        by_stem.setdefault(_composed(mask.stem), mask)
    pairs = {p: by_stem.get(_composed(p.stem) + "_mask", by_stem.get(_composed(p.stem))) for p in images}
    owner: dict[Path, Path] = {}
    for image, mask in pairs.items():
        if mask is not None and (other := owner.setdefault(mask, image)) != image:
            raise FsadError(
                f"the mask {mask} would serve two images, {other} and {image}; expected one mask for each. "
                "Rename one of them and give it a mask of its own name, or remove the one that is no image to judge."
            )
    return pairs


def rows_of(category: Path, name: str) -> list[tuple]:
    """The rows of one category's folder, (path, ``name``, split, label, defect, mask); images without a label get -1 and the defect "unknown".

    Raises:
        FsadError: no normal image, none to judge, or one mask for two images.
    """
    train = train_folder(category)
    if train is None:
        raise FsadError(f"no train/good in {category}.\n{TREE}")
    rows: list[tuple] = [(p, name, "train", 0, "good", None) for p in list_images(train)]
    if not rows:
        found = sorted({p.suffix.lower() or p.name for p in train.iterdir() if p.is_file() and not p.name.startswith(".")})
        held = f"files that are not read ({', '.join(found[:6])})" if found else "no file"
        raise FsadError(f"{train} holds no image, but {held}; expected at least one normal image (PNG, JPEG, TIFF, BMP, WebP, PGM, PPM or GIF). Convert them.")
    test = category / "test"
    if not test.is_dir() and train.parent == category:
        test = category  # good/ with the images to judge beside it
    rows += [(p, name, "test", UNLABELLED, "unknown", None) for p in list_images(test)]
    for folder in list_folders(test):
        kind = folder.name
        if test == category and kind in ("good", "train", "ground_truth"):
            continue
        label = {"good": 0, "unknown": UNLABELLED}.get(kind, 1)
        images = list_images(folder)
        masks = pair_masks(images, category / "ground_truth" / kind) if label else {}
        rows += [(p, name, "test", label, kind, masks.get(p)) for p in images]
    if not any(r[2] == "test" for r in rows):
        raise FsadError(f"no image to judge in {category / 'test'}; put some there.\n{TREE}")
    return rows


def load(root: str | Path, category: str | None = None) -> pd.DataFrame:
    """The table of one category, or of all of them (None).

    Raises:
        FsadError: missing folder, wrong layout, unknown category (the message lists the valid ones), no image.
    """
    root = absolute(root)
    found = _folders(root)
    if category is not None:
        same = [name for name in found if _composed(name) == _composed(_checked(category, root))]
        if not same:
            raise unknown("category", category, sorted(found))
        found = {category: found[category if category in found else same[0]]}
    return make_table([row for name in sorted(found) for row in rows_of(found[name], _checked(name, root))], root)

"""MiniFab: a generated industrial world at 128 x 128 pixels, written to disk in MVTec AD's layout.

Three disjoint splits of product designs: "pretraining" (what the miniature models learn from), "development" (every choice is made
here) and "evaluation" (looked at only with the choices committed). See `designs`, `defects` and `render`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import FsadError
from . import defects, render
from .defects import KINDS, LOGICAL, SEEN, UNSEEN
from .designs import COLOURS, NOUNS, OBJECTS, TEXTURES, make_design

__all__ = ["CATEGORIES", "COLOURS", "KINDS", "LOGICAL", "NOUNS", "OBJECTS", "SEEN", "TEXTURES", "UNSEEN", "write"]

CATEGORIES: dict[str, list[str]] = {
    "evaluation": ["gear", "capsule", "wood", "washer", "bracket", "connector", "tile", "carpet"],
    "development": ["nut", "button", "key", "plate", "leather", "mesh"],
}
MARKER = "minifab.json"
SEED_WORD = 1  # part of every seed: stays as it is, for another one would change every image
EDITION = 1  # written beside the images: raise it when the generator's output changes, and folders of an older edition are made anew
STALE_SECONDS = 3600  # a half-written folder of this age belongs to a process that was killed
TRAIN_GOOD, TEST_GOOD, PER_KIND = 40, 50, 6


def _rng(*key: object) -> np.random.Generator:
    """A generator that depends on the key alone (never on Python's randomised hash)."""
    return np.random.default_rng([zlib.crc32(repr(part).encode()) for part in ("minifab", SEED_WORD, *key)])


def write(root: str | os.PathLike, split: str, category: str) -> Path:
    """Generate one category (about 170 images, a few seconds) unless it is there; return its folder.

    Deterministic: pose, light and defect of an image depend on (split, category, kind, index) alone. The folder appears at once, when
    everything is written. It holds `train/good`, `test/good`, `test/<kind>`, `ground_truth/<kind>/<stem>_mask.png` and `minifab.json`.

    Raises FsadError for an unknown split or category.

    >>> write("/tmp", "evaluation", "spoon")
    Traceback (most recent call last):
    ...
    fsad_lib.errors.FsadError: MiniFab has no evaluation category 'spoon'. Choose one of: gear, capsule, wood, washer, bracket, connector, tile, carpet.
    """
    if split not in CATEGORIES:
        raise FsadError(f"MiniFab has no split {split!r} on disk. Choose one of: {', '.join(CATEGORIES)}.")
    if category not in CATEGORIES[split]:
        raise FsadError(f"MiniFab has no {split} category {category!r}. Choose one of: {', '.join(CATEGORIES[split])}.")
    folder = Path(root) / category
    if _is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent, category)
        part = Path(tempfile.mkdtemp(prefix=f".{category}.", dir=folder.parent))
    except OSError as error:
        raise FsadError(f"MiniFab cannot be written to {folder.parent}: {error.strerror}. Choose another data_root.") from error
    try:
        summary = _write_images(part, split, category)
        (part / MARKER).write_text(json.dumps(summary, indent=1))
        os.chmod(part, 0o755)
        if folder.exists() and not _is_complete(folder):
            shutil.rmtree(folder)
        try:
            os.replace(part, folder)
        except OSError:
            if not _is_complete(folder):  # else: another process was faster with the same images
                raise
    except OSError as error:
        raise FsadError(f"MiniFab could not be written to {folder}: {error.strerror}. Free some space or choose another data_root.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _sweep(root: Path, category: str) -> None:
    """Removes what killed writers left behind: folders of `tempfile`'s names for this category, untouched for an hour."""
    for left in root.glob(f".{category}.*"):
        try:
            ours = re.fullmatch(r"[a-z0-9_]{8}", left.name.removeprefix(f".{category}.")) and not left.is_symlink() and left.is_dir()
            if ours and time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:  # another process was faster
            continue


def _is_complete(folder: Path) -> bool:
    """Of this edition, and with every file: what another program removed is drawn again, rather than judged without."""
    try:
        marker = json.loads((folder / MARKER).read_text())
        expected = {"train/good": TRAIN_GOOD, "test/good": TEST_GOOD}
        expected |= {f"{part}/{kind}": len(areas) for kind, areas in marker["defect_area"].items() if areas for part in ("test", "ground_truth")}
        return marker["edition"] == EDITION and all(len(os.listdir(folder / part)) >= count for part, count in expected.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def category_design(split: str, category: str):
    """The one design behind a category (a `designs.Design`)."""
    return make_design(category, split, _rng(split, category))


def _write_images(folder: Path, split: str, category: str) -> dict:
    design = category_design(split, category)
    areas: dict[str, list[float]] = {}
    for part, count in (("train/good", TRAIN_GOOD), ("test/good", TEST_GOOD)):
        (folder / part).mkdir(parents=True)
        for i in range(count):
            scene = render.sample_scene(design, _rng(split, category, part, i))
            Image.fromarray(render.photograph(render.render(scene), scene.seed + 2)).save(folder / part / f"{i:03d}.png")
    for kind in KINDS:
        for i in range(PER_KIND):
            rng = _rng(split, category, kind, i)
            scene = render.sample_scene(design, rng)
            if not defects.possible(scene, kind):
                break
            image, mask = defects.apply(scene, kind, rng)
            for part, array, name in (("test", image, f"{i:03d}.png"), ("ground_truth", mask.astype(np.uint8) * 255, f"{i:03d}_mask.png")):
                (folder / part / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / part / kind / name)
            areas.setdefault(kind, []).append(round(float(mask.mean()), 5))
    return {"edition": EDITION, "split": split, "category": category, "colour": design.colour, "defect_area": areas}

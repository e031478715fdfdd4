"""ELPV (Deitsch et al., Solar Energy 185, 2019): 2,624 electroluminescence images of solar cells, 300x300, 8-bit grey.

The images come with the PyPI package ``elpv-dataset`` (extra ``elpv``); their licence is CC BY-NC-SA 4.0
(no commercial use), the package's code is Apache-2.0. Experts gave each cell a defect probability; there are no
masks and no official split. Nothing of the package is imported, its files are only located.

Protocol (ours): categories ``mono`` and ``poly``.

- ``strict``: probability 0 is normal (0), probability 1 defective (1), 1/3 and 2/3 are left out.
- ``half`` (categories ``mono_half``, ``poly_half``): below 0.5 normal, above it defective; nothing is left out.

The training split, from which shots are drawn, is the same in both: `POOL` cells of probability 0, fixed by hashing
their names, and never tested. Which of them are the shots of a seed depends on the category's name, so ``mono`` and ``mono_half``
have different shots.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from fsad_lib.datasets._common import inside, make_table, unknown
from fsad_lib.errors import FsadError

if TYPE_CHECKING:
    import pandas as pd

CATEGORIES = ["mono", "poly"]
VARIANTS = ["mono", "poly", "mono_half", "poly_half"]
POOL = 64
# images with defect probability 0, 1/3, 2/3, 1
COUNTS = {"mono": (588, 117, 56, 313), "poly": (920, 178, 50, 402)}

MISSING = """the ELPV images are not installed.
  install:  pip install elpv-dataset     (or this project with its extra: pip install -e ".[elpv]")
  licence:  images CC BY-NC-SA 4.0, not for commercial use"""


def package_folder() -> Path:
    """The package's data folder with labels.csv and images/, found without importing the package; FsadError where it is not installed."""
    spec = importlib.util.find_spec("elpv_dataset")
    for location in (spec.submodule_search_locations or []) if spec else []:
        data = Path(location) / "data"
        if (data / "labels.csv").is_file():
            return data
    raise FsadError(MISSING)


def read_labels(data: Path) -> list[tuple[Path, int, str]]:
    """labels.csv -> [(image, probability in thirds 0..3, "mono" | "poly")], in the file's order."""
    rows = []
    for number, line in enumerate((data / "labels.csv").read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            name, probability, kind = line.split()
            thirds = round(3 * float(probability))
            if kind not in COUNTS or not 0 <= thirds <= 3 or abs(thirds / 3 - float(probability)) > 0.01:
                raise ValueError
        except ValueError:
            raise FsadError(
                f"{data / 'labels.csv'}, line {number}: {line!r}; expected 'image probability mono|poly'"
            ) from None
        rows.append((inside(data, name), thirds, kind))
    return rows


def load(category: str | None = None) -> pd.DataFrame:
    """The table of solar cells: `POOL` normal training cells and all others of the protocol as test.

    Args:
        category: "mono" and "poly" leave the doubtful cells out (protocol strict), "mono_half" and "poly_half" count probability 1/3
            as good and 2/3 as defective (protocol half); None: mono and poly.

    The defect column is "good", "defective" (probability 1) or "probably_defective" (2/3, protocol half only).

    Raises:
        FsadError: an unknown category, the package is not installed, or holds other numbers of images.
    """
    if category is not None and category not in VARIANTS:
        raise unknown("ELPV category", category, VARIANTS)
    data = package_folder()
    labels = read_labels(data)
    found = Counter((kind, thirds) for _, thirds, kind in labels)
    for kind, expected in COUNTS.items():
        have = tuple(found[kind, t] for t in range(4))
        if have != expected:
            raise FsadError(
                f"ELPV {kind} in {data}: found {have} images of probability 0, 1/3, 2/3, 1; expected {expected}. "
                "Reinstall elpv-dataset."
            )
    rows = []
    for variant in [category] if category else CATEGORIES:
        kind = variant.removesuffix("_half")
        half = variant.endswith("_half")
        cells = [(p, thirds) for p, thirds, k in labels if k == kind and (half or thirds in (0, 3))]
        normal = [p for p, thirds in cells if thirds == 0]
        pool = set(
            sorted(normal, key=lambda p: sha256(f"elpv shot pool 0 {p.name}".encode()).digest())[:POOL]
        )
        for path, thirds in cells:
            bad = thirds >= 2
            defect = ("probably_defective" if thirds == 2 else "defective") if bad else "good"
            rows.append((path, variant, "train" if path in pool else "test", int(bad), defect, None))
    return make_table(rows, data)

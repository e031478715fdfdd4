"""What every reader shares: safe names and paths, listing images, building the table."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fsad_lib.errors import FsadError

if TYPE_CHECKING:
    import pandas as pd

IMAGE_SUFFIXES = frozenset(".png .jpg .jpeg .jpe .jfif .bmp .tif .tiff .webp .pgm .ppm .gif".split())
COLUMNS = ("path", "category", "split", "label", "defect", "mask_path")
UNLABELLED = -1


def is_image(path: Path) -> bool:
    """True for a visible file whose name ends like an image's; the content is not looked at. A link to a file that is gone counts:
    reading it then names it, where skipping it would judge fewer images without a word."""
    named = not path.name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES
    return named and (path.is_file() or (path.is_symlink() and not path.exists()))


def printable(text: object) -> str:
    r"""`text` in characters that every terminal and file can take.

    >>> printable("b\udce9.png")
    'b\\udce9.png'
    """
    return str(text).encode("utf-8", "backslashreplace").decode()


def _named(path: Path) -> Path:
    """`path`, refused when its name is not UTF-8: tables, JSON and terminals cannot hold it."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise FsadError(
            f"the name '{printable(path.name)}' in {printable(path.parent)} is not UTF-8; expected one that is. Rename it."
        ) from None
    return path


@contextlib.contextmanager
def looking_into(folder: Path) -> Iterator[None]:
    """Within the block, a folder that cannot be looked into is named by a FsadError."""
    try:
        yield
    except OSError as error:
        raise FsadError(
            f"cannot look into {error.filename or folder}: {error.strerror or error}. Make the folder readable."
        ) from error


def list_images(folder: Path) -> list[Path]:
    """The images directly inside `folder`, sorted by name; empty when the folder is missing."""
    with looking_into(folder), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(_named(p) for p in folder.iterdir() if is_image(p))
    return []


def list_folders(folder: Path) -> list[Path]:
    """The visible folders directly inside `folder`, sorted by name; empty when the folder is missing."""
    with looking_into(folder), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(_named(p) for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return []


def unknown(what: str, name: object, valid: Iterable[str]) -> FsadError:
    """The error for a name that is not among `valid`: lists them and names the closest.

    >>> print(unknown("category", "botle", ["bottle", "cable"]))
    unknown category 'botle'; did you mean 'bottle'? Valid: bottle, cable
    """
    valid = list(valid)
    close = difflib.get_close_matches(str(name).lower(), valid, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return FsadError(f"unknown {what} {str(name)!r}{hint} Valid: {', '.join(valid) or '(none found)'}")


def safe_name(what: str, name: object) -> str:
    """`name` if it can be one folder's name, and cannot leave the folder it is put in.

    >>> safe_name("category", "metal_nut")
    'metal_nut'
    >>> safe_name("category", "../etc")
    Traceback (most recent call last):
    fsad_lib.errors.FsadError: category '../etc' is not a plain name; expected one without '/', '\\' or a leading '.'
    """
    text = str(name)
    if not text.strip() or text.startswith(".") or any(c in text for c in "/\\\0"):
        raise FsadError(
            f"{what} {text!r} is not a plain name; expected one without '/', '\\' or a leading '.'"
        )
    return text


def inside(root: Path, relative: str) -> Path:
    """`root / relative`; FsadError when `relative` (from a CSV or a manifest) is absolute or climbs with '..'."""
    text = str(relative)
    parts = text.replace("\\", "/").split("/")
    if not text or text.startswith(("/", "\\")) or ":" in parts[0] or ".." in parts or "\0" in text:
        raise FsadError(f"path {text!r} leaves {root}; expected one relative to that folder, without '..'")
    return root.joinpath(*parts)


def absolute(path: str | Path) -> Path:
    """Absolute, '~' expanded and '..' collapsed; links are kept as the user laid them. It need not exist.

    Raises:
        FsadError: no user of that name, no permission to look, a path too long, or one that is not UTF-8.
    """
    import os

    found = None
    try:
        found = Path(os.path.abspath(Path(path).expanduser()))
        str(found).encode()
        os.stat(found)
    except (FileNotFoundError, NotADirectoryError):
        if found is None:  # asked for the working directory
            raise FsadError(f"cannot use the path '{printable(path)}': the working directory is gone. Change to one that exists.") from None
    except UnicodeEncodeError:
        raise FsadError(f"the path '{printable(path)}' is not UTF-8; expected one that is. Rename the folder.") from None
    except (RuntimeError, OSError, ValueError) as error:
        name = printable(path)
        shown = name if len(name) <= 200 else f"{name[:200]}... ({len(name)} characters)"
        raise FsadError(f"cannot use the path {shown!r}: {getattr(error, 'strerror', None) or error}. Check its spelling.") from None
    return found


def make_table(rows: Sequence[tuple], root: Path) -> pd.DataFrame:
    """Rows (path, category, split, label, defect, mask_path) -> the common table, sorted.

    `table.attrs["root"]` is the folder to which shot manifests write their relative paths.
    """
    import pandas as pd

    rows = sorted(
        ((str(p), c, s, int(y), d, None if m is None else str(m)) for p, c, s, y, d, m in rows),
        key=lambda r: (r[1], r[2] != "train", r[0]),
    )
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"label": "int64"})
    table["mask_path"] = pd.Series([r[5] for r in rows], dtype=object, index=table.index)
    table.attrs["root"] = str(root)
    return table


def find_root(data_root: Path, names: Sequence[str], known: Iterable[str]) -> Path | None:
    """The data set's folder: `data_root/<one of names>`, or `data_root` itself if it holds a known category."""
    for name in names:
        if (data_root / name).is_dir():
            return data_root / name
    if any((data_root / c).is_dir() for c in known):
        return data_root
    return None


# -------------------------------------------------------------------- benchmarks whose numbers of images are known
class Benchmark(NamedTuple):
    """What :func:`load_benchmark` must know of a data set that lies in a folder for each category."""

    title: str
    """"MVTec AD", for messages"""
    word: str
    """what it calls a category, for messages"""
    names: Sequence[str]
    """of its folder below data_root; data_root itself may be it"""
    counts: Mapping[str, tuple[int, int, int]]
    """category -> official (train good, test good, test defective)"""
    rows_of: Callable[[Path, str], list[tuple]]
    """(a category's folder, its name) -> rows (path, category, split, label, defect, mask)"""
    masks: str
    """where a defective image's mask is expected, for messages"""
    where: str
    """the message that says where to get it and how it must lie; holds {root}"""
    source: str
    """where to get it again"""


def counts_of(table: pd.DataFrame) -> tuple[int, int, int]:
    """(train good, test good, test defective) of a table."""
    test = table[table["split"] == "test"]
    return int((table["split"] == "train").sum()), int((test["label"] == 0).sum()), int((test["label"] == 1).sum())


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


def load_benchmark(benchmark: Benchmark, data_root: str | Path, category: str | None) -> pd.DataFrame:
    """The table of one category, or of all (None), checked against the official numbers of images.

    Raises:
        FsadError: the data are missing (says where to get them), unknown category, a defective image without a mask, or another number of
            images.
    """
    b = benchmark
    if category is not None and category not in b.counts:
        raise unknown(f"{b.title} {b.word}", category, sorted(b.counts))
    data_root = absolute(data_root)
    root = find_root(data_root, b.names, b.counts)
    if root is None:
        raise FsadError(b.where.format(root=data_root))
    rows = []
    for name in [category] if category else sorted(b.counts):
        if not (root / name).is_dir():
            raise FsadError(f"no folder {root / name}.\n{b.where.format(root=data_root)}")
        part = b.rows_of(root / name, name)
        check_counts(f"{b.title} {name}", counts_of(make_table(part, root)), b.counts[name], b.source)
        without = [path for path, _, _, label, _, mask in part if label == 1 and mask is None]
        if without:
            raise FsadError(
                f"{b.title} {name}: {len(without)} defective images have no mask, the first: {without[0]}; expected {b.masks}. "
                f"Get the data again from {b.source}."
            )
        rows += part
    return make_table(rows, root)

"""Shot manifests: which normal images a run was allowed to see.

One file per (data set, category, seed) holds ALL training images in one seeded order; k shots are its first k, so that
2 is within 4 within 8 within 16, and every method and every later run uses the same ones. The order is that of
SHA-256("seed/category/path"): it depends on no library's random generator.
"""

from __future__ import annotations

import json
import os
import tempfile
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from fsad_lib.datasets._common import inside, safe_name
from fsad_lib.errors import FsadError

if TYPE_CHECKING:
    import pandas as pd


@lru_cache(maxsize=65536)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    return sha256(Path(path).read_bytes()).hexdigest()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, remembered within this process while its size and time stay the same; FsadError where it cannot be read."""
    try:
        stat = os.stat(path)
        return _digest(str(path), stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise FsadError(f"cannot read {path}: {error.strerror or error}") from error


def _training(table: pd.DataFrame, dataset: str, category: str) -> tuple[Path, list[str]]:
    """The folder that paths are relative to, and the training images. Of a user's folder it is the product's own, so that the same
    shots are drawn whether the product's folder was given or the one around it."""
    chosen = table[(table["category"] == category) & (table["split"] == "train") & (table["label"] == 0)]
    paths = sorted(chosen["path"])
    if not paths:
        raise FsadError(
            f"no normal training image of category {category!r} in the table; expected at least one"
        )
    root = table.attrs.get("root") or os.path.commonpath([os.path.dirname(p) for p in paths])
    own = Path(root) / category
    if dataset == "folder" and all(Path(p).is_relative_to(own) for p in paths):
        root = own
    return Path(root), [Path(os.path.relpath(p, root)).as_posix() for p in paths]


def manifest_path(
    table: pd.DataFrame, dataset: str, category: str, seed: int, folder: str | Path | None = None
) -> Path:
    """<project root>/data/shots/<dataset>/<category>/seed<seed>.json.

    For a user's own folder the name also carries a hash of the training images, since two folders may share a name
    and images are added over time: each state keeps its own manifest.

    Raises:
        FsadError: names that are no plain ones, or a seed that is not a whole number of at least 0.
    """
    safe_name("data set", dataset), safe_name("category", category)
    if isinstance(seed, bool) or int(seed) != seed or seed < 0:
        raise FsadError(f"seed {seed!r} found; expected a whole number, at least 0")
    if folder is None:
        from fsad_lib.runs import project_root

        folder = project_root() / "data" / "shots"
    name = f"seed{int(seed)}"
    if dataset == "folder":
        root, paths = _training(table, dataset, category)
        listing = sorted((p, file_sha256(root / p)) for p in paths)
        name += "-" + sha256(json.dumps(listing).encode()).hexdigest()[:12]
    return Path(folder) / dataset / category / f"{name}.json"


def manifest(
    table: pd.DataFrame, dataset: str, category: str, seed: int, folder: str | Path | None = None
) -> list[dict[str, str]]:
    """The seeded order of one category's training images, written on first use and verified on every later one.

    Args:
        table: from `datasets.load`. dataset, category, seed: what the order belongs to.
        folder: where manifests lie; <project root>/data/shots by default.

    Returns:
        [{"path": relative to the data set's folder, of a user's own to the product's, "sha256": of the file}, ...], all training images.

    Raises:
        FsadError: the manifest is unreadable, or names other images than the table holds.
    """
    path = manifest_path(table, dataset, category, seed, folder)
    root, paths = _training(table, dataset, category)
    fresh = [
        {"path": p, "sha256": file_sha256(inside(root, p))}
        for p in sorted(paths, key=lambda p: sha256(f"{int(seed)}/{category}/{p}".encode()).digest())
    ]
    if path.is_file():
        _verify(path, fresh)
        return fresh
    _write(path, {"dataset": dataset, "category": category, "seed": int(seed), "order": fresh})
    return fresh


def _verify(path: Path, fresh: list[dict[str, str]]) -> None:
    remedy = f"Restore the images, or remove {path} to draw new shots (earlier runs then no longer apply)."
    try:
        entries = json.loads(path.read_text())["order"]
        stored = {e["path"]: e["sha256"] for e in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FsadError(
            f"shot manifest {path} cannot be read ({type(error).__name__}: {error}). {remedy}"
        ) from error
    have = {e["path"]: e["sha256"] for e in fresh}
    gone, new = sorted(stored.keys() - have.keys()), sorted(have.keys() - stored.keys())
    changed = sorted(p for p in stored.keys() & have.keys() if stored[p] != have[p])
    if gone or new or changed:
        parts = [
            f"{len(names)} {what} (first: {names[0]})"
            for what, names in (("missing", gone), ("new", new), ("changed", changed))
            if names
        ]
        raise FsadError(
            f"the training images differ from the shot manifest {path}: {', '.join(parts)}. {remedy}"
        )
    if entries != fresh:
        raise FsadError(f"shot manifest {path} holds the right images in another order. {remedy}")


def _write(path: Path, content: dict) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(content, file, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise FsadError(
            f"cannot write shot manifest {path}: {error.strerror or error}. "
            "Free some space or allow writing there."
        ) from error


def take(
    table: pd.DataFrame, dataset: str, category: str, seed: int, k: int, folder: str | Path | None = None
) -> list[str]:
    """The k shots: absolute paths of the manifest's first k images.

    Raises:
        FsadError: k is not a whole number from 1 to the number of training images.
    """
    root, paths = _training(table, dataset, category)
    if isinstance(k, bool) or int(k) != k or not 1 <= k <= len(paths):
        raise FsadError(
            f"{k!r} shots asked of {dataset} {category}; expected 1 to {len(paths)}, the normal training "
            f"images found in {root}"
        )
    return [str(inside(root, e["path"])) for e in manifest(table, dataset, category, seed, folder)[: int(k)]]

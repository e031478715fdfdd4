"""Runs: identity, folder, fingerprint, products and completion of one stage of one method.

A run is ``data/runs/<profile>/<dataset>/<category>/<stage>_<method>/k<shots>_seed<seed>[_<tag>]``; of a user's own images the
category's folder also carries a hash of where they lie, for two folders may hold a product of one name. It is complete if and
only if its ``metrics.json`` is there, so are the products and the report that it lists, and the fingerprint in it equals that of
what would run now: the parameters, the resolved profile, the content of the inputs, the names of the test images that products
repeat, and the syntax trees of the library code that the stage uses. Every file of a run is written beside its target and renamed
into place.
"""

import ast
import atexit
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import resource
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsad_lib.errors import FsadError

if TYPE_CHECKING:
    import pandas as pd

MACHINERY = frozenset({"__main__", "errors", "pipeline", "plots", "profiles", "report", "runs", "tables"})
"""Top-level modules that cannot change a stage's products; the profile enters a fingerprint by its values."""

UPSTREAM = {
    ("20_synthesize", "adp"): ("10_personalize",),
    ("40_evaluate", "adp"): ("10_personalize", "20_synthesize"),
    ("21_synthesize", "anomalysd"): ("11_personalize",),
    ("41_evaluate", "anomalysd"): ("11_personalize",),
    ("32_augment", "tgvig"): ("22_synthesize",),
    ("42_evaluate", "tgvig"): ("22_synthesize", "32_augment"),
}
"""(stage, method) -> the earlier stages whose products it uses."""

BLIND = frozenset(
    {("10_personalize", "adp"), ("20_synthesize", "adp"), ("11_personalize", "anomalysd"), ("22_synthesize", "tgvig"), ("32_augment", "tgvig")}
)
"""(stage, method) that look at no test image, so that a new or renamed one repeats no training."""

os.umask(UMASK := os.umask(0o022))  # which can be read only by setting it

ALL, MULTI_CLASS = "all", frozenset({"anomalysd"})
"""The category of a run that covers every category of its data set, and the methods that serve them with one model."""

LIBRARIES = (
    "anomalib", "diffusers", "numpy", "open_clip_torch", "pandas", "papermill", "pillow", "safetensors", "scikit-learn",
    "timm", "torch", "torchvision", "transformers",
)  # fmt: skip

_PATH_FIELDS = ("checkpoint", "source")


def project_root() -> Path:
    """The project folder: FSAD_HOME, else the nearest parent of the working directory holding both ``pyproject.toml`` and ``fsad_lib/``, else
    the checkout that this library is imported from, else the working directory. FsadError for an FSAD_HOME that cannot be used."""
    home = os.environ.get("FSAD_HOME")
    if home:
        try:
            found = Path(home).expanduser().resolve()
            found.exists()
            return found
        except (RuntimeError, OSError, ValueError) as error:  # no such user, a loop of links, too long
            shown = home if len(home) <= 200 else f"{home[:200]}... ({len(home)} characters)"
            raise FsadError(f"FSAD_HOME is {shown!r}: {error}; expected the project folder. Set it anew, or unset it.") from None
    try:
        here, own = Path.cwd().resolve(), Path(__file__).resolve().parents[1]
    except OSError:
        raise FsadError("the working directory is gone, or cannot be entered: change to the project's folder.") from None
    for folder in (here, *here.parents, own):
        if (folder / "pyproject.toml").is_file() and (folder / "fsad_lib").is_dir():
            return folder
    return here


def portable_path(path: str | Path) -> str:
    """How a product names a file: relative to the project folder where it lies inside, so that the folder can be moved; else absolute.

    >>> portable_path(project_root() / "data" / "a.png"), portable_path("/elsewhere/a.png")
    ('data/a.png', '/elsewhere/a.png')
    """
    path, root = Path(path), project_root()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def absolute_path(path: str | Path) -> str:
    """The inverse of :func:`portable_path`.

    >>> absolute_path(portable_path(project_root() / "data" / "a.png")) == str(project_root() / "data" / "a.png")
    True
    """
    return str(project_root() / path)


# --- writing ---------------------------------------------------------------------------------------------------------


def _explain(error: OSError, path: Path) -> FsadError:
    what = {
        errno.ENOSPC: "the disk is full: free some space and run the same command again",
        errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
        errno.EACCES: "no permission to write there: change the folder's owner, or copy the project to a folder of yours and work there",
        errno.EPERM: "no permission to write there: change the folder's owner, or copy the project to a folder of yours and work there",
        errno.EROFS: "the file system is read-only: copy the project to a folder of yours and work there",
        errno.ENOTDIR: "a file stands where a folder is needed: move it away",
        errno.EEXIST: "a file stands where a folder is needed: move it away",
        errno.ENAMETOOLONG: "the name is too long: use a shorter category or tag",
    }.get(error.errno or 0, error.strerror or str(error))
    return FsadError(f"Cannot write {path}: {what}.")


def _disk_full(error: Exception, folder: Path) -> bool:
    """Whether a writer in another language, which wraps the system's error or hides it, met a full disk."""
    text = str(error)
    if os.strerror(errno.ENOSPC) in text:
        return True
    if not isinstance(error, RuntimeError) or "PytorchStreamReader" in text:
        return False
    if "inline_container.cc" in text or "iostream error" in text:  # torch.save
        return True
    try:
        return shutil.disk_usage(folder).free < 2**20
    except OSError:
        return False


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary path beside ``path`` (same suffix) that becomes ``path``, atomically, when the block ends well.

    When the block raises, nothing is left and ``path`` is untouched; an ``OSError`` on the way (disk full, no permission)
    becomes a :class:`FsadError`.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with replacing(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text(), len(list(target.parent.iterdir()))
    ('whole', 1)
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~UMASK)  # as any file of the user's: safetensors writes for its owner alone
        os.replace(temporary, path)
    except OSError as error:
        named = Path(os.path.abspath(os.fsdecode(error.filename))) if isinstance(error.filename, str | bytes | os.PathLike) else path
        if Path(os.path.abspath(path.parent)) not in (named, named.parent):
            raise FsadError(f"{named}: {error.strerror or error}. Make it readable, or its folder writable.") from error  # another file of the block's
        raise _explain(error, path) from error
    except Exception as error:
        if _disk_full(error, path.parent):
            raise _explain(OSError(errno.ENOSPC, str(error)), path) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically. Numpy scalars become numbers; FsadError for NaN, infinities and what JSON cannot hold."""
    try:
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise FsadError(f"Cannot write {path}: {error}. Expected finite numbers, text, lists and dicts.") from error
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """Read JSON; None when the file is missing or not valid (a run with a broken record is simply not complete)."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_record(path: Path | str) -> dict[str, Any]:
    """A JSON object; an empty one when the file is missing, not valid or holds something else."""
    found = read_json(path)
    return found if isinstance(found, dict) else {}


# --- hashing ---------------------------------------------------------------------------------------------------------


class _HashCache:
    """SHA-256 of files, remembered by path, size and both times: in memory, and on disk from :meth:`save` on.

    An entry is [size, time of the content, SHA-256, time of any change]: the last cannot be set back, as copying tools do with the second.
    """

    def __init__(self) -> None:
        self.root: Path | None = None
        self.known: dict[str, list] = {}
        self.changed = False
        atexit.register(self.save)

    def _stored(self) -> dict[str, list]:
        found = read_record(self.root / "data" / "runs" / ".cache" / "sha256.json")
        kinds = [int, int, str, int]
        return {path: entry for path, entry in found.items() if isinstance(entry, list) and [type(value) for value in entry] == kinds}

    def __call__(self, paths: Iterable[Path]) -> list[str]:
        root = project_root()
        if self.root != root:
            self.save()
            self.root = root
            self.known = self._stored()
        hashes = []
        for path in paths:
            try:
                stat = path.stat()
                entry = self.known.get(str(path))
                if entry is None or (entry[0], entry[1], entry[3]) != (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns):
                    with open(path, "rb") as file:
                        entry = [stat.st_size, stat.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest(), stat.st_ctime_ns]
                    self.known[str(path)], self.changed = entry, True
                hashes.append(entry[2])
            except OSError:
                hashes.append("missing")
        return hashes

    def save(self) -> None:
        """Write what is new; other processes' entries stay. Once per fingerprint and per finished run: the file grows with the data."""
        if self.changed and self.root is not None and self.root.is_dir():
            self.changed = False
            with contextlib.suppress(FsadError):
                write_json(self.root / "data" / "runs" / ".cache" / "sha256.json", self._stored() | self.known)


file_hashes = _HashCache()
"""``file_hashes(paths) -> list[str]``: SHA-256 of each file ("missing" where there is none)."""


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder, those behind linked folders too, without hidden ones, which are some program's own (.DS_Store, .cache)."""
    entered = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        entered.add(os.path.realpath(here))
        folders[:] = sorted(name for name in folders if name[0] != "." and os.path.realpath(os.path.join(here, name)) not in entered)
        yield from (Path(here, name) for name in names if name[0] != "." and os.path.isfile(os.path.join(here, name)))


def _model_hash(section: str, path: Path | None) -> list[list[str]]:
    """What a section of the profile loads, name by name. What else lies in a hub folder (a readme, other formats of the same weights) changes no
    result; a photograph pool of gigabytes is told by names and sizes."""
    from fsad_lib.profiles import loaded_files, read_folders

    if path is None:
        return []
    if not path.is_dir():
        return [["file", *file_hashes([path])]]
    if section == "efficientad_penalty":
        return [[p.relative_to(path).as_posix(), str(p.stat().st_size)] for p in sorted(_files(path))]
    texts = [p for folder in read_folders(section, path) for p in folder.glob("*") if p.suffix in (".json", ".txt", ".model") and p.is_file()]
    loaded = loaded_files(section, path)
    files = sorted({*loaded, *texts} if loaded else _files(path))  # of a folder of a user's images all
    return [[p.relative_to(path).as_posix(), found] for p, found in zip(files, file_hashes(files), strict=True)]


# --- the code of a stage ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def _parse(path: Path, mtime: int) -> ast.Module:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [s for s in node.body if not _is_text(s)]
    return tree


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _bound(statement: ast.stmt) -> set[str] | None:
    """Names that a top-level statement binds; None when it must always be kept."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import):
        return {(a.asname or a.name).split(".")[0] for a in statement.names}
    if isinstance(statement, ast.ImportFrom):
        names = {a.asname or a.name for a in statement.names}
        return None if "*" in names else names
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return None


def _needed(tree: ast.Module, names: set[str] | None) -> list[ast.stmt]:
    """The top-level statements that ``names`` depend on (None: all of them), in order."""
    if names is None or "__getattr__" in {n for s in tree.body for n in _bound(s) or ()}:
        return tree.body
    split: list[ast.stmt] = []
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            split += [ast.Import([a]) for a in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            split += [ast.ImportFrom(statement.module, [a], statement.level) for a in statement.names]
        else:
            split.append(statement)
    wanted, kept, grown = set(names), set(), True
    while grown:
        grown = False
        for i, statement in enumerate(split):
            bound = _bound(statement)
            if i not in kept and (bound is None or bound & wanted):
                kept.add(i)
                wanted |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
                grown = True
    return [s for i, s in enumerate(split) if i in kept]


class _Package:
    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name

    def file(self, module: str) -> Path | None:
        parts = module.split(".")
        if parts[0] != self.name or (len(parts) > 1 and parts[1] in MACHINERY):
            return None
        base = self.folder.joinpath(*parts[1:])
        for path in (base / "__init__.py", base.parent / f"{base.name}.py"):
            if path.is_file():
                return path
        return None

    def imports(self, statements: Iterable[ast.AST], module: str, is_package: bool) -> Iterator[tuple[str, str | None]]:
        """(module, name or None for all of it) of every import of this package, at any depth of ``statements``."""
        for statement in statements:
            for node in ast.walk(statement):
                if isinstance(node, ast.Import):
                    yield from ((a.name, None) for a in node.names)
                elif isinstance(node, ast.ImportFrom):
                    base = node.module or ""
                    if node.level:
                        parts = module.split(".")
                        parts = parts[: len(parts) - node.level + is_package]
                        base = ".".join([*parts, *([node.module] if node.module else [])])
                    for alias in node.names:
                        if self.file(f"{base}.{alias.name}"):
                            yield f"{base}.{alias.name}", None
                        else:
                            file = self.file(base)
                            whole = alias.name == "*" or file is None or file.name != "__init__.py"
                            yield base, None if whole else alias.name
                elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
                    "import_module",
                    "__import__",
                ):
                    first = node.args[0] if node.args else None
                    if isinstance(first, ast.Constant) and isinstance(first.value, str):
                        yield first.value, None


def code_hash(entry: str = "", source: str = "", package: Path | None = None) -> str:
    """Hash of the library code that ``entry`` ("module" or "module:function") and ``source`` (Python text) use.

    Imports are followed statically, at any depth, inside the package only. Comments, docstrings and layout do not count.
    Of the entry module, and of a package's ``__init__``, only the definitions that are used count; tables (csv, json, txt) beside a used module do. ``import_module`` is
    followed when its argument is a literal. Modules of :data:`MACHINERY` are left out.

    >>> code_hash("fsad_lib.errors:FsadError") == code_hash("fsad_lib.errors:FsadError")
    True
    """
    folder = package or Path(__file__).parent
    files = (p for p in sorted(folder.rglob("*")) if _counts(p))
    state = tuple((p, p.stat().st_mtime_ns, p.stat().st_size) for p in files)
    return _code_hash(entry, source, folder, state)


def _counts(path: Path) -> bool:
    """Code or a table of the package; not an editor's hidden files, such as a lock, which is a link to nowhere."""
    return path.suffix in (".py", ".csv", ".json", ".txt") and not path.name.startswith(".") and path.is_file()


@lru_cache(maxsize=256)
def _code_hash(entry: str, source: str, folder: Path, state: tuple) -> str:
    root = _Package(folder)
    wanted: dict[str, set[str] | None] = {}
    todo: list[tuple[str, str | None]] = []
    if entry:
        module, _, function = entry.partition(":")
        todo.append((module, function or None))
    tree = ast.parse(source)
    todo += root.imports(tree.body, "", False)
    statements: dict[str, list[ast.stmt]] = {}
    while todo:
        module, name = todo.pop()
        file = root.file(module)
        if file is None:
            continue
        if module in wanted and (wanted[module] is None or name in wanted[module]):
            continue
        wanted[module] = None if name is None else (wanted.get(module) or set()) | {name}
        needed = _needed(_parse(file, file.stat().st_mtime_ns), wanted[module])
        statements[module] = needed
        todo += root.imports(needed, module, file.name == "__init__.py")
    total = hashlib.sha256(_dump(tree).encode())
    for module in sorted(statements):
        total.update(f"\n{module}\n".encode())
        for statement in statements[module]:
            total.update(_dump(statement).encode())
    # tables and word lists that lie beside the modules are read by them
    beside = {p for module in statements for p in root.file(module).parent.iterdir() if _counts(p) and p.suffix != ".py"}
    for path in sorted(beside):
        total.update(f"\n{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return total.hexdigest()


def _dump(node: Any) -> str:
    """A syntax tree as text, the same under every version of Python: they differ in which empty fields a node has, and in whether ``ast.dump``
    writes them.

    >>> _dump(ast.parse("x = f(1)").body[0])
    "Assign(targets=[Name(id='x',ctx=Store())],value=Call(func=Name(id='f',ctx=Load()),args=[Constant(value=1)]))"
    """
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields)
        return f"{type(node).__name__}({','.join(f'{name}={_dump(value)}' for name, value in fields if value is not None and value != [] or name == 'value')})"
    if isinstance(node, list):
        return f"[{','.join(map(_dump, node))}]"
    return repr(node)


def stage_entry(stage: str, method: str) -> str:
    """The library function behind a stage, by convention.

    >>> stage_entry("10_personalize", "adp")
    'fsad_lib.adp.stages:personalize'
    """
    return f"fsad_lib.{method}.stages:{stage.partition('_')[2]}"


def shared_run(run: "Run", stage: str) -> "Run":
    """The run of an earlier stage (or its own) whose products a run uses: that of the same overrides, without those that cannot change
    them (:func:`fsad_lib.profiles.concerns`). So runs that differ in a later stage's values only share what is costly."""
    from fsad_lib.profiles import concerns, parse_overrides

    given = parse_overrides(run.overrides)
    kept = {key: value for key, value in given.items() if concerns(key, run.method, stage)}
    if kept == given:
        return run if run.stage == stage else run.upstream(stage)
    auto = run.tag.startswith("set-")  # a tag that only the overrides made
    return open_run(
        stage, run.method, profile=run.profile.name, data_root=run.data_root, tag="" if auto else run.tag,
        overrides=",".join(f"{key}={json.dumps(value)}" for key, value in kept.items()),
        **{name: run.identity[name] for name in ("dataset", "category", "shots", "seed")},
    )  # fmt: skip


# --- the inputs of a run ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _table(root: Path, dataset: str, category: str, data_root: str) -> "tuple[pd.DataFrame, str, str, str]":
    """The table of one category, the digest of what its files hold, that of which test image has which name, and that of the training images."""
    from fsad_lib import datasets
    from fsad_lib.datasets.images import mask_files

    table = datasets.load(dataset, category, data_root or None)
    if dataset == "folder":
        datasets.check_masks(table)  # drawn by hand: better refused here than after all images are scored
    files = [Path(p) for p in table["path"]]
    masks = [mask_files(p) if isinstance(p, str) else [] for p in table["mask_path"]]
    mask_paths = [m for group in masks for m in group]
    hashes, found = file_hashes(files), file_hashes(mask_paths)
    gone = [p for p, h in zip([*files, *mask_paths], [*hashes, *found], strict=True) if h == "missing"]
    if gone:  # better said here than after minutes of training
        images = "1 image" if len(gone) == 1 else f"{len(gone)} images"
        raise FsadError(f"cannot read {images}, the first: {gone[0]}; make them readable or remove them.")
    mask_hashes = iter(found)
    rows = zip(
        hashes,
        ["+".join(next(mask_hashes) for _ in group) for group in masks],
        table["split"].astype(str),
        table["label"].astype(int),
        table["defect"].astype(str),
        strict=True,
    )
    names = [os.path.relpath(p, table.attrs["root"]) for p in files]  # so that the whole folder can be moved
    named = sorted([name, found] for name, found, split in zip(names, hashes, table["split"], strict=True) if split == "test")
    rows = sorted([list(row) for row in rows])
    return table, digest(rows), digest(named), digest([row for row in rows if row[2] == "train"])


@lru_cache(maxsize=256)
def _manifest(root: Path, dataset: str, category: str, data_root: str, seed: int) -> list[dict]:
    from fsad_lib.datasets import shots

    return shots.manifest(_table(root, dataset, category, data_root)[0], dataset, category, seed)


@lru_cache(maxsize=16)
def _models(root: Path, dump: str, profile: Any, method: str = "", stage: str = "") -> dict[str, list]:
    from fsad_lib.profiles import sections

    return {section: _model_hash(section, profile.path(section)) for section in sections(method, profile, stage)}


def model_hashes(profile: Any, method: str = "", stage: str = "") -> dict[str, list]:
    """The files of the checkpoints that a method loads in a stage, with their hashes, by section of the profile."""
    return _models(project_root(), json.dumps(profile.model_dump(mode="json"), sort_keys=True), profile, method, stage)


def data_digests(dataset: str, category: str, data_root: str = "") -> list[list[str]]:
    """Of one category, or of :data:`ALL`: digests of what the images and masks hold, and of the test images' names."""
    names = members(min(MULTI_CLASS), dataset, category, data_root)
    return [list(_table(project_root(), dataset, name, data_root)[1:3]) for name in names]


def members(method: str, dataset: str, category: str, data_root: str = "") -> list[str]:
    """The categories behind a run's ``category``: itself, or all of the data set.

    >>> members("anomalysd", "elpv", "all"), members("anomalysd", "elpv", "mono"), members("adp", "elpv", "all")
    (['mono', 'poly'], ['mono'], ['all'])
    """
    if category != ALL or method not in MULTI_CLASS:
        return [category]
    from fsad_lib import datasets

    return datasets.categories(dataset, data_root or None)


def read_table(dataset: str, category: str, data_root: str = "", method: str = "") -> "pd.DataFrame":
    """The table of one category, or of all :func:`members`, read and hashed once per process (see
    :func:`fsad_lib.datasets.load`)."""
    names = members(method, dataset, category, data_root)
    tables = [_table(project_root(), dataset, name, data_root)[0] for name in names]
    if len(tables) == 1:
        return tables[0].copy()
    import pandas as pd

    return pd.concat(tables, ignore_index=True)


def forget_inputs() -> None:
    """Drop what this process remembers of data sets and models, after they were changed on disk."""
    for cache in (_table, _manifest, _models):
        cache.cache_clear()


# --- runs ------------------------------------------------------------------------------------------------------------


def check_name(what: str, value: Any) -> str:
    """``value`` as one safe path component, else :class:`FsadError`.

    >>> check_name("category", "metal_nut")
    'metal_nut'
    >>> check_name("category", "../other")
    Traceback (most recent call last):
    fsad_lib.errors.FsadError: category: found '../other', expected one plain name without '/', '\\\\', '..' or a leading dot.
    """
    if not isinstance(value, str) or not value or len(value) > 120 or not value.isprintable():
        raise FsadError(f"{what}: found {value!r}, expected one plain name of 1 to 120 printable characters.")
    if "/" in value or "\\" in value or ".." in value or value.startswith("."):
        raise FsadError(
            f"{what}: found {value!r}, expected one plain name without '/', '\\\\', '..' or a leading dot."
        )
    return value


def check_count(what: str, value: Any, least: int) -> int:
    """``value`` as a whole number from ``least`` to 2**63 - 1, which is what random generators take, else :class:`FsadError`."""
    if isinstance(value, int) and value > 2**63 - 1:  # its digits may be too many to print
        raise FsadError(f"{what}: found a number of {value.bit_length()} bits, expected one of at most {2**63 - 1}.")
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise FsadError(f"{what}: found {value!r}, expected a whole number of at least {least}.")
    return value


@dataclass
class Run:
    """One run folder. Made by :func:`open_run`; opening creates nothing on disk but first-use data and its manifest."""

    stage: str
    method: str
    path: Path
    identity: dict[str, Any]
    profile: Any = None
    data_root: str = ""
    overrides: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    describe: Callable[["Run"], dict[str, Any]] | None = field(default=None, repr=False)

    def __getattr__(self, name: str) -> Any:
        if name in ("dataset", "category", "shots", "seed", "tag") and name in self.__dict__.get("identity", {}):
            return self.identity[name]
        raise AttributeError(f"Run has no attribute {name!r}")

    # identity

    def __str__(self) -> str:
        return "/".join(self.path.parts[-5:])

    @cached_property
    def ingredients(self) -> dict[str, str]:
        """What the fingerprint is made of, each part as a hash."""
        found = {name: digest(value) for name, value in (self.describe or _describe)(self).items()}
        file_hashes.save()
        return found

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the :attr:`ingredients`: another one, and the run is repeated."""
        return digest(self.ingredients)

    def upstream(self, stage: str) -> "Run":
        """The run of an earlier stage with the same identity, profile and method."""
        return open_run(
            stage,
            self.method,
            profile=self.profile,
            data_root=self.data_root,
            overrides=self.overrides,
            params=self.params,
            **{k: self.identity[k] for k in ("dataset", "category", "shots", "seed", "tag")},
        )

    def earlier(self) -> list["Run"]:
        """The runs of the same identity whose products this one uses, and makes where they are missing."""
        return [self.upstream(stage) for stage in UPSTREAM.get((self.stage, self.method), ())]

    # inputs

    @property
    def categories(self) -> list[str]:
        """The categories that the run covers: one, or every one of its data set (see :data:`ALL`)."""
        return members(self.method, self.identity["dataset"], self.identity["category"], self.data_root)

    def table(self) -> "pd.DataFrame":
        """The run's table (see :func:`fsad_lib.datasets.load`), read once per process."""
        return read_table(self.identity["dataset"], self.identity["category"], self.data_root, self.method)

    def shot_paths(self, category: str | None = None) -> list[str]:
        """Absolute paths of the run's normal images, from the shot manifest of each category (or of one of them)."""
        from fsad_lib.datasets import shots

        i = self.identity
        return [
            path
            for name in ([category] if category else self.categories)
            for path in shots.take(read_table(i["dataset"], name, self.data_root), i["dataset"], name, i["seed"], i["shots"])
        ]

    def check_inputs(self) -> None:
        """Raise one :class:`FsadError` that names every missing checkpoint and what is wrong with the data; loads no model."""
        from fsad_lib import datasets
        from fsad_lib.profiles import missing_checkpoints, sections

        def data() -> None:
            table = self.table()
            if self.identity["dataset"] == "folder":
                datasets.check_readable(table)  # of a data set that others made, check-data does this

        problems = []
        for check in (lambda: missing_checkpoints(self.profile, sections(self.method, self.profile, self.stage)), data):
            try:
                check()
            except FsadError as error:
                problems.append(str(error))
        if problems:
            raise FsadError("\n".join(problems))

    # products

    @property
    def metrics(self) -> dict[str, Any] | None:
        """The content of ``metrics.json``, or None."""
        return read_record(self.path / "metrics.json") or None

    @property
    def complete(self) -> bool:
        """Whether ``metrics.json`` is there, belongs to what would run now, and every file it names still exists, as large as it was."""
        metrics = self.metrics or {}
        if metrics.get("fingerprint") != self.fingerprint:
            return False
        # older runs list no products
        return _exist(project_root(), metrics.get("files", [])) and _as_large(self.path, metrics.get("products", {}))

    def product_path(self, name: str) -> Path:
        """Where the product ``name`` (a plain file name) lies or will lie; its folder is made."""
        check_name("product", name)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _explain(error, self.path) from error
        return self.path / name

    def has(self, *names: str) -> bool:
        """Whether every product was committed by this very fingerprint and is still byte for byte the same."""
        listed = self._listed()
        return all(name in listed and file_hashes([self.path / name]) == [listed[name]] for name in names)

    def _listed(self) -> dict[str, str]:
        """The products committed by this fingerprint: name -> SHA-256."""
        entries = read_record(self.path / "products.json").items()
        return {n: e.get("sha256") for n, e in entries if isinstance(e, dict) and e.get("fingerprint") == self.fingerprint}

    def commit(self, *names: str) -> None:
        """List finished products (files at :meth:`product_path`) in ``products.json``: name, SHA-256, fingerprint; FsadError for one that is not there."""
        fingerprint = self.fingerprint  # first: making it writes the memory of hashes, which need not be written again for each product
        hashes = file_hashes([self.product_path(name) for name in names])
        missing = [name for name, found in zip(names, hashes, strict=True) if found == "missing"]
        if missing:
            raise FsadError(f"Run {self}: cannot commit {', '.join(missing)}: no such file in {self.path}.")
        with self._listing():
            listed = read_record(self.path / "products.json")
            for name, found in zip(names, hashes, strict=True):
                listed[name] = {"sha256": found, "fingerprint": fingerprint}
            write_json(self.path / "products.json", listed)

    @contextlib.contextmanager
    def _listing(self) -> Iterator[None]:
        """The list of products for this process alone, a moment: a stage may be made by its own notebook and by a later one's."""
        folder = os.open(self.path, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # file systems without locks
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A temporary path that becomes the committed product ``name`` when the block ends well."""
        with replacing(self.product_path(name)) as temporary:
            yield temporary
        self.commit(name)

    def scratch(self, name: str) -> Path:
        """A path for an unfinished state (a training checkpoint) of this fingerprint; gone once the run is complete."""
        check_name("scratch file", name)
        folder = self.path / f".partial-{self.fingerprint[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _explain(error, folder) from error
        return folder / name

    def finish(self, metrics: dict[str, Any] | None = None) -> None:
        """The last call of a stage's notebook: writes ``result.json``. The runner makes ``metrics.json`` of it once the
        whole notebook has succeeded."""
        write_json(
            self.product_path("result.json"),
            {"fingerprint": self.fingerprint, "metrics": metrics or {}, "runtime": _runtime()},
        )
        file_hashes.save()  # of this notebook's products, for the next one

    def complete_with(self, provenance: dict[str, Any], files: Iterable[str] = ()) -> None:
        """The runner's last step: ``provenance.json``, then ``metrics.json``, then the leftovers are removed."""
        result = read_record(self.path / "result.json")
        write_json(self.path / "provenance.json", provenance | result.get("runtime", {}))
        made = {*self._listed(), *(p.relative_to(self.path).as_posix() for p in (self.path / "report").rglob("[!.]*"))}
        products = sorted(name for name in made if (self.path / name).is_file())
        sizes = {name: (self.path / name).stat().st_size for name in products}
        record = {"fingerprint": self.fingerprint, "identity": self.identity, "files": sorted(files), "products": sizes}
        write_json(self.path / "metrics.json", result.get("metrics", {}) | record)
        self.sweep(partial=True)

    def sweep(self, partial: bool = False) -> None:
        """Remove what an interrupted process left: temporary files, unless their process lives; other fingerprints' unfinished states."""
        for path in self.path.glob(".*") if self.path.is_dir() else ():
            mine = path.name == f".partial-{self.fingerprint[:16]}"
            if path.name.startswith(".tmp-") and not _lives(path.name.split("-")[1]):
                path.unlink(missing_ok=True)
            elif path.name.startswith(".partial-") and (partial or not mine):
                shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; :class:`FsadError` when another one has it. A killed process holds nothing."""
        with self._flock("lock", wait=False):
            yield

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        """Make the products that other runs share (see :func:`shared_run`) without another process making them too: it waits, and then finds them."""
        with self._flock("making", wait=True):
            yield

    def make(self, names: Iterable[str], make: Callable[[], None]) -> None:
        """Call ``make`` unless the products ``names`` are there; those that another process is making are waited for, and then found."""
        if not self.has(*names):
            with self.making():
                if not self.has(*names):
                    make()

    @contextlib.contextmanager
    def _flock(self, name: str, wait: bool) -> Iterator[None]:
        path = self.product_path(name)
        try:
            handle = open(path, "w")  # noqa: SIM115
        except OSError as error:
            raise _explain(error, path) from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise FsadError(f"Run {self} is being made by another process: wait for it or end it.") from None
                print(f"Another process is making {self}; waiting for it.", file=sys.stderr, flush=True)
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError:  # a file system without locks: nobody can be told of this run
                pass
            yield


def _exist(folder: Path, names: Any) -> bool:
    """Whether a record's ``names`` are a list of files below ``folder``."""
    return isinstance(names, list) and all(isinstance(name, str) and os.path.isfile(folder / name) for name in names)


def _as_large(folder: Path, sizes: Any) -> bool:
    """Whether ``sizes`` names files below ``folder`` that still have their bytes: one that was emptied or cut is not what was made."""
    return isinstance(sizes, dict) and _exist(folder, list(sizes)) and all(os.path.getsize(folder / name) == size for name, size in sizes.items())


def _lives(pid: str) -> bool:
    """Whether another process of this number is running; this one writes nothing while it sweeps."""
    if not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _describe(run: Run) -> dict[str, Any]:
    """The ingredients of a stage run's fingerprint."""
    from fsad_lib.profiles import concerns

    root, i = project_root(), run.identity
    dump = run.profile.model_dump(mode="json")
    manifests = {c: _manifest(root, i["dataset"], c, run.data_root, i["seed"]) for c in run.categories}
    if any(i["shots"] > len(manifest) for manifest in manifests.values()):
        run.shot_paths()  # says how many there are
    blind = (run.stage, run.method) in BLIND
    data = {c: _table(root, i["dataset"], c, run.data_root)[3 if blind else 1] for c in run.categories}
    shots = {c: [entry["sha256"] for entry in manifest[: i["shots"]]] for c, manifest in manifests.items()}
    single = run.categories == [i["category"]]
    resolved = {
        section: {k: v for k, v in value.items() if k not in _PATH_FIELDS and concerns(f"{section}.{k}", run.method, run.stage)}
        for section, value in dump.items()
        if isinstance(value, dict) and concerns(section, run.method, run.stage)
    }
    described = {
        "identity": {k: v for k, v in i.items() if k != "tag"},
        "params": run.params,
        "profile": resolved,
        "models": model_hashes(run.profile, run.method, run.stage),
        "data": data[i["category"]] if single else data,
        "shots": shots[i["category"]] if single else shots,
        "code": code_hash(stage_entry(run.stage, run.method)),
    }
    if not blind:  # products name the images
        described["names"] = [_table(root, i["dataset"], c, run.data_root)[2] for c in run.categories]
    if run.method == "tgvig":
        from fsad_lib.tgvig import wordnet

        described["words"] = ["nltk"] if wordnet.installed() else file_hashes([wordnet.relations_file()])
    for stage in UPSTREAM.get((run.stage, run.method), ()):
        described[f"upstream {stage}"] = code_hash(stage_entry(stage, run.method))
    return described


def overrides_tag(overrides: str) -> str:
    """The tag of a run with these overrides and no other tag.

    >>> overrides_tag("adp.alpha=2,adp.tau=0.1") == overrides_tag("adp.tau=0.1, adp.alpha=2")
    True
    """
    from fsad_lib.profiles import parse_overrides

    return f"set-{digest(parse_overrides(overrides))[:8]}"


def _place(dataset: str, data_root: str) -> str:
    """What tells the products of a user's two folders apart; relative to the project, so that it can be moved as a whole."""
    if dataset != "folder" or not data_root:
        return ""
    from fsad_lib.datasets._common import absolute

    return "-" + digest(portable_path(absolute(data_root).resolve()))[:8]


def open_run(
    stage: str,
    method: str,
    *,
    profile: Any,
    dataset: str,
    category: str,
    shots: int,
    seed: int,
    tag: str = "",
    data_root: str = "",
    overrides: str = "",
    params: dict[str, Any] | None = None,
) -> Run:
    """The run of one (stage, method, profile, data set, category, shots, seed).

    ``stage`` is a number and a name ("10_personalize"); ``profile`` a name or a loaded Profile; ``data_root`` where the
    data set lies ("" for the project's own folder); ``overrides`` "key=value,key=value" over the profile; ``params``
    whatever else changes the result. Overrides without a ``tag`` get one of their own, so that they never replace the
    plain run. Names with separators or "..", shots below 1 and seeds below 0 raise :class:`FsadError`.
    """
    from fsad_lib.profiles import load_profile

    if not isinstance(stage, str) or not re.fullmatch(r"\d\d_[a-z]\w*", stage):
        raise FsadError(f"stage: found {stage!r}, expected two digits and a name such as '10_personalize'.")
    if isinstance(profile, str):
        profile = load_profile(profile, overrides)
    if isinstance(tag, str) and tag.startswith("set-") and tag != (overrides_tag(overrides) if overrides else ""):
        raise FsadError(f"tag: found {tag!r}; names that begin with set- are those of runs with overrides. Choose another.")
    if overrides and not tag:
        tag = overrides_tag(overrides)
    identity = {
        "profile": profile.name,
        "stage": check_name("stage", stage),
        "method": check_name("method", method),
        "dataset": check_name("dataset", dataset),
        "category": check_name("category", category),
        "shots": check_count("shots", shots, 1),
        "seed": check_count("seed", seed, 0),
        "tag": check_name("tag", tag) if tag else "",
    }
    folder = f"k{shots}_seed{seed}" + (f"_{tag}" if tag else "")
    path = project_root() / "data" / "runs" / profile.name / dataset / (category + _place(dataset, data_root)) / f"{stage}_{method}" / folder
    return Run(stage, method, path, identity, profile, data_root or "", overrides, dict(params or {}))


# --- provenance ------------------------------------------------------------------------------------------------------


def _runtime() -> dict[str, Any]:
    """Device and peak memory of this process, as far as it knows without importing anything."""
    scale = 2**20 if sys.platform == "darwin" else 2**10
    seen: dict[str, Any] = {
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale),
        "device": "cpu",
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        seen["device"] = torch.cuda.get_device_name()
        seen["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    if torch is not None:
        seen["threads"] = torch.get_num_threads()
    return seen


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a number.

    >>> "torch" in versions()
    True
    """
    found = {"python": sys.version.split()[0]}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def code_revision() -> str | None:
    """The git revision of the project folder, with "+changes" when tracked files differ; None outside git."""
    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(project_root()), *words], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    revision = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no") if revision else None
    return f"{revision}+changes" if revision and changed else revision

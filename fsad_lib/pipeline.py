"""The runner: notebook parameters -> papermill -> a complete run; and grids of runs.

Everything that can be refused is refused before a kernel starts: an unknown notebook, an unknown or mistyped parameter,
a value of the wrong type, a missing checkpoint, a broken data folder, more shots than images.
"""

import ast
import asyncio
import contextlib
import difflib
import io
import json
import logging
import os
import re
import statistics
import sys
import time
import tokenize
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Event
from typing import Any
from weakref import WeakSet

from fsad_lib import runs
from fsad_lib.errors import FsadError

# Readers, profiles, tables and papermill are imported where they are used: a refused command and --help answer at once.

IDENTITY = ("profile", "dataset", "category", "shots", "seed")
STAGES = {
    "adp": ("10_personalize_adp", "20_synthesize_adp", "40_evaluate_adp"),
    "anomalysd": ("11_personalize_anomalysd", "21_synthesize_anomalysd", "41_evaluate_anomalysd"),
    "tgvig": ("22_synthesize_tgvig", "32_augment_tgvig", "42_evaluate_tgvig"),
}
FIGURES = {"adp": "50_figures_adp", "anomalysd": "51_figures_anomalysd", "tgvig": "52_figures_tgvig"}
"""method -> the notebook that writes its tables and figures."""

ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "200000000000", "HF_HUB_OFFLINE": "1"}
TYPICAL_SECONDS = {"10": 35.0, "11": 60.0, "20": 25.0, "21": 30.0, "22": 60.0, "32": 40.0, "40": 25.0, "41": 900.0, "42": 40.0, "50": 30.0, "51": 30.0, "52": 30.0}
"""A first guess of a mini stage's time, until this machine has finished runs to learn from."""


OUT_OF_MEMORY = (
    "The card's memory is full: end other programs on it, use --jobs 1, or lower adp.batch_size, anomalysd.train_batch_size and anomalysd.batch_size, "
    "tgvig.images and tgvig.augmented, or the model's image_size. The same command goes on from the last saved step."
)


class StageError(RuntimeError):
    """A notebook stopped with an error of its own; the executed notebook lies in the run folder as ``failed.ipynb``."""


# --- notebooks and their parameters ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """One line ``name: type = default  # help`` of a notebook's parameters cell."""

    name: str
    type: str
    default: Any
    help: str = ""


def notebook_path(notebook: str | Path) -> Path:
    """A notebook by name ("10_personalize_adp") in the project's ``notebooks/``, or by path (ends in ``.ipynb``)."""
    text = str(notebook)
    folder = runs.project_root() / "notebooks"
    path = Path(text)
    if path.suffix == ".ipynb" and path.is_file():
        return path.resolve()
    if re.fullmatch(r"[\w-]+(\.ipynb)?", text) and (folder / f"{path.stem}.ipynb").is_file():
        return folder / f"{path.stem}.ipynb"
    known = sorted(p.stem for p in folder.glob("[0-9]*.ipynb"))
    close = difflib.get_close_matches(path.stem, known, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    if not known:
        hint = " Run the command in the project's checkout, or set FSAD_HOME to it."
    raise FsadError(f"No notebook {text!r}. The notebooks in {folder} are: {', '.join(known) or '(none)'}.{hint}")


def _cells(path: Path) -> list[dict[str, Any]]:
    cells = runs.read_record(path).get("cells")
    if not isinstance(cells, list) or not all(isinstance(c, dict) and isinstance(c.get("metadata", {}), dict) for c in cells):
        raise FsadError(f"{path} is not a notebook: expected JSON with a list of cells.")
    return [cell for cell in cells if cell.get("cell_type") == "code"]


def _source(cell: dict[str, Any]) -> str:
    return "".join(cell.get("source", ""))


def parameters(notebook: str | Path) -> dict[str, Parameter]:
    """The parameters of a notebook, read from its cell tagged ``parameters`` without running anything.

    Raises :class:`FsadError` when a line is not ``name: type = literal  # help``.
    """
    path = notebook_path(notebook)
    tagged = [c for c in _cells(path) if "parameters" in c.get("metadata", {}).get("tags", ())]
    return parse_parameters(_source(tagged[0]), path.name) if tagged else {}


def parse_parameters(source: str, where: str = "parameters") -> dict[str, Parameter]:
    """The parameters that the source of a parameters cell defines; ``where`` begins the message of a FsadError.

    >>> parse_parameters("shots: int = 4  # normal images")["shots"]
    Parameter(name='shots', type='int', default=4, help='normal images')
    """
    try:
        statements = ast.parse(source).body
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, ValueError, RecursionError, tokenize.TokenError) as error:
        raise FsadError(f"{where}, parameters cell: {error}; expected lines 'name: type = literal  # help'.") from None
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found = {}
    for statement in statements:
        simple = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        try:
            if not simple:
                raise ValueError
            default = ast.literal_eval(statement.value)
        except ValueError:
            raise FsadError(
                f"{where}, parameters cell, line {statement.lineno}: found {ast.unparse(statement)!r}, "
                "expected 'name: type = literal  # help'."
            ) from None
        name = statement.target.id
        kind = ast.unparse(statement.annotation).strip("'\"")
        found[name] = Parameter(name, kind, default, comments.get(statement.end_lineno, ""))
    return found


def _convert(parameter: Parameter, value: Any) -> Any:
    kinds = [k.strip() for k in parameter.type.split("|")]
    if value is None and "None" in kinds:
        return None
    for kind in kinds:
        if kind == "str" and isinstance(value, str):
            return value
        if kind == "bool":
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in ("true", "false"):
                return value.lower() == "true"
        if kind == "int":
            if isinstance(value, int) and not isinstance(value, bool):
                return value
            if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
                with contextlib.suppress(ValueError):  # thousands of digits
                    return int(value)
        if kind == "float":
            with contextlib.suppress(ValueError, OverflowError):
                if isinstance(value, int | float) and not isinstance(value, bool):
                    return float(value)
                return float(value) if isinstance(value, str) else _refuse()
        if kind == "None" and value == "None":
            return None
        if kind.split("[")[0] in ("list", "tuple", "dict"):
            with contextlib.suppress(ValueError, SyntaxError):
                read = ast.literal_eval(value) if isinstance(value, str) else value
                if type(read).__name__ == kind.split("[")[0]:
                    return read
    try:
        shown = repr(value)
    except ValueError:
        shown = "a number of thousands of digits"
    shown = shown if len(shown) <= 200 else f"{shown[:200]}... ({len(shown)} characters)"
    raise FsadError(f"Parameter {parameter.name!r}: found {shown}, expected {parameter.type}.")


def _refuse() -> float:
    raise ValueError


def check_parameters(known: dict[str, Parameter], given: dict[str, Any], where: str = "notebook") -> dict[str, Any]:
    """``given`` with every value in its parameter's type (text from a command line is converted).

    >>> known = parse_parameters("shots: int = 4")
    >>> check_parameters(known, {"shots": "8"})
    {'shots': 8}
    >>> check_parameters(known, {"shot": 8})
    Traceback (most recent call last):
    fsad_lib.errors.FsadError: notebook has no parameter 'shot'. Did you mean 'shots'? Its parameters: shots: int = 4.
    """
    checked = {}
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            listed = ", ".join(f"{p.name}: {p.type} = {p.default!r}" for p in known.values()) or "none"
            raise FsadError(f"{where} has no parameter {name!r}.{hint} Its parameters: {listed}.")
        checked[name] = _convert(known[name], value)
        if isinstance(checked[name], int):  # any: a later check tells of too large a one
            continue
        try:  # as it is recorded, and as the kernel is told
            json.dumps(checked[name], allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise FsadError(f"Parameter {name!r} cannot be recorded ({error}); expected finite numbers, text, or lists of them.") from None
    return checked


# --- one notebook ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What :func:`execute` did. ``skipped``: the run was complete and nothing was started."""

    run: runs.Run
    skipped: bool
    seconds: float


def _describe_notebook(run: runs.Run) -> dict[str, Any]:
    """Fingerprint ingredients of a notebook that is not one cell of a grid (figures, tours, appendices)."""
    from fsad_lib.datasets import DATASETS

    source = "\n".join(_python(_source(cell)) for cell in _cells(run.params["notebook"]))
    described: dict[str, Any] = {"params": run.params["values"], "code": runs.code_hash(source=source)}
    name = run.profile.name if run.profile else ""
    if name:
        described["profile"] = run.profile.model_dump(mode="json")
        if not run.stage.startswith("5"):  # figures are of runs, which know their models and data
            described["models"] = runs.model_hashes(run.profile)
    values = run.params["values"]
    if "category" in values and values.get("dataset") in DATASETS:  # else whatever they are, they are none of ours
        described["data"] = runs.data_digests(values["dataset"], values["category"], values.get("data_root", ""))
    if run.stage.startswith("5"):
        root, package = runs.project_root(), Path(runs.__file__).parent
        finished = sorted(p for profile in {name, "paper"} for p in (root / "data" / "runs" / profile).glob("*/*/*/*/metrics.json"))
        described["runs"] = [[p.parts[-6:-1], h] for p, h in zip(finished, runs.file_hashes(finished), strict=True)]
        # what a run's fingerprint leaves out decides how tables and figures look, and is a matter of seconds
        drawn = [*(root / "data").glob("*.csv"), *(root / "data" / "reported").glob("*")]  # data/results it writes itself
        drawn += [*package.glob("tables/**/*.py"), package / "plots.py", *package.glob("profiles/*.yaml"), *package.glob("*/figures.py")]
        described["drawn"] = [[p.name, h] for p, h in zip(sorted(drawn), runs.file_hashes(sorted(drawn)), strict=True)]
    return described


def _python(source: str) -> str:
    r"""A cell without its magic lines; as a text where the rest is no Python, such as what follows %%bash.

    >>> _python("%matplotlib inline\nx = 1"), _python("%%bash\necho hi")
    ('\nx = 1', "'%%bash\\necho hi'")
    """
    plain = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
    try:
        ast.parse(plain)
    except (SyntaxError, ValueError, RecursionError):
        return repr(source)
    return plain


def _absolute(data_root: str) -> str:
    """As the readers see it: links stay, for a category may be one and its name is the link's."""
    from fsad_lib.datasets._common import absolute

    return str(absolute(data_root))


def plan(notebook: str | Path, params: dict[str, Any] | None = None) -> tuple[runs.Run, Path, dict[str, Any]]:
    """Check notebook and parameters; return (run, notebook path, parameters). Starts nothing."""
    path = notebook_path(notebook)
    runs.check_name("notebook", path.stem)  # it names a folder
    known = parameters(path)
    given = check_parameters(known, params or {}, path.stem)
    if given.get("data_root"):
        given["data_root"] = _absolute(given["data_root"])
    values = {name: p.default for name, p in known.items()} | given
    match = re.fullmatch(r"(\d\d_[A-Za-z]+)_(\w+)", path.stem)
    if match and all(name in known for name in IDENTITY) and path.stem[:2] not in ("00", "90"):
        common = {n: values[n] for n in (*IDENTITY, "data_root", "tag", "overrides") if n in values}
        extra = {n: v for n, v in values.items() if n not in common}
        return runs.open_run(match[1], match[2], params=extra, **common), path, given
    from fsad_lib.profiles import load_profile

    profile = load_profile(values["profile"], values.get("overrides") or None) if "profile" in values else None
    name = profile.name if profile else "none"
    changed = {n: v for n, v in given.items() if n in known and v != known[n].default and n != "profile"}
    folder = runs.project_root() / "data" / "runs" / name / "notebooks" / path.stem
    folder = folder / (runs.digest(changed)[:12] if changed else "default")
    run = runs.Run(path.stem, "", folder, {"notebook": path.stem, "profile": name}, profile)
    run.params, run.describe = {"notebook": path, "values": values}, _describe_notebook
    return run, path, given


def execute(
    notebook: str | Path,
    params: dict[str, Any] | None = None,
    *,
    force: bool = False,
    threads: int | None = None,
    progress: bool = False,
) -> Result:
    """Run one notebook with papermill, unless its run is complete.

    The executed notebook, ``provenance.json`` and, last, ``metrics.json`` appear atomically in the run folder; on failure
    ``failed.ipynb`` shows where it stopped. ``threads`` limits the kernel's CPU threads. Raises :class:`FsadError` for
    whatever the user can repair, :class:`StageError` for an error inside the notebook.
    """
    run, path, given = plan(notebook, params)
    stage_run = run.describe is None
    if stage_run:
        pair = (run.identity["dataset"], run.identity["category"])
        problems = _preflight(run.profile, [pair], run.data_root, run.method)
        if problems:
            raise FsadError("\n".join(problems.values()))
    fingerprint = run.fingerprint  # reads the inputs: too many shots are refused here
    if not force and run.complete:
        return Result(run, True, 0.0)
    if stage_run:
        run.check_inputs()
    started = time.monotonic()
    draws = not stage_run and run.stage.startswith("5")
    figures_before = _figures() if draws else {}
    with contextlib.ExitStack() as held:
        held.enter_context(run.locked())
        if not force and run.complete:
            return Result(run, True, 0.0)
        for before in run.earlier():  # the notebook makes what is missing of them, so no other process may
            if not before.complete:
                held.enter_context(before.locked())
        run.sweep()
        for name in ("metrics.json", "result.json", "failed.ipynb", *(["products.json"] if force else [])):
            try:
                (run.path / name).unlink(missing_ok=True)
            except OSError as error:  # a folder of that name
                raise FsadError(f"cannot remove {run.path / name}: {error.strerror or error}. Remove it by hand.") from error
        with runs.replacing(run.path / "notebook.ipynb") as temporary:
            _papermill(path, temporary, given, run, threads, progress)
            result = runs.read_record(run.path / "result.json")
            if stage_run and not result:
                raise FsadError(f"{path.stem} ended without run.finish(metrics): there is nothing to record.")
            if stage_run and result.get("fingerprint") != fingerprint:
                raise FsadError(
                    f"{run}: code, data or models changed while it ran; run the same command again."
                )
        seconds = time.monotonic() - started
        files = sorted(_figures().items() - figures_before.items()) if draws else []
        run.complete_with(_provenance(run, path, given, seconds), [name for name, _ in files])
    return Result(run, False, seconds)


def _preflight(
    profile: Any, pairs: Iterable[tuple[str, str]], data_root: str, method: str
) -> dict[tuple[str, str] | None, str]:
    """What is missing, before anything starts: None -> checkpoints, (data set, category) -> its data."""
    from fsad_lib.datasets import class_name
    from fsad_lib.profiles import damaged_checkpoints, missing_checkpoints, sections

    problems: dict[tuple[str, str] | None, str] = {}
    try:
        missing_checkpoints(profile, sections(method, profile))
        damaged_checkpoints(profile, sections(method, profile))
    except FsadError as error:
        problems[None] = str(error)
    for pair in pairs:
        try:
            runs.read_table(*pair, data_root, method)
            for category in runs.members(method, *pair, data_root):
                class_name(pair[0], category)  # whose words the prompts are made of
        except FsadError as error:
            problems[pair] = str(error)
    return problems


def _figures() -> dict[str, int]:
    """The files in ``figures/`` and their times, without what another process is writing or replaces meanwhile."""
    root, found = runs.project_root(), {}
    for folder, _, names in os.walk(root / "figures"):
        for path in (Path(folder, name) for name in names if not name.startswith(".tmp-")):
            with contextlib.suppress(FileNotFoundError):
                found[path.relative_to(root).as_posix()] = path.stat().st_mtime_ns
    return found


def _provenance(run: runs.Run, path: Path, given: dict[str, Any], seconds: float) -> dict[str, Any]:
    shots = run.shot_paths() if run.describe is None else []
    return {
        "notebook": path.name,
        "notebook_sha256": runs.file_hashes([path])[0],
        "parameters": given,
        "profile": run.profile.model_dump(mode="json") if run.profile else None,
        "ingredients": run.ingredients,
        "shots": [runs.portable_path(p) for p in shots],
        "code_revision": runs.code_revision(),
        "versions": runs.versions(),
        "wall_seconds": round(seconds, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _kernel_manager(threads: int | None) -> type:
    """A kernel manager class whose one kernel is the interpreter that runs this code."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    environment = dict(ALLOCATOR, FSAD_HOME=str(runs.project_root()), PYTHONWARNINGS=os.environ.get("PYTHONWARNINGS", ""))
    inherited = os.environ.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *([inherited] if inherited else [])])
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"],  # being told to end is no error
        display_name="Python 3",
        language="python",
        env=environment,
    )

    class ThisInterpreter(AsyncKernelManager):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            _kernels.add(self)

        @property
        def kernel_spec(self) -> KernelSpec:
            return spec

    return ThisInterpreter


_kernels: WeakSet = WeakSet()
"""The managers of this process's kernels."""


def _end_kernels() -> None:
    for manager in list(_kernels):
        process = getattr(manager.provisioner, "process", None)
        if process is not None:
            process.kill()


def _papermill(
    path: Path, output: Path, given: dict[str, Any], run: runs.Run, threads: int | None, progress: bool
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import papermill
        from nbclient.exceptions import DeadKernelError
        from papermill.exceptions import PapermillExecutionError
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it logs is raised, too
    try:
        papermill.execute_notebook(
            *(str(p).replace("{", "{{").replace("}", "}}") for p in (path, output)),  # papermill fills parameters in between braces
            given,
            kernel_name="python3",
            language="python",
            progress_bar=progress,
            start_timeout=120,
            cwd=None,
            kernel_manager_class=_kernel_manager(threads),
            resources={"metadata": {"path": str(path.parent)}},
        )
    except PapermillExecutionError as error:
        kept = run.path / "failed.ipynb"
        with contextlib.suppress(OSError):
            os.replace(output, kept)
        if error.ename in ("FsadError", "fsad_lib.errors.FsadError"):
            raise FsadError(error.evalue) from None
        advice = f"\n{OUT_OF_MEMORY}" if error.ename in ("OutOfMemoryError", "torch.OutOfMemoryError") else ""
        raise StageError(
            f"{path.stem}, cell {error.exec_count}: {error.ename}: {error.evalue}{advice}\nSee {kept} for the whole story."
        ) from None
    except RuntimeError as error:
        # nbclient has no class of its own for a kernel that dies, or says nothing, while it starts
        if not isinstance(error, DeadKernelError) and "kernel" not in str(error).lower():
            raise
        kept = run.path / "failed.ipynb"
        with contextlib.suppress(OSError):
            os.replace(output, kept)
        raise StageError(
            f"{path.stem}: the kernel died, usually out of memory: fewer --jobs or smaller batch sizes; the same command goes on "
            f"from the last saved step ({error})." + (f"\nSee {kept} for how far it came." if kept.exists() else "")
        ) from None


# --- grids -----------------------------------------------------------------------------------------------------------


@dataclass
class GridReport:
    """What a grid did: cells in all, done now, skipped as complete, failed (name, message)."""

    total: int = 0
    done: int = 0
    skipped: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0


def _duration(seconds: float) -> str:
    """Seconds in words.

    >>> _duration(42), _duration(200), _duration(4000)
    ('42 s', '3 min 20 s', '1 h 06 min')
    """
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"


def expected_seconds(notebook: str, profile: str) -> float | None:
    """A stage's typical time: the median of this machine's finished runs, else in ``mini`` :data:`TYPICAL_SECONDS`; None: not known yet."""
    folder = runs.project_root() / "data" / "runs" / profile
    seen = [runs.read_record(p).get("wall_seconds") for p in sorted(folder.glob(f"*/*/{notebook}/*/provenance.json"))[-20:]]
    times = [seconds for seconds in seen if isinstance(seconds, int | float) and seconds > 0]
    if times:
        return statistics.median(times)
    return TYPICAL_SECONDS.get(notebook[:2], 60.0) if profile == "mini" else None


def cells(
    datasets: Iterable[str],
    categories: dict[str, Sequence[str]] | Sequence[str] | None,
    data_root: str = "",
    method: str = "adp",
) -> list[tuple[str, str]]:
    """(data set, category) pairs of a grid. ``categories`` None means all of each data set, for a multi-class method in one cell,
    "all"; names are checked."""
    from fsad_lib import datasets as readers

    pairs = []
    for dataset in datasets:
        wanted = categories.get(dataset) if isinstance(categories, dict) else categories
        valid = readers.categories(dataset, data_root or None)
        if method in runs.MULTI_CLASS and (not wanted or list(wanted) == [runs.ALL]):
            pairs.append((dataset, runs.ALL))
            continue
        for category in wanted or valid:
            if category not in valid and not (dataset == "elpv" and category in ("mono_half", "poly_half")):
                close = difflib.get_close_matches(category, valid, 1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise FsadError(f"{dataset} has no category {category!r}; it has {', '.join(valid)}.{hint}")
            pairs.append((dataset, category))
    return pairs


def grid(
    method: str,
    pairs: Sequence[tuple[str, str]],
    shots: Sequence[int],
    seeds: Sequence[int],
    profile: str = "mini",
    *,
    jobs: int = 1,
    data_root: str = "",
    tag: str = "",
    overrides: str = "",
    force: bool = False,
    say: Callable[[str], None] | None = None,
) -> GridReport:
    """Every stage of ``method`` for every (data set, category) x shots x seed; complete runs are skipped.

    Prints one line a finished stage with an estimate of what remains. A failing cell skips that cell's later stages,
    is reported at the end and does not stop the others. ``jobs`` cells run side by side, sharing the CPU's threads.

    Raises:
        FsadError: an unknown method, numbers out of range, nothing to run, a missing checkpoint, or no data set that can be read.
    """
    from fsad_lib.profiles import load_profile

    say = say or _say
    if method not in STAGES:
        raise FsadError(f"Unknown method {method!r}; the methods are {', '.join(STAGES)}.")
    if jobs < 1:
        raise FsadError(f"jobs: found {jobs}, expected at least 1.")
    pairs, shots, seeds = (list(dict.fromkeys(values)) for values in (pairs, shots, seeds))  # a cell given twice would fight itself
    for what, values in (("categories", pairs), ("shots", shots), ("seeds", seeds)):
        if not values:
            raise FsadError(f"{what}: found none, expected at least one.")
    for k in shots:
        runs.check_count("shots", k, 1)
    for seed in seeds:
        runs.check_count("seed", seed, 0)
    if tag:
        runs.check_name("tag", tag)
    data_root = _absolute(data_root) if data_root else ""
    stages = STAGES[method]
    for stage in stages:
        notebook_path(stage)
    started, report = time.monotonic(), GridReport()
    say(f"{len(pairs) * len(shots) * len(seeds)} cells of {len(stages)} stages; preparing and checking the data")
    problems = _preflight(load_profile(profile, overrides or None), pairs, data_root, method)
    if None in problems or len(problems) == len(pairs):
        raise FsadError("\n".join(dict.fromkeys(problems.values())))
    rest = {"data_root": data_root, "tag": tag, "overrides": overrides}  # a notebook's own defaults do not count
    every = [
        {"profile": profile, "dataset": dataset, "category": category, "shots": k, "seed": seed, **rest}
        for dataset, category in pairs
        for k in shots
        for seed in seeds
    ]
    todo = _open_cells(every, stages, problems, force, report)
    _run_cells(todo, stages, profile, jobs, force, say, report)
    report.seconds = time.monotonic() - started
    for name, message in report.failed:
        say(f"FAILED {name}: {message}")
    return report


Cell = tuple[str, dict[str, Any], list[str]]
"""One cell of a grid that is not complete: its name, its parameters, the stages to run."""


def _open_cells(
    every: Sequence[dict[str, Any]], stages: Sequence[str], problems: dict[tuple[str, str] | None, str], force: bool, report: GridReport
) -> list[Cell]:
    """The cells with stages that are not complete; ``report`` counts all stages and the complete ones, and names what cannot be run."""
    todo: list[Cell] = []
    for params in every:
        pair = params["dataset"], params["category"]
        if pair in problems:
            failed = ("/".join(pair), problems[pair])
            if failed not in report.failed:
                report.failed.append(failed)
            continue
        name = f"{'/'.join(pair)} k={params['shots']} seed={params['seed']}"
        report.total += len(stages)
        try:
            open_stages = [s for s in stages if force or not plan(s, params)[0].complete]
        except FsadError as error:
            report.failed.append((name, str(error)))
            continue
        report.skipped += len(stages) - len(open_stages)
        if open_stages:
            todo.append((name, params, open_stages))
    return todo


def _run_cells(
    todo: Sequence[Cell], stages: Sequence[str], profile: str, jobs: int, force: bool, say: Callable[[str], None], report: GridReport
) -> None:
    """Run the open stages, ``jobs`` cells side by side, and say what remains; ``report`` is filled in."""
    remaining = {s: sum(s in open_stages for _, _, open_stages in todo) for s in stages}
    expected = {s: expected_seconds(s, profile) for s in stages}

    def rest(jobs: int) -> str:
        if any(expected[s] is None for s, n in remaining.items() if n):
            return "time not known yet"
        return f"about {_duration(sum(expected[s] * n for s, n in remaining.items() if n) / jobs)}"

    left = sum(remaining.values())
    if left:
        say(f"{left} stage(s) to run, {report.skipped} complete already; {rest(min(jobs, len(todo)))} with {jobs} job(s)")
    elif report.skipped:
        say(f"Nothing to run: all {report.skipped} stages are complete already")
    threads = max(1, _processors() // jobs) if jobs > 1 else None
    finished, interrupted = 0, Event()

    def tell(line: str) -> None:
        try:
            say(line)
        except OSError:  # nobody reads on, or the log's disk is full: the other jobs stop after their stage
            interrupted.set()
            raise

    def work(cell: Cell) -> None:
        nonlocal finished
        name, params, open_stages = cell
        for i, stage in enumerate(open_stages):
            if interrupted.is_set():
                return
            try:
                result = execute(stage, params, force=force, threads=threads)
            except Exception as error:  # whatever it is, the other cells go on
                if interrupted.is_set():  # its kernel was ended, which is no failure
                    with contextlib.suppress(FsadError, OSError):
                        (plan(stage, params)[0].path / "failed.ipynb").unlink(missing_ok=True)
                    return
                if not isinstance(error, FsadError | StageError | OSError):
                    error = f"{type(error).__name__}: {error}"
                report.failed.append((f"{name} {stage}", str(error)))
                for skipped in open_stages[i:]:
                    remaining[skipped] -= 1
                tell(f"FAILED   {name}  {stage}: {str(error).splitlines()[0]}")
                return
            finished += 1
            remaining[stage] -= 1
            report.done += not result.skipped
            report.skipped += result.skipped
            if not result.skipped:
                known = expected[stage]
                expected[stage] = result.seconds if known is None else known + 0.3 * (result.seconds - known)
            tell(f"[{finished}/{left}] {name}  {stage}  {_duration(result.seconds)}; {rest(jobs)} left")

    if jobs == 1:
        for cell in todo:
            work(cell)
        return
    with ThreadPool(jobs) as pool:  # its threads end with the process
        cells_done = pool.map_async(_isolated(work), todo, chunksize=1)
        try:
            cells_done.get()
        except KeyboardInterrupt:
            interrupted.set()
            for _ in range(10):  # two seconds for what is being recorded, and for kernels that are just starting
                _end_kernels()
                cells_done.wait(0.2)
            raise


def _isolated(work: Callable[[Any], None]) -> Callable[[Any], None]:
    """The work with an event loop of its own, which papermill needs in a thread that is not the main one."""

    def run(cell: Any) -> None:
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            asyncio.set_event_loop(loop)
            work(cell)

    return run


def _say(line: str) -> None:
    print(line, flush=True)


def all_images(pairs: Sequence[tuple[str, str]], data_root: str = "") -> dict[int, list[tuple[str, str]]]:
    """Number of normal training images -> the (data set, category) pairs that have so many: "full-shot" as numbers of shots."""
    found: dict[int, list[tuple[str, str]]] = {}
    for pair in pairs:
        table = runs.read_table(*pair, data_root)
        found.setdefault(int(((table["split"] == "train") & (table["label"] == 0)).sum()), []).append(pair)
    return found


def demo(profile: str = "mini", jobs: int | None = None, say: Callable[[str], None] = _say) -> int:
    """ADP on three MiniFab evaluation categories and on real solar cells (ELPV mono), 4 shots, seed 0; then the figures.
    Prints a small table and the figures' paths; returns the exit status."""
    from fsad_lib.datasets.minifab import CATEGORIES

    pairs = [("minifab", category) for category in CATEGORIES["evaluation"][:3]] + [("elpv", "mono")]
    return _grids_and_figures("adp", [{"pairs": pairs, "shots": (4,), "seeds": (0,)}], profile, jobs, say)


def full(profile: str = "mini", jobs: int | None = None, method: str = "adp", say: Callable[[str], None] = _say) -> int:
    """The grid behind a method's committed tables (see :func:`grids`), then its figures. Returns the exit status."""
    return _grids_and_figures(method, grids(method, profile), profile, jobs, say)


def grids(method: str, profile: str = "mini") -> list[dict[str, Any]]:
    """What :func:`full` runs, as arguments of :func:`grid`: all MiniFab evaluation products, ELPV mono and poly (in ``paper``: the paper's
    data sets), seeds 0 to 2, at the paper's numbers of shots; then, at 1 shot, what each part of AnomalySD and TGVIG is worth.

    In ``mini``, TGVIG's trained detectors run on one object and one texture, for they take minutes each, and so does PatchCore with all training
    images, with one seed.
    """
    if method not in STAGES:
        raise FsadError(f"Unknown method {method!r}; the methods are {', '.join(STAGES)}.")
    small, seeds = profile == "mini", (0, 1, 2)
    names = ("minifab", "elpv") if small else ("mvtec_ad", "btad", "mvtec_loco") if method == "tgvig" else ("mvtec_ad", "visa")
    pairs = cells(names, None, method=method)

    def several(shots: Sequence[int], pairs: Sequence[tuple[str, str]] = pairs, **more: str) -> dict[str, Any]:
        return {"pairs": pairs, "shots": shots, "seeds": seeds, **more}

    if method == "adp":
        return [several((2, 4, 8, 16))]
    if method == "anomalysd":
        from fsad_lib.tables.anomalysd import ablation_overrides

        return [several((1, 2, 4, 16)), *(several((1,), overrides=text) for text in ablation_overrides(profile))]
    from fsad_lib.datasets.minifab import TRAIN_GOOD
    from fsad_lib.tables import tgvig

    few = [("minifab", "gear"), ("minifab", "wood")] if small else pairs
    trained = [tgvig.baseline_overrides(name) for name in tgvig.BASELINES if name != "patchcore"]
    plans = [several((1, 5)), *(several((1, 5), few, overrides=text) for text in trained)]
    plans += [several((1,), few, overrides=text) for text in tgvig.ablation_overrides(profile)]
    plans += [several((1,), [p for p in pairs if p[0] != "elpv"], overrides=text) for text in tgvig.MEMORIES[profile].values() if text]
    one = few if small else [("mvtec_ad", "hazelnut")]  # the paper's Tables 1 and 2 are of one product, which the profile's caption describes
    plans.append(several((1,), one, overrides=tgvig.table1_overrides(profile), tag=tgvig.TABLE1_TAG))
    if small:
        plans.append(several((TRAIN_GOOD,), few) | {"seeds": (0,)})
    else:
        plans += [several((k,), some, overrides=text) for k, some in all_images(pairs).items() for text in ("", *trained)]
    return plans


def _grids_and_figures(
    method: str, plans: Sequence[dict[str, Any]], profile: str, jobs: int | None, say: Callable[[str], None]
) -> int:
    from fsad_lib import tables

    reports = [grid(method, profile=profile, jobs=default_jobs(profile) if jobs is None else jobs, say=say, **plan) for plan in plans]
    say("Tables and figures")
    result = execute(FIGURES[method], {"profile": profile})
    say(f"{FIGURES[method]}  {'complete already' if result.skipped else _duration(result.seconds)}")
    if method == "adp":
        table = tables.summary(runs.project_root(), profile)
        say(f"\n{table.to_string()}" if len(table.columns) else "\nNo complete run, hence no table.")
    files = [f for f in (result.run.metrics or {}).get("files", ()) if f.endswith(".png")]
    say("\nFigures:\n" + "\n".join(f"  {name}" for name in files) if files else "\nFigures: see figures/")
    done, skipped, failed = (sum(values) for values in zip(*((r.done, r.skipped, len(r.failed)) for r in reports), strict=True))
    say(f"\n{done} stages run, {skipped} complete already, {failed} failed, {_duration(sum(r.seconds for r in reports) + result.seconds)}")
    return 1 if failed else 0


def default_jobs(profile: str) -> int:
    """Cells side by side: two in ``mini`` where two processors may be used, else one."""
    return min(2, _processors()) if profile == "mini" else 1


def _processors() -> int:
    """The processors that this process may use, which a cluster's scheduler may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

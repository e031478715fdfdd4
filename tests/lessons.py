"""What the tests of the methods' notebooks share: a project of tiny models, and a notebook run cell by cell."""

import contextlib
import io
from pathlib import Path

import matplotlib
import nbformat
import pytest

from fsad_lib import pipeline, runs
from fsad_lib.foundation.clip import _read_once

ROOT = Path(__file__).parents[1]


def cells(name, kind="code"):
    return [cell for cell in nbformat.read(pipeline.notebook_path(ROOT / "notebooks" / f"{name}.ipynb"), 4).cells if cell.cell_type == kind]


def tiny_project(tmp_path_factory, write_project, stages):
    """Body of a module's fixture: the project that write_project makes, as long as the module's tests run."""
    root = tmp_path_factory.mktemp("project")
    write_project(root)
    patch = pytest.MonkeyPatch()
    patch.setenv("FSAD_HOME", str(root))
    _read_once.cache_clear(), runs.forget_inputs()
    backend = matplotlib.get_backend()
    matplotlib.use("agg")
    yield root
    matplotlib.use(backend)
    patch.undo()
    _read_once.cache_clear(), runs.forget_inputs()


def run_cells(name, **given):
    """All cells but the parameters, which `given` replaces. Returns their names and what was printed."""
    space = {"__name__": "__main__"} | {n: p.default for n, p in pipeline.parameters(ROOT / "notebooks" / f"{name}.ipynb").items()} | given
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for cell in cells(name):
            if "parameters" not in cell.metadata.get("tags", []):
                exec(compile(cell.source, f"{name}, cell {cell.id}", "exec"), space)
    return space, printed.getvalue()


def execute(name, **given):
    """:func:`run_cells` of a stage. Returns the recorded metrics and what was printed."""
    space, printed = run_cells(name, **given)
    result = runs.read_json(space["run"].path / "result.json")
    assert result["fingerprint"] == space["run"].fingerprint and result["metrics"]
    assert "nan" not in printed
    return result["metrics"], printed

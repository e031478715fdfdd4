"""TGVIG's notebooks, cell by cell on tiny random models: they run wherever they lie, without the miniature."""

import contextlib
import io
from pathlib import Path

import matplotlib
import nbformat
import pytest
from tiny_tgvig import OVERRIDES, write_project

from fsad_lib import pipeline, runs
from fsad_lib.tgvig import stages

ROOT = Path(__file__).parents[1]
NAMES = pipeline.STAGES["tgvig"]
FOUND = {name: next((ROOT / f / f"{name}.ipynb" for f in ("notebooks", "drafts") if (ROOT / f / f"{name}.ipynb").is_file()), None) for name in NAMES}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    write_project(root)
    patch = pytest.MonkeyPatch()
    patch.setenv("FSAD_HOME", str(root))
    stages._clip.cache_clear(), runs.forget_inputs()
    backend = matplotlib.get_backend()
    matplotlib.use("agg")
    yield root
    matplotlib.use(backend)
    patch.undo()
    stages._clip.cache_clear(), runs.forget_inputs()


def cells(name, kind="code"):
    return [cell for cell in nbformat.read(FOUND[name], 4).cells if cell.cell_type == kind]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_records_its_result(project, name):
    if FOUND[name] is None:
        pytest.skip("not in this checkout")
    parameters = pipeline.parameters(FOUND[name])
    given = dict(dataset="folder", data_root=str(project / "parts"), category="gear", shots=2, overrides=OVERRIDES)
    space = {"__name__": "__main__"} | {n: p.default for n, p in parameters.items()} | given
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for cell in cells(name):
            if "parameters" not in cell.metadata.get("tags", []):
                exec(compile(cell.source, f"{name}, cell {cell.id}", "exec"), space)
    run = space["run"]
    result = runs.read_json(run.path / "result.json")
    assert result["fingerprint"] == run.fingerprint and result["metrics"]
    text = printed.getvalue()
    assert "True" in text and "False" not in text, "checks by hand hold"
    assert "nan" not in text
    if name.startswith("42"):
        assert result["metrics"]["available"] == 4 and len(result["metrics"]["rows"]) == 4
    if name.startswith("22"):
        assert {"best", "worst", "quality", "similarity"} <= set(result["metrics"])


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_a_lesson_in_the_house_style(name):
    if FOUND[name] is None:
        pytest.skip("not in this checkout")
    prose, code = cells(name, "markdown"), cells(name)
    assert len(prose) >= len(code) and all(len(cell.source.splitlines()) <= 15 for cell in code)
    assert all(word in prose[0].source for word in ("**needs**", "**makes**", "**takes**", "**next**"))
    assert any("may not be concluded" in cell.source for cell in prose) and "## Exercises" in prose[-1].source
    assert "run.finish(" in code[-1].source
    known = pipeline.parameters(FOUND[name])
    assert list(known) == ["profile", "dataset", "category", "shots", "seed", "data_root", "tag", "overrides"]
    assert all(p.help for p in known.values())

"""The notebooks as files: what the runner and the reader rely on. nbval runs them."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

from fsad_lib import pipeline
from fsad_lib.profiles import names as profiles

FOLDER = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
STAGE = ["profile", "dataset", "category", "shots", "seed", "data_root", "tag", "overrides"]
LOCAL = re.compile(r"(?<![\w.~-])/(?:home|root|Users|tmp|work|mnt|private|var/folders)/\w|[A-Z]:\\\\?Users")

pytestmark = pytest.mark.skipif(not PATHS, reason="no notebooks in this checkout")
each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


def outputs(path):
    return [(cell.id, output) for cell in cells(path, "code") for output in cell.outputs]


@each
def test_it_is_valid_and_small(path):
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    assert path.stat().st_size < 1_000_000, "a notebook stays below 1 MB"
    assert len({cell.id for cell in book.cells}) == len(book.cells)
    assert book.metadata.kernelspec.name == "python3"
    for cell in book.cells:
        assert "execution" not in cell.metadata and "papermill" not in cell.metadata, f"{cell.id}: timings in the metadata"


@each
def test_the_runner_accepts_its_parameters_cell(path):
    tagged = [cell for cell in cells(path, "code") if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1, "exactly one cell tagged 'parameters'"
    known = pipeline.parameters(path)
    defaults = {name: p.default for name, p in known.items()}
    assert pipeline.check_parameters(known, defaults) == defaults
    assert all(p.help for p in known.values()), "each parameter has a '# help'"
    assert defaults.get("profile", "mini") in profiles()
    if path.stem[0] in "1234":
        assert list(known) == STAGE, "a stage notebook has the grid's parameters and no others"


@each
def test_a_stage_records_its_result_last(path):
    if path.stem[0] not in "1234":
        pytest.skip("the tour, the figures and the appendix record no run")
    assert "run.finish(" in cells(path, "code")[-1].source


@each
def test_it_says_what_it_needs_and_makes_and_how_long(path):
    first = nbformat.read(path, 4).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    for word in (r"\bneeds?\b", r"\bmakes?\b", r"\b(time|takes|seconds|minutes?)\b", r"\bnext\b"):
        assert re.search(word, first.source, re.IGNORECASE), f"the first cell lacks {word!r}"


@each
def test_it_ends_with_exercises_and_warns_of_the_miniature(path):
    prose = cells(path, "markdown")
    assert any("xercises" in cell.source for cell in prose[-3:])
    assert any(cell.source.lstrip().startswith(">") and "may not be concluded" in cell.source for cell in prose)


@each
def test_cells_are_short_and_compile(path):
    code = cells(path, "code")
    for cell in code:
        assert len(cell.source.splitlines()) <= 15, f"{cell.id}: longer than 15 lines"
        ast.parse("\n".join("" if line.startswith(("%", "!")) else line for line in cell.source.splitlines()))
    assert len(cells(path, "markdown")) >= len(code), "at least as much prose as code"


@each
def test_committed_outputs_are_there_and_clean(path):
    for cell, output in outputs(path):
        assert output.output_type != "error", f"{cell}: {output.get('ename')}: {output.get('evalue')}"
        assert output.get("name") != "stderr", f"{cell} writes to stderr: {output.text[:200]}"
    code = cells(path, "code")
    visible = sum(bool(cell.outputs) for cell in code)
    assert visible >= 0.6 * len(code), f"{visible} of {len(code)} code cells have an output: run the notebook before committing it"


@each
def test_no_path_of_a_machine_is_committed(path):
    text = json.dumps([cell.source for cell in nbformat.read(path, 4).cells])
    for _, output in outputs(path):
        data = {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/")}
        text += json.dumps(data) + json.dumps(output.get("text", ""))
    found = LOCAL.search(text)
    assert not found, text[max(0, found.start() - 60) : found.end() + 60]


def test_links_between_notebooks_lead_somewhere():
    text = "\n".join(cell.source for path in PATHS for cell in cells(path, "markdown"))
    there = {path.stem for path in PATHS}
    assert {name for name in re.findall(r"`(\d\d_[a-z_]+?)(?:\.ipynb)?`", text) if not re.match(r"(10|20|40)_[a-z]+$", name)} <= there

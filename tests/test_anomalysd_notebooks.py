"""AnomalySD's notebooks, cell by cell on tiny random models: they run without the miniature."""

import re

import lessons
import pytest
from tiny_project import COLOURS, OVERRIDES, write_part, write_project

from fsad_lib import pipeline
from fsad_lib.anomalysd import stages

NAMES = pipeline.STAGES["anomalysd"]
MORE = {"41_evaluate_anomalysd": ",anomalysd.test_images=4"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    yield from lessons.tiny_project(tmp_path_factory, write_project, stages)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_records_its_result(project, name):
    _, printed = lessons.execute(name, dataset="folder", data_root=str(project / "parts"), shots=2, overrides=OVERRIDES + MORE.get(name, ""))
    assert "True" in printed or name.startswith("41"), "checks by hand hold"
    if name.startswith("21"):
        assert printed.count("False") == 1 and "another seed, the same twins: False" in printed
        assert all(float(value) < 1e-2 for value in re.findall(r"(?:saved map|the library's): (\S+)", printed))
    else:
        assert "False" not in printed
    assert not name.startswith("41") or list((project / "data/runs").rglob("41_*/*/report/*/heatmaps/*.png")), "a user's folder gets its report"


@pytest.mark.parametrize("more", [0, 1])
def test_every_good_image_may_be_a_shot(project, more):
    """Two good images of each product and two shots; ``more``: a third of the first product, so that only the other has none left."""
    folder = project / f"few{more}"
    for i, (name, value) in enumerate(COLOURS.items()):
        for j in range(2 + (more if i == 0 else 0)):
            write_part(folder / name / f"train/good/{j}.png", value, False, 10 * i + j)
        write_part(folder / name / "test/part.png", value, False, 10 * i + 5)
    _, printed = lessons.execute(NAMES[0], dataset="folder", data_root=str(folder), shots=2, overrides=OVERRIDES)
    assert ("no further good image of nut" if more else "no further good image: every one is a shot") in printed
    assert ("cannot be told from memorized" in printed) == (not more)


def test_the_loss_by_hand_is_the_librarys_in_bfloat16(project):
    _, printed = lessons.execute(
        NAMES[0], dataset="folder", data_root=str(project / "parts"), shots=2, overrides=OVERRIDES + ",anomalysd.precision=bfloat16"
    )
    assert "loss by hand equals the library's: True" in printed

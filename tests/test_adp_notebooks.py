"""ADP's notebooks and the tour on folders that a user may have: unlabelled images among the sorted ones, one image, no good one."""

import shutil

import pytest
import tiny_models as tiny
import torch
from lessons import ROOT, execute, run_cells, tiny_project
from PIL import Image
from test_adp_stages import OVERRIDES, write_part

from fsad_lib import runs
from fsad_lib.adp import figures, stages
from fsad_lib.adp.pseudo_anomalies import deal


def parts(root, name, good=0, holes=0, loose=0):
    folder = root / "parts" / name
    for i in range(3):
        write_part(folder / f"train/good/{i}.png", False, i)
    for i in range(good):
        write_part(folder / f"test/good/{i}.png", False, 10 + i)
    for i in range(holes):
        mask = write_part(folder / f"test/hole/{i}.png", True, 20 + i)
        (folder / "ground_truth/hole").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / f"ground_truth/hole/{i}_mask.png")
    for i in range(loose):
        write_part(folder / f"test/{i}.png", i == 1, 30 + i)


def write_project(root):
    model = tiny.open_clip_model()
    tiny.save_clip(root / "data/models/mini/clip", model)
    tiny.save_diffusion(tiny.diffusion(model), root / "data/models/mini/diffusion", with_text=False)
    (root / "data/results").mkdir()
    shutil.copy(ROOT / "data/results/minifab_difficulty.csv", root / "data/results")
    parts(root, "mixed", good=3, holes=2, loose=2)
    parts(root, "single", loose=1)
    parts(root, "bad", holes=2)
    parts(root, "many", good=171, holes=1)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    stages._diffusion.cache_clear()
    yield from tiny_project(tmp_path_factory, write_project, stages)
    stages._diffusion.cache_clear()


def given(project, category, overrides=OVERRIDES):
    return dict(dataset="folder", data_root=str(project / "parts"), category=category, shots=2, overrides=overrides)


def report(project, category):
    (path,) = (project / "data/runs/mini/folder").glob(f"{category}-*/40_evaluate_adp/*/report/report.md")
    return path.read_text()


def test_unlabelled_images_among_the_sorted_ones_are_judged_and_not_measured(project):
    metrics, said = execute("40_evaluate_adp", **given(project, "mixed"))
    assert "7 test images; image AUROC of the naive detector" in said and {row["n"] for row in metrics["rows"]} == {5}
    assert "7 images, ranked by" in report(project, "mixed")


def test_one_image_to_judge_gets_its_report(project):
    space, said = run_cells("40_evaluate_adp", **given(project, "single"))
    assert "One image has no spread." in said and runs.read_json(space["run"].path / "result.json")["metrics"] == {"rows": []}
    assert "1 images, ranked by" in report(project, "single")


def test_one_pseudo_anomaly_and_a_word_of_no_steps(project):
    few = OVERRIDES.replace("steps_ti=2", "steps_ti=0").replace("n_pseudo=3", "n_pseudo=1")
    assert "TI learned for no step" in execute("10_personalize_adp", **given(project, "mixed", few))[1]


def test_the_tour_needs_no_good_test_image(project):
    assert "control: one map for all images" in run_cells("00_tour", **given(project, "bad"))[1]


def test_the_tours_sample_of_many_images_keeps_the_only_defect(project):
    space, said = run_cells("00_tour", **given(project, "many"))
    assert space["test"].label.tolist() == [0] * 86 + [1] and "nan" not in said


@pytest.mark.parametrize("k", [2, 4, 8])
def test_an_edit_stands_below_the_shot_that_it_edits(k):
    shot, prompt = (dealt.tolist() for dealt in deal(8, k, 2))
    x = torch.arange(float(k)).view(k, 1, 1, 1).expand(-1, 3, 4, 4) / 10  # each shot is as bright as its number says
    pseudo = stages.Pseudo(x[shot], shot, ["ab"[i] for i in prompt])
    for sentence in "ab":
        for row in (figures.told(pseudo, sentence, k), figures.cropped(pseudo, sentence, x, (1.0, 1.0), 0, k)):
            number = (row[:, 0, 0, 0] * 10).round().tolist()
            assert all(n in (i, 10) for i, n in enumerate(number)) and number.count(10) == (k // 2 if k == 8 else 0)
    assert len(figures.told(pseudo, "c", k)) == len(figures.cropped(pseudo, "c", x, (1.0, 1.0), 0, k)) == 0

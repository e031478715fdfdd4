"""The runner: parameters, papermill with this interpreter, completion, failures, grids, the command line.

Kernel starts cost seconds, so most tests stop before one; the others share two tiny notebooks.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fsad_lib import pipeline, runs
from fsad_lib.__main__ import main
from fsad_lib.errors import FsadError

ROOT = Path(__file__).parents[1]

PARAMETERS = """\
profile: str = "mini"  # mini or paper
dataset: str = "folder"  # which data set
category: str = "part"  # one of its categories
shots: int = 2  # normal images
seed: int = 0  # which permutation
data_root: str = ""  # where the data lies
tag: str = ""  # keeps runs apart
overrides: str = ""  # changes over the profile
"""
BODY = """\
import os, sys, time
from pathlib import Path
from fsad_lib import runs
run = runs.open_run("{stage}", "{method}", profile=profile, dataset=dataset, category=category, shots=shots, seed=seed,
                    data_root=data_root, tag=tag, overrides=overrides)
log = Path(os.environ["FSAD_HOME"]) / "log.txt"
with log.open("a") as file:
    file.write("{stage} " + sys.executable + "\\n")
{extra}
run.finish({{"rows": [{{"method": "{method}", "image_auroc": 0.5}}], "executable": sys.executable}})
"""


def notebook(folder, name, parameters=PARAMETERS, extra="", body=None):
    stage, _, method = name.rpartition("_")
    body = BODY.format(stage=stage, method=method, extra=extra) if body is None else body
    cells = [(["parameters"], parameters), ([], body)] if parameters else [([], body)]
    content = {
        "cells": [
            {"cell_type": "code", "id": f"c{i}", "metadata": {"tags": tags}, "source": text, "outputs": [], "execution_count": None}
            for i, (tags, text) in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"name": "elsewhere", "display_name": "Elsewhere", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project root with fake models, a user's folder and two notebooks of the method 'fake'."""
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    monkeypatch.setitem(pipeline.STAGES, "fake", ("10_first_fake", "40_last_fake"))
    names = ["clip/open_clip_config.json", "clip/open_clip_model.safetensors", "diffusion/model_index.json"]
    names += ["diffusion/scheduler/scheduler_config.json"]
    names += [f"diffusion/{p}/{f}" for p in ("vae", "unet") for f in ("config.json", "diffusion_pytorch_model.safetensors")]
    for name in names:
        path = tmp_path / "data/models/mini" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((b"\2" + bytes(7) if path.suffix == ".safetensors" else b"") + b"{}")  # no tensor, and a whole file
    for category in ("part", "other"):
        for kind, count in (("train/good", 3), ("test/good", 1), ("test/scratch", 1)):
            folder = tmp_path / "mine" / category / kind
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((8, 8, 3), 20 * i + len(kind), np.uint8)).save(folder / f"{i}.png")
    for name in pipeline.STAGES["fake"]:
        notebook(tmp_path / "notebooks", name)
    runs.forget_inputs()
    return tmp_path


def given(home, **changes):
    return {"data_root": str(home / "mine")} | changes


# before anything starts


def test_parameters_are_read_without_running(home):
    found = pipeline.parameters("10_first_fake")
    assert list(found) == "profile dataset category shots seed data_root tag overrides".split()
    assert found["shots"] == pipeline.Parameter("shots", "int", 2, "normal images")


@pytest.mark.parametrize("line", ["shots = 4", "shots: int = 2 * 2", "import os", "shots: int"])
def test_a_parameters_cell_with_code_in_it_is_refused(home, line):
    notebook(home / "notebooks", "10_bad_fake", PARAMETERS + line)
    with pytest.raises(FsadError, match="expected 'name: type = literal"):
        pipeline.parameters("10_bad_fake")


@pytest.mark.parametrize(
    "params, word",
    [
        ({"shot": 4}, "Did you mean 'shots'"),
        ({"shots": "four"}, "expected int"),
        ({"shots": 2.5}, "expected int"),
        ({"shots": True}, "expected int"),
        ({"profile": 3}, "expected str"),
        ({"shots": 0}, "at least 1"),
        ({"shots": 9}, "3"),
        ({"seed": -1}, "at least 0"),
        ({"seed": 2**63}, "at most"),
        ({"seed": "9" * 5000}, "expected int"),
        pytest.param({"seed": 10**5000}, "16610 bits", id="long"),
        ({"category": "../part"}, "plain name"),
        ({"category": "parts"}, "part"),
        ({"dataset": "minifap", "category": "gear"}, "minifab"),
        ({"tag": "../../x"}, "plain name"),
        ({"profile": "mimi"}, "mini"),
        ({"overrides": "adp.alfa=1"}, "adp.alpha"),
        ({"data_root": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"data_root": "~unknownuser/parts"}, "cannot use the path"),
        ({"data_root": "/" + "x" * 300}, "cannot use the path"),
    ],
)
def test_wrong_parameters_are_refused_before_a_kernel_starts(home, monkeypatch, params, word):
    monkeypatch.setattr(pipeline, "_papermill", lambda *a: pytest.fail("a kernel was started"))
    with pytest.raises(FsadError, match=word):
        pipeline.execute("10_first_fake", given(home, **params))
    assert not (home / "data/runs/mini").exists()


@pytest.mark.parametrize("name", ["10_first_fak", "../notebooks/10_first_fake", "/etc/passwd", ""])
def test_unknown_notebooks_are_refused_with_the_valid_names(home, name):
    with pytest.raises(FsadError, match="10_first_fake, 40_last_fake"):
        pipeline.notebook_path(name)


def test_an_empty_mask_stops_before_a_kernel_starts(home, monkeypatch):
    monkeypatch.setattr(pipeline, "_papermill", lambda *a: pytest.fail("a kernel was started"))
    mask = home / "mine/part/ground_truth/scratch/0.png"
    mask.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(mask)
    with pytest.raises(FsadError, match="scratch/0.png has no defective pixel.*remove the mask or correct it"):
        pipeline.execute("10_first_fake", given(home))
    pixels = np.zeros((8, 8), np.uint8)
    pixels[2:4] = 255
    Image.fromarray(pixels).save(mask)
    assert not pipeline._preflight(pipeline.plan("10_first_fake", given(home))[0].profile, [("folder", "part")], str(home / "mine"), "fake")


MASK = "image not found: .*ground_truth/scratch/0.png. Was it moved or deleted"


@pytest.mark.parametrize("names, message", [(["test/good/gone.png"], "cannot read 1 image, the first: .*gone.png; make them readable or remove them"),
                                            (["test/good/gone.png", "ground_truth/scratch/0.png"], MASK)])  # fmt: skip
def test_images_and_masks_that_lead_nowhere_stop_before_a_kernel_starts(home, monkeypatch, names, message):
    monkeypatch.setattr(pipeline, "_papermill", lambda *a: pytest.fail("a kernel was started"))
    picture = home / "mine/part/test/scratch/1.png"  # without a mask, so that no mask is read
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    for name in names:
        (home / "mine/part" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "mine/part" / name).symlink_to(home / "nowhere.png")
    with pytest.raises(FsadError, match=message):
        pipeline.execute("10_first_fake", given(home))


def test_damaged_images_are_all_named_before_a_kernel_starts(home, monkeypatch):
    monkeypatch.setattr(pipeline, "_papermill", lambda *a: pytest.fail("a kernel was started"))
    whole = home / "mine/part/test/scratch/1.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(whole)
    (whole.parent / "cut.png").write_bytes(whole.read_bytes()[:1000])
    (whole.parent / "empty.png").touch()
    with pytest.raises(FsadError, match=r"(?s)cut\.png.*empty\.png"):
        pipeline.execute("10_first_fake", given(home))


def test_a_linked_category_is_found_by_the_name_of_the_link(home):
    (home / "gear").symlink_to(home / "mine/part")
    run = pipeline.plan("10_first_fake", {"data_root": str(home / "gear"), "category": "gear"})[0]
    assert set(run.table()["category"]) == {"gear"}


def test_a_missing_checkpoint_stops_before_a_kernel_starts(home, monkeypatch):
    monkeypatch.setattr(pipeline, "_papermill", lambda *a: pytest.fail("a kernel was started"))
    with pytest.raises(FsadError, match="laion/CLIP-ViT-H-14"):
        pipeline.execute("10_first_fake", given(home, profile="paper"))
    with pytest.raises(FsadError, match="laion/CLIP-ViT-H-14"):
        pipeline.grid("fake", [("folder", "part")], [2], [0], "paper", data_root=str(home / "mine"), say=print)


@pytest.mark.parametrize("name", ["diffusion/unet/diffusion_pytorch_model.safetensors", "clip/open_clip_config.json"])
def test_a_damaged_checkpoint_stops_before_a_kernel_starts(home, monkeypatch, name):
    monkeypatch.setattr(pipeline, "_papermill", None)
    (home / "data/models/mini" / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(FsadError, match=rf"{name}: a pointer of git LFS"):
        pipeline.execute("10_first_fake", given(home))
    with pytest.raises(FsadError, match="git LFS"):
        pipeline.grid("fake", [("folder", "part")], [2], [0], data_root=str(home / "mine"), say=lambda line: None)


@pytest.mark.parametrize("name", ["<x>", "-"])
def test_a_product_without_words_stops_before_a_kernel_starts(home, monkeypatch, name):
    monkeypatch.setattr(pipeline, "_papermill", None)
    (home / "mine/part").rename(home / "mine" / name)
    with pytest.raises(FsadError, match="gives no words"):
        pipeline.execute("10_first_fake", given(home, category=name))


@pytest.mark.parametrize(
    "kind, text, value",
    [("int", "-3", -3), ("float", "1e-3", 0.001), ("float", 2, 2.0), ("bool", "true", True), ("str", "3", "3"),
     ("int | None", "None", None), ("float | None", None, None), ("list[int]", "[1, 2]", [1, 2])],
)  # fmt: skip
def test_values_are_converted_to_the_declared_type(kind, text, value):
    known = pipeline.parse_parameters(f"p: {kind} = None")
    assert pipeline.check_parameters(known, {"p": text}) == {"p": value}
    assert type(pipeline.check_parameters(known, {"p": text})["p"]) is type(value)


@pytest.mark.parametrize("kind, text", [("bool", "yes"), ("bool", 1), ("float", "x"), ("float", True), ("list[int]", "(1,)"), ("str", None)])
def test_values_of_another_type_are_refused(kind, text):
    with pytest.raises(FsadError, match="expected"):
        pipeline.check_parameters(pipeline.parse_parameters(f"p: {kind} = None"), {"p": text})


def test_a_multi_class_method_has_one_cell_for_all_categories(home):
    data_root = str(home / "mine")
    assert pipeline.cells(["folder"], None, data_root, "anomalysd") == [("folder", "all")]
    assert pipeline.cells(["folder"], ["all"], data_root, "anomalysd") == [("folder", "all")]
    assert pipeline.cells(["folder"], ["part"], data_root, "anomalysd") == [("folder", "part")]
    assert pipeline.cells(["folder"], None, data_root) == [("folder", "other"), ("folder", "part")]
    with pytest.raises(FsadError, match="'all'"):
        pipeline.cells(["folder"], ["all"], data_root)


def test_a_run_of_all_categories_has_the_shots_of_each(home):
    run = runs.open_run("11_personalize", "anomalysd", profile="mini", dataset="folder", category="all", shots=2, seed=0, data_root=str(home / "mine"))
    assert run.categories == ["other", "part"] and len(run.table()) == 10 and len(run.shot_paths()) == 4
    one = runs.open_run("10_first", "fake", profile="mini", dataset="folder", category="part", shots=2, seed=0, data_root=str(home / "mine"))
    assert run.shot_paths("part") == one.shot_paths()
    before = run.fingerprint
    (home / "mine/other/train/good/0.png").unlink()
    runs.forget_inputs()
    again = runs.open_run("11_personalize", "anomalysd", profile="mini", dataset="folder", category="all", shots=2, seed=0, data_root=str(home / "mine"))
    assert again.fingerprint != before
    with pytest.raises(FsadError, match="2"):
        _ = runs.open_run("11_personalize", "anomalysd", profile="mini", dataset="folder", category="all", shots=3, seed=0, data_root=str(home / "mine")).fingerprint


# papermill (a kernel each)


def test_a_grid_runs_once_with_this_interpreter_and_resumes(home):
    lines = []
    report = pipeline.grid(
        "fake", [("folder", "part"), ("folder", "other")], [2], [0], jobs=2, data_root=str(home / "mine"), say=lines.append
    )
    assert (report.done, report.skipped, report.failed) == (4, 0, []), lines
    assert any("[4/4]" in line for line in lines) and "about" in lines[1]
    run = pipeline.plan("10_first_fake", given(home))[0]
    assert run.complete and run.metrics["executable"] == sys.executable
    assert run.metrics["identity"]["shots"] == 2
    names = {p.name for p in run.path.iterdir()}
    assert names == {"lock", "notebook.ipynb", "result.json", "provenance.json", "metrics.json"}
    provenance = json.loads((run.path / "provenance.json").read_text())
    assert provenance["parameters"]["category"] == "part" and len(provenance["shots"]) == 2
    assert {"versions", "device", "wall_seconds", "peak_memory_mib", "code_revision", "ingredients"} <= set(provenance)
    # again: nothing starts; one lost record: exactly that stage runs
    start = time.monotonic()
    again = pipeline.grid("fake", [("folder", "part"), ("folder", "other")], [2], [0], data_root=str(home / "mine"), say=lines.append)
    assert (again.done, again.skipped) == (0, 4) and time.monotonic() - start < 5
    assert (home / "log.txt").read_text().count(sys.executable) == 4
    (run.path / "metrics.json").unlink()
    report = pipeline.grid("fake", [("folder", "part")], [2], [0], data_root=str(home / "mine"), say=lines.append)
    assert (report.done, report.skipped) == (1, 1)


def test_a_failing_cell_is_told_at_the_end_and_does_not_stop_the_others(home, monkeypatch):
    def stub(path, output, params, run, *_):
        if run.category == "part":
            raise pipeline.StageError("boom")
        Path(output).write_text("{}")
        run.finish({})

    monkeypatch.setattr(pipeline, "_papermill", stub)
    lines = []
    pairs = [("folder", "part"), ("folder", "other"), ("folder", "missing")]
    report = pipeline.grid("fake", pairs, [2], [0], data_root=str(home / "mine"), say=lines.append)
    assert report.done == 2 and [name for name, _ in report.failed] == ["folder/missing", "folder/part k=2 seed=0 10_first_fake"]
    assert "boom" in lines[-1]
    assert not list((home / "data/runs").rglob(".tmp-*"))


def test_an_impossible_grid_is_refused_before_anything_is_read(home, monkeypatch):
    monkeypatch.setattr(pipeline, "_preflight", lambda *a: pytest.fail("data was read"))
    part = [("folder", "part")]
    for shots, seeds, tag, word in (
        ([0], [0], "", "shots: found 0"), ([2], [-1], "", "seed: found -1"), ([2], [2**63], "", "at most"), ([2], [0], "../x", "plain name"),
        ([], [0], "", "shots: found none"), ([2], [], "", "seeds: found none"),
    ):  # fmt: skip
        with pytest.raises(FsadError, match=word):
            pipeline.grid("fake", part, shots, seeds, tag=tag, data_root=str(home / "mine"), say=print)
    with pytest.raises(FsadError, match="categories: found none"):
        pipeline.grid("fake", [], [2], [0], data_root=str(home / "mine"), say=print)


def test_a_grid_says_that_nothing_is_to_be_run_only_where_all_is_complete(home):
    lines = []
    for name in pipeline.STAGES["fake"]:  # records of other data: more shots than there are now
        runs.write_json(pipeline.plan(name, given(home, shots=9))[0].path / "metrics.json", {"fingerprint": "other"})
    report = pipeline.grid("fake", [("folder", "part")], [9], [0], data_root=str(home / "mine"), say=lines.append)
    assert len(report.failed) == 1 and not any("Nothing to run" in line for line in lines)


def test_a_cell_given_twice_runs_once(home, monkeypatch):
    def stub(path, output, params, run, *_):
        Path(output).write_text("{}")
        run.finish({})

    monkeypatch.setattr(pipeline, "_papermill", stub)
    report = pipeline.grid("fake", [("folder", "part")] * 2, [2, 2], [0, 0], jobs=2, data_root=str(home / "mine"), say=print)
    assert (report.total, report.done, report.failed) == (2, 2, [])


def test_a_stage_holds_the_earlier_ones_that_it_would_make(home, monkeypatch):
    monkeypatch.setitem(runs.UPSTREAM, ("40_last", "fake"), ("10_first",))
    seen = []

    def stub(path, output, params, run, *_):
        for before in run.earlier():
            try:
                with before.locked():
                    seen.append("free")
            except FsadError:
                seen.append("held")
        Path(output).write_text("{}")
        run.finish({})

    monkeypatch.setattr(pipeline, "_papermill", stub)
    first = pipeline.plan("10_first_fake", given(home))[0]
    with first.locked(), pytest.raises(FsadError, match="another process"):
        pipeline.execute("40_last_fake", given(home))
    pipeline.execute("40_last_fake", given(home))
    pipeline.execute("10_first_fake", given(home))
    pipeline.execute("40_last_fake", given(home), force=True)
    assert seen == ["held", "free"]


def test_a_grid_of_two_jobs_stops_where_nobody_reads_on(home, monkeypatch):
    ran = []
    monkeypatch.setattr(pipeline, "execute", lambda stage, params, **how: ran.append(stage) or SimpleNamespace(skipped=False, seconds=0.0))

    def say(line):
        if line.startswith("["):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        pipeline.grid("fake", [("folder", "part"), ("folder", "other")], [2], range(8), jobs=2, data_root=str(home / "mine"), say=say)
    assert 1 <= len(ran) <= 4, "of 16 cells"


def test_a_killed_kernel_is_told_and_the_grid_goes_on(home, monkeypatch):
    notebook(home / "notebooks", "10_first_fake", extra="if category == 'part': os.kill(os.getpid(), 9)")
    lines = []
    pairs = [("folder", "part"), ("folder", "other")]
    monkeypatch.setitem(pipeline.STAGES, "fake", ("10_first_fake",))
    report = pipeline.grid("fake", pairs, [2], [0], data_root=str(home / "mine"), say=lines.append)
    assert report.done == 1 and len(report.failed) == 1 and "the kernel died, usually out of memory" in report.failed[0][1]
    run = pipeline.plan("10_first_fake", given(home))[0]
    assert {p.name for p in run.path.iterdir()} == {"lock", "failed.ipynb"}


@pytest.mark.parametrize(
    "text, kind",
    [("Kernel died before replying to kernel_info", pipeline.StageError), ("Kernel didn't respond in 120 seconds", pipeline.StageError),
     ("anything else", RuntimeError)],
)  # fmt: skip
def test_a_kernel_that_does_not_start(home, monkeypatch, text, kind):
    import papermill

    def fail(*_, **__):
        raise RuntimeError(text)

    monkeypatch.setattr(papermill, "execute_notebook", fail)
    with pytest.raises(RuntimeError, match=text) as caught:
        pipeline.execute("10_first_fake", given(home))
    assert caught.type is kind


def test_errors_inside_a_notebook(home):
    notebook(home / "notebooks", "10_first_fake", extra="if seed == 1: raise ValueError('broken here')\n"
             "from fsad_lib.errors import FsadError\nif seed == 2: raise FsadError('for the user')")  # fmt: skip
    with pytest.raises(pipeline.StageError, match="broken here") as caught:
        pipeline.execute("10_first_fake", given(home, seed=1))
    folder = pipeline.plan("10_first_fake", given(home, seed=1))[0].path
    assert str(folder / "failed.ipynb") in str(caught.value)
    assert {p.name for p in folder.iterdir()} == {"lock", "failed.ipynb"}
    with pytest.raises(FsadError, match="^for the user$"):
        pipeline.execute("10_first_fake", given(home, seed=2))


def test_a_notebook_that_records_nothing_or_for_something_else_is_not_complete(home, monkeypatch):
    def stub(finish):
        def run_it(path, output, params, run, *_):
            Path(output).write_text("{}")
            finish(run)

        return run_it

    monkeypatch.setattr(pipeline, "_papermill", stub(lambda run: None))
    with pytest.raises(FsadError, match="without run.finish"):
        pipeline.execute("10_first_fake", given(home))
    monkeypatch.setattr(pipeline, "_papermill", stub(lambda run: runs.write_json(run.path / "result.json", {"fingerprint": "other"})))
    with pytest.raises(FsadError, match="changed while it ran"):
        pipeline.execute("10_first_fake", given(home))
    run = pipeline.plan("10_first_fake", given(home))[0]
    assert not run.complete and not (run.path / "notebook.ipynb").exists()


def test_a_full_disk_is_an_error_of_the_user_and_leaves_nothing(home, monkeypatch):
    def stub(path, output, params, run, *_):
        Path(output).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline, "_papermill", stub)
    with pytest.raises(FsadError, match="disk is full"):
        pipeline.execute("10_first_fake", given(home))
    run = pipeline.plan("10_first_fake", given(home))[0]
    assert [p.name for p in run.path.iterdir()] == ["lock"]


def test_kill_9_loses_no_finished_run_and_the_next_call_goes_on(home):
    notebook(home / "notebooks", "40_last_fake", extra="(run.path / 'started').touch(); time.sleep(0 if (log.parent / 'go').exists() else 300)")
    command = [sys.executable, "-m", "fsad_lib", "grid", "fake", "--dataset", "folder", "--category", "part", "--shots", "2"]
    command += ["--data-root", str(home / "mine"), "--jobs", "1"]
    start = "import sys; from fsad_lib import pipeline, __main__; pipeline.STAGES['fake'] = ('10_first_fake', '40_last_fake');"
    command[1:3] = ["-c", start + "sys.exit(__main__.main(sys.argv[1:]))"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first, last = (pipeline.plan(n, given(home))[0] for n in pipeline.STAGES["fake"])
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=home)
    deadline = time.monotonic() + 240
    while not (last.path / "started").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first.complete and not last.complete and not (last.path / "notebook.ipynb").exists()
    (home / "go").touch()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=home, timeout=240)
    assert done.returncode == 0 and "1 stages run, 1 complete already, 0 failed" in done.stdout, done.stdout + done.stderr
    assert last.complete and not list(last.path.glob(".*"))
    assert (home / "log.txt").read_text().count("10_first") == 1


GRID = """\
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without it
from fsad_lib import __main__, pipeline
pipeline.STAGES["fake"] = ("10_first_fake", "40_last_fake")
{execute}
words = ["grid", "fake", "--dataset", "folder", "--category", "part", "other", "--shots", "2", "--jobs", "2", "--data-root", sys.argv[1]]
sys.exit(__main__.main(words))
"""
SLEEP = """
def execute(stage, params, **_):
    print("started", stage, flush=True)
    time.sleep({seconds})
    print("ended", stage, flush=True)
    return pipeline.Result(None, False, {seconds})
pipeline.execute = execute
"""


def interrupted(home, execute, started):
    """Exit status, output and seconds of a grid of two jobs that gets Ctrl-C once ``started()`` of its output is true."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with open(home / "out.txt", "w") as out:
        process = subprocess.Popen([sys.executable, "-c", GRID.format(execute=execute), str(home / "mine")], env=environment, stdout=out, stderr=out, cwd=home)
        deadline = time.monotonic() + 240
        while not started((home / "out.txt").read_text()) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        status = process.wait(60)
    return status, (home / "out.txt").read_text(), time.monotonic() - start


@pytest.mark.parametrize("seconds", [1, 300])
def test_ctrl_c_ends_a_grid_of_two_jobs_and_starts_no_further_stage(home, seconds):
    status, text, took = interrupted(home, SLEEP.format(seconds=seconds), lambda text: text.count("started") == 2)
    assert status == 130 and took < 20 and "interrupted: what is complete is kept" in text, text
    assert text.count("started") == 2 and "40_last_fake" not in text and "FAILED" not in text and "Traceback" not in text, text


def test_ctrl_c_ends_the_kernels_of_a_grid(home):
    extra = "(log.parent / f'pid-{category}').write_text(str(os.getpid())); time.sleep(300)"
    notebook(home / "notebooks", "40_last_fake", extra=extra)
    status, text, took = interrupted(home, "", lambda _: all((home / f"pid-{c}").is_file() for c in ("part", "other")))
    assert status == 130 and took < 20 and "FAILED" not in text and "Kernel died" not in text, text
    for category in ("part", "other"):
        with pytest.raises(ProcessLookupError):
            os.kill(int((home / f"pid-{category}").read_text()), 0)
        first, last = (pipeline.plan(n, given(home, category=category))[0] for n in pipeline.STAGES["fake"])
        assert first.complete and not last.complete and not list(last.path.glob(".tmp-*")) and not (last.path / "failed.ipynb").exists()


@pytest.mark.parametrize("tag", ["{seed}", "{", "{}", "}"])
def test_braces_in_names_are_no_parameters(home, monkeypatch, tag):
    from papermill.engines import papermill_engines

    def engine(name, nb, **_):
        pipeline.plan("10_first_fake", given(braced, tag=tag))[0].finish({})
        return nb

    braced = home / "{profile} {0}"
    braced.mkdir()
    for name in ("data", "mine", "notebooks"):
        (home / name).rename(braced / name)
    monkeypatch.setenv("FSAD_HOME", str(braced))
    monkeypatch.setattr(papermill_engines, "execute_notebook_with_engine", engine)
    run = pipeline.execute("10_first_fake", given(braced, tag=tag)).run
    assert run.complete and run.path.name.endswith(f"_{tag}") and (run.path / "notebook.ipynb").is_file()
    assert [p.name for p in run.path.parent.iterdir()] == [run.path.name]


@pytest.mark.parametrize("name", ["..", "a..b", ".hidden", "x" * 200])
def test_a_notebook_whose_name_could_leave_its_folder_is_refused(home, name):
    with pytest.raises(FsadError, match="notebook: found"):
        pipeline.execute(notebook(home, "00_x", body="1").rename(home / f"{name}.ipynb"))


def test_a_notebook_without_a_cell_of_a_grid(home, monkeypatch):
    path = notebook(home / "notebooks", "50_figures_adp", 'profile: str = "mini"  # which runs\n', body="x = 1")

    def stub(path, output, params, run, *_):
        Path(output).write_text("{}")
        (home / "figures").mkdir(exist_ok=True)
        (home / "figures" / "table1.csv").write_text(str(time.time_ns()))

    monkeypatch.setattr(pipeline, "_papermill", stub)
    first = pipeline.execute("50_figures_adp", {"profile": "mini"})
    assert not first.skipped and first.run.metrics["files"] == ["figures/table1.csv"]
    assert pipeline.execute("50_figures_adp").skipped
    (home / "figures" / "table1.csv").unlink()
    assert not pipeline.execute("50_figures_adp").skipped, "a lost figure is drawn again"
    runs.write_json(home / "data/runs/mini/folder/part/40_last_fake/k2_seed0/metrics.json", {"rows": []})
    assert not pipeline.execute("50_figures_adp").skipped, "a new run is drawn"
    (home / "data" / "reported").mkdir(parents=True, exist_ok=True)
    (home / "data" / "reported" / "claims.csv").write_text("id\n")
    assert not pipeline.execute("50_figures_adp").skipped, "what the paper reports was corrected"
    assert pipeline.execute("50_figures_adp").skipped
    notebook(home / "notebooks", path.stem, 'profile: str = "mini"  # which runs\n', body="x = 1  # a comment")
    assert pipeline.execute("50_figures_adp").skipped
    notebook(home / "notebooks", path.stem, 'profile: str = "mini"  # which runs\n', body="x = 2")
    assert not pipeline.execute("50_figures_adp").skipped


def test_a_tour_is_repeated_when_its_images_or_models_change(home, monkeypatch):
    monkeypatch.setattr(pipeline, "_papermill", lambda path, output, params, run, *_: Path(output).write_text("{}"))
    notebook(home / "notebooks", "00_tour", PARAMETERS, body="x = 1")

    def skipped():
        runs.forget_inputs()
        return pipeline.execute("00_tour", given(home)).skipped

    assert (skipped(), skipped()) == (False, True)
    Image.new("RGB", (8, 8)).save(home / "mine/part/test/new.png")
    assert (skipped(), skipped()) == (False, True), "an image was added"
    (home / "data/models/mini/clip/open_clip_model.safetensors").write_bytes(b"{ }")
    assert (skipped(), skipped()) == (False, True), "a model was trained again"
    with pytest.raises(FsadError, match="unknown category 'prat'"):
        pipeline.execute("00_tour", given(home, category="prat"))


def test_a_notebook_of_ones_own_may_hold_other_cells_than_python_and_other_data(home, monkeypatch):
    monkeypatch.setattr(pipeline, "_papermill", lambda path, output, params, run, *_: Path(output).write_text("{}"))
    known = 'dataset: str = "iris"  # which\ncategory: str = "all"  # of it\n'
    for body in ("%%bash\necho hi", "runs?", "if True:\n    %time x = 1"):
        notebook(home, "mine", known, body=body)
        assert [pipeline.execute(home / "mine.ipynb").skipped for _ in range(2)] == [False, True], "a changed cell runs"
    notebook(home, "mine", PARAMETERS, body="x = 1")
    everything = given(home, category="all")
    assert [pipeline.execute(home / "mine.ipynb", everything).skipped for _ in range(2)] == [False, True], "one model for all products"


def test_a_lost_product_is_made_again_and_the_others_stay(home, monkeypatch):
    made = []

    def stub(path, output, params, run, *_):
        for name in ("a.txt", "b.txt"):
            if not run.has(name):
                made.append(name)
                with run.writing(name) as temporary:
                    temporary.write_text(name)
        Path(output).write_text("{}")
        run.finish({})

    monkeypatch.setattr(pipeline, "_papermill", stub)
    run = pipeline.execute("10_first_fake", given(home)).run
    assert pipeline.execute("10_first_fake", given(home)).skipped
    (run.path / "b.txt").unlink()
    assert not pipeline.execute("10_first_fake", given(home)).skipped and made == ["a.txt", "b.txt", "b.txt"]


def test_figures_that_others_write_meanwhile_are_neither_missed_nor_listed(home, monkeypatch):
    figures = home / "figures/partial"
    figures.mkdir(parents=True)
    for name in (".tmp-1-a-x.png", "gone.png", "there.png"):
        (figures / name).write_text(name)
    original = Path.stat

    def stat(path, **more):
        if path.name == "gone.png":
            raise FileNotFoundError(path)
        return original(path, **more)

    monkeypatch.setattr(Path, "stat", stat)
    assert list(pipeline._figures()) == ["figures/partial/there.png"]


def test_only_notebooks_of_figures_look_at_the_figures(home, monkeypatch):
    def stub(path, output, params, run, *_):
        Path(output).write_text("{}")
        run.finish({})

    notebook(home / "notebooks", "00_tour", 'profile: str = "mini"  # which models\n', body="x = 1")
    monkeypatch.setattr(pipeline, "_papermill", stub)
    monkeypatch.setattr(pipeline, "_figures", lambda: pytest.fail("the figures were looked at"))
    for name, params in (("10_first_fake", given(home)), ("00_tour", {})):
        assert pipeline.execute(name, params).run.complete


# the command line


def test_help_imports_nothing_heavy():
    code = "import sys, fsad_lib.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n"
    code += "import fsad_lib.runs, fsad_lib.pipeline\n"
    code += "print(sorted(set(sys.modules) & {'torch', 'pandas', 'papermill', 'numpy', 'pydantic', 'yaml'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr


def test_a_complete_run_is_recognised_without_torch(home):
    run = pipeline.plan("10_first_fake", given(home))[0]
    run.finish({})
    run.complete_with({})
    code = "import sys; from fsad_lib.__main__ import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    words = ["run", "10_first_fake", "-p", "data_root", str(home / "mine")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith("complete already"), done.stdout + done.stderr


@pytest.mark.parametrize(
    "words, message",
    [
        (["run", "10_first_fak"], "Did you mean '10_first_fake'"),
        (["run", "10_first_fake", "-p", "shots"], "in pairs"),
        (["run", "10_first_fake", "-p", "shots", "2", "-p", "shots", "4"], "given twice"),
        (["run", "10_first_fake", "-p", "shoots", "2"], "Did you mean 'shots'"),
        (["grid", "fak"], "Unknown method"),
        (["grid", "adp", "--dataset", "minifap"], "minifab"),
        (["grid", "adp", "--category", "gaer"], "gear"),
        (["check-data", "/nowhere/at/all"], ""),
        (["grid", "adp", "--shots", "0"], "shots: found 0"),
        (["grid", "adp", "--seed", "-1"], "seed: found -1"),
        (["grid", "adp", "--tag", "../x"], "plain name"),
        (["grid", "tgvig", "--table1", "--outside", "~unknownuser/x"], "cannot use the path"),
        (["tables", "anomalysd", "--summary"], "expected adp"),
        (["tables", "--summary", "--profile", "mimi"], "mini"),
        (["grid", "adp", "--jobs", "0"], "jobs: found 0"),
        (["demo", "--jobs", "0"], "jobs: found 0"),
    ],
)
def test_mistakes_print_one_error_and_exit_with_2(home, capsys, words, message):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "Traceback" not in printed.err + printed.out


def test_a_summary_of_nothing_says_so(home, capsys):
    assert main(["tables", "--summary"]) == 0
    assert capsys.readouterr().out == "no complete run of adp in the profile mini\n"


def test_a_terminal_without_the_letters_of_a_name_is_no_error(tmp_path):
    (tmp_path / "é☃").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "fsad_lib", "check-data", str(tmp_path / "é☃")], cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "\\xe9\\u2603: unknown" in done.stdout and "Traceback" not in done.stderr, done.stderr


def test_a_reader_that_goes_away_is_no_error():
    code = "import sys; from fsad_lib.__main__ import main; sys.exit(main(['check-data', '/nowhere']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(60) == 141 and not error, error


def test_list_shows_the_parameters(home, capsys):
    assert main(["run", "10_first_fake", "--list"]) == 0
    assert "shots: int = 2  # normal images" in capsys.readouterr().out


def test_the_grid_behind_each_methods_tables():
    from fsad_lib.profiles import load_profile
    from fsad_lib.tables import anomalysd, tgvig

    plans = {method: pipeline.grids(method) for method in pipeline.STAGES}
    assert [(len(p["pairs"]), p["shots"]) for p in plans["adp"]] == [(10, (2, 4, 8, 16))]
    assert plans["anomalysd"][0]["pairs"] == [("minifab", "all"), ("elpv", "all")] and plans["anomalysd"][0]["shots"] == (1, 2, 4, 16)
    asked = {method: {p.get("overrides", "") for p in found} for method, found in plans.items()}
    assert asked["anomalysd"] >= set(anomalysd.ablation_overrides())
    assert asked["tgvig"] >= {*tgvig.ablation_overrides(), tgvig.table1_overrides(), *map(tgvig.baseline_overrides, tgvig.BASELINES)}
    for text in set.union(*asked.values()):
        load_profile("mini", text or None)
    with pytest.raises(FsadError, match="Unknown method 'patchcore'"):
        pipeline.grids("patchcore")


def test_the_papers_grid_runs_nothing_twice_and_table_1_on_its_one_product(monkeypatch):
    from fsad_lib.profiles import load_profile
    from fsad_lib.tables import tgvig

    monkeypatch.setattr(pipeline, "cells", lambda names, *more, **how: [(name, "bottle") for name in names])
    monkeypatch.setattr(pipeline, "all_images", lambda pairs: {})
    own = load_profile("paper")
    texts = [plan["overrides"] for plan in pipeline.grids("anomalysd", "paper") if "overrides" in plan]
    assert texts and all(load_profile("paper", text) != own for text in texts), "the profile's own values are no ablation"
    assert [plan["pairs"] for plan in pipeline.grids("tgvig", "paper") if plan.get("tag") == tgvig.TABLE1_TAG] == [[("mvtec_ad", "hazelnut")]]


def test_an_estimate_that_nothing_was_measured_for_is_not_given(home):
    assert pipeline.expected_seconds("40_evaluate_adp", "paper") is None and pipeline.expected_seconds("40_evaluate_adp", "mini") > 0


def in_parameters_cell(source):
    return json.dumps({"cells": [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source}]})


@pytest.mark.parametrize(
    "text",
    [
        '{"cells": [3]}',
        '{"cells": [{"cell_type": "code", "metadata": null, "source": ""}]}',
        "[" * 5000,
        in_parameters_cell("x: int = ("),
        in_parameters_cell("x: int = 1\n  y: int = 2"),
        in_parameters_cell("x: str = '''"),
        in_parameters_cell("x: int = 1\0"),
    ],
)
def test_a_malformed_notebook_is_named(home, text):
    path = home / "notebooks" / "mine.ipynb"
    path.write_text(text)
    with pytest.raises(FsadError, match="mine.ipynb"):
        pipeline.parameters(path)


@pytest.mark.parametrize(("kind", "value"), [("float", "nan"), ("float", "1e999"), ("list[int]", "[1,b'x']"), ("list[int]", "[{1}]"), ("str", "\udcff")])
def test_values_that_cannot_be_recorded_are_refused(kind, value):
    with pytest.raises(FsadError, match="'y' cannot be recorded"):
        pipeline.check_parameters(pipeline.parse_parameters(f"y: {kind} = None"), {"y": value})

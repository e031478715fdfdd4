"""The run store: names, atomic writes, products, completion, fingerprints."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsad_lib import runs
from fsad_lib.errors import FsadError

CELL = {"profile": "mini", "dataset": "folder", "category": "part", "shots": 2, "seed": 0}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project root with a user's folder of five good images and one to judge."""
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    for split, kind, count in (("train", "good", 5), ("test", "good", 1), ("test", "scratch", 1)):
        folder = tmp_path / "mine" / "part" / split / kind
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = np.full((8, 8, 3), 20 * i + len(kind), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    runs.forget_inputs()
    return tmp_path


def opened(home, **changes):
    return runs.open_run("10_fake", "test", data_root=str(home / "mine"), **CELL | changes)


def finish(run, **metrics):
    run.finish(metrics)
    run.complete_with({"wall_seconds": 1.0})


def test_a_run_has_one_folder_and_nothing_is_written_by_opening(home):
    run = opened(home)
    assert run.path.parent.parent.name.startswith("part-")  # then a hash of where the images lie
    assert run.path == home / "data/runs/mini/folder" / run.path.parts[-3] / "10_fake_test/k2_seed0"
    assert not run.complete and not run.path.exists()
    assert opened(home, tag="try").path.name == "k2_seed0_try"
    assert (run.dataset, run.category, run.shots, run.seed, run.tag) == ("folder", "part", 2, 0, "")
    with pytest.raises(AttributeError):
        run.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "", ".hidden", "a..b", "x" * 200, "a\nb", 3])
@pytest.mark.parametrize("field", ["dataset", "category", "tag"])
def test_names_that_could_leave_the_folder_are_refused(home, field, name):
    if field == "tag" and name == "":
        pytest.skip("an empty tag is allowed: it is the default")
    with pytest.raises(FsadError, match=field):
        opened(home, **{field: name})


@pytest.mark.parametrize("field, value", [("shots", 0), ("shots", True), ("shots", 2.0), ("seed", -1), ("seed", "0"), ("seed", 2**63), pytest.param("seed", 10**5000, id="long")])
def test_counts_are_checked(home, field, value):
    with pytest.raises(FsadError, match=field):
        opened(home, **{field: value})


def test_more_shots_than_images_is_an_error_that_names_both_numbers(home):
    with pytest.raises(FsadError, match=r"9.*5"):
        opened(home, shots=9).fingerprint  # noqa: B018


def test_overrides_never_replace_the_plain_run(home):
    changed = opened(home, overrides="adp.alpha=3")
    assert changed.path != opened(home).path and changed.profile.adp.alpha == 3
    assert changed.path == opened(home, overrides=" adp.alpha = 3").path
    assert changed.fingerprint != opened(home).fingerprint


def test_complete_means_metrics_with_the_same_fingerprint(home):
    run = opened(home)
    run.finish({"rows": [{"image_auroc": np.float64(0.5)}]})
    assert not opened(home).complete, "a notebook that ran by itself does not complete a run"
    run.complete_with({"wall_seconds": 1.0})
    assert opened(home).complete
    assert opened(home).metrics["rows"] == [{"image_auroc": 0.5}]
    provenance = json.loads((run.path / "provenance.json").read_text())
    assert provenance["peak_memory_mib"] > 0 and provenance["device"]
    (run.path / "metrics.json").write_text("{ half")
    assert not opened(home).complete


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object()])
def test_metrics_must_be_finite_and_plain(home, bad):
    run = opened(home)
    with pytest.raises(FsadError):
        run.finish({"image_auroc": bad})
    assert not (run.path / "result.json").exists()


def test_the_fingerprint_follows_images_models_profile_and_parameters_only(home, tmp_path):
    first = opened(home).fingerprint
    assert opened(home, tag="other").fingerprint == first, "a tag is a name, not an input"
    assert opened(home, seed=1).fingerprint != first and opened(home, shots=3).fingerprint != first
    runs.forget_inputs()
    image = home / "mine/part/test/scratch/0.png"
    os.utime(image, (1, 1))
    assert opened(home).fingerprint == first, "a new date is not a new image"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image)
    runs.forget_inputs()
    second = opened(home).fingerprint
    assert second != first
    model = home / "data/models/mini/clip"
    model.mkdir(parents=True)
    (model / "open_clip_model.safetensors").write_bytes(b"weights")
    runs.forget_inputs()
    assert opened(home).fingerprint != second


def test_the_same_data_and_models_elsewhere_give_the_same_fingerprint(home):
    first = opened(home).fingerprint
    shutil.copytree(home / "mine", home / "moved")
    assert runs.open_run("10_fake", "test", data_root=str(home / "moved"), **CELL).fingerprint == first


@pytest.mark.parametrize("method, judging", [("adp", "40_evaluate"), ("anomalysd", "21_synthesize"), ("anomalysd", "41_evaluate"), ("tgvig", "42_evaluate")])
def test_swapped_test_images_repeat_what_names_them_and_no_training(home, method, judging):
    def fingerprints():
        runs.forget_inputs()
        given = CELL | {"data_root": str(home / "mine")}
        return {stage: runs.open_run(stage, method, **given).fingerprint for stage in (judging, *runs.UPSTREAM[judging, method])}

    shutil.copy(home / "mine/part/test/good/0.png", home / "mine/part/test/good/1.png")
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(home / "mine/part/test/good/0.png")
    before = fingerprints()
    good = home / "mine/part/test/good"
    (good / "0.png").rename(good / "x.png")
    (good / "1.png").rename(good / "0.png")
    (good / "x.png").rename(good / "1.png")
    after = fingerprints()
    assert {stage for stage in before if before[stage] != after[stage]} == {judging} | ({"21_synthesize"} & before.keys())


@pytest.mark.parametrize("method, judging", [("adp", "40_evaluate"), ("anomalysd", "41_evaluate"), ("tgvig", "42_evaluate")])
def test_a_new_test_image_repeats_the_judging_alone_and_a_new_training_image_all(home, method, judging):
    def fingerprints():
        runs.forget_inputs()
        given = CELL | {"data_root": str(home / "mine")}
        return {stage: runs.open_run(stage, method, **given).fingerprint for stage in (judging, *runs.UPSTREAM[judging, method])}

    before = fingerprints()
    new = home / "mine/part/test/unknown/new.png"
    new.parent.mkdir()
    Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save(new)
    judged = fingerprints()
    assert {stage for stage in before if before[stage] != judged[stage]} == {judging}
    Image.fromarray(np.full((8, 8, 3), 78, np.uint8)).save(home / "mine/part/train/good/new.png")
    trained = fingerprints()
    assert all(trained[stage] != judged[stage] for stage in judged)


def test_linked_folders_of_a_checkpoint_count_and_hidden_files_do_not(home, tmp_path):
    model, aside = home / "data/models/mini/clip", tmp_path / "aside"
    model.mkdir(parents=True), aside.mkdir()
    (aside / "weights.bin").write_bytes(b"one")
    (model / "unet").symlink_to(aside)
    (aside / "round").symlink_to(aside)  # a loop ends
    runs.forget_inputs()
    before = opened(home).fingerprint
    (model / ".DS_Store").write_bytes(b"x"), (model / ".cache").mkdir(), (model / ".cache" / "lock").write_bytes(b"x")
    runs.forget_inputs()
    assert opened(home).fingerprint == before
    (aside / "weights.bin").write_bytes(b"other")
    runs.forget_inputs()
    assert opened(home).fingerprint != before


def test_every_stage_of_a_method_is_known_to_judge_or_not():
    from fsad_lib.pipeline import STAGES

    stages = {tuple(name.rsplit("_", 1)) for names in STAGES.values() for name in names}
    assert stages - runs.BLIND == {("40_evaluate", "adp"), ("21_synthesize", "anomalysd"), ("41_evaluate", "anomalysd"), ("42_evaluate", "tgvig")}


def test_recognising_a_complete_run_is_cheap(home):
    finish(opened(home))
    assert opened(home).complete
    start = time.perf_counter()
    for _ in range(20):
        assert opened(home).complete
    assert (time.perf_counter() - start) / 20 < 0.5


def test_large_files_are_hashed_once(home, monkeypatch):
    import hashlib

    opened(home).fingerprint  # noqa: B018
    calls = []
    original = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: calls.append(1) or original(*a))
    monkeypatch.setattr(runs, "file_hashes", runs._HashCache())  # as a new process would
    runs.forget_inputs()
    opened(home).fingerprint  # noqa: B018
    assert not calls


def test_the_memory_of_hashes_is_written_once_a_fingerprint(home, monkeypatch):
    written = []
    original = runs.write_json
    monkeypatch.setattr(runs, "write_json", lambda path, value: written.append(Path(path).name) or original(path, value))
    monkeypatch.setattr(runs, "file_hashes", runs._HashCache())
    opened(home).fingerprint  # noqa: B018
    assert written.count("sha256.json") == 1
    run = opened(home)
    assert not run.has("a")
    for name in "abc":
        run.product_path(name).write_text(name)
        run.commit(name)
    assert written.count("sha256.json") == 1
    run.finish()
    assert written.count("sha256.json") == 2 and str(run.path / "c") in runs.read_json(home / "data/runs/.cache/sha256.json")


# products


def test_products_belong_to_their_fingerprint_and_content(home):
    run = opened(home)
    assert not run.has("a.txt")
    with run.writing("a.txt") as temporary:
        temporary.write_text("one")
    assert run.has("a.txt") and opened(home).has("a.txt")
    assert not opened(home, shots=3).has("a.txt")
    run.product_path("b.txt").write_text("two")
    assert not run.has("a.txt", "b.txt"), "written but not committed"
    run.commit("b.txt")
    assert run.has("a.txt", "b.txt")
    (run.path / "a.txt").write_text("changed")
    assert not run.has("a.txt") and run.has("b.txt")
    with pytest.raises(FsadError, match="no such file"):
        run.commit("c.txt")
    with pytest.raises(FsadError, match="product"):
        run.product_path("../c.txt")


def test_unfinished_state_is_kept_for_its_fingerprint_and_goes_at_the_end(home):
    run = opened(home)
    run.scratch("state").write_text("step 3")
    (run.path / ".partial-0123456789abcdef").mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (run.path / f".tmp-{gone.pid}-a-notebook.ipynb").write_text("left by kill -9")
    run.sweep()
    assert run.scratch("state").read_text() == "step 3" and len(list(run.path.iterdir())) == 1
    finish(run)
    assert not list(run.path.glob(".*"))


def test_a_sweep_leaves_what_a_living_process_writes(home):
    run = opened(home)
    others, mine = (run.product_path("a").with_name(f".tmp-{pid}-a-maps.npz") for pid in (os.getppid(), os.getpid()))
    for path in (others, mine):
        path.write_text("half")
    run.sweep()
    assert others.exists() and not mine.exists()


def test_two_processes_that_make_one_run_list_all_its_products(home):
    code = "import sys; from fsad_lib import runs\nrun = runs.open_run('10_fake', 'test', profile='mini', dataset='folder', category='part', "
    code += "shots=2, seed=0, data_root=sys.argv[1])\n"
    code += "for i in range(40):\n    run.product_path(f'{sys.argv[2]}{i}').touch(); run.commit(f'{sys.argv[2]}{i}')"
    opened(home).fingerprint  # noqa: B018
    both = [subprocess.Popen([sys.executable, "-c", code, str(home / "mine"), letter]) for letter in "ab"]
    assert [p.wait(60) for p in both] == [0, 0]
    assert len(runs.read_json(opened(home).path / "products.json")) == 80


def test_two_folders_with_a_product_of_one_name_keep_a_run_each(home, monkeypatch):
    finish(opened(home))
    shutil.copytree(home / "mine", home / "moved")
    second = runs.open_run("10_fake", "test", data_root=str(home / "moved"), **CELL)
    assert not second.complete and second.path != opened(home).path and second.category == "part"
    monkeypatch.chdir(home)
    assert runs.open_run("10_fake", "test", data_root="mine", **CELL).path == opened(home).path, "however the folder is named"
    finished = opened(home).path.relative_to(home)
    shutil.copytree(home / "mine", home / "elsewhere/mine")
    monkeypatch.setenv("FSAD_HOME", str(home / "elsewhere"))
    assert opened(home / "elsewhere").path == home / "elsewhere" / finished, "the project may be moved as a whole"


def test_upstream_is_the_same_cell_of_another_stage(home):
    run = opened(home, seed=1, tag="x").upstream("05_before")
    assert run.path == opened(home).path.parents[1] / "05_before_test/k2_seed1_x"


def test_two_processes_do_not_share_a_run(home):
    run = opened(home)
    with run.locked(), pytest.raises(FsadError, match="another process"), opened(home).locked():
        pass
    with opened(home).locked():
        pass


def test_what_runs_share_is_made_once_and_the_second_waits(home, capsys):
    run, made = opened(home), []

    def make():
        with opened(home).making():
            if not run.has("model.bin"):
                with run.writing("model.bin") as path:
                    path.write_text("trained")
                made.append("second")

    with run.making():
        second = threading.Thread(target=make)
        second.start()
        second.join(0.5)
        assert second.is_alive() and not made
        with run.writing("model.bin") as path:
            path.write_text("trained")
    second.join(10)
    assert not second.is_alive() and not made and "waiting for it" in capsys.readouterr().err
    make()


# writing


def failing(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number, word", [(errno.ENOSPC, "disk is full"), (errno.EACCES, "permission"), (errno.EROFS, "read-only")])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, number, word):
    target = tmp_path / "metrics.json"
    runs.write_json(target, {"old": 1})
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(FsadError, match=word):
        runs.write_json(target, {"new": 2})
    assert json.loads(target.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_an_error_of_the_writer_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(FsadError, match="^/elsewhere/b.bin: "), runs.replacing(tmp_path / "a.bin"):
        raise PermissionError(errno.EACCES, "no", "/elsewhere/b.bin")  # of another file: no advice about this one
    with pytest.raises(KeyError), runs.replacing(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"half")
        raise KeyError
    with pytest.raises(FsadError, match="disk is full"), runs.replacing(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    for text in ("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0", "basic_ios::clear: iostream error"):  # torch.save
        with pytest.raises(FsadError, match="disk is full"), runs.replacing(tmp_path / "a.bin"):
            raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="another"), runs.replacing(tmp_path / "a.bin"):
        raise RuntimeError("another error")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=4096))
    with pytest.raises(FsadError, match="disk is full"), runs.replacing(tmp_path / "a.bin"):
        raise RuntimeError("another error")
    assert not list(tmp_path.iterdir())


def test_a_full_device(tmp_path):
    if not Path("/dev/full").is_char_device():
        pytest.skip("needs /dev/full")
    with pytest.raises(FsadError, match="disk is full"), runs.replacing(tmp_path / "a"), open("/dev/full", "w") as full:
        full.write("x" * 100_000)
    assert not list(tmp_path.iterdir())


def test_a_file_where_a_folder_is_needed(home):
    (home / "data").mkdir(exist_ok=True)
    run = opened(home)
    run.fingerprint  # noqa: B018
    (home / "data" / "runs" / "mini").mkdir(parents=True, exist_ok=True)
    (home / "data" / "runs" / "mini" / "folder").write_text("in the way")
    with pytest.raises(FsadError, match="a file stands where a folder is needed"):
        run.product_path("a.txt")


def test_broken_json_reads_as_nothing(tmp_path):
    (tmp_path / "a").write_text("{")
    assert runs.read_json(tmp_path / "a") is None and runs.read_json(tmp_path / "b") is None


@pytest.mark.parametrize("text", ["[" * 100_000, "null", "3", "[1]", '{"rows.json": 5}', '{"rows.json": {"sha256": [], "fingerprint": "x"}}'])
def test_a_broken_record_is_simply_not_complete(home, text):
    run = opened(home)
    with run.writing("rows.json") as temporary:
        temporary.write_text("[]")
    finish(run)
    for name in ("products.json", "metrics.json", "result.json"):
        (run.path / name).write_text(text)
    again = opened(home)
    assert not again.has("rows.json") and not again.complete
    again.complete_with({})
    again.commit("rows.json")
    assert again.has("rows.json")


@pytest.mark.parametrize("lost", ["rows.json", "report/report.md", "report/heatmaps/1.png"])
def test_a_run_without_what_it_made_is_not_complete(home, lost):
    run = opened(home)
    with run.writing("rows.json") as temporary:
        temporary.write_text("[]")
    for name in ("report/report.md", "report/heatmaps/1.png"):
        with runs.replacing(run.path / name) as temporary:
            temporary.write_text(name)
    (run.path / "report" / ".tmp-1-a-report.md").write_text("of a process that was killed")
    finish(run)
    assert run.metrics["products"] == {"report/heatmaps/1.png": 21, "report/report.md": 16, "rows.json": 2}
    assert opened(home).complete
    (run.path / lost).unlink()
    assert not opened(home).complete
    finish(opened(home))
    assert opened(home).complete, "what no stage makes any more is not waited for"


@pytest.mark.parametrize("cut", ["rows.json", "report/predictions.csv"])
def test_a_run_whose_products_were_emptied_is_not_complete(home, cut):
    run = opened(home)
    with run.writing("rows.json") as temporary:
        temporary.write_text("[1, 2]")
    with runs.replacing(run.path / "report/predictions.csv") as temporary:
        temporary.write_text("rank,path")
    finish(run)
    assert opened(home).complete
    (run.path / cut).write_text("")
    assert not opened(home).complete


def test_a_tag_of_ones_own_does_not_look_like_that_of_overrides(home):
    with pytest.raises(FsadError, match="set-1234.*Choose another"):
        opened(home, tag="set-1234")


def test_a_run_recorded_before_products_were_listed_stays_complete(home):
    run = opened(home)
    finish(run)
    runs.write_json(run.path / "metrics.json", {name: value for name, value in run.metrics.items() if name != "products"})
    assert opened(home).complete


@pytest.mark.parametrize("files", [None, [None], [3], "abc", ["x" * 5000], ["a\0b"], {"gone": 1}, {"a\0b": 1}])
def test_a_record_with_other_than_names_of_files_is_not_complete(home, files):
    run = opened(home)
    finish(run)
    for field in ("files", "products"):
        runs.write_json(run.path / "metrics.json", run.metrics | {"files": [], "products": {}, field: files})
        assert not opened(home).complete


@pytest.mark.parametrize("entry", [None, [], [1, 2], "abc", [None, None, "a", 1], {}, [1, 2, "a" * 64]])
def test_a_broken_memory_of_hashes_is_filled_again(home, monkeypatch, entry):
    first = opened(home).fingerprint
    path = home / "data/runs/.cache/sha256.json"
    runs.write_json(path, dict.fromkeys(runs.read_json(path), entry))
    monkeypatch.setattr(runs, "file_hashes", runs._HashCache())
    runs.forget_inputs()
    assert opened(home).fingerprint == first


def test_a_file_changed_behind_its_old_date_is_hashed_again(home):
    image = home / "mine/part/test/scratch/0.png"
    before, stat = runs.file_hashes([image]), image.stat()
    image.write_bytes(bytes(reversed(image.read_bytes())))
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert runs.file_hashes([image]) != before


# code hashes

PACKAGE = {
    "__init__": "from pack.other import unrelated\nfrom pack.maths import double\n",
    "maths": "'''Doc.'''\nfrom .deep import base\n\ndef double(x):\n    '''Twice.'''\n    return base.TWO * x  # comment\n",
    "deep/__init__": "from pack.other import unrelated\n",
    "deep/base": "TWO = 2\n",
    "deep/lazy": "THREE = 3\n",
    "other": "def unrelated():\n    return 0\n",
    "stages": (
        "from pack import double\nfrom pack.other import unrelated\nFACTOR = 1\n\n"
        "def helper(x):\n    from pack.deep.lazy import THREE\n    return THREE * FACTOR\n\n"
        "def first(x):\n    return double(helper(x))\n\ndef second(x):\n    return unrelated()\n"
    ),
}


@pytest.fixture
def package(tmp_path):
    clock = iter(range(10**18, 10**19, 10**9))  # a file's date must change as it does between two edits by hand

    def write(**changes):
        for name, text in (PACKAGE | {k.replace("__", "/"): v for k, v in changes.items()}).items():
            path = tmp_path / "pack" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
                os.utime(path, ns=(next(clock), next(clock)))
        return tmp_path / "pack"

    return write


def test_comments_docstrings_and_layout_do_not_count(package):
    before = runs.code_hash("pack.stages:first", package=package())
    text = "'''Another.'''\nfrom .deep import base  # why\n\n\ndef double(x):\n    return (base.TWO\n            * x)\n"
    assert runs.code_hash("pack.stages:first", package=package(maths=text)) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"maths": PACKAGE["maths"].replace("* x", "+ x")},
        {"deep__base": "TWO = 2.5\n"},
        {"deep__lazy": "THREE = 4\n"},
        {"stages": PACKAGE["stages"].replace("FACTOR = 1", "FACTOR = 7")},
        {"stages": PACKAGE["stages"].replace("THREE * FACTOR", "THREE")},
    ],
)
def test_a_change_of_used_code_counts_however_deep(package, changes):
    before = runs.code_hash("pack.stages:first", package=package())
    assert runs.code_hash("pack.stages:first", package=package(**changes)) != before


def test_a_table_beside_a_used_module_counts(package):
    folder = package()
    before = runs.code_hash("pack.stages:first", package=folder)
    (folder / "deep" / "words.csv").write_text("a,b\n")
    after = runs.code_hash("pack.stages:first", package=folder)
    assert after != before
    (folder / "elsewhere").mkdir(), (folder / "elsewhere" / "words.csv").write_text("a,b\n")
    assert runs.code_hash("pack.stages:first", package=folder) == after


def test_the_hash_is_the_same_under_every_python(package):
    """Python 3.12 gave functions type parameters, 3.13 stopped to write empty fields; both would repeat every run."""
    source = "def f(a, *b, c=None, **d):\n    return [x for x in b if x] or (lambda: a)()\n\n\nclass C:\n    x: int = 1\n"
    assert runs.digest(runs._dump(runs.ast.parse(source)))[:16] == "743051983660ac23"


def test_unrelated_code_does_not_count(package):
    before = runs.code_hash("pack.stages:first", package=package())
    changed = package(other="def unrelated():\n    return 1\n", stages=PACKAGE["stages"].replace("second", "third"))
    assert runs.code_hash("pack.stages:first", package=changed) == before
    assert runs.code_hash("pack.stages:third", package=changed) != runs.code_hash("pack.stages:first", package=changed)


def test_notebook_source_and_literal_dynamic_imports_are_followed(package):
    source = "import importlib\nm = importlib.import_module('pack.deep.base')"
    before = runs.code_hash(source=source, package=package())
    assert runs.code_hash(source=source, package=package(deep__base="TWO = 3\n")) != before
    assert runs.code_hash(source=source + "  # note", package=package()) == before
    assert runs.code_hash(source=source + "\nx = 1", package=package()) != before


def test_the_hash_is_remembered_until_a_file_changes(package, monkeypatch):
    folder = package()
    before = runs.code_hash("pack.stages:first", package=folder)
    monkeypatch.setattr(runs, "_parse", lambda *a: pytest.fail("parsed again"))
    assert runs.code_hash("pack.stages:first", package=folder) == before


def test_import_cycles_end(package):
    folder = package(deep__base="from pack import maths\nTWO = 2\n")
    assert runs.code_hash("pack.stages:first", package=folder)


@pytest.mark.parametrize("home", ["~nosuchuser/x", "/" + "a" * 5000])
def test_a_project_folder_that_cannot_be_is_named(monkeypatch, home):
    monkeypatch.setenv("FSAD_HOME", home)
    with pytest.raises(FsadError, match="FSAD_HOME is"):
        runs.project_root()


def test_a_project_folder_of_links_in_a_circle_is_named(monkeypatch, tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    monkeypatch.setenv("FSAD_HOME", str(tmp_path / "a" / "x"))
    with pytest.raises(FsadError, match="FSAD_HOME is"):
        runs.project_root()


def test_a_file_system_without_locks_is_no_error(home, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(runs.fcntl, "flock", refuse)
    with opened(home).locked():
        pass

"""MiniFab: deterministic, written whole or not at all, splits apart, masks exact, and as difficult as it says."""

import json
import multiprocessing
import os
import signal
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fsad_lib.datasets import minifab
from fsad_lib.datasets.minifab import defects, designs, render, statistics
from fsad_lib.errors import FsadError

EVERY = [(split, category) for split in minifab.CATEGORIES for category in minifab.CATEGORIES[split]]


@pytest.fixture
def small(monkeypatch):
    """Few images a category."""
    for name, value in (("TRAIN_GOOD", 2), ("TEST_GOOD", 2), ("PER_KIND", 1)):
        monkeypatch.setattr(minifab, name, value)
    monkeypatch.setattr(statistics, "PER_KIND", 1)


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def pair(split, category, kind, index=0):
    """(defective, flawless twin, mask) as `write` makes them."""
    rng = minifab._rng(split, category, kind, index)
    scene = render.sample_scene(minifab.category_design(split, category), rng)
    if not defects.possible(scene, kind):
        return None
    image, mask = defects.apply(scene, kind, rng)
    return image, statistics.flawless_twin(split, category, kind, index), mask


# ---------------------------------------------------------------------------------------------------------------- writing
def test_same_bytes_twice_in_mvtec_layout(tmp_path, small):
    first, second = (minifab.write(tmp_path / name, "evaluation", "gear") for name in "ab")
    made = contents(first)
    assert made == contents(second)
    assert {name.rsplit("/", 1)[0] for name in made if name.endswith("mask.png")} == {f"ground_truth/{k}" for k in minifab.KINDS}
    for kind in minifab.KINDS:
        image, mask = (Image.open(first / p) for p in (f"test/{kind}/000.png", f"ground_truth/{kind}/000_mask.png"))
        assert (image.mode, mask.mode, image.size) == ("RGB", "L", (128, 128)) and image.size == mask.size
        assert set(np.unique(mask)) == {0, 255}
    good = [v for name, v in made.items() if "/good/" in name]
    assert len(good) == 4 == len(set(good))  # no training image comes back as a test image


def test_one_image_does_not_depend_on_the_others(tmp_path, small, monkeypatch):
    before = contents(minifab.write(tmp_path / "a", "development", "key"))
    monkeypatch.setattr(minifab, "TRAIN_GOOD", 3)
    after = contents(minifab.write(tmp_path / "b", "development", "key"))
    assert all(after[name] == data for name, data in before.items())
    assert set(after) - set(before) == {"train/good/002.png"}


def test_a_half_written_folder_is_redone_and_a_whole_one_left_alone(tmp_path, small):
    whole = contents(minifab.write(tmp_path / "whole", "development", "key"))
    folder = minifab.write(tmp_path / "half", "development", "key")
    (folder / minifab.MARKER).unlink()
    (folder / "test/good/000.png").write_bytes(b"half")
    (folder / "train/good/999.png").write_bytes(b"stray")
    assert contents(minifab.write(tmp_path / "half", "development", "key")) == whole
    (folder / minifab.MARKER).write_text(json.dumps({"edition": -1}))  # an older generator's
    assert contents(minifab.write(tmp_path / "half", "development", "key")) == whole
    for gone in ("train/good/000.png", next(str(p.relative_to(folder)) for p in folder.glob("ground_truth/*/000*.png"))):
        (folder / gone).unlink()  # by a hand, or a removal that was stopped
        assert contents(minifab.write(tmp_path / "half", "development", "key")) == whole
    stamp = folder.stat().st_mtime_ns
    minifab.write(tmp_path / "half", "development", "key")
    assert folder.stat().st_mtime_ns == stamp


def _write_and_die(root):
    seen, photograph = [], render.photograph

    def last_words(*args):
        seen.append(1)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return photograph(*args)

    render.photograph = last_words
    minifab.write(root, "development", "key")


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_a_kill_leaves_no_folder_that_looks_whole(tmp_path, small):
    process = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(tmp_path,))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "key").exists()
    assert (minifab.write(tmp_path, "development", "key") / minifab.MARKER).is_file()


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, small, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(FsadError, match="No space left on device.*Free some space"):
        minifab.write(tmp_path, "development", "key")
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_refused_with_the_valid_ones(tmp_path):
    with pytest.raises(FsadError, match="development category 'gear'.*nut, button"):
        minifab.write(tmp_path, "development", "gear")
    with pytest.raises(FsadError, match="split 'test'.*evaluation, development"):
        minifab.write(tmp_path, "test", "gear")


# ----------------------------------------------------------------------------------------------------------------- splits
def test_constructions_of_the_splits_are_disjoint_and_used(monkeypatch):
    sets = [set(v) for v in designs.CONSTRUCTIONS.values()]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 6
    used = []
    real = designs._object_shape
    monkeypatch.setattr(designs, "_object_shape", lambda noun, v, *rest: used.append(v) or real(noun, v, *rest))
    for split, allowed in designs.CONSTRUCTIONS.items():
        used.clear()
        for i in range(40):
            made = designs.make_design("gear", split, np.random.default_rng(i))
            texture = designs.make_design("wood", split, np.random.default_rng(i))
            assert texture.texture["variant"] in allowed and made.noun == "gear"
        assert set(used) == set(allowed)


def test_noun_and_colour_pairs_of_pretraining_never_return():
    def drawn(split):
        return {
            (noun, designs.make_design(noun, split, np.random.default_rng(i)).colour) for noun in designs.NOUNS for i in range(40)
        }

    training = drawn("pretraining")
    assert not training & (drawn("development") | drawn("evaluation"))
    assert {noun for noun, _ in training} == set(designs.NOUNS)  # every word is taught
    assert {colour for _, colour in training} == set(designs.COLOURS)
    table = statistics.split_table()["(noun, colour) pairs"]
    assert table["pretraining"] + table["evaluation"] == len(designs.NOUNS) * len(designs.COLOURS)
    assert len(training) <= table["pretraining"]


def test_categories_of_the_splits_are_disjoint_nouns_and_textures_among_them():
    evaluation, development = (set(minifab.CATEGORIES[s]) for s in ("evaluation", "development"))
    assert not evaluation & development and evaluation | development <= set(designs.NOUNS)
    assert all(s & set(designs.TEXTURES) and s & set(designs.OBJECTS) for s in (evaluation, development))


def test_unseen_kinds_are_at_least_three_and_all_logical_ones():
    assert set(defects.LOGICAL) < defects.UNSEEN and len(defects.UNSEEN - set(defects.LOGICAL)) >= 3
    assert not defects.UNSEEN & set(defects.SEEN) and len(set(defects.KINDS)) == len(defects.KINDS) >= 10


# ------------------------------------------------------------------------------------------------------------------ masks
CASES = [("evaluation", "gear", kind) for kind in defects.KINDS]
CASES += [(split, category, "bend") for split, category in EVERY if category != "gear"]
CASES += [(split, category, defects.KINDS[i % 9]) for i, (split, category) in enumerate(EVERY) if category != "gear"]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_masks_are_exact_and_not_empty(case):
    image, twin, mask = pair(*case)
    change = np.abs(image.astype(int) - twin).max(2)
    assert mask.any() and mask.mean() < 0.25
    assert change[~mask].max() <= 7  # nothing else has changed: 6 levels are the threshold, 1 is rounding
    assert (change[mask] >= 5).mean() > 0.95  # all of it has, but for pixels that the noise clips at black or white


def test_logical_defects_need_parts():
    assert pair("development", "leather", "missing_part") is None
    assert pair("evaluation", "gear", "wrong_count") is not None


# ------------------------------------------------------------------------------------------------------------- difficulty
def test_the_published_difficulty_is_current_and_hard_enough(tmp_path):
    stored = statistics.read_difficulty().set_index(["split", "category"])
    assert set(stored.index) == {*EVERY, ("development", "all"), ("evaluation", "all")}
    fresh = statistics.difficulty(tmp_path, "development", ["leather"]).set_index(["split", "category"])
    remedy = "python -m fsad_lib.datasets.minifab.statistics measures it anew"
    pd.testing.assert_frame_equal(
        fresh.loc[[("development", "leather")]], stored.loc[[("development", "leather")]], rtol=0.03, check_dtype=False, obj=remedy
    )
    development = stored.loc["development", "all"]
    assert development["median_area_%"] <= 1.5 and development["below_0.5_%"] >= 25
    assert development["pixel_auroc"] <= statistics.PIXEL_LIMIT


def test_statistics_of_one_category_follow_their_definition(tmp_path, small):
    table = statistics.defects_of(tmp_path, "development", "nut")
    folder = tmp_path / "nut"
    for row in table.itertuples():
        mask = np.asarray(Image.open(folder / "ground_truth" / row.kind / "000_mask.png")) > 0
        image = np.asarray(Image.open(folder / "test" / row.kind / "000.png")).astype(float) / 255
        twin = statistics.flawless_twin("development", "nut", row.kind, 0) / 255
        assert row.area == mask.sum() / 128**2 and row.seen == (row.kind in defects.SEEN)
        assert row.contrast == pytest.approx(np.abs(image - twin).max(2)[mask].mean())
    good = np.stack([np.asarray(Image.open(p)).astype(float) for p in sorted((folder / "train/good").glob("*"))]).mean(0)
    far = {p: np.abs(np.asarray(Image.open(p)) - good).mean() for p in (folder / "test").glob("*/*.png")}
    ranks = [b > a for p, a in far.items() if p.parent.name == "good" for q, b in far.items() if q.parent.name != "good"]
    assert statistics.pixel_distance(tmp_path, "development", "nut") == pytest.approx(np.mean(ranks))


def test_what_a_killed_writer_left_is_removed_after_an_hour(tmp_path):
    old, new, foreign = (tmp_path / name for name in (".gear.abcd1234", ".gear.efgh5678", ".gear.my-own-things"))
    for folder in (old, new, foreign):
        (folder / "train").mkdir(parents=True)
    for folder in (old, foreign):
        os.utime(folder, (0, 0))
    minifab._sweep(tmp_path, "gear")
    assert not old.exists() and new.exists() and foreign.exists()


def test_the_edition_does_not_change_the_images(monkeypatch):
    before = minifab._rng("evaluation", "gear").integers(1 << 30)
    monkeypatch.setattr(minifab, "EDITION", minifab.EDITION + 1)
    assert minifab._rng("evaluation", "gear").integers(1 << 30) == before

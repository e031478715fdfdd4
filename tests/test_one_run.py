"""Tables of one run, checked against scikit-learn on seeded random scores."""

import numpy as np
import pandas as pd
import pytest
from fake_runs import fake_run
from sklearn.metrics import roc_auc_score

from fsad_lib import tables
from fsad_lib.errors import FsadError
from fsad_lib.tables import one_run


@pytest.fixture
def predictions(tmp_path):
    return pd.read_parquet(fake_run(tmp_path, "minifab", "gear", 4, 0, n=40) / "predictions.parquet")


def part(predictions, method, part):
    return predictions[(predictions.method == method) & (predictions.part == part)]


def test_gap_is_the_difference_of_two_aurocs_and_lies_in_its_interval(predictions):
    found = one_run.gap(predictions, "adp", "memory")
    expected = [100 * roc_auc_score(t.label, t.score) for t in (part(predictions, "adp", p) for p in ("sum", "memory"))]
    assert found["left"] == pytest.approx(expected[0]) and found["right"] == pytest.approx(expected[1])
    assert found["mean"] == pytest.approx(expected[0] - expected[1], abs=1e-9)
    assert found["low"] <= found["mean"] <= found["high"]
    assert one_run.gap(predictions, "memory", "adp")["mean"] == pytest.approx(-found["mean"])


def test_gap_does_not_depend_on_the_order_of_the_images(predictions):
    mixed = predictions.sample(frac=1, random_state=1)
    assert one_run.gap(mixed, "adp", "winclip") == one_run.gap(predictions, "adp", "winclip")


def test_groups_of_defects_share_the_good_images(predictions):
    table = part(predictions, "adp", "sum")
    keep = (table.label == 0) | ~table.seen
    expected = 100 * roc_auc_score(table.label[keep], table.score[keep])
    assert one_run.gap(predictions, "adp", "memory", "unseen")["left"] == pytest.approx(expected)


def with_scores(predictions, memory, total):
    changed = predictions.copy()
    for name, score in (("memory", memory), ("sum", total)):
        where = (changed.method == "adp") & (changed.part == name)
        changed.loc[where, "score"] = score(changed.label[where].to_numpy())
    return changed


@pytest.mark.parametrize(
    "memory, total, word",
    [
        (lambda y: np.arange(len(y)) % 2, lambda y: y, "The sum is better"),
        (lambda y: y, lambda y: np.arange(len(y)) % 2, "WORSE"),
        (lambda y: y, lambda y: 2 * y + 1, "not told apart"),
    ],
)
def test_memory_verdict_says_what_the_numbers_say(predictions, memory, total, word):
    assert word in one_run.memory_verdict(with_scores(predictions, memory, total))


def test_memory_verdict_names_the_part_that_the_sum_follows(predictions):
    text = part(predictions, "adp", "text").score.to_numpy()
    follows_text = one_run.memory_verdict(with_scores(predictions, lambda y: np.arange(len(y)) % 7, lambda y: 3 * text))
    assert "Rank correlation of the sum with its text part 1.00" in follows_text
    assert "learned words" not in follows_text, "the text score holds untrained words as well"


def test_without_labels_nothing_is_claimed(predictions):
    unknown = predictions.assign(label=-1, defect="unknown")
    assert not one_run.has_labels(unknown)
    assert "cannot be measured" in one_run.memory_verdict(unknown)
    with pytest.raises(FsadError, match="expected both"):
        one_run.gap(predictions[predictions.label == 1], "adp", "memory")


def test_unknown_or_missing_methods_are_named(predictions):
    with pytest.raises(FsadError, match="Unknown method 'adpp'"):
        one_run.scores_of(predictions, "adpp")
    with pytest.raises(FsadError, match="no scores of 'ADP'"):
        one_run.scores_of(predictions[predictions.method != "adp"], "adp")


def test_by_defect_counts_each_kind_against_all_good_images(predictions):
    table = one_run.by_defect(predictions, ("memory", "adp", "winclip"))
    scores = part(predictions, "adp", "sum")
    for kind, row in table.iterrows():
        keep = (scores.label == 0) | (scores.defect == kind)
        assert row["ADP"] == pytest.approx(100 * roc_auc_score(scores.label[keep], scores.score[keep]), abs=0.051)
        assert row["n"] == (scores.defect == kind).sum()
    assert table.index.tolist() == ["scratch", "hole"]  # seen first
    assert "seen" not in one_run.by_defect(predictions.assign(seen=True))


def test_failures_are_the_lowest_defective_and_the_highest_good(predictions):
    table = one_run.failures(predictions, "adp", 3)
    scores = part(predictions, "adp", "sum")
    missed, alarms = table[table.mistake == "missed"], table[table.mistake == "false alarm"]
    assert missed.score.tolist() == sorted(scores.score[scores.label == 1])[:3]
    assert alarms.score.tolist() == sorted(scores.score[scores.label == 0], reverse=True)[:3]
    assert table.worse.between(0, 1).all() and missed.worse.is_monotonic_decreasing
    perfect = predictions.assign(score=predictions.label + predictions.score / 1000)
    assert set(one_run.failures(perfect, "adp", 3).mistake) == {"no mistake"}


def test_method_table_has_every_control_and_shares_the_memory(tmp_path):
    import json

    rows = json.loads((fake_run(tmp_path, "minifab", "gear", 4, 0) / "metrics.json").read_text())["rows"]
    rows = [r for r in rows if not (r["part"] == "memory" and r["method"] in ("ti", "c_n", "c_a", "object", "label", "adp_l"))]
    table = one_run.method_table(rows)
    assert (table.role == "control").sum() == 4
    adp = next(r for r in rows if (r["method"], r["part"], r["group"]) == ("adp", "memory", "all"))
    assert table.loc["c_n", "AUROC memory"] == table.loc["ADP", "AUROC memory"] == f"{100 * adp['image_auroc']:.1f}"
    assert table.loc["patch memory (nearest neighbour)", "AUROC sum"] == "–"
    assert one_run.method_table([]).empty


def test_a_small_grid_never_replaces_the_committed_tables(tmp_path):
    assert one_run.destination(tables.collect(tmp_path), root=tmp_path)[0] == tmp_path / "figures/partial"
    for seed in (0, 1):
        fake_run(tmp_path, "minifab", "gear", 4, seed)
    assert one_run.destination(tables.collect(tmp_path), root=tmp_path)[0] == tmp_path / "figures"
    tables.write_results(tmp_path)
    assert one_run.destination(tables.collect(tmp_path), root=tmp_path)[0] == tmp_path / "figures"
    rows = tables.collect(tmp_path)
    folder, why = one_run.destination(rows[rows.seed == 0], root=tmp_path)
    assert folder == tmp_path / "figures/partial" and "replaces nothing" in why


def test_coverage_says_what_was_not_run(tmp_path):
    for seed in (0, 1, 2):
        fake_run(tmp_path, "elpv", "mono", 4, seed)
    table = one_run.coverage(tables.collect(tmp_path))
    assert table.loc["ELPV mono", "4 shots"] == "3 of 3" and table.loc["ELPV mono", "8 shots"] == "not run"
    assert (table.loc["MVTec AD"].drop("profile") == "not run").all() and table.loc["MVTec AD", "profile"] == "paper"


def test_runs_without_their_products_are_not_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    fake_run(tmp_path, "elpv", "mono", 4, 0)
    assert list(one_run.drawable("mini")) == []


def test_examples_are_chosen_without_scores_and_never_twice():
    kinds = ["good"] * 3 + [f"kind{i}" for i in range(9) for _ in range(2)]
    chosen = one_run.examples(pd.DataFrame({"defect": kinds}), 5)
    assert len(set(chosen)) == 5 and kinds[chosen[0]] == "good"
    assert [kinds[i] for i in chosen[1:]] == ["kind0", "kind3", "kind5", "kind8"]
    assert len(set(one_run.examples(pd.DataFrame({"defect": ["good", "bad", "bad", "bad"]}), 5))) == 4


def test_typical_images_are_neither_the_best_nor_the_worst(predictions):
    unsorted = one_run.typical(predictions.assign(label=-1), n=2)
    assert len(unsorted) == 2 and set(unsorted.label) == {-1}, "an own folder without labels has ordinary images, too"
    table = one_run.typical(predictions, n=2)
    assert table.label.tolist() == [0, 0, 1, 1]
    scores = part(predictions, "adp", "sum")
    for label in (0, 1):
        ranks = scores[scores.label == label].score.rank()[scores.path.isin(table.path)].sort_values()
        assert ranks.tolist() == [11, 31]
    memory = part(predictions, "adp", "memory").set_index("path").score
    assert table.memory.tolist() == memory[table.path].tolist()


def test_data_sets_without_a_number_become_one_sentence(tmp_path):
    fake_run(tmp_path, "elpv", "mono", 4, 0)
    shown, missing = one_run.something_to_show(tables.table2(tmp_path))
    assert set(shown.data_set) == {"MVTec AD", "VisA", "ELPV mono"}
    assert missing == "Not run: MiniFab (profile mini), ELPV poly (profile mini)."
    assert one_run.something_to_show(tables.table2(tmp_path).iloc[:0])[1] == "Not run: nothing of this table."

"""Tables: means, seeds, intervals, what may stand beside a paper's number, and the files."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from fake_runs import auroc, fake_run

from fsad_lib import datasets, tables
from fsad_lib.errors import FsadError
from fsad_lib.runs import project_root
from fsad_lib.tables import _rows
from fsad_lib.tables._claims import _against_chance

MVTEC = datasets.categories("mvtec_ad")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmark")
    for category in MVTEC:
        for seed in range(3):
            fake_run(root, "mvtec_ad", category, 4, seed, profile="paper", groups=False)
    return root


@pytest.fixture
def mvtec(benchmark, tmp_path):
    """A complete paper-profile benchmark at 4 shots, three seeds; without predictions, which it does not need."""
    shutil.copytree(benchmark, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.parquet"))
    return tmp_path


def cell(table, data_set, key, shots=4, profile=None):
    hit = table[(table.data_set == data_set) & (table.key == key) & (table.shots == shots)]
    hit = hit if profile is None else hit[hit.profile == profile]
    assert len(hit) == 1
    return hit.iloc[0]


def slow_mean(root, dataset, categories, shots, seeds, method, part, profile):
    """Mean and sample deviation over seeds of the mean over categories, file by file."""
    means = []
    for seed in seeds:
        values = []
        for category in categories:
            path = root / "data/runs" / profile / dataset / category / f"40_evaluate_adp/k{shots}_seed{seed}/metrics.json"
            for row in json.loads(path.read_text())["rows"]:
                if (row["method"], row["part"], row["group"]) == (method, part, "all"):
                    values.append(100 * row["image_auroc"])
        assert len(values) == len(categories)
        means.append(sum(values) / len(values))
    mean = sum(means) / len(means)
    return mean, math.sqrt(sum((m - mean) ** 2 for m in means) / (len(means) - 1))


def test_mean_and_deviation_match_a_slow_reference(mvtec):
    table = tables.table1(mvtec, "paper", (4,))
    for key, source in (("adp", ("adp", "sum")), ("memory", ("adp", "memory")), ("patch_memory", ("patch_memory", "memory"))):
        row = cell(table, "MVTec AD", key)
        mean, std = slow_mean(mvtec, "mvtec_ad", MVTEC, 4, range(3), *source, "paper")
        assert row.ours == pytest.approx(mean) and row.ours_std == pytest.approx(std)
        assert (row.n_seeds, row.categories, row.state) == (3, 15, "run")
        assert row.low < row.ours < row.high
    adp = cell(table, "MVTec AD", "adp")
    assert adp.reported == 95.8 and adp.difference == pytest.approx(adp.ours - 95.8)


def test_a_missing_seed_lowers_n_and_a_single_seed_has_no_deviation(mvtec):
    for category in MVTEC:
        (mvtec / f"data/runs/paper/mvtec_ad/{category}/40_evaluate_adp/k4_seed2/metrics.json").unlink()
    row = cell(tables.table1(mvtec, "paper", (4,)), "MVTec AD", "adp")
    assert row.n_seeds == 2
    for category in MVTEC[1:]:  # seed 1 keeps one category only: it is no data-set mean
        (mvtec / f"data/runs/paper/mvtec_ad/{category}/40_evaluate_adp/k4_seed1/metrics.json").unlink()
    row = cell(tables.table1(mvtec, "paper", (4,)), "MVTec AD", "adp")
    assert row.n_seeds == 1 and math.isnan(row.ours_std)
    shown = tables.show(tables.table1(mvtec, "paper", (4,)))
    text = shown[(shown["Data set"] == "MVTec AD") & (shown["Method"] == "ADP")]["4 shots: Ours"].item()
    assert text == f"{row.ours:.1f} (1)"


def test_a_missing_category_hides_the_benchmark_mean(mvtec):
    for seed in range(3):
        (mvtec / f"data/runs/paper/mvtec_ad/bottle/40_evaluate_adp/k4_seed{seed}/metrics.json").unlink()
    row = cell(tables.table1(mvtec, "paper", (4,)), "MVTec AD", "adp")
    assert row.state == "partial" and math.isnan(row.ours) and math.isnan(row.difference)
    shown = tables.show(tables.table1(mvtec, "paper", (4,)))
    assert shown[(shown["Data set"] == "MVTec AD") & (shown["Method"] == "ADP")]["4 shots: Ours"].item() == (
        "partial: 14 of 15 categories"
    )
    claims = tables.claims(mvtec, "paper")
    gain = claims[(claims["Claim"].str.contains("WinCLIP\\+ at 4 shots")) & (claims["Data set"] == "MVTec AD")].iloc[0]
    assert gain["Ours"] == gain["Holds?"] == "not run"


def test_generated_data_may_be_partial_but_says_so(tmp_path):
    names = datasets.categories("minifab")
    for name in names[:2]:
        fake_run(tmp_path, "minifab", name, 4, 0)
    row = cell(tables.table1(tmp_path, shots=(4,)), "MiniFab", "adp")
    assert row.state == "partial" and (row.categories, row.expected) == (2, len(names))
    assert f"2 of {len(names)} categories only" in tables.show(tables.table1(tmp_path, shots=(4,))).to_string()
    assert f"2 of {len(names)} categories" in tables.summary(tmp_path).columns[0]


def test_mini_never_stands_beside_a_papers_number(tmp_path):
    for category in MVTEC:
        fake_run(tmp_path, "mvtec_ad", category, 4, 0, profile="mini", groups=False)
    for table in (tables.table1(tmp_path, "mini", (4,)), tables.table2(tmp_path, "mini")):
        with_paper = table[table.reported.notna()]
        assert len(with_paper) and (with_paper.profile == "paper").all() and with_paper.ours.isna().all()
        mini = table[table.profile == "mini"]
        assert mini.reported.isna().all() and mini.difference.isna().all()
        assert cell(table, "MVTec AD", "adp", profile="mini").ours > 0
    claims = tables.claims(tmp_path, "mini")
    assert (claims.loc[claims["Profile"] == "mini", "Reported"] == "–").all()
    judged = claims[(claims["Profile"] == "paper") & ~claims["Claim"].str.contains("re-implementation")]
    assert (judged["Ours"] == "not run").all()
    assert "cannot be compared" in tables.write_table(tables.table1(tmp_path, shots=(4,)), "t", tmp_path)[1].read_text()


def test_every_table_holds_the_controls_even_when_nothing_ran(tmp_path):
    for table in (tables.table1(tmp_path, shots=(4,)), tables.table2(tmp_path), tables.per_category(tmp_path), tables.all_metrics(tmp_path)):
        for _, block in table.groupby("data_set"):
            assert set(tables.CONTROLS) <= set(block.key)
    wanted = {"object", "memory", "adp_text", "winclip_text", "winclip_adp_backbone", "patch_memory"}
    assert wanted <= set(tables.CONTROLS)
    shown = tables.show(tables.table1(tmp_path, shots=(4,)))
    assert (shown["4 shots: Ours"] == "not run").all()
    assert tables.summary(tmp_path).shape[1] == 0


def test_tagged_runs_stay_out(tmp_path):
    fake_run(tmp_path, "elpv", "mono", 4, 0, groups=False)
    fake_run(tmp_path, "elpv", "mono", 4, 1, tag="set-1", groups=False)
    assert set(tables.collect(tmp_path).seed) == {0}
    assert set(tables.collect(tmp_path, tag="set-1").seed) == {1}


def test_a_users_own_folder_stays_out_of_tables_and_committed_rows(tmp_path):
    fake_run(tmp_path, "elpv", "mono", 4, 0, groups=False)
    fake_run(tmp_path, "folder", "clamp", 4, 0, groups=False)
    assert set(tables.collect(tmp_path).dataset) == {"elpv"}
    assert "clamp" not in tables.write_results(tmp_path).read_text()


def test_broken_or_impossible_metrics_name_the_file(tmp_path):
    folder = fake_run(tmp_path, "elpv", "mono", 4, 0)
    for text in ("{", '{"rows": [{"method": "adp", "part": "sum"}]}', '{"rows": [{"method": "adp", "part": "sum", "image_auroc": 95.0}]}'):
        (folder / "metrics.json").write_text(text)
        with pytest.raises(FsadError, match="metrics.json"):
            tables.collect(tmp_path)


def test_image_interval_matches_a_slow_bootstrap(tmp_path):
    for seed in range(3):
        fake_run(tmp_path, "elpv", "mono", 4, seed, n=30, groups=False)
    row = cell(tables.table1(tmp_path, shots=(4,)), "ELPV mono", "adp")
    runs = []
    for seed in range(3):
        p = pd.read_parquet(tmp_path / f"data/runs/mini/elpv/mono/40_evaluate_adp/k4_seed{seed}/predictions.parquet")
        runs.append(p[(p.method == "adp") & (p.part == "sum")].sort_values("path"))
    rng = np.random.default_rng(1)
    label, draws = runs[0].label.to_numpy(), []
    for _ in range(200):
        pick = np.concatenate([rng.choice(np.flatnonzero(label == c), (label == c).sum()) for c in (0, 1)])
        draws.append(100 * np.mean([auroc(label[pick], r.score.to_numpy()[pick]) for r in runs]))
    low, high = np.quantile(draws, [0.025, 0.975])
    assert row.low == pytest.approx(low, abs=1.5) and row.high == pytest.approx(high, abs=1.5)
    assert row.ours == pytest.approx(100 * np.mean([auroc(r.label, r.score) for r in runs]))


def test_interval_averages_seeds_first(mvtec):
    """Repeating a seed must not narrow the interval."""
    one = tables.pick(tables.collect(mvtec, "paper").query("seed == 0"), "adp")
    three = pd.concat([one.assign(seed=s) for s in range(3)])
    a, b = (tables.mean_over_categories(rows, MVTEC) for rows in (one, three))
    assert (a["low"], a["high"]) == pytest.approx((b["low"], b["high"])) and b["std"] == pytest.approx(0)


def test_paired_difference_is_antisymmetric_and_zero_against_itself(mvtec):
    rows = tables.collect(mvtec, "paper")
    adp, winclip = tables.pick(rows, "adp"), tables.pick(rows, "winclip")
    there, back = tables.difference(adp, winclip), tables.difference(winclip, adp)
    assert there["mean"] == pytest.approx(-back["mean"])
    assert there["low"] == pytest.approx(-back["high"], abs=0.2)
    same = tables.difference(adp, adp)
    assert (same["mean"], same["low"], same["high"]) == (0, 0, 0)
    assert tables.difference(adp, adp.iloc[:0]) is None


def test_a_verdict_on_one_category_needs_every_seed(tmp_path):
    from fsad_lib.tables._claims import _judge_gain, _judge_not_better
    from fsad_lib.tables._text import verdict

    for seed in range(3):
        fake_run(tmp_path, "elpv", "mono", 4, seed, groups=False)
    rows = tables.collect(tmp_path)
    left, right = (tables.pick(rows, name).copy() for name in ("adp", "ti"))
    gap = tables.difference(left, right)
    direct = {seed: 100 * (a - b) for seed, a, b in zip(left.seed, left.image_auroc, right.image_auroc, strict=True)}
    assert gap["per_seed"].to_dict() == pytest.approx(direct)
    assert gap["low"] > 0 and verdict(gap) == "yes"
    gap["per_seed"].iloc[1] = -0.5
    assert verdict(gap) == "unclear"
    block = SimpleNamespace(gap=lambda *_: gap)
    claim = SimpleNamespace(left="adp", right="ti")
    assert _judge_gain(block, claim, [4])[1] == _judge_not_better(block, claim, [4])[1] == "unclear"
    gap["per_seed"].iloc[1] = 0.5
    assert (_judge_gain(block, claim, [4])[1], _judge_not_better(block, claim, [4])[1]) == ("yes", "no")


def trend(few, many):
    """A block of one category whose difference at 2 and 16 shots is that of each seed."""
    gaps = {2: pd.Series(few, dtype=float), 16: pd.Series(many, dtype=float)}
    of = {k: {"mean": s.mean(), "low": float("nan"), "per_category": pd.Series([s.mean()], ["mono"]), "per_seed": s} for k, s in gaps.items()}
    return SimpleNamespace(gap=lambda k, *_: of[k])


@pytest.mark.parametrize(
    ("few", "many", "widens", "closes"),
    [
        ([-3, -2, -1], [1, 1, 1], "yes, no interval", "yes, no interval"),
        ([-1, -2, -9], [1, 1, -10], "unclear", "unclear"),  # the mean rises, one seed falls
        ([3, 2, 1], [4, 5, 6], "yes, no interval", "no"),  # ahead from the start: nothing to catch up with
        ([-1, -1, -1], [-2, -3, -4], "no, no interval", "no, no interval"),
    ],
)
def test_a_trend_on_one_category_needs_every_seed(few, many, widens, closes):
    from fsad_lib.tables._claims import _judge_widens

    found = [_judge_widens(trend(few, many), SimpleNamespace(kind=kind, left="adp", right="adp_l"), [2, 16])[1] for kind in ("widens", "closes")]
    assert found == [widens, closes]


def test_a_trend_over_unequal_categories_is_told_without_an_interval():
    from fsad_lib.tables._claims import _judge_widens

    one = {"mean": -1.0, "per_category": pd.Series({"gear": -1.0}), "per_seed": pd.Series([-1.0])}
    several = {"mean": 2.0, "per_category": pd.Series({"gear": 1.0, "wood": 3.0})}
    block = SimpleNamespace(gap=lambda k, *_: {2: one, 16: several}[k])
    assert _judge_widens(block, SimpleNamespace(kind="widens", left="adp", right="winclip"), [2, 16])[1] == "yes, no interval"


@pytest.mark.parametrize(("seeds", "better"), [([1, 2], 2), ([0, 0], 0), ([-1, 5], 1)])
def test_one_category_cannot_be_better_class_by_class(seeds, better):
    from fsad_lib.tables._claims import _judge_each

    found = _judge_each(trend(seeds, seeds), SimpleNamespace(left="adp", right="adp_l"), [16])
    assert found == (f"better with {better} of 2 seeds", "not judged: one category")


@pytest.mark.parametrize(("gear", "expected"), [(1, ("better in 2 of 2 categories", "yes")), (0, ("better in 1 of 2 categories", "no"))])
def test_better_class_by_class_is_more_than_equal_in_every_one(gear, expected):
    from fsad_lib.tables._claims import _judge_each

    block = SimpleNamespace(gap=lambda *_: {"per_category": pd.Series({"gear": gear, "wood": 2})})
    assert _judge_each(block, SimpleNamespace(left="adp", right="adp_l"), [16]) == expected


def test_a_few_runs_never_replace_the_rows_of_a_grid(tmp_path):
    for seed in range(2):
        fake_run(tmp_path, "elpv", "mono", 4, seed, groups=False)
    path = tables.write_results(tmp_path)
    before = path.read_text()
    shutil.rmtree(tmp_path / "data/runs/mini/elpv/mono/40_evaluate_adp/k4_seed1")
    for call in (tables.write_results, tables.write_all):
        with pytest.raises(FsadError, match="holds 2 cells .* 1 of them are complete"):
            call(tmp_path)
    assert path.read_text() == before and not (tmp_path / "figures").exists()


def test_claims_follow_the_data(mvtec):
    """ADP is built to beat TI and to lose to nothing; swapping the two scores turns the verdict."""
    claim = "ADP improves on plain textual inversion"
    table = tables.claims(mvtec, "paper").set_index(["Claim", "Data set"])
    row = table.loc[claim, "MVTec AD"]
    assert row["Holds?"] == "yes" and row["Ours"].startswith("+") and "memory only" in row["Controls"]
    for path in (mvtec / "data/runs/paper").rglob("metrics.json"):
        text = path.read_text().replace('"adp", "part": "sum"', '"swap"').replace('"ti", "part": "sum"', '"adp", "part": "sum"')
        path.write_text(text.replace('"swap"', '"ti", "part": "sum"'))
    row = tables.claims(mvtec, "paper").set_index(["Claim", "Data set"]).loc[claim, "MVTec AD"]
    assert row["Holds?"] == "no" and row["Ours"].startswith("-")
    visa = table.xs("VisA", level="Data set")
    assert visa.loc[visa.index.str.contains("reproduces"), "Holds?"].item() == "no"  # 84.6 against 87.3 +- 1.8
    assert table.xs("MVTec AD", level="Data set").filter(like="reproduces", axis=0)["Holds?"].item() == "yes"
    assert (visa.drop(visa.index[visa.index.str.contains("reproduces")])["Holds?"] == "not run").all()


def test_no_comparison_below_chance_supports_a_claim(tmp_path):
    """ADP beats WinCLIP+ on ELPV in these runs; with every ranking turned round it is still "better", but worse than a coin."""
    for seed in range(3):
        for shots in tables.SHOTS:
            folder = fake_run(tmp_path, "elpv", "mono", shots, seed, groups=False)
            data = json.loads((folder / "metrics.json").read_text())
            for row in data["rows"]:  # ADP first, and by more with more shots
                row["image_auroc"] = {"adp": 0.8, "adp_l": 0.8, "c_a": 0.7, "ti": 0.55}.get(row["method"], 0.6) + 0.005 * shots * (row["method"] == "adp")
            (folder / "metrics.json").write_text(json.dumps(data))
            (folder / "predictions.parquet").unlink()
    above = tables.claims(tmp_path).set_index(["Claim", "Data set"]).xs("ELPV mono", level="Data set")["Holds?"]
    for path in (tmp_path / "data/runs/mini").rglob("metrics.json"):
        data = json.loads(path.read_text())
        for row in data["rows"]:
            row["image_auroc"] -= 0.5
        path.write_text(json.dumps(data))
    below = tables.claims(tmp_path).set_index(["Claim", "Data set"]).xs("ELPV mono", level="Data set")["Holds?"]
    supported = above.str.startswith("yes")
    assert supported.sum() >= 5 and set(below[supported]) == {"no: below chance"}
    assert (below[~supported] == above[~supported]).all(), "only a yes changes"


def test_claims_of_no_loss_are_not_judged_below_chance():
    claim = SimpleNamespace(kind="no_drop", left="adp", right="adp_l")
    for mean, expected in ((51.0, "yes"), (50.0, "not judged: below chance"), (35.0, "not judged: below chance")):
        block = SimpleNamespace(mean=lambda shots, key, mean=mean: {"mean": mean})
        assert _against_chance(block, claim, [4], "yes") == expected
        assert _against_chance(block, claim, [4], "no") == "no"


def test_no_claim_is_judged_while_categories_are_missing(tmp_path):
    claim = ("ADP scores above WinCLIP+ at 4 shots", "MiniFab")
    *most, last = datasets.categories("minifab")
    for name in most:
        fake_run(tmp_path, "minifab", name, 4, 0)
    some = tables.claims(tmp_path).set_index(["Claim", "Data set"]).loc[claim, "Holds?"]
    assert some == f"not judged: {len(most)} of {len(most) + 1} categories"
    fake_run(tmp_path, "minifab", last, 4, 0)
    assert not tables.claims(tmp_path).set_index(["Claim", "Data set"]).loc[claim, "Holds?"].startswith("not")


def test_seen_and_unseen_stand_apart(tmp_path):
    for name in datasets.categories("minifab"):
        folder = fake_run(tmp_path, "minifab", name, 4, 0)
        data = json.loads((folder / "metrics.json").read_text())
        for row in data["rows"]:
            row["image_auroc"] = {"all": 0.8, "seen": 0.9, "unseen": 0.6}[row["group"]]
        (folder / "metrics.json").write_text(json.dumps(data))
    table = tables.seen_unseen(tmp_path)
    adp = table[table.key == "adp"].set_index("group").ours
    assert adp.round(6).to_dict() == {"all": 80, "seen": 90, "unseen": 60}
    assert cell(tables.table1(tmp_path, shots=(4,)), "MiniFab", "adp").ours == pytest.approx(80)


def test_the_hinge_is_counted_step_by_step_and_run_by_run(tmp_path):
    active = {"gear": [0.0, 0.0, 0.1, 0.2], "wood": [0.0, 0.0, 0.0, 0.0]}  # half of the steps, and never
    for name, hinge in active.items():
        evaluated = fake_run(tmp_path, "minifab", name, 4, 0)
        learned = evaluated.parent.with_name("10_personalize_adp") / evaluated.name
        learned.mkdir(parents=True)
        trace = pd.DataFrame({"concept": ["c_n"] * 4 + ["c_a"] * 4, "step": [*range(1, 5)] * 2, "hinge": [math.nan] * 4 + hinge})
        trace.to_csv(learned / "trace.csv", index=False)
    fake_run(tmp_path, "minifab", "gear", 8, 0)  # its first stage lies elsewhere
    table = tables.hinge(tmp_path).set_index(["Data set", "Shots"])
    row = table.loc[("MiniFab", "4")]
    assert row.tolist()[1:4] == ["2", "25", "1"] and row["c_a - c_n, points"].count("[") == 1
    assert table.loc[("MiniFab", "8")].tolist()[1:4] == ["1", "–", "–"]
    assert table.loc[("ELPV mono", "not run"), "Runs"] == "" and ("MVTec AD", "not run") in table.index


def test_reported_values_and_their_contradictions():
    one, two = tables.reported("adp_table1"), tables.reported("adp_table2")
    assert len(one) == 24 and len(two) == 8 and one["std"].notna().all() and (one.source != "").all()
    a = one.query("dataset == 'mvtec_ad' and shots == 4 and method == 'adp'").iloc[0]
    b = two.query("dataset == 'mvtec_ad' and method == 'adp'").iloc[0]
    assert (a["mean"], b["mean"]) == (95.8, 96.0) and "contradiction" in a["note"] and "contradiction" in b["note"]
    official = tables.reported("winclip_official").query("shots == 4 and method == 'WinCLIP+' and metric == 'image_auroc'")
    visa = one.query("dataset == 'visa' and shots == 4 and method == 'winclip'").iloc[0]
    assert visa["mean"] < official.query("dataset == 'visa'")["mean"].item() and "lower than the official" in visa["note"]
    zero = tables.reported("winclip_official").query("shots == 0 and method == 'WinCLIP' and metric == 'image_auroc'")
    for dataset, mean in (("mvtec_ad", 91.8), ("visa", 78.1)):
        rows = zero[zero.dataset == dataset]
        per_class = rows[rows.category != ""]
        assert sorted(per_class.category) == sorted(datasets.categories(dataset))
        assert per_class["mean"].mean() == pytest.approx(mean, abs=0.1)
    with pytest.raises(FsadError, match="adp_table1"):
        tables.reported("adp_table9")


def test_own_choices_have_values_and_reasons():
    for profile in ("mini", "paper"):
        table = tables.own_choices(profile=profile).set_index("Name")
        assert {"adp.alpha", "adp.gamma", "adp.tau", "adp.strength", "adp.n_pseudo"} <= set(table.index)
        assert "adp.prompts_pseudo" not in table.index  # the paper gives them
        assert table.index.is_unique
        assert (table.loc[["adp.alpha", "adp.gamma", "adp.tau"], "Reason"] != "–").all()


def test_files_escape_and_are_replaced_whole(tmp_path, monkeypatch):
    table = pd.DataFrame({"Name & more": ["50 % of c_n|x", "a_b {c} #1 ~ ^ \\ $"], "ADP_l": [1.25, np.nan]})
    csv, md, tex = tables.write_table(table, "odd", tmp_path, caption="5 % < 10 %", notes=["n_1"])
    body = tex.read_text()
    assert r"Name \& more & ADP$_\ell$" in body and r"50 \% of $c_n$\textbar{}x" in body and r"a\_b \{c\} \#1" in body
    lines = [line for line in body.splitlines() if line.endswith(r"\\") and "&" in line]
    assert all(line.replace(r"\&", "").count("&") == 1 for line in lines) and len(lines) == 3
    assert body.count("{") == body.count("}")
    assert "\\|x" in md.read_text() and pd.read_csv(csv)["ADP_l"].tolist()[0] == 1.25
    before = csv.read_text()
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(FsadError, match="full"):
        tables.write_table(table.iloc[:1], "odd", tmp_path)
    assert csv.read_text() == before and sorted(p.name for p in tmp_path.iterdir()) == ["odd.csv", "odd.md", "odd.tex"]
    for name in ("../up", "a/b", "", ".hidden"):
        with pytest.raises(FsadError, match="file name"):
            tables.write_table(table, name, tmp_path)


def test_write_all_and_no_local_paths(tmp_path):
    for name in datasets.categories("minifab"):
        fake_run(tmp_path, "minifab", name, 4, 0)
    paths = tables.write_all(tmp_path)
    assert all(p.is_file() for p in paths) and len({p.name for p in paths}) == len(paths)
    assert not any(str(tmp_path) in p.read_text() for p in paths)
    results = pd.read_csv(tmp_path / "data/results/adp_mini.csv")
    assert set(results.dataset) == {"minifab"} and results.image_auroc.between(0, 1).all()
    for name, other in (("adp_table1", "96.0"), ("adp_table2", "95.8")):
        assert f"contradiction: Table {'2' if other == '96.0' else '1'} prints {other}" in (tmp_path / f"figures/{name}.md").read_text()
    claims = (tmp_path / "figures/adp_claims.md").read_text()
    assert "95.2" in claims and "87.3" in claims and "say nothing about the paper's" in claims


def test_two_runs_of_one_cell_are_refused(mvtec):
    rows = tables.pick(tables.collect(mvtec, "paper"), "adp")
    with pytest.raises(FsadError, match="Two runs"):
        tables.mean_over_categories(pd.concat([rows, rows.iloc[:1]]), MVTEC)


def test_wins_handle_ties_and_groups():
    label, seen = np.array([0, 0, 1, 1]), np.array([True, True, True, False])
    table = (np.array(list("abcd"), object), label, seen, np.array([1.0, 2.0, 2.0, 0.0]))
    assert _rows.wins_of([table]).tolist() == [[1, 0.5], [0, 0]]
    assert _rows.wins_of([table], "seen").tolist() == [[1, 0.5]]
    assert _rows.wins_of([table], "unseen").tolist() == [[0, 0]]


def test_the_written_latex_tables_are_plain_ascii():
    """Every LaTeX reads them, whatever its input encoding."""
    paths = sorted((project_root() / "figures").glob("*.tex"))
    assert len(paths) > 10 and [p.name for p in paths if not p.read_text(encoding="utf-8").isascii()] == []


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet"])
def test_broken_predictions_and_traces_name_their_file(tmp_path, content):
    folder = fake_run(tmp_path, "elpv", "mono", 4, 0)
    (folder / "predictions.parquet").write_bytes(content)
    with pytest.raises(FsadError, match=r"k4_seed0/predictions.parquet cannot be used: .*Delete the run's folder"):
        tables.table1(tmp_path, shots=(4,))
    (folder / "predictions.parquet").unlink()
    trace = folder.parent.with_name("10_personalize_adp") / folder.name / "trace.csv"
    trace.parent.mkdir(parents=True)
    trace.write_bytes(b"")
    with pytest.raises(FsadError, match=r"k4_seed0/trace.csv cannot be used: .*Delete the run's folder"):
        tables.hinge(tmp_path)


@pytest.mark.parametrize(
    ("parameters", "tag", "now", "stale"),
    [({}, "", "new", True), ({}, "", "old", False), ({"profile": "mini", "shots": 4}, "", "new", True), ({}, "set-0123abcd", "new", False), ({"overrides": ""}, "", "new", True)],
)  # fmt: skip
def test_a_run_of_other_code_is_stale_however_it_was_started(tmp_path, monkeypatch, parameters, tag, now, stale):
    """Values that the notebook's defaults gave are not among the run's parameters; its identity has them. Overrides that only the notebook had are unknown."""
    folder, asked = tmp_path / "40_evaluate_adp/k4_seed0", {}
    folder.mkdir(parents=True)
    identity = {"profile": "mini", "dataset": "minifab", "category": "gear", "shots": 4, "seed": 0, "tag": tag}
    (folder / "metrics.json").write_text(json.dumps({"identity": identity, "rows": []}))
    (folder / "provenance.json").write_text(json.dumps({"parameters": parameters, "ingredients": {"code": "old"}}))
    monkeypatch.setattr(_rows, "open_run", lambda stage, method, **how: asked.update(how) or SimpleNamespace(ingredients={"code": now}))
    assert _rows.is_stale(folder, "adp") == stale
    assert not asked or asked["profile"] == "mini" and asked["category"] == "gear"


@pytest.mark.parametrize(
    "row",
    [{"image_ap": "x"}, {"image_ap": [1]}, {"image_ap": 7}, {"pixel_auroc": float("inf")}, {"category": 5}, {"method": [1]}, {"image_auroc": 2}],
)  # fmt: skip
def test_rows_that_no_run_writes_are_refused(tmp_path, row):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"rows": [{"method": "adp", "part": "sum", "image_auroc": 0.5} | row]}))
    with pytest.raises(FsadError, match="cannot be used"):
        _rows._metric_rows(path)


def test_a_table_brings_its_notes_along(tmp_path):
    text = "".join(path.read_text() for path in tables.write_table(tables.hinge(tmp_path), "adp_hinge", tmp_path, notes=["first"]) if path.suffix == ".md")
    assert text.index("- first") < text.index("- Points: percent points") < text.index("miniature models")
    assert "- Points" not in "".join(path.read_text() for path in tables.write_table(tables.own_choices(), "choices", tmp_path) if path.suffix == ".md")

"""AnomalySD's tables and figures: one run of all categories, what may stand beside the paper's number, what was not run."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fsad_lib import datasets
from fsad_lib.__main__ import main
from fsad_lib.anomalysd import figures
from fsad_lib.anomalysd.stages import Synthesized
from fsad_lib.errors import FsadError
from fsad_lib.runs import overrides_tag
from fsad_lib.tables import _rows, to_markdown
from fsad_lib.tables import anomalysd as t

LEVEL = {"anomalysd": 0.8, "roundtrip": 0.6, "guided_roundtrip": 0.68, "against_roundtrip": 0.7, "winclip": 0.65, "patch_memory": 0.75}
PARTS = {"winclip": ("given", "unknown", "shared"), "patch_memory": ("given", "unknown", "shared"), "anomalysd": ("given", "unknown")}


def fake(root, dataset, shots=1, seed=0, profile="mini", overrides="", gain=0.0, categories=None, folder="all"):
    """One complete 41_evaluate_anomalysd run; category i scores i hundredths more than the first."""
    tag = f"_{overrides_tag(overrides)}" if overrides else ""
    path = root / "data/runs" / profile / dataset / folder / "41_evaluate_anomalysd" / f"k{shots}_seed{seed}{tag}"
    path.mkdir(parents=True)
    rows = []
    for i, category in enumerate(categories or datasets.categories(dataset)):
        levels = LEVEL | {"scale_2": 0.7, "alpha_0": 0.78, "alpha_1": 0.6}
        for method, level in levels.items():
            for part in PARTS.get(method, ("given",)):
                value = level + gain + 0.01 * i + 0.02 * seed - (0.1 if part == "shared" else 0)
                rows.append({"category": category, "method": method, "part": part, "group": "all", "n": 10, "image_auroc": value,
                             "image_ap": value, "image_f1max": value, "pixel_auroc": value + 0.05, "aupro": value - 0.2})  # fmt: skip
    (path / "metrics.json").write_text(json.dumps({"rows": rows, "fingerprint": "x", "identity": {}, "files": []}))
    return path


def cell(table, unit, method="AnomalySD", protocol="given", shots=1, metric="image_auroc"):
    hit = table[(table.data_set == unit) & (table.method == method) & (table.protocol == protocol) & (table.shots == shots) & (table.metric == metric)]
    assert len(hit) == 1
    return hit.iloc[0]


def test_means_over_the_categories_of_one_run(tmp_path):
    fake(tmp_path, "minifab", seed=0), fake(tmp_path, "minifab", seed=1)
    table = t.main_table(tmp_path)
    found = cell(table, "MiniFab")
    assert found.ours == pytest.approx(100 * (0.8 + 0.01 * 3.5 + 0.01)) and found.n_seeds == 2 and found.categories == found.expected == 8
    assert found.ours_std == pytest.approx(2 / 2**0.5) and found.low < found.ours < found.high
    assert cell(table, "MiniFab", metric="aupro").ours == pytest.approx(found.ours - 20)
    assert cell(table, "MiniFab", "patch memory (nearest neighbour)", "shared").ours == pytest.approx(found.ours - 15)
    assert cell(table, "MiniFab", shots=2).state == "not run" and np.isnan(found.reported)
    text = to_markdown(t.show_main(table))
    assert "not run" in text and "autoencoder alone" in text and "± " in text


def test_a_metric_that_a_data_set_does_not_have_fills_no_rows(tmp_path):
    fake(tmp_path, "minifab")
    for shots in t.SHOTS:
        path = fake(tmp_path, "elpv", shots, categories=["mono", "poly"]) / "metrics.json"
        record = json.loads(path.read_text())
        record["rows"] = [{k: v for k, v in row.items() if k not in ("pixel_auroc", "aupro")} for row in record["rows"]]
        path.write_text(json.dumps(record))
    shown = t.show_main(t.main_table(tmp_path))
    metrics = {unit: set(block.Metric) for unit, block in shown.groupby("Data set")}
    assert metrics["ELPV mono"] == {"image AUROC"} and metrics["MiniFab"] == metrics["VisA"] == set(t.METRICS.values())
    parts = t.show_ablations(t.ablations(tmp_path)).set_index(["Data set", "Method"])
    assert parts.loc[("ELPV mono", "without prompt"), ["image AUROC", "pixel AUROC", "AUPRO"]].tolist() == ["not run", "–", "–"]
    assert parts.loc[("MiniFab", "without prompt"), "pixel AUROC"] == "not run"


def test_what_repainting_adds_is_told_from_what_the_mask_adds(tmp_path):
    assert t.show_contributions(t.contributions(tmp_path)).iloc[0, 0] == "not run"
    fake(tmp_path, "minifab", seed=0), fake(tmp_path, "minifab", seed=1)
    table = t.contributions(tmp_path).query("metric == 'pixel_auroc'").set_index("adds").gap
    assert table["repainting, with the mask"] == pytest.approx(12) and table["the mask, without repainting"] == pytest.approx(8)
    assert table["the whole, beside the autoencoder"] == pytest.approx(table["repainting, with the mask"] + table["the mask, without repainting"])
    assert table["the whole, beside the memory"] == pytest.approx(5)
    assert "[+12.0, +12.0]" in to_markdown(t.show_contributions(t.contributions(tmp_path)))


def test_reported_numbers_stand_beside_paper_runs_only(tmp_path):
    fake(tmp_path, "mvtec_ad")  # a miniature's run of MVTec AD
    table = t.main_table(tmp_path)
    paper = table[(table.data_set == "MVTec AD") & (table.profile == "paper")]
    mini = table[(table.data_set == "MVTec AD") & (table.profile == "mini")]
    assert (paper.state == "not run").all() and mini.reported.isna().all() and mini.ours.notna().any()
    said = paper[(paper.shots == 1) & (paper.protocol == "given") & (paper.method == "AnomalySD")].set_index("metric").reported
    assert said.to_dict() == {"image_auroc": 93.6, "pixel_auroc": 94.8, "aupro": 89.2}
    fake(tmp_path, "mvtec_ad", profile="paper")
    found = t.main_table(tmp_path, "paper").query("protocol == 'given' and method == 'AnomalySD' and shots == 1 and metric == 'image_auroc'")
    row = found[found.data_set == "MVTec AD"].iloc[0]
    assert row.difference == pytest.approx(row.ours - 93.6)


def test_part_of_a_benchmark_is_not_the_benchmark(tmp_path):
    fake(tmp_path, "visa", profile="paper", categories=["candle", "cashew"])
    row = cell(t.main_table(tmp_path, "paper"), "VisA")
    assert row.state == "partial" and np.isnan(row.ours) and np.isnan(row.difference)


def test_runs_of_one_category_and_tagged_runs_stay_out(tmp_path):
    fake(tmp_path, "minifab"), fake(tmp_path, "minifab", folder="gear", categories=["gear"], gain=0.1)
    fake(tmp_path, "minifab", overrides="anomalysd.test_images=4", gain=-0.3)
    assert cell(t.main_table(tmp_path), "MiniFab").ours == pytest.approx(100 * 0.835)


def test_ablations_are_paired_with_the_whole_method(tmp_path):
    fake(tmp_path, "minifab"), fake(tmp_path, "minifab", overrides=t.ABLATIONS["without prompt"], gain=-0.05)
    table = t.ablations(tmp_path).query("data_set == 'MiniFab' and metric == 'image_auroc'").set_index("variant")
    assert table.loc["without prompt", "gap"] == pytest.approx(-5) and table.loc["without prompt", "gap_low"] == pytest.approx(-5)
    assert table.loc["without prototype-guided mask", "gap"] == pytest.approx(-2) and table.loc["scale 2 alone", "gap"] == pytest.approx(-10)
    assert table.loc["without fine-tuning", "state"] == "not run" and np.isnan(table.loc["whole method", "gap"])
    assert set(t.ABLATIONS) <= set(table.index)
    assert "not run" in to_markdown(t.show_ablations(t.ablations(tmp_path)))


def test_ablations_are_real_settings():
    from fsad_lib.profiles import load_profile

    plain = load_profile("mini").anomalysd
    for overrides in t.ablation_overrides():
        changed = load_profile("mini", overrides).anomalysd
        assert changed != plain or overrides == f"anomalysd.strength={plain.strength:g}"


def test_sensitivity_and_its_figure(tmp_path):
    empty = t.sensitivity(tmp_path)
    assert empty.empty
    with pytest.raises(FsadError, match="Nothing to draw"):
        figures.sensitivity(empty)
    fake(tmp_path, "minifab"), fake(tmp_path, "minifab", overrides="anomalysd.strength=0.8", gain=0.03)
    table = t.sensitivity(tmp_path).query("metric == 'image_auroc'")
    assert table[table.parameter == "alpha"].value.tolist() == [0, 0.5, 1], "the method itself has the profile's alpha"
    assert table[table.parameter == "lambda"].set_index("value").ours.round(1).to_dict() == {0.6: 83.5, 0.8: 86.5}, "the plain run has the profile's own"
    assert len(figures.sensitivity(t.sensitivity(tmp_path), {"lambda": 0.4}).axes) == 2
    shown = t.show_sensitivity(t.sensitivity(tmp_path)).set_index("Parameter")
    first = table.iloc[0]
    assert shown["image AUROC"][f"{first.parameter} {first.value:g}"] == f"{first.ours:.1f} [{first.low:.1f}, {first.high:.1f}]" and t.show_sensitivity(empty).empty


def test_rivals_are_context_with_their_source():
    table = t.context()
    assert table.Source.str.contains("FoundAD").all() and "IIPAD" in set(table.Method)
    said = _rows.reported("anomalysd_main")
    assert said.source.ne("").all() and said[(said.dataset == "visa") & (said.metric == "image_auroc")].note.item().startswith("a secondary note")


def test_seen_and_unseen_kinds_apart(tmp_path):
    path = fake(tmp_path, "minifab") / "metrics.json"
    run = json.loads(path.read_text())
    run["rows"] += [row | {"group": g, "image_auroc": row["image_auroc"] + d, "pixel_auroc": 0.5}
                    for row in run["rows"] if row["category"] != "gear" for g, d in (("seen", 0.1), ("unseen", -0.1))]  # fmt: skip
    path.write_text(json.dumps(run))
    table = t.seen_unseen(tmp_path).query("method == 'AnomalySD' and protocol == 'given' and metric == 'image_auroc'").set_index("group")
    gear = datasets.categories("minifab").index("gear")
    seven = 80 + sum(i for i in range(8) if i != gear) / 7
    assert table.ours.to_dict() == pytest.approx({"all": 83.5, "seen": seven + 10, "unseen": seven - 10})
    assert table.categories.to_dict() == {"all": 8, "seen": 7, "unseen": 7}, "a product without such defects does not count"
    assert "[" in t.show_seen_unseen(t.seen_unseen(tmp_path))["Seen kinds"].iloc[0]
    assert t.seen_unseen(tmp_path, shots=4).empty


def test_a_small_run_replaces_no_committed_table(tmp_path):
    fake(tmp_path, "minifab")
    aside = tmp_path / "figures" / "partial"
    assert all(path.parent == aside for path in t.write_all(tmp_path, folder=aside))
    assert not (tmp_path / "data/results").exists()
    t.write_all(tmp_path)
    assert len(pd.read_csv(tmp_path / "data/results/anomalysd_mini.csv").category.unique()) == 8


def test_everything_is_written_and_says_what_was_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    names = {path.relative_to(tmp_path).as_posix() for path in t.write_all()}
    wanted = ("main", "seen_unseen", "rivals", "ablations", "sensitivity", "own_choices")
    assert {f"figures/anomalysd_{n}.{e}" for n in wanted for e in ("csv", "md", "tex")} <= names
    text = (tmp_path / "figures/anomalysd_main.md").read_text()
    assert "93.6" in text and "not run" in text and "80.9 / 92.8" in text
    choices = pd.read_csv(tmp_path / "figures/anomalysd_own_choices.csv").set_index("Name")
    assert {"anomalysd.strength", "anomalysd.alpha", "anomalysd.beta", "anomalysd.scales", "prototypes"} <= set(choices.index)
    assert choices.Reason.notna().all()


def test_ablations_of_another_method_are_refused(capsys):
    assert main(["grid", "adp", "--ablations"]) == 2
    assert "--ablations" in capsys.readouterr().err


def test_one_run_as_a_table():
    rows = [{"category": c, "method": m, "part": "given", "group": "all", "image_auroc": v, "aupro": 0.5} for c in "ab" for m, v in LEVEL.items()]
    table = t.one_run(rows).set_index("method")
    assert table.loc["AnomalySD", "image AUROC"] == "80.0" and table["categories"].eq(2).all() and table.loc["WinCLIP+", "role"] == "rival"
    assert "nothing to show" in t.one_run([])


def test_compare_pairs_the_categories_of_one_run():
    def row(category, method, value):
        return {"category": category, "method": method, "part": "given", "group": "all", "image_auroc": value}

    rows = [row(c, m, v) for c, a, b in (("a", 0.9, 0.8), ("b", 0.7, 0.5), ("c", 0.8, 0.7)) for m, v in (("anomalysd", a), ("roundtrip", b))]
    line = t.compare(rows, [("roundtrip", "given")])
    assert line.startswith("AnomalySD (80.0) is better than autoencoder alone") and "(66.7): +13.3" in line
    assert "no interval" not in line and "not told apart" in t.compare([*rows, row("d", "anomalysd", 0.1), row("d", "roundtrip", 0.9)], [("roundtrip", "given")])
    assert t.compare(rows, [("roundtrip", "given")], "aupro").startswith("No AUPRO")


@pytest.mark.parametrize(("other", "says"), [(lambda label, i: 1 - label, "better than"), (lambda label, i: label, "not told apart from")])
def test_compare_of_one_product_resamples_its_images(other, says):
    label = np.array([0] * 8 + [1] * 8)
    parts = {"anomalysd": label + 0.01 * np.arange(16), "roundtrip": other(label, np.arange(16)) + 0.01 * np.arange(16)}
    predictions = pd.concat([pd.DataFrame({"path": [f"{i:02}" for i in range(16)], "label": label, "seen": True, "method": m, "part": "given", "score": s}) for m, s in parts.items()])
    rows = [{"category": "a", "method": m, "part": "given", "group": "all", "image_auroc": roc_auc_score(label, s)} for m, s in parts.items()]
    line = t.compare(rows, [("roundtrip", "given")], predictions=predictions)
    assert says in line and "[" in line
    assert "one product, no interval" in t.compare(rows, [("roundtrip", "given")])


# -------------------------------------------------------------------- figures
@pytest.mark.parametrize(
    "whole, words",
    [
        (1.66, "but the fusion loses it: the fused map (1.66) lies below the autoencoder alone."),  # below by more than a tenth
        (1.75, "but the fused map (1.75) cannot be told from the autoencoder alone."),
        (2.12, "but the fused map (2.12) cannot be told from the autoencoder alone."),
        (2.13, "but the fused map (2.13) cannot be told from the guided autoencoder (2.00)"),
        (2.21, "and the fused map finds the place (2.21); the image score loses it"),
    ],
)
def test_the_reason_of_a_failure_says_on_which_side_of_the_autoencoder_the_fused_map_lies(whole, words):
    ratio = {"S^{(2)}": 1.49, "S^{(8)}": 2.14, "S_{map}": whole, "guided autoencoder": 2.0, "autoencoder": 1.93}
    assert words in figures.reason_sentence(ratio, outranked=True)


def test_figures_of_a_lesson():
    x, m = torch.rand(2, 3, 16, 16), torch.zeros(2, 3, 16, 16, dtype=torch.bool)
    m[..., 4:8, 4:8] = True
    assert len(figures.foregrounds(x, m[:, :1], m).axes) == 2 * 5
    assert len(figures.twin_rows(x[0], m[0], torch.rand(3, 3, 16, 16), torch.rand(3, 16, 16), list("abc")).axes) == 9 + 1  # a colour bar
    with pytest.raises(FsadError, match="as many"):
        figures.twin_rows(x[0], m[0], torch.rand(2, 3, 16, 16), torch.rand(3, 16, 16), list("abc"))
    strip = figures.map_strip(x, {"S": torch.rand(2, 8, 8).clamp(0.2, 0.5), "map": np.zeros((2, 16, 16))}, m[:, 0], ["a", "b"])
    assert [[t.get_text() for t in bar.get_xticklabels()] for bar in strip.axes[8:]] == [["0.20", "0.50"], ["0.00", "0.00"]]
    assert len(strip.axes[3].collections) == 2, "an outline on a dark line"
    rows = figures.picture_rows({"masked": x, "repainted": x}, ["a", "b"])
    assert [rows.axes[0].get_ylabel(), rows.axes[2].get_ylabel()] == ["masked", "repainted"] and rows.axes[1].get_title() == "b"
    with pytest.raises(FsadError, match="as many"):
        figures.picture_rows({"masked": x, "repainted": x[:1]})
    steps = pd.DataFrame({"step": range(1, 6), "loss": 0.5, "mse": 0.1, "perceptual": 0.2})
    assert len(figures.loss_curves(steps[["step", "loss"]], steps).axes) == 3
    assert figures.loss_curves(steps[["step"]][:0], steps[["step"]][:0]).axes[0].texts[-1].get_text() == "not trained"


def test_sensitivity_shows_minifab_first_and_explains_its_bars():
    table = pd.DataFrame([
        {"data_set": unit, "parameter": "alpha", "value": v, "metric": "image_auroc", "ours": 60.0, "low": 50.0, "high": 70.0}
        for unit in ("ELPV mono", "MiniFab") for v in (0, 1)
    ])  # fmt: skip
    figure = figures.sensitivity(table, {"alpha": 0.5})
    assert [ax.get_title(loc="left") for ax in figure.axes[::2]] == ["MiniFab", "ELPV mono"]
    assert "95 % interval over products" in figure.get_supxlabel()
    one = pd.concat([table, table[table.value == 0].assign(parameter="lambda", value=0.6)])
    panels = figures.sensitivity(one, {"alpha": 0.5, "lambda": 0.6}).axes
    assert panels[0].texts[0].get_text() == "only 0.6 was run" and not panels[0].containers and panels[1].containers, "one point is no curve"


@pytest.mark.parametrize("known", [True, False])
def test_overview_has_numbers_at_its_axes_and_no_untitled_picture(known):
    x, m = torch.rand(2, 3, 16, 16), torch.zeros(2, 4, 16, 16, dtype=torch.bool)
    m[..., 4:8, 4:8] = True
    maps = {name: np.full((2, 16, 16), 0.5) for name in ("S2", "s_ms", "s_pg", "map")}
    twins = Synthesized(x, ["a", "b"], ["c", "c"], [0, 1], np.array([[2, 2, 2, 0]] * 2), np.full((2, 4), ""), m.numpy(), torch.rand(2, 4, 3, 16, 16),
                        np.ones((2, 4, 16, 16)), x, maps)  # fmt: skip
    figure = figures.overview(x, m[:, :1], pd.DataFrame({"step": [1, 2], "loss": [0.2, 0.1]}), twins, 1, m[1, 0] if known else None)
    heads = [ax.get_title() or ax.get_title(loc="left") for ax in figure.axes]
    assert "true defect" in heads and r"$S_{map}=(1-\alpha)S_{ms}+\alpha S_{pg}$" in heads and "mask, 2 x 2 cells\npass 1 of 3" in heads
    curve = next(ax for ax in figure.axes if ax.lines)
    assert any(t.get_text() for t in curve.get_yticklabels())
    said = {ax.get_xlabel() for ax in figure.axes if ax.get_xlabel()}
    assert said == {"largest 0.5"} | (set() if known else {"this data set has no masks"})
    assert len({ax.images[0].get_clim() for ax in figure.axes if ax.images and ax.images[0].get_cmap().name == "inferno"}) == 1, "one scale for all maps"

"""TGVIG's tables and figures: gains against each control, what may stand beside the paper's number, what was not run."""

import json
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from fsad_lib import datasets
from fsad_lib.__main__ import main
from fsad_lib.errors import FsadError
from fsad_lib.profiles import load_profile
from fsad_lib.runs import overrides_tag
from fsad_lib.tables import tgvig as t
from fsad_lib.tables import to_markdown
from fsad_lib.tables.tgvig._tables import SAME_PRODUCTS
from fsad_lib.tgvig import figures, stages

LEVEL = {"shots": 0.6, "generated": 0.7, "duplicated": 0.61, "augmented": 0.69}


def fake(root, dataset, shots=1, seed=0, profile="mini", tag="", gain=0.0, categories=None, baselines=("patchcore",), arms=LEVEL, available=40):
    """Complete 42_evaluate_tgvig runs; category i scores i hundredths more than the first."""
    for i, category in enumerate(categories or datasets.categories(dataset)):
        path = root / "data/runs" / profile / dataset / category / "42_evaluate_tgvig" / (f"k{shots}_seed{seed}" + (f"_{tag}" if tag else ""))
        path.mkdir(parents=True)
        rows = []
        for name in baselines:
            for arm, level in arms.items():
                value = level + (gain if arm not in t.CONTROLS else 0) + 0.01 * i + 0.02 * seed
                row = {"category": category, "method": name, "part": arm, "group": "all", "n": 10, "image_auroc": value, "image_ap": value,
                       "image_f1max": value, "pixel_auroc": value + 0.1}  # fmt: skip
                if dataset == "mvtec_loco":
                    row["au_spro"] = value - 0.3
                rows += [row] + [row | {"group": g, "image_auroc": value - 0.05, "au_spro": None} for g in ("logical", "structural")]
        (path / "metrics.json").write_text(json.dumps({"rows": rows, "available": available, "fingerprint": "x", "identity": {}, "files": []}))


def cell(table, unit, arm, baseline="PatchCore", shots="1", metric="image_auroc"):
    hit = table[(table.data_set == unit) & (table.arm == arm) & (table.baseline == baseline) & (table.shots == shots) & (table.metric == metric)]
    assert len(hit) == 1
    return hit.iloc[0]


def test_gains_absolute_and_relative_over_every_control(tmp_path):
    fake(tmp_path, "minifab"), fake(tmp_path, "minifab", seed=1)
    table = t.gains(tmp_path)
    shots, generated = cell(table, "MiniFab", "shots"), cell(table, "MiniFab", "generated")
    assert generated.ours == pytest.approx(100 * (0.7 + 0.035 + 0.01)) and generated.n_seeds == 2 and generated.categories == 8
    assert shots.gain == pytest.approx(10) and shots.gain_low == pytest.approx(10) and shots.relative == pytest.approx(100 * 0.1 / 0.645)
    assert cell(table, "MiniFab", "augmented").gain == pytest.approx(1) and np.isnan(generated.gain)
    assert cell(table, "MiniFab", "shots", metric="pixel_auroc").relative == pytest.approx(100 * 0.1 / 0.745)
    text = to_markdown(t.show_gains(table))
    assert "shots + augmentations, no VQGAN (control)" in text and "+10.0 [+10.0, +10.0]" in text and "+15.5" in text and "not run" in text


def test_spro_stands_beside_the_pixel_auroc_of_mvtec_loco_only(tmp_path):
    fake(tmp_path, "mvtec_loco", profile="paper"), fake(tmp_path, "minifab")
    table = t.gains(tmp_path, "paper")
    generated = cell(table, "MVTec LOCO", "generated", metric="au_spro")
    assert generated.ours == pytest.approx(100 * (0.7 + 0.02 - 0.3)) and cell(table, "MVTec LOCO", "shots", metric="au_spro").gain == pytest.approx(10)
    assert set(table[table.metric == "au_spro"].data_set) == {"MVTec LOCO"}
    assert "AU-sPRO" in t.show_gains(table).Metric.tolist()
    assert t.rows_of(tmp_path, "paper").query("group == 'logical'").au_spro.isna().all() and t.rows_of(tmp_path).au_spro.isna().all()
    assert "AU-sPRO" in t.one_run([{"method": "patchcore", "part": "shots", "group": "all", "image_auroc": 0.5, "au_spro": 0.4}])


def test_what_was_not_run_is_one_sentence(tmp_path):
    fake(tmp_path, "minifab")
    run, text = t.run_part(t.gains(tmp_path))
    assert set(run.data_set) == {"MiniFab"} and set(run.baseline) == {"PatchCore"} and set(run.shots) == {"1"}
    assert text.startswith("Not run: MVTec AD, BTAD, MVTec LOCO (profile paper); ELPV mono, ELPV poly (profile mini); ")
    assert "CFlow, EfficientAD, Reverse Distillation on MiniFab at 1 shot" in text and "all detectors on MiniFab with all images" in text


def test_the_gains_of_the_papers_text_have_a_cell_of_ours(tmp_path):
    for name in t.BASELINES:
        tag = overrides_tag(t.baseline_overrides(name)) if name != "patchcore" else ""
        fake(tmp_path, "minifab", tag=tag, baselines=(name,), gain=0.1 if name == "cflow" else 0.0, categories=None if name == "patchcore" else ["gear", "wood"])
    table = t.gains_reported(tmp_path)
    paper, ours = table[table.profile == "paper"], table[table.profile == "mini"].set_index(["what", "shots", "metric"])
    said = paper[(paper.what == "all products") & (paper.metric == "image_auroc")].set_index("shots").reported_percent
    assert said.to_dict() == {"1": 16.9, "5": 14.3, "full": 7.8} and (paper.state == "not run").all() and ours.reported_percent.isna().all()
    assert {"cable", "metal nut", "leather", "01", "02", "logical anomalies", "structural anomalies"} < set(paper.what)
    four = ours.loc[("all products", "1", "image_auroc")]
    assert four.ours == pytest.approx((3 * 10 + 20) / 4) and (four.baselines, four.categories, four.state) == (4, 2, "partial")
    assert four.over_augmented == pytest.approx((3 * 1 + 11) / 4) and four.relative == pytest.approx(np.mean([100 * g / (0.6 + 0.01 * at) for g, at in zip((0.1, 0.2, 0.1, 0.1), (3.5 / 3.5, 0.5, 0.5, 0.5))]), rel=0.05)
    assert ours.loc[("objects", "1", "pixel_auroc"), "expected"] == 5 and ours.loc[("logical", "1", "image_auroc"), "ours"] == pytest.approx(10)
    shown = t.show_gains_reported(table)
    assert {"Reported, %", "Ours, points", "Ours, relative %"} <= set(shown) and "2 of 8 products, 4 of 4 detectors" in set(shown["Run on"])
    fake(tmp_path, "btad", profile="paper"), fake(tmp_path, "mvtec_loco", profile="paper", categories=["juice_bottle"])
    real = t.gains_reported(tmp_path, "paper").set_index(["data_set", "what", "metric"])
    assert real.loc[("BTAD", "01", "pixel_auroc"), ["reported_percent", "ours"]].tolist() == [4.4, pytest.approx(10)]
    assert real.loc[("MVTec LOCO", "logical anomalies", "image_auroc"), "state"] == "partial" and np.isnan(real.loc[("MVTec LOCO", "logical anomalies", "image_auroc"), "ours"])


def test_btads_third_product_is_no_object(tmp_path):
    fake(tmp_path, "btad", profile="paper")
    found = t.claims(tmp_path, "paper").set_index("id")
    assert found.Ours["objects"] == "detection: objects +10.0 (1), textures +10.0 (1); segmentation: objects +10.0 (1), textures +10.0 (1)"
    assert found.Holds["objects"] == "no, no interval"


def losses_of(root, name, shapes):
    """The stage 32 products that the losses are read from, beside the fake runs of a detector."""
    for path in (root / "data/runs/mini/minifab").glob(f"*/42_evaluate_tgvig/k1_seed0_{overrides_tag(t.baseline_overrides(name))}"):
        folder = path.parents[1] / "32_augment_tgvig" / path.name
        folder.mkdir(parents=True)
        for arm, shape in shapes.items():
            (folder / f"{name}-{arm}.json").write_text(json.dumps({"images": 1, "losses": shape.tolist()}))


def test_a_detector_that_still_learns_is_told_from_one_that_has_converged(tmp_path):
    assert t.losses(tmp_path).empty and t.show_convergence(t.convergence(t.losses(tmp_path))).iloc[0, 0] == "not run"
    with pytest.raises(FsadError, match="no trained detector"):
        figures.loss_curves(t.losses(tmp_path))
    for name in ("cflow", "efficientad"):
        fake(tmp_path, "minifab", tag=overrides_tag(t.baseline_overrides(name)), baselines=(name,), categories=["gear", "wood"])
    x = np.linspace(0, 1, 100)
    losses_of(tmp_path, "cflow", {"shots": np.exp(-9 * x) - 5, "generated": 3 - x})
    losses_of(tmp_path, "efficientad", {"shots": 1 + x})
    curves = t.losses(tmp_path)
    assert len(curves) == 2 * 3 * 100 and set(curves.data_set) == {"MiniFab"}
    table = t.convergence(curves).set_index(["baseline", "arm"])
    assert table.verdict.to_dict() == {("cflow", "shots"): "flat", ("cflow", "generated"): "still falls", ("efficientad", "shots"): "did not fall"}
    assert (table.runs == 2).all() and (table.steps == 100).all() and table.loc[("cflow", "generated"), "late_share"] == pytest.approx(0.2 / 0.9)
    text = to_markdown(t.show_convergence(t.convergence(curves)))
    assert "| CFlow | shots + generated (TGVIG) | 2 | 100 | 2.955 | 2.045 | 22% | still falls |" in text
    drawn = figures.loss_curves(curves)
    assert [ax.get_title("left") for ax in drawn.axes] == ["CFlow, MiniFab, 1 shot, 2 runs", "EfficientAD, MiniFab, 1 shot, 2 runs"]


def test_all_images_are_full_shot_whatever_their_number(tmp_path):
    fake(tmp_path, "minifab", shots=40)
    table = t.gains(tmp_path)
    assert cell(table, "MiniFab", "generated", shots="full").state == "run" and cell(table, "MiniFab", "generated").state == "not run"


def test_each_baseline_comes_from_its_own_runs(tmp_path):
    fake(tmp_path, "minifab"), fake(tmp_path, "minifab", tag=overrides_tag("baselines.names=[cflow]"), baselines=("cflow",), gain=-0.2)
    fake(tmp_path, "minifab", tag=overrides_tag("baselines.names=[cflow],tgvig.images=3"), baselines=("cflow",), gain=0.2)
    table = t.gains(tmp_path)
    assert cell(table, "MiniFab", "shots").gain == pytest.approx(10) and cell(table, "MiniFab", "shots", "CFlow").gain == pytest.approx(-10)
    assert cell(table, "MiniFab", "generated", "EfficientAD").state == "not run"
    with pytest.raises(FsadError, match="names"):
        load_profile("mini", "baselines.names=[cflo]")
    for name in t.BASELINES:
        assert load_profile("mini", t.baseline_overrides(name)).baselines.names == (name,)


def test_reported_numbers_stand_beside_paper_runs_only(tmp_path):
    fake(tmp_path, "minifab")
    table = t.gains(tmp_path)
    paper = table[table.profile == "paper"]
    assert cell(table, "MVTec AD", "generated").reported == 83.9 and (paper.state == "not run").all()
    assert table[table.profile == "mini"].reported.isna().all()
    fake(tmp_path, "mvtec_ad", profile="paper")
    row = cell(t.gains(tmp_path, "paper"), "MVTec AD", "generated")
    assert row.difference == pytest.approx(row.ours - 83.9)
    fake(tmp_path, "mvtec_ad", shots=5, profile="paper", categories=["bottle", "cable"])
    row = cell(t.gains(tmp_path, "paper"), "MVTec AD", "generated", shots="5")
    assert row.state == "partial" and np.isnan(row.ours), "part of a benchmark is not the benchmark"
    classes = t.per_class(tmp_path).set_index(["category", "shots", "baseline"])
    assert classes.loc[("carpet", "1", "PatchCore"), "reported"] == 93.6 and classes.loc[("bottle", "5", "PatchCore"), "ours"] == pytest.approx(70)
    assert len(classes) == 15 * 3 * 4 and np.isnan(classes.loc[("carpet", "full", "CFlow"), "ours"])


def test_the_detectors_are_held_against_anomalib_s_own_numbers(tmp_path):
    empty = t.full_shot(tmp_path)
    assert set(empty["Ours, all images, nothing added"]) == {"not run"} and set(empty.Detector) == set(t.BASELINES.values())
    assert empty.iloc[0].anomalib == "97.3"
    fake(tmp_path, "mvtec_ad", shots=60, profile="paper", available=60, categories=["carpet"])
    assert t.full_shot(tmp_path).iloc[0].Difference == "–", "part of a benchmark is not the benchmark"
    fake(tmp_path, "mvtec_ad", shots=60, profile="paper", available=60, seed=1)
    row = t.full_shot(tmp_path).iloc[0]
    ours = 100 * (LEVEL["shots"] + 0.01 * 7 + 0.02)  # the mean of fifteen categories
    assert row["Ours, all images, nothing added"] == f"{ours:.1f} (1)" and row.Difference == f"{ours - 97.3:+.1f}"


def test_table1_leaves_the_closed_generators_to_the_user(tmp_path):
    table = t.table1(tmp_path, "paper").set_index("method")
    assert table.loc["DALL-E", "image_auroc_reported"] == 85.7 and table.image_auroc_ours.isna().all()
    arms = LEVEL | {"vqgan_clip_word": 0.4, "midjourney": 0.5}
    fake(tmp_path, "minifab", tag=t.TABLE1_TAG, arms=arms, categories=["gear"])
    found = t.table1(tmp_path).set_index("method")
    assert found.loc["VQGAN-CLIP, word alone", "image_auroc_ours"] == pytest.approx(40) and found.loc["Midjourney", "image_auroc_ours"] == pytest.approx(50)
    assert found.image_auroc_reported.isna().all(), "a miniature's number never stands beside the paper's"
    text = t.show_table1(t.table1(tmp_path)).set_index("Method")
    assert text.loc["DALL-E", "Detection: Ours"].startswith("your own image") and text.loc["Ours", "Detection: Ours"] == "70.0"
    alone = 100 * arms["shots"]
    assert text.loc["Ours", "Detection: gain, points"] == f"{70 - alone:+.1f}" and text.loc["Ours", "Detection: relative, %"] == f"{100 * (70 / alone - 1):+.1f}"
    lone = t.show_table1(t.table1(tmp_path).assign(image_auroc_ours=lambda x: x.image_auroc_ours.where(x.method != "Original image alone")))
    assert "Detection: gain, points" not in lone and "Segmentation: gain, points" in lone, "no gain over what was not run"
    assert text.loc["Original image alone", "Detection: gain, points"] == text.loc["DALL-E", "Detection: relative, %"] == "–"
    assert "vqgan_clip_caption" in t.table1_overrides("paper") and "caption" not in t.table1_overrides("mini")
    assert load_profile("mini", t.table1_overrides("mini", "/somewhere")).outside.checkpoint == "/somewhere"


def synthesized(root, category, tag="", similarity=(0.1, 0.3, 0.2), cosine=(0.4, 0.1), profile="mini", dataset="minifab"):
    path = root / "data/runs" / profile / dataset / category / "22_synthesize_tgvig" / ("k1_seed0" + (f"_{tag}" if tag else ""))
    path.mkdir(parents=True)
    rows = [
        {"generator": g, "prompt": p, "text": "", "n": 10, "inception": v, "inception_label": "Inception Score (proxy: x)",
         "ssim": v / 10, "psnr": None if g == "original" else 20 + v, "lpips": 1 / v}
        for g, p, v in (("original", "", 1.0), ("tgvig", "best", 3.0), ("tgvig", "worst", 2.0), ("tgvig", "word", 2.5), ("tgvig", "naive", 2.1),
                        ("vqgan_clip", "word", 1.5))
    ]  # fmt: skip
    identity = {"dataset": dataset, "category": category, "shots": 1, "seed": 0, "tag": tag}
    metrics = {"best": f"a {category} with b", "worst": f"a {category} with w", "best_cosine": cosine[0], "worst_cosine": cosine[1]}
    metrics |= {"similarity": list(similarity), "quality": rows}
    (path / "metrics.json").write_text(json.dumps(metrics | {"fingerprint": "x", "identity": identity, "files": []}))


def test_tables_2_and_4_from_stage_22(tmp_path):
    assert (t.quality(tmp_path).runs == 0).all() and t.prompts(tmp_path).iloc[0]["Object"] == "not run"
    synthesized(tmp_path, "gear"), synthesized(tmp_path, "washer", similarity=(0.1, 0.2, 0.3)), synthesized(tmp_path, "gear", tag=t.TABLE1_TAG)
    table = t.quality(tmp_path).set_index(["generator", "prompt"])
    assert table.loc[("vqgan_clip", "word"), "runs"] == 1 and table.loc[("tgvig", "best"), "inception_score_ours"] == pytest.approx(3)
    shown = t.show_quality(t.quality(tmp_path))
    both = t.show_quality(pd.concat([t.quality(tmp_path, "paper"), t.quality(tmp_path)], ignore_index=True))
    heads = both.columns[both.columns.str.startswith("IS")].tolist()
    assert heads == ["IS: Reported", "IS: Ours", "IS (proxy: x): Ours"], "another profile's network says nothing about the paper's"
    blocks = to_markdown(both).split("### ")[1:]
    assert "proxy" not in blocks[0] and "IS: Ours" not in blocks[1] and "IS (proxy: x): Ours" in blocks[1]
    assert "IS (proxy: x): Ours" in shown and shown.iloc[0]["PSNR: Ours"] == "∞" and not any("Reported" in c for c in shown)
    assert t.prompts(tmp_path).Object.tolist() == ["gear", "washer"]
    assert t.prompts(tmp_path, "paper")["Paper: best"].tolist()[0] == "cobnut"


def test_table3_measures_each_variant_against_its_own_baseline(tmp_path):
    fake(tmp_path, "minifab")
    fake(tmp_path, "minifab", tag=overrides_tag(t.ABLATIONS["variance", "without variance"]), gain=-0.12, arms={"shots": 0.6, "generated": 0.7})
    fake(tmp_path, "minifab", tag=overrides_tag(t.ABLATIONS["text", "without text"]), arms={"shots": 0.6, "generated": 0.7, "without_text": 0.68})
    table = t.table3(tmp_path)
    ours = table[table.data_set == "MiniFab"].set_index(["component", "variant"])
    assert ours.loc[("whole method", "plain run"), "gain"] == pytest.approx(10) and ours.loc[("variance", "without variance"), "gain"] == pytest.approx(-2)
    assert ours.loc[("text", "without text"), "gain"] == pytest.approx(8) and ours.loc[("text", "without text"), "over_augmented"] == pytest.approx(-1)
    assert ours.loc[("copies", "100"), "state"] == "not run" and ours.reported.isna().all()
    assert table[table.profile == "paper"].set_index(["component", "variant"]).loc[("variance", "without variance"), "reported"] == 74.3
    assert SAME_PRODUCTS not in ours.index, "the variants were run on all products"
    fake(tmp_path / "few", "minifab")
    fake(tmp_path / "few", "minifab", tag=overrides_tag(t.ABLATIONS["text", "without text"]), categories=["capsule"], arms={"shots": 0.6, "without_text": 0.5})
    few = t.table3(tmp_path / "few").query("data_set == 'MiniFab'").set_index(["component", "variant"])
    assert few.loc[SAME_PRODUCTS, "categories"] == 1 and few.loc[("whole method", "plain run"), "categories"] == 8
    for overrides in t.ablation_overrides():
        load_profile("mini", overrides), load_profile("paper", overrides)


def test_a_memory_that_grows_is_told_from_images_that_help(tmp_path):
    assert t.show_memories(t.memories(tmp_path)).iloc[0, 0] == "not run"
    fake(tmp_path, "minifab", arms={"shots": 0.7, "generated": 0.69, "duplicated": 0.7, "augmented": 0.7})
    assert t.show_memories(t.memories(tmp_path)).iloc[0, 0] == "not run", "one kind of memory compares nothing"
    share = t.MEMORIES["mini"]["a tenth of an arm's patches, anomalib's default"]
    fake(tmp_path, "minifab", tag=overrides_tag(share), arms={"shots": 0.6, "generated": 0.7, "duplicated": 0.69, "augmented": 0.7})
    table = t.memories(tmp_path).query("data_set == 'MiniFab'").set_index(["memory", "arm"])
    size, tenth, every = t.MEMORIES["mini"]
    assert table.loc[(size, "shots"), "gain"] == pytest.approx(-1)
    assert table.loc[(tenth, "shots"), "gain"] == pytest.approx(10) and table.loc[(tenth, "duplicated"), "gain"] == pytest.approx(1)
    assert len(t.show_memories(t.memories(tmp_path))) == 12, "what was not run stays visible"
    for profile, kinds in t.MEMORIES.items():
        sizes = {label: load_profile(profile, text or None).baselines.coreset_size for label, text in kinds.items()}
        assert sizes[size] and sizes[tenth] is None and load_profile(profile, kinds[every]).baselines.coreset == 1


def test_claims_are_judged_by_what_was_run(tmp_path):
    empty = t.claims(tmp_path).set_index("id")
    assert len(empty) == 12 and empty.Holds.eq("not run").all()
    fake(tmp_path, "minifab"), synthesized(tmp_path, "gear"), synthesized(tmp_path, "washer", similarity=(0.1, 0.2, 0.3))
    fake(tmp_path, "minifab", tag=overrides_tag(t.ABLATIONS["variance", "without variance"]), gain=0.12, arms={"shots": 0.6, "generated": 0.7})
    found = t.claims(tmp_path).set_index("id")
    assert found.Holds["general"] == "yes in what was run" and "PatchCore, 1 shot, over augmented: +1.0" in found.Ours["general"]
    assert found.Holds["peak"] == "not told from chance" and found.Ours["peak"] == "an inner peak in 1 of 2 runs; random order: 33%"
    assert found.Holds["variance"] == "not run", "the largest effect: of which?"
    fake(tmp_path, "minifab", tag=overrides_tag(t.ABLATIONS["text", "without text"]), arms={"shots": 0.6, "generated": 0.7, "without_text": 0.68})
    both = t.claims(tmp_path).set_index("id")
    assert both.Holds["variance"] == "no, no interval" and both.Holds["text"] == "yes, no interval" and found.Holds["prompt"] == "yes" and found.Holds["fewer_more"] == "not run"
    row = {"generator": "tgvig", "n": 9, "inception": 2.0, "inception_label": "", "ssim": 0.5, "psnr": 20.0, "lpips": 0.1}
    same = [row | {"prompt": p} for p in ("best", "worst", "word", "naive")]
    for path in (tmp_path / "data/runs/mini/minifab").glob("*/22_synthesize_tgvig/*/metrics.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quality": same}))
    tied = t.claims(tmp_path).set_index("id")
    assert tied.Holds["prompt"] == "no" and tied.Ours["prompt"].startswith("IS: equal: best, worst, word, naive;"), "prompts that chose the same set"
    assert found.Holds["logical"] == "yes, no interval" and found.Ours["objects"].startswith("detection: objects +10.0 (5), textures +10.0 (3); segmentation: objects")
    fake(tmp_path, "minifab", shots=5, gain=-0.2)
    found = t.claims(tmp_path).set_index("id")
    assert found.Holds["one_beats_many"] == "yes" and found.Ours["one_beats_many"] == "against 5 shots without it: +10.0 [+10.0, +10.0]"
    assert found.Holds["general"] == "no" and found.Holds["fewer_more"] == "yes, no interval"


def test_better_looks_are_asked_of_both_variants_on_the_same_products(tmp_path):
    none, unit = (overrides_tag(t.ABLATIONS["variance", arm]) for arm in ("without variance", "unit variance"))

    def looks(category, tag, value):
        synthesized(tmp_path, category, tag=tag)
        for path in (tmp_path / f"data/runs/mini/minifab/{category}/22_synthesize_tgvig").glob(f"k1_seed0{'_' * bool(tag)}{tag}/metrics.json"):
            made = json.loads(path.read_text())
            for row in made["quality"]:
                row |= {"ssim": value, "psnr": 30 * value, "lpips": 1 - value} if (row["generator"], row["prompt"]) == ("tgvig", "best") else {}
            path.write_text(json.dumps(made))

    looks("gear", "", 0.8), looks("washer", "", 0.1), looks("gear", none, 0.9)
    assert t.claims(tmp_path).set_index("id").Holds["variance_looks"] == "not run", "unit variance lacks"
    looks("gear", unit, 0.3)
    found = t.claims(tmp_path).set_index("id").loc["variance_looks"]
    assert found.Holds == "not better than without variance, better than unit variance, no interval"
    assert found.Ours.startswith("estimated: SSIM 0.800, PSNR 24.00 dB, LPIPS 0.200; without variance: SSIM 0.900"), "gear alone: washer has no variants"


def test_a_loss_is_no_gain_that_shrinks_and_a_fall_no_saturation(tmp_path):
    fake(tmp_path, "minifab", gain=-0.12), fake(tmp_path, "minifab", shots=5, gain=-0.3)
    copies = [overrides for (component, _), overrides in t.ABLATIONS.items() if component == "copies"]
    for overrides, gain in zip(copies, np.linspace(-0.1, -0.3, len(copies)), strict=True):
        fake(tmp_path, "minifab", tag=overrides_tag(overrides), gain=gain, arms={"shots": 0.6, "generated": 0.7})
    found = t.claims(tmp_path).set_index("id")
    assert found.Holds["fewer_more"] == "no gain" and found.Holds["saturation"] == "no, no interval"


def test_shots_are_compared_on_the_same_products_and_two_products_decide_nothing(tmp_path):
    fake(tmp_path, "minifab", gain=0.1), fake(tmp_path, "minifab", shots=5, gain=0.05, categories=["gear", "wood"])
    found = t.claims(tmp_path).set_index("id")
    assert found.Ours["fewer_more"].endswith("(2 of 8 products)") and found.Holds["general"] == "unclear in what was run"
    five = [text for text in found.Ours["general"].split("; ") if "5 shots" in text]
    assert five and all(text.endswith("(2 of 8 products)") for text in five)


def test_everything_is_written_and_says_what_was_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    names = {path.relative_to(tmp_path).as_posix() for path in t.write_all()}
    assert {"data/results/tgvig_mini.csv", "data/results/tgvig_quality_mini.csv"} <= names
    wanted = ("gains", "gains_reported", "convergence", "full_shot", "table1", "table2", "table3", "table3_pixel", "memory", "table4", "per_class", "per_category", "claims", "own_choices")
    assert {f"figures/tgvig_{n}.{e}" for n in wanted for e in ("csv", "md", "tex")} <= names
    text = (tmp_path / "figures/tgvig_table1.md").read_text()
    assert "93.3" in text and "not run" in text and "your own image" in text
    choices = pd.read_csv(tmp_path / "figures/tgvig_own_choices.csv").set_index("Name")
    assert {"tgvig.iterations", "tgvig.lam", "tgvig.augmented", "baselines.cflow_steps", "duplicated arm"} <= set(choices.index)
    assert choices.Reason.notna().all() and (choices.Reason != "–").all()


def test_the_rows_behind_every_table_are_written(tmp_path, monkeypatch):
    """Plain runs, ablations, memories, Table 1, told apart by their tags; and what Tables 2 is made of."""
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    two, memory = {"shots": 0.6, "generated": 0.7}, [text for text in t.MEMORIES["mini"].values() if text]
    fake(tmp_path, "minifab"), fake(tmp_path, "minifab", tag=t.TABLE1_TAG, categories=["gear"], arms=LEVEL | {"diffusion": 0.5})
    for text in (*t.ablation_overrides(), *memory, t.baseline_overrides("cflow")):
        fake(tmp_path, "minifab", tag=overrides_tag(text), categories=["gear"], arms=two, baselines=("cflow",) if "cflow" in text else ("patchcore",))
    synthesized(tmp_path, "gear"), synthesized(tmp_path, "gear", tag=t.TABLE1_TAG)
    t.write_all()
    rows = pd.read_csv(tmp_path / "data/results/tgvig_mini.csv", dtype={"tag": str}).fillna({"tag": ""})
    tags = {overrides_tag(text) for text in (*t.ablation_overrides(), *memory, t.baseline_overrides("cflow"))} | {"", t.TABLE1_TAG}
    assert set(rows.tag) == tags and len(rows) == len(t.all_rows(tmp_path)) and not rows.duplicated(["category", "shots", "seed", "tag", "method", "part", "group"]).any()
    assert rows.tag.eq("").sum() == 8 * 4 * 3 and "folder" not in rows and "diffusion" in set(rows.part)
    quality = pd.read_csv(tmp_path / "data/results/tgvig_quality_mini.csv", dtype={"tag": str}).fillna({"tag": ""})
    assert quality.groupby("tag").size().to_dict() == {"": 6, t.TABLE1_TAG: 6} and {"inception", "ssim", "psnr", "lpips", "n"} < set(quality)
    plain = t.committed_rows("mini", tmp_path)
    assert set(plain.tag) == {"", overrides_tag("baselines.names=[cflow]")} and set(plain.method) == {"patchcore", "cflow"}
    assert cell(t.gains(tmp_path, rows=plain), "MiniFab", "shots").gain == pytest.approx(10)


def test_the_committed_rows_give_the_committed_gains():
    """Rows have four decimal places, so that percent agree to about a hundredth."""
    from fsad_lib.runs import project_root

    here = pd.read_csv(project_root() / "figures/tgvig_gains.csv", dtype={"shots": str}).query("data_set == 'MiniFab' and shots != 'full'")
    key = ["shots", "baseline", "metric", "arm"]
    both = here.merge(t.gains(rows=t.committed_rows()).query("data_set == 'MiniFab'"), on=key, suffixes=("", "_again"))
    assert len(both) == len(here) > 0
    for name in ("ours", "low", "high", "gain", "gain_low", "gain_high", "relative"):
        np.testing.assert_allclose(both[name], both[f"{name}_again"], atol=0.015)


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_every_value_of_the_profiles_has_its_reason(profile):
    """What follows a value in the YAML: the paper, or an own choice and why."""
    import re
    from pathlib import Path

    import fsad_lib.profiles as profiles

    text = (Path(profiles.__file__).parent / f"{profile}.yaml").read_text()
    for section in ("tgvig", "baselines"):
        block = re.search(rf"^{section}:\n((?:  .*\n?)+)", text, re.M)[1].splitlines()
        assert len(block) == len(type(getattr(load_profile(profile), section)).model_fields)
        for line in block:
            comment = line.partition(" # ")[2].strip()
            assert comment and (profile == "mini" or re.match(r"own choice: |from the paper|the official", comment)), line


# ---------------------------------------------------------------- command line
def test_the_grids_of_the_command_line(monkeypatch, capsys):
    from fsad_lib import pipeline

    calls = []

    def grid(method, pairs, shots, seeds, profile, **how):
        calls.append((method, list(pairs), list(shots), how["overrides"], how["tag"]))
        return pipeline.GridReport()

    monkeypatch.setattr(pipeline, "grid", grid)
    base = ["grid", "tgvig", "--category", "gear", "--shots", "1", "5"]
    assert main([*base, "--baselines", "patchcore", "cflow"]) == 0
    assert [c[3:] for c in calls] == [("", ""), ("baselines.names=[cflow]", "")] and calls[0][:3] == ("tgvig", [("minifab", "gear")], [1, 5])
    calls.clear()
    assert main([*base, "--ablations"]) == 0 and [c[3] for c in calls] == ["", *t.ablation_overrides()]
    calls.clear()
    assert main(["grid", "tgvig", "--category", "gear", "--shots", "1", "--table1", "--outside", "pictures"]) == 0
    assert calls[0][4] == "table1" and "rivals=[vqgan_clip_word" in calls[0][3] and calls[0][3].endswith("/pictures")
    calls.clear()
    monkeypatch.setattr(pipeline, "all_images", lambda pairs, root="": {5: pairs, 40: pairs})
    assert main([*base, "--full"]) == 0 and [c[2] for c in calls] == [[1, 5], [40]]
    wrong = [["--baselines", "cflo"], ["--outside", "x"], ["--table1", "--tag", "a"], ["--ablations", "--overrides", "tgvig.images=3"]]
    for command in (["grid", "adp", "--baselines", "cflow"], *([*base, *more] for more in wrong)):
        assert main(command) == 2
    assert "expected some of patchcore" in capsys.readouterr().err


def test_the_cost_plan_counts_the_grids_cells():
    import re

    from fsad_lib import pipeline
    from fsad_lib.runs import project_root

    counted = {}
    for plan in pipeline.grids("tgvig"):
        for shots in plan["shots"]:
            kind = plan.get("tag") or plan.get("overrides", "")
            kind = f"{shots}" if not kind else "variants" if kind in t.ablation_overrides() else "memories" if kind in t.MEMORIES["mini"].values() else kind
            counted[kind] = counted.get(kind, 0) + len(plan["pairs"]) * len(plan["seeds"])
    trained = {}
    for name in ("cflow", "efficientad", "reverse_distillation"):
        trained[name] = counted.pop(t.baseline_overrides(name))
    expected = [counted["1"], counted["5"], *trained.values(), counted["variants"], counted["memories"], counted["table1"], counted["40"]]
    text = (project_root() / "fsad_lib/tgvig/README.md").read_text().split("## What a grid costs")[1].split("## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if re.match(r"\| .*\d", line)]
    *parts, total = rows
    assert [int(row[1]) for row in parts] == expected and int(total[1]) == sum(expected)
    assert [round(int(row[1]) * float(row[2])) for row in parts] == [int(row[3]) for row in parts] and int(total[3]) == sum(int(row[3]) for row in parts)


def test_all_images_as_numbers_of_shots(tmp_path):
    from PIL import Image

    from fsad_lib import pipeline, runs

    for name, n in (("a", 2), ("b", 3), ("c", 2)):
        for i in range(n):
            path = tmp_path / name / f"train/good/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
        (tmp_path / name / "test").mkdir()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name / "test/x.png")
    runs.forget_inputs()
    pairs = [("folder", name) for name in "abc"]
    assert pipeline.all_images(pairs, str(tmp_path)) == {2: [pairs[0], pairs[2]], 3: [pairs[1]]}


# ---------------------------------------------------------------- one run, figures
def test_compare_judges_the_images_of_one_run():
    rng, n = np.random.default_rng(0), 40
    parts = []
    for arm, gap in (("shots", 0.3), ("generated", 3.0), ("augmented", 3.0)):
        for label in (0, 1):
            score, path = rng.normal(size=n) + gap * label, [f"{label}/{i}" for i in range(n)]
            parts.append(pd.DataFrame({"path": path, "label": label, "seen": True, "method": "patchcore", "part": arm, "score": score}))
    lines = t.compare(pd.concat(parts), "patchcore").splitlines()
    assert "is better than shots alone" in lines[0] and "not told apart from shots + augmentations" in lines[1] and len(lines) == 2
    assert t.compare(pd.concat(parts).assign(label=0), "patchcore").startswith("No image AUROC")
    controls = pd.concat(parts).query("part != 'generated'")
    assert t.compare(controls, "patchcore") == "PatchCore was not run with generated images."
    assert "nothing to show" in t.one_run([])


def test_figures_draw_what_is_there(tmp_path):
    empty = pd.DataFrame({"label": ["a"], "arm": ["shots"], "ours": [np.nan], "gain": [np.nan]})
    for draw in (figures.arm_points, figures.gain_points):
        with pytest.raises(FsadError, match="Nothing to draw"):
            draw({"x": empty})
    assert figures.of_rows(t.rows_of(tmp_path), t.gains(tmp_path)) == {}
    fake(tmp_path, "minifab"), fake(tmp_path, "minifab", seed=1), fake(tmp_path, "minifab", shots=5)
    fake(tmp_path, "minifab", tag=overrides_tag("baselines.names=[cflow]"), baselines=("cflow",), categories=["wood"])
    rows, gains = t.rows_of(tmp_path), t.gains(tmp_path)
    drawn = figures.of_rows(rows, gains)
    assert set(drawn) == {"figure1_one_product", "figure4_gains", "figure4_classes", "figure5_objects_textures", "figure6_logical_structural"}
    assert [ax.get_title("left") for ax in drawn["figure1_one_product"].axes] == ["wood, 1 shot: image AUROC", "wood, 5 shots: image AUROC"], "the product with most detectors"
    labels = [text.get_text() for text in drawn["figure4_gains"].axes[0].get_yticklabels()]
    assert labels == ["MiniFab, 1 shot, PatchCore\n8 products, 2 seeds", "MiniFab, 1 shot, CFlow\n1 product, 1 seed", "MiniFab, 5 shots, PatchCore\n8 products, 1 seed"]
    assert drawn["figure4_gains"].axes[0].get_xlim()[0] < 0 < drawn["figure4_gains"].axes[0].get_xlim()[1], "the line at no gain is in the picture"
    for name, kinds in (("figure5_objects_textures", ["objects", "textures"]), ("figure6_logical_structural", ["logical", "structural"])):
        assert [ax.get_title("left") for ax in drawn[name].axes] == ["PatchCore, 1 shot: image AUROC", "PatchCore, 1 shot: pixel AUROC"]
        assert [text.get_text().split("\n")[0] for text in drawn[name].axes[1].get_xticklabels()] == kinds
    assert drawn["figure5_objects_textures"].axes[0].get_xticklabels()[0].get_text() == "objects\n5 products, 2 seeds"
    level = figures._levels(rows, "mini", "1")["figure5_objects_textures"]["PatchCore, 1 shot: pixel AUROC"].set_index(["label", "arm"])
    assert level.loc[("textures", "generated"), "low"] < level.loc[("textures", "generated"), "ours"] < level.loc[("textures", "generated"), "high"]
    x, masks = torch.rand(3, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, 2:5, 2:5] = True
    shown = figures.image_rows({"a": x, "b": x[:1]}, 2, masks={"a": masks})
    assert len(shown.axes) == 4 and [len(ax.collections) for ax in shown.axes] == [2, 0, 0, 0], "outlined where there is a defect"
    maps = figures.map_rows(x[:2], {"shots": torch.arange(32.0).view(2, 4, 4)}, torch.ones(2, 8, 8, dtype=torch.bool), ["a", "b"])
    assert len(maps.axes) == 6 and maps.axes[1].get_title() == "shots\n0 to 31" and maps.axes[4].images[0].get_clim() == (0, 31)
    both = figures.map_rows(x[:2], {"a": torch.zeros(2, 4, 4), "b": torch.arange(32.0).view(2, 4, 4)}, shared=True)
    assert all(ax.images[0].get_clim() == (0, 31) for ax in (both.axes[1], both.axes[2])) and both.axes[1].get_title() == "a\n0 to 0"
    made = SimpleNamespace(sets={"best": x, "word": x[:1], "last": x[1:]}, chosen={"best": 2, "word": 5, "last": 2})
    merged = figures._of_iterations(made, {"best": "best prompt", "word": "word alone", "last": "last iteration"})
    assert list(merged) == ["best prompt\nlast iteration\niteration 2", "word alone\niteration 5"] and merged["word alone\niteration 5"] is made.sets["word"]
    assert len(figures.similarity_curves({"gear": pd.DataFrame({"iteration": [1, 2], "best": [0.1, 0.3]})}).axes) == 1
    assert len(figures.variance_map(x[0], torch.rand(4, 2, 2), torch.rand(4, 2, 2), x).axes) == 8, "six pictures, two colour bars"


def test_figures_9_and_3_take_a_product_that_has_what_they_show(tmp_path, monkeypatch):
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    fake(tmp_path, "minifab", categories=["bracket", "gear", "wood"])
    fake(tmp_path, "minifab", tag=overrides_tag("baselines.names=[cflow]"), baselines=("cflow",), categories=["gear"])
    losses_of(tmp_path, "cflow", {"shots": np.linspace(2, 1, 20)})
    x, trace, titles = torch.rand(2, 3, 8, 8), pd.DataFrame({"iteration": [1, 2], "best": [0.1, 0.3]}), {}
    monkeypatch.setattr(stages, "synthesize", lambda run: SimpleNamespace(x=x[:1], trace=trace, sets={"best": x}))
    monkeypatch.setattr(stages, "source_run", lambda run: SimpleNamespace(category=run.category, has=lambda *names: run.category != "bracket"))
    original = figures.image_rows

    def drawn(run, result=None):
        whole = {name: original({run.category: x}) for name in ("overview", "prompts", "images")}
        return whole | ({"rivals": original({"ours": x})} if run.tag == t.TABLE1_TAG and run.category == "wood" else {})

    monkeypatch.setattr(figures, "of_run", drawn)
    monkeypatch.setattr(figures, "image_rows", lambda rows, *more: titles.update(rows) or original(rows))
    names = [path.name for path in figures.write_all() if path.suffix != ".pdf"]
    assert list(titles) == ["shot", "estimated variance", "unit variance", "no variance"] and names.count("tgvig_figure9_variance.png") == 1
    assert {"tgvig_figure3_overview.png", "tgvig_figure2_generators_wood.png", "tgvig_losses.png", "tgvig_figure1_one_product.png", "tgvig_captions.md"} <= set(names)
    text = (tmp_path / "figures/tgvig_captions.md").read_text()
    assert all(caption in text for caption in figures.CAPTIONS.values()) and "![](tgvig_figure9_variance.png)" in text and "Not drawn" not in text
    assert figures.captions([]).count("Not drawn: no complete run.") == len(figures.CAPTIONS)


def test_the_notebook_of_figures_has_every_caption():
    from fsad_lib.runs import project_root

    book = nbformat.read(project_root() / "notebooks/52_figures_tgvig.ipynb", 4)
    prose = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    for name, caption in figures.CAPTIONS.items():
        assert any(caption in text for text in prose), f"{name}: no markdown cell of notebook 52 has its caption"
        assert any(name in cell.source for cell in book.cells if cell.cell_type == "code"), f"{name} is not shown"


def test_a_peak_counts_only_where_chance_would_not_give_it(tmp_path):
    for category in ("gear", "washer", "bracket", "wood"):
        synthesized(tmp_path, category, similarity=(0.1, 0.3, 0.2))
    found = t.claims(tmp_path).set_index("id")
    assert found.Holds["peak"] == "yes", "4 of 4, where random order gives one in three"

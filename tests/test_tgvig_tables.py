"""TGVIG's tables and figures: gains against each control, what may stand beside the paper's number, what was not run."""

import json

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
from fsad_lib.tgvig import figures

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
                rows += [row] + [row | {"group": g, "image_auroc": value - 0.05} for g in ("logical", "structural")]
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


def test_table1_leaves_the_closed_generators_to_the_user(tmp_path):
    table = t.table1(tmp_path, "paper").set_index("method")
    assert table.loc["DALL-E", "image_auroc_reported"] == 85.7 and table.image_auroc_ours.isna().all()
    arms = LEVEL | {"vqgan_clip_word": 0.4, "midjourney": 0.5}
    fake(tmp_path, "minifab", tag=t.TABLE1_TAG, arms=arms, categories=["gear"])
    found = t.table1(tmp_path).set_index("method")
    assert found.loc["VQGAN-CLIP, word alone", "image_auroc_ours"] == pytest.approx(40) and found.loc["Midjourney", "image_auroc_ours"] == pytest.approx(50)
    assert found.image_auroc_reported.isna().all(), "a miniature's number never stands beside the paper's"
    text = t._show_table1(t.table1(tmp_path)).set_index("Method")
    assert text.loc["DALL-E", "Detection: Ours"].startswith("your own image") and text.loc["Ours", "Detection: Ours"] == "70.0"
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
    shown = t._show_quality(t.quality(tmp_path))
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
    assert t._SAME not in ours.index, "the variants were run on all products"
    fake(tmp_path / "few", "minifab")
    fake(tmp_path / "few", "minifab", tag=overrides_tag(t.ABLATIONS["text", "without text"]), categories=["capsule"], arms={"shots": 0.6, "without_text": 0.5})
    few = t.table3(tmp_path / "few").query("data_set == 'MiniFab'").set_index(["component", "variant"])
    assert few.loc[t._SAME, "categories"] == 1 and few.loc[("whole method", "plain run"), "categories"] == 8
    for overrides in t.ablation_overrides():
        load_profile("mini", overrides), load_profile("paper", overrides)


def test_a_memory_that_grows_is_told_from_images_that_help(tmp_path):
    assert t.show_memories(t.memories(tmp_path)).iloc[0, 0] == "not run"
    fake(tmp_path, "minifab", arms={"shots": 0.7, "generated": 0.69, "duplicated": 0.7, "augmented": 0.7})
    assert t.show_memories(t.memories(tmp_path)).iloc[0, 0] == "not run", "one kind of memory compares nothing"
    share = t.MEMORIES["mini"]["a tenth of an arm's patches, as published"]
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
    assert len(empty) == 11 and empty.Holds.eq("not run").all()
    fake(tmp_path, "minifab"), synthesized(tmp_path, "gear"), synthesized(tmp_path, "washer", similarity=(0.1, 0.2, 0.3))
    fake(tmp_path, "minifab", tag=overrides_tag(t.ABLATIONS["variance", "without variance"]), gain=0.12, arms={"shots": 0.6, "generated": 0.7})
    found = t.claims(tmp_path).set_index("id")
    assert found.Holds["general"] == "yes in what was run" and "PatchCore, 1 shots, over augmented: +1.0" in found.Ours["general"]
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
    assert found.Holds["logical"] == "yes, no interval" and found.Ours["objects"].startswith("objects +10.0")
    fake(tmp_path, "minifab", shots=5, gain=-0.2)
    found = t.claims(tmp_path).set_index("id")
    assert found.Holds["one_beats_many"] == "yes" and found.Ours["one_beats_many"] == "against 5 without it: +10.0 [+10.0, +10.0]"
    assert found.Holds["general"] == "no" and found.Holds["fewer_more"] == "yes, no interval"


def test_everything_is_written_and_says_what_was_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    names = {path.relative_to(tmp_path).as_posix() for path in t.write_all()}
    wanted = ("gains", "table1", "table2", "table3", "memory", "table4", "per_class", "per_category", "claims", "own_choices")
    assert {f"figures/tgvig_{n}.{e}" for n in wanted for e in ("csv", "md", "tex")} <= names
    text = (tmp_path / "figures/tgvig_table1.md").read_text()
    assert "93.3" in text and "not run" in text and "your own image" in text
    choices = pd.read_csv(tmp_path / "figures/tgvig_own_choices.csv").set_index("Name")
    assert {"tgvig.iterations", "tgvig.lam", "tgvig.augmented", "baselines.cflow_steps", "duplicated arm"} <= set(choices.index)
    assert choices.Reason.notna().all() and (choices.Reason != "–").all()


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
    assert "nothing to show" in t.one_run([])


def test_figures_draw_what_is_there(tmp_path):
    with pytest.raises(FsadError, match="Nothing to draw"):
        figures.arm_bars({"x": pd.DataFrame({"label": ["a"], "arm": ["shots"], "ours": [np.nan]})})
    fake(tmp_path, "minifab"), fake(tmp_path, "minifab", shots=5)
    rows = t.rows_of(tmp_path)
    bars = figures._bars(t.gains(tmp_path), rows, "mini", "1")
    assert set(bars) == {"figure4_gains", "figure1_one_product", "figure5_objects_textures", "figure6_logical_structural"}
    assert set(bars["figure5_objects_textures"]["PatchCore, 1 shot"].label) == {"objects", "textures"}
    assert set(bars["figure6_logical_structural"]["PatchCore, 1 shot"].label) == {"logical", "structural"}
    drawn = figures.arm_bars(bars["figure4_gains"])
    assert [ax.get_title("left") for ax in drawn.axes] == ["MiniFab, 1 shot", "MiniFab, 5 shots"], "full-shot was not run: no empty panel"
    assert [text.get_text() for text in drawn.axes[0].get_xticklabels()] == ["PatchCore", "CFlow\nnot run", "EfficientAD\nnot run", "Reverse\nDistillation\nnot run"]
    x = torch.rand(3, 3, 8, 8)
    assert len(figures.image_rows({"a": x, "b": x[:1]}, 2).axes) == 4
    assert len(figures.map_rows(x[:2], {"shots": torch.rand(2, 4, 4)}, torch.ones(2, 8, 8, dtype=torch.bool), ["a", "b"]).axes) == 6
    assert len(figures.similarity_curves({"gear": pd.DataFrame({"iteration": [1, 2], "best": [0.1, 0.3]})}).axes) == 1
    assert len(figures.variance_map(x[0], torch.rand(4, 2, 2), torch.rand(4, 2, 2), x).axes) == 6


def test_a_peak_counts_only_where_chance_would_not_give_it(tmp_path):
    for category in ("gear", "washer", "bracket", "wood"):
        synthesized(tmp_path, category, similarity=(0.1, 0.3, 0.2))
    found = t.claims(tmp_path).set_index("id")
    assert found.Holds["peak"] == "yes", "4 of 4, where random order gives one in three"

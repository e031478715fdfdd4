"""The three stages end to end in a project of their own: tiny random models on disk, a folder of made-up parts."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_models as tiny
import torch
from PIL import Image

from fsad_lib import runs
from fsad_lib.adp import stages
from fsad_lib.adp.concepts import load_concepts
from fsad_lib.adp.detector import ADP, anomaly_probability
from fsad_lib.adp.prompts import state_embeddings, templates
from fsad_lib.adp.self_tuning import prototypes, weight
from fsad_lib.datasets import read_images
from fsad_lib.errors import FsadError
from fsad_lib.foundation.clip import _read_once
from fsad_lib.metrics import image_metrics, metric_rows
from fsad_lib.profiles import load_profile

OVERRIDES = (
    "diffusion.image_size=16,adp.steps_ti=2,adp.steps_normal=3,adp.steps_anomaly=2,adp.n_pseudo=3,adp.n_pseudo_tuning=2,"
    "adp.num_inference_steps=2,adp.batch_size=2,adp.templates=3,adp.visual_weight=0.7"
)


def write_part(path, damaged, seed):
    pixels = np.random.default_rng(seed).integers(90, 110, (24, 24, 3), dtype=np.uint8)
    mask = np.zeros((24, 24), np.uint8)
    if damaged:
        mask[6:12, 6:12] = 255
        pixels[mask > 0] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return mask


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    model = tiny.open_clip_model()
    tiny.save_clip(root / "data/models/mini/clip", model)
    tiny.save_diffusion(tiny.diffusion(model), root / "data/models/mini/diffusion", with_text=False)
    part = root / "parts" / "gear"
    for i in range(4):
        write_part(part / f"train/good/{i}.png", False, i)
    for i in range(3):
        write_part(part / f"test/good/{i}.png", False, 10 + i)
    for i in range(2):
        mask = write_part(part / f"test/hole/{i}.png", True, 20 + i)
        (part / "ground_truth/hole").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(part / f"ground_truth/hole/{i}_mask.png")
    patch = pytest.MonkeyPatch()
    patch.setenv("FSAD_HOME", str(root))
    _read_once.cache_clear(), stages._diffusion.cache_clear(), runs.forget_inputs()
    yield root
    patch.undo()
    _read_once.cache_clear(), stages._diffusion.cache_clear(), runs.forget_inputs()


def open_run(project, stage, seed=0, shots=2, overrides=OVERRIDES, category="gear", parts="parts"):
    return runs.open_run(
        stage, "adp", profile="mini", dataset="folder", category=category, shots=shots, seed=seed,
        data_root=str(project / parts), overrides=overrides,
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(project):
    """The last stage makes the earlier ones."""
    return stages.evaluate(open_run(project, "40_evaluate"))


def test_every_product_is_committed_and_loads_back(project, evaluated, monkeypatch):
    made = {
        "10_personalize": ("concepts.safetensors", "trace.csv", "pseudo_anomalies.npz"),
        "20_synthesize": ("pseudo_tuning.npz", "weights.json", "prototypes.safetensors"),
        "40_evaluate": ("predictions.parquet", "maps.npz", "rows.json"),
    }
    for stage, names in made.items():
        assert open_run(project, stage).has(*names), stage
    monkeypatch.setattr(stages, "load_models", lambda profile: pytest.fail("a finished stage needs no model"))
    first = stages.personalize(open_run(project, "10_personalize"))
    assert first.x.shape == (2, 3, 16, 16) and first.pseudo.x.shape == (3, 3, 16, 16)
    assert (
        first.pseudo.shot.tolist() == [0, 1, 0]
        and first.pseudo.prompt[2] == "a photo of an object with damage"
    )
    assert first.trace.groupby("concept").size().to_dict() == {"c_a": 2, "c_n": 3, "ti": 2}
    assert first.trace.hinge.notna().sum() == 2
    assert set(first.concepts) == {"<ti>", "<c_n>", "<c_a>"}
    meta = load_concepts(open_run(project, "10_personalize").product_path("concepts.safetensors"))[1]
    assert meta["adp"]["alpha"] == load_profile("mini").adp.alpha and meta["init"]["<c_a>"] == "<c_n>" and meta["models"]
    second = stages.synthesize(open_run(project, "20_synthesize"))
    assert second.label == "gear" and set(second.weights) == {"object", "ti", "c_n", "c_a", "label"}
    assert all(0 <= w <= 2 for w in second.weights.values())
    third = stages.evaluate(open_run(project, "40_evaluate"))
    pd.testing.assert_frame_equal(third.predictions, evaluated.predictions)
    assert third.rows == evaluated.rows


def test_a_product_may_be_called_object(project):
    """Then the class label and the untrained word are the same word."""
    shutil.copytree(project / "parts/gear", project / "parts/object", dirs_exist_ok=True)
    made = stages.synthesize(open_run(project, "20_synthesize", category="object"))
    assert made.label == "object" and made.weights["label"] == made.weights["object"]
    assert all(torch.equal(a, b) for a, b in zip(made.prototypes["label"], made.prototypes["object"], strict=True))


def test_a_moved_project_keeps_its_runs(project, evaluated, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere"
    shutil.copytree(project, moved)
    monkeypatch.setenv("FSAD_HOME", str(moved))
    monkeypatch.setattr(stages, "_score", lambda *_: pytest.fail("a finished run was repeated"))
    again = stages.evaluate(open_run(moved, "40_evaluate"))
    assert again.paths == [p.replace(str(project), str(moved)) for p in evaluated.paths]
    assert set(again.predictions.path) == set(again.paths) and all(Path(p).is_file() for p in again.paths)


def test_predictions_hold_every_method_and_part(evaluated):
    p = evaluated.predictions
    assert p.columns.tolist() == ["path", "label", "defect", "seen", "method", "part", "score"]
    got = {(m, part) for m, part in zip(p.method, p.part, strict=True)}
    expected = {(m, part) for m in stages.METHODS for part in ("text", "sum")} | {
        ("adp", "memory"),
        ("patch_memory", "memory"),
    }
    expected |= {(m, part) for m in ("winclip", "winclip_adp_backbone") for part in ("text", "memory", "sum")}
    assert got == expected
    assert (p.groupby(["method", "part"]).size() == 5).all() and np.isfinite(p.score).all() and p.seen.all()


def test_scores_are_the_detectors(project, evaluated):
    run = open_run(project, "40_evaluate")
    clip, _ = stages.load_models(run.profile)
    tuned = stages.synthesize(run.upstream("20_synthesize"))
    words = stages.personalize(run.upstream("10_personalize")).concepts
    T, adp = templates(3), run.profile.adp
    x = read_images(evaluated.paths, clip.image_size)
    detector = ADP(
        clip,
        *tuned.prototypes["adp"],
        read_images(run.shot_paths(), clip.image_size),
        tau=adp.tau,
        visual_weight=0.7,
    )
    scores = detector(x)

    def column(method, part):
        p = evaluated.predictions
        return torch.from_numpy(p[(p.method == method) & (p.part == part)].score.to_numpy().copy())

    torch.testing.assert_close(column("adp", "sum"), scores.image.cpu(), atol=1e-5, rtol=0)
    torch.testing.assert_close(column("adp", "text"), scores.text.cpu(), atol=1e-5, rtol=0)
    torch.testing.assert_close(column("adp", "memory"), scores.memory.cpu().double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        torch.from_numpy(evaluated.maps["adp"]), scores.maps.cpu().float(), atol=1e-5, rtol=0
    )
    # single-concept methods: the template means of that word
    for method, word in (
        ("ti", "<ti>"),
        ("c_n", "<c_n>"),
        ("c_a", "<c_a>"),
        ("object", "object"),
        ("label", "gear"),
    ):
        g_n, g_a = state_embeddings(clip, word, words, T)
        text = anomaly_probability(clip.encode_image(x), g_n.mean(0), g_a.mean(0), adp.tau)
        torch.testing.assert_close(column(method, "text"), text.cpu(), atol=1e-5, rtol=0)
    # ADP_l: three words, weighted by w
    g = {
        k: state_embeddings(clip, v, words, T)
        for k, v in (("c_n", "<c_n>"), ("c_a", "<c_a>"), ("label", "gear"))
    }
    text = anomaly_probability(clip.encode_image(x), *prototypes(g, tuned.weights), adp.tau)
    torch.testing.assert_close(column("adp_l", "text"), text.cpu(), atol=1e-5, rtol=0)
    # in mini both CLIPs are one
    torch.testing.assert_close(column("winclip", "sum"), column("winclip_adp_backbone", "sum"))
    torch.testing.assert_close(column("winclip", "memory"), column("adp", "memory"))


def test_rows_are_the_metrics_of_the_predictions(evaluated):
    p = evaluated.predictions
    for row in evaluated.rows:
        part = p[(p.method == row["method"]) & (p.part == row["part"])]
        assert row["group"] == "all" and row["n"] == 5  # no seen/unseen outside MiniFab
        for name, value in image_metrics(part.label, part.score).items():
            assert row[name] == value
    pixel = {(r["method"], r["part"]) for r in evaluated.rows if "pixel_auroc" in r}
    assert {
        ("adp", "memory"),
        ("adp", "sum"),
        ("adp_l", "sum"),
        ("winclip", "sum"),
        ("patch_memory", "memory"),
    } <= pixel
    hole = next(r for r in evaluated.rows if r["method"] == "patch_memory")
    assert hole["image_auroc"] == 1.0 and hole["pixel_auroc"] > 0.8  # a white square on grey parts


def test_groups_share_the_normal_images():
    table = pd.DataFrame({
        "path": list("abcdef"), "label": [0, 0, 1, 1, 1, -1], "seen": [True, True, True, False, False, True],
        "score": [0.1, 0.2, 0.9, 0.15, 0.05, 9.0], "method": "adp", "part": "sum",
    })  # fmt: skip
    rows = {r["group"]: r for r in metric_rows(table, {("adp", "sum"): {"aupro": 0.5}})}
    assert [rows[g]["n"] for g in ("all", "seen", "unseen")] == [5, 3, 4]
    assert rows["seen"]["image_auroc"] == 1.0 and rows["unseen"]["image_auroc"] == 0.25
    assert rows["all"]["aupro"] == 0.5 and "aupro" not in rows["seen"]
    assert metric_rows(table[table.label < 1]) == []


def test_minifab_kinds_are_split_into_seen_and_unseen():
    from fsad_lib.datasets.minifab import UNSEEN

    kind = sorted(UNSEEN)[0]
    test = pd.DataFrame({"path": ["a", "b", "c"], "label": [0, 1, 1], "defect": ["good", kind, "scratch"]})
    long = stages._long(test, {("adp", "sum"): np.zeros(3)}, "minifab")
    assert long.seen.tolist() == [True, False, "scratch" not in UNSEEN]
    assert stages._long(test, {("adp", "sum"): np.zeros(3)}, "folder").seen.all()


def test_unlabelled_images_get_scores_and_no_metrics(project):
    part = project / "inbox" / "gear"
    for i in range(3):
        write_part(part / f"train/good/{i}.png", False, i)
        write_part(part / f"test/{i}.png", i == 1, 30 + i)
    run = open_run(project, "40_evaluate", parts="inbox")
    assert (run.table().query("split == 'test'").label == -1).all()
    result = stages.evaluate(run)
    assert result.rows == [] and (result.predictions.label == -1).all() and len(result.paths) == 3
    assert np.isfinite(result.predictions.score).all() and result.maps["adp"].shape == (3, 4, 4)


def test_an_unsorted_image_takes_no_pixel_metric_away(project):
    part = project / "mixed" / "gear"
    for i in range(2):
        write_part(part / f"train/good/{i}.png", False, i)
        write_part(part / f"test/good/{i}.png", False, 10 + i)
        mask = write_part(part / f"test/dent/{i}.png", True, 20 + i)
        (part / "ground_truth/dent").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(part / f"ground_truth/dent/{i}_mask.png")
    rows = stages.evaluate(open_run(project, "40_evaluate", parts="mixed")).rows
    write_part(part / "test/unsorted.png", True, 30)
    runs.forget_inputs()
    again = stages.evaluate(open_run(project, "40_evaluate", parts="mixed"))
    assert len(again.paths) == 5 and all(np.isfinite(row["pixel_auroc"]) for row in again.rows if "pixel_auroc" in row)
    for metric in ("image_auroc", "pixel_auroc", "aupro"):
        assert [row.get(metric) for row in again.rows] == pytest.approx([row.get(metric) for row in rows]), metric


def test_an_interrupted_stage_goes_on_where_it_was(project, monkeypatch):
    whole = stages.personalize(open_run(project, "10_personalize", seed=1)).concepts
    run = open_run(project, "10_personalize", seed=1)
    for name in ("concepts.safetensors", "trace.csv", "pseudo_anomalies.npz"):
        run.product_path(name).unlink()
    run.sweep(partial=True)

    def fail(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stages, "pseudo_anomalies", fail)
        with pytest.raises(KeyboardInterrupt):
            stages.personalize(run)
    assert not run.has("pseudo_anomalies.npz") and run.scratch("c_n.safetensors").is_file()
    trained = []
    monkeypatch.setattr(stages, "counter", lambda label: lambda *a: trained.append(label))
    again = stages.personalize(run).concepts
    assert all(torch.equal(again[k], v) for k, v in whole.items())
    assert {label for label in trained if label.startswith("learn")} == {
        "learn c_a"
    }  # ti and c_n were not trained again


def test_quiet_without_a_terminal(project, capfd):
    stages.personalize(open_run(project, "10_personalize", seed=2))
    assert "".join(capfd.readouterr()) == ""


def test_missing_models_are_named_before_anything_starts(project):
    run = open_run(project, "10_personalize", overrides=OVERRIDES + ",clip.checkpoint=nowhere", seed=3)
    with pytest.raises(FsadError, match="nowhere"):
        stages.personalize(run)
    with pytest.raises(FsadError, match="shots|images"):
        stages.personalize(open_run(project, "10_personalize", shots=9))


def test_what_the_last_stage_would_refuse_is_refused_before_the_training(project, monkeypatch):
    monkeypatch.setattr(stages, "load_models", lambda profile: pytest.fail("too late"))
    shutil.copytree(project / "parts/gear", project / "parts/___", dirs_exist_ok=True)
    with pytest.raises(FsadError, match="'___' gives no words"):
        stages.personalize(open_run(project, "10_personalize", category="___"))
    run = open_run(project, "10_personalize", overrides=f"{OVERRIDES},winclip.scales=[2,5]", seed=4)
    with pytest.raises(FsadError, match="winclip.scales: found a window of 5 patches a side; expected at most 4, as many as clip has"):
        stages.personalize(run)
    weights = project / "data/models/mini/clip/open_clip_model.safetensors"
    bare = f"{OVERRIDES},winclip.scales=[2,16],winclip_clip.checkpoint={weights},winclip_clip.architecture=ViT-B-16,clip.checkpoint={weights}"
    with pytest.raises(FsadError, match="window of 16 patches .* at most 14, as many as winclip_clip has"):
        stages.personalize(open_run(project, "10_personalize", overrides=bare, seed=4))


def test_gradient_checkpointing_changes_no_word(project):
    words = [stages.personalize(open_run(project, "10_personalize", overrides=f"{OVERRIDES},adp.gradient_checkpointing={on}", seed=3)).concepts for on in ("true", "false")]
    assert words[0].keys() == words[1].keys() and all(torch.allclose(words[0][name], c, atol=1e-6) for name, c in words[1].items())


def test_each_word_is_learned_as_its_equation_says(project, monkeypatch):
    """TI without CLIP, c_n with it, c_a from c_n against the pseudo-anomalies; new ones from c_a and another seed."""
    learned, drawn, seeds = [], [], []
    learn, make, edit = stages.learn_concept, stages._make_pseudo, stages.pseudo_anomalies

    def learning(clip, diffusion, x, init, **how):
        found = learn(clip, diffusion, x, init, **how)
        learned.append((init, how, found[0].clone()))
        return found

    def making(run, name, diffusion, x, *more):
        drawn.append(more)
        return make(run, name, diffusion, x, *more)

    monkeypatch.setattr(stages, "learn_concept", learning)
    monkeypatch.setattr(stages, "_make_pseudo", making)
    monkeypatch.setattr(stages, "pseudo_anomalies", lambda *given, **how: seeds.append(how["seed"]) or edit(*given, **how))
    run = open_run(project, "20_synthesize", seed=5, overrides=f"{OVERRIDES},adp.alpha=0.7,adp.gamma=0.15")
    stages.synthesize(run)
    (ti, ti_how, _), (normal, normal_how, c_n), (anomalous, anomalous_how, _) = learned
    adp, before = run.profile.adp, stages.personalize(run.upstream("10_personalize"))
    assert ti == normal == "object" and torch.equal(anomalous, c_n)
    assert [how["alpha"] for how in (ti_how, normal_how, anomalous_how)] == [0, 0.7, 0.7]
    assert [how["steps"] for how in (ti_how, normal_how, anomalous_how)] == [2, 3, 2]
    assert not {"pseudo", "gamma"} & (ti_how.keys() | normal_how.keys()) and anomalous_how["gamma"] == 0.15
    assert torch.equal(anomalous_how["pseudo"], before.pseudo.x)
    (prompts, n, seed), (tuning, n_tuning, other, words) = drawn
    assert (list(prompts), n, seed) == (list(adp.prompts_pseudo), 3, 5) and (list(tuning), n_tuning) == (list(adp.prompts_tuning), 2)
    assert other != seed and "<c_a>" in words and seeds == [seed, other]


def test_words_are_weighed_by_other_pseudo_anomalies_than_c_a_learned_from(project, evaluated):
    run = open_run(project, "20_synthesize")
    tuned, before = stages.synthesize(run), stages.personalize(run.upstream("10_personalize"))
    clip, tau = stages.clip_model(run.profile), run.profile.adp.tau
    f, new, old = (clip.encode_image(x) for x in (before.x, tuned.pseudo.x, before.pseudo.x))
    for name, word in (("c_n", "<c_n>"), ("c_a", "<c_a>"), ("label", "gear")):
        means = [g.mean(0) for g in state_embeddings(clip, word, before.concepts, templates(3))]
        assert tuned.weights[name] == pytest.approx(weight(f, new, *means, tau), abs=1e-6)
        assert abs(weight(f, old, *means, tau) - weight(f, new, *means, tau)) > 1e-5, "or the check could not fail"


def test_products_that_another_process_made_meanwhile_are_not_made_again(monkeypatch):
    """The check before the lock misses them, the one behind it finds them."""
    from contextlib import nullcontext

    found, made = iter([False, True]), []
    monkeypatch.setattr(runs.Run, "has", lambda self, *names: next(found))
    monkeypatch.setattr(runs.Run, "making", lambda self: nullcontext())
    runs.Run.make(object.__new__(runs.Run), ["words"], lambda: made.append(1))
    assert made == []

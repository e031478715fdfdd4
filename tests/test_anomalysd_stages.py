"""AnomalySD's stages end to end on tiny random models: one model for two categories, products, resumption, protocols."""

from types import SimpleNamespace

import lessons
import numpy as np
import pandas as pd
import pytest
import tiny_inpainting as tiny
import torch
from safetensors.torch import load_file
from tiny_project import COLOURS, OVERRIDES, write_project

from fsad_lib import runs
from fsad_lib.anomalysd import figures, stages
from fsad_lib.anomalysd.score import image_score
from fsad_lib.datasets import read_images, read_masks
from fsad_lib.datasets.sample import limit_of, sample
from fsad_lib.errors import FsadError
from fsad_lib.metrics import image_metrics, pixel_metrics
from fsad_lib.patch_memory import PatchMemory
from fsad_lib.winclip.detector import WinCLIP


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    yield from lessons.tiny_project(tmp_path_factory, write_project, stages)


def open_run(project, stage, seed=0, shots=2, more="", category="all"):
    return runs.open_run(
        stage, "anomalysd", profile="mini", dataset="folder", category=category, shots=shots, seed=seed,
        data_root=str(project / "parts"), overrides=OVERRIDES + more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(project):
    """The last stage makes the first one."""
    return stages.evaluate(open_run(project, "41_evaluate"))


def test_one_model_for_all_categories(project, evaluated):
    run = stages.tuned_run(open_run(project, "11_personalize"))
    assert run.has("unet.safetensors", "decoder.safetensors", "trace_unet.csv", "trace_decoder.csv")
    made = stages.personalize(run)
    assert made.category == ["gear", "gear", "nut", "nut"] and made.x.shape == (4, 3, 32, 32)
    assert made.foreground.dtype == torch.bool and made.foreground.shape == (4, 1, 32, 32)
    assert made.prompts["nut"]["object"] == "A perfect nut."
    assert len(made.trace_unet) == 3 and made.trace_decoder.columns.tolist() == ["step", "mse", "perceptual", "loss"]
    before = tiny.model().unet.state_dict()
    after = load_file(run.product_path("unet.safetensors"))
    assert set(after) == set(before) and any(not torch.equal(after[k], before[k]) for k in before)


def test_the_detector_has_the_fine_tuned_weights(project, evaluated):
    run = open_run(project, "41_evaluate")
    source = stages.tuned_run(run)
    model, _ = stages.load_tuned(run)
    before = stages.load_models(run.profile)[0]
    saved, decoder = load_file(source.product_path("unet.safetensors")), load_file(source.product_path("decoder.safetensors"))
    assert all(torch.equal(v, saved[k].float()) for k, v in model.unet.state_dict().items())
    parts = stages.decoder_parameters(model.vae)
    assert all(torch.equal(p, decoder[str(i)].float()) for i, p in enumerate(parts))
    assert any(not torch.equal(p, q) for p, q in zip(parts, stages.decoder_parameters(before.vae), strict=True)), "or the check could not fail"
    held = stages.build_detector(run).model
    assert all(torch.equal(v, saved[k].float()) for k, v in held.unet.state_dict().items())


def test_fine_tuning_is_given_the_foreground_and_every_products_sentences(project, monkeypatch):
    given, tune = {}, stages.finetune_unet
    left = torch.zeros(4, 1, 32, 32, dtype=torch.bool)
    left[..., :16] = True
    monkeypatch.setattr(stages, "foreground", lambda x: left[: len(x)])
    monkeypatch.setattr(stages, "finetune_unet", lambda model, x, prompts, where, **how: given.update(prompts=prompts, where=where) or tune(model, x, prompts, where, **how))
    made = stages.personalize(open_run(project, "11_personalize", seed=7))
    assert torch.equal(given["where"], left) and torch.equal(made.foreground, left)
    assert [p[0] for p in given["prompts"]] == ["A perfect gear.", "A perfect gear.", "A perfect nut.", "A perfect nut."]


def test_fine_tuning_is_given_the_profiles_values(project, monkeypatch):
    given, trace = {}, pd.DataFrame({"step": [1], "loss": [0.0]})
    for part in ("unet", "decoder"):
        monkeypatch.setattr(stages, f"finetune_{part}", lambda *_, part=part, **how: given.update({part: how}) or trace)
    values = ("lr_unet=0.001", "lr_decoder=0.002", "beta=0.3", "area=[0.1,0.2]", "gradient_checkpointing=true")
    stages.personalize(open_run(project, "11_personalize", seed=8, more="".join(f",anomalysd.{value}" for value in values)))
    both = dict(batch_size=2, seed=8, gradient_checkpointing=True)
    for part, expected in (("unet", dict(steps=3, lr=0.001, area=(0.1, 0.2))), ("decoder", dict(steps=2, lr=0.002, beta=0.3))):
        expected |= both
        assert {name: tuple(v) if isinstance(v, list) else v for name, v in given[part].items() if name in expected} == expected


def test_shots_are_those_of_a_run_of_one_category(project):
    whole = open_run(project, "11_personalize")
    for name in COLOURS:
        single = runs.open_run("10_personalize", "adp", profile="mini", dataset="folder", category=name, shots=2, seed=0, data_root=whole.data_root)
        assert whole.shot_paths(name) == single.shot_paths()
    assert whole.shot_paths() == whole.shot_paths("gear") + whole.shot_paths("nut")


def test_predictions_and_rows_of_every_category_and_protocol(evaluated):
    p = evaluated.predictions
    assert p.columns.tolist() == ["path", "category", "label", "defect", "seen", "treated_as", "method", "part", "score"]
    alphas = {f"alpha_{a:g}" for a in stages.ALPHAS}
    expected = {(m, "given") for m in {"anomalysd", "scale_1", "scale_2", "roundtrip", "guided_roundtrip", "against_roundtrip"} | alphas}
    expected |= {("anomalysd", "unknown")} | {(m, part) for m in ("winclip", "patch_memory") for part in ("given", "unknown", "shared")}
    assert set(zip(p.method, p.part, strict=True)) == expected
    assert (p.groupby(["method", "part"]).size() == 8).all() and np.isfinite(p.score).all()
    assert {(r["category"], r["method"], r["part"]) for r in evaluated.rows} == {(c, m, part) for c in COLOURS for m, part in expected}
    for row in evaluated.rows:
        chosen = p[(p.method == row["method"]) & (p.part == row["part"]) & (p.category == row["category"])]
        assert row["n"] == 4 and all(row[k] == v for k, v in image_metrics(chosen.label, chosen.score).items())
        assert {"pixel_auroc", "aupro"} <= set(row)
    assert evaluated.maps.shape == (8, 32, 32) and len(evaluated.paths) == 8
    good = p[p.label == 0]
    assert good.treated_as.eq(good.category).all(), "good grey and light parts are told apart"


def test_scores_are_the_detectors(project, evaluated):
    run = open_run(project, "41_evaluate")
    detector = stages.build_detector(run)
    p, share = evaluated.predictions, detector.settings.image_share
    for name in COLOURS:
        rows = p[(p.category == name) & (p.part == "given")]
        paths = rows[rows.method == "anomalysd"].path.tolist()
        scores = detector(read_images(paths, 32), name, controls=True)
        assert rows[rows.method == "anomalysd"].score.tolist() == scores.image.tolist()
        against = image_score(scores.controls["against_roundtrip"], share)
        assert rows[rows.method == "against_roundtrip"].score.tolist() == against.tolist()
        unknown = p[(p.category == name) & (p.part == "unknown") & (p.method == "anomalysd")]
        assert unknown.treated_as.tolist() == detector.choose_category(read_images(paths, 32))
        assert unknown.score.tolist() == detector(read_images(paths, 32)).image.tolist()
        # alpha 0: the scales alone, smoothed
        assert rows[rows.method == "alpha_0"].score.tolist() == pytest.approx(image_score(detector.smooth(scores.s_ms), share).tolist())
        test = run.table().set_index("path").loc[paths].reset_index()
        row = next(r for r in evaluated.rows if (r["category"], r["method"], r["part"]) == (name, "anomalysd", "given"))
        assert row["pixel_auroc"] == pytest.approx(pixel_metrics(read_masks(test, 32), scores.map, paths)["pixel_auroc"])


def test_rivals_judge_by_the_given_the_guessed_or_the_common_memory_and_word(project, evaluated, monkeypatch):
    run = open_run(project, "41_evaluate")
    judge, w = stages._Judge(run), run.profile.winclip
    (sizes, detectors, _), path = judge.rivals, evaluated.paths[0]
    monkeypatch.setattr(type(judge.detector), "choose_category", lambda self, x: ["nut"] * len(x))  # taken for the wrong part
    guess, value, maps = judge(path, "gear")
    assert guess == "nut"
    x, clip, backbone = {name: read_images([path], size) for name, size in sizes.items()}, detectors[""].clip, judge.detector.categories["nut"].memory.backbone
    for protocol, word, shots in (("given", "gear", run.shot_paths("gear")), ("unknown", "nut", run.shot_paths("nut")), ("shared", None, run.shot_paths())):
        winclip = WinCLIP(clip, word, w.tau, w.scales).add_shots(read_images(shots, sizes["winclip"]))
        memory = PatchMemory(backbone).add_shots(read_images(shots, sizes["patch_memory"]))
        assert value["winclip", protocol] == pytest.approx(float(winclip(x["winclip"]).image), abs=1e-6)
        assert value["patch_memory", protocol] == pytest.approx(float(memory.score(x["patch_memory"])), abs=1e-6)
        assert torch.allclose(maps["winclip", protocol], winclip.maps(x["winclip"], 32)[0], atol=1e-5)
        assert torch.allclose(maps["patch_memory", protocol], memory.maps(x["patch_memory"], 32)[0], atol=1e-5)
    assert value["anomalysd", "unknown"] == float(judge.detector(read_images([path], 32), "nut").image) != value["anomalysd", "given"]
    texts = [detectors[name].prototypes for name in ("gear", "nut", "")]
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(texts, texts[1:] + texts[:1], strict=True)), "or another word would not be noticed"


def test_the_profiles_precision_reaches_the_model(project):
    for precision, amp in (("float32", None), ("bfloat16", torch.bfloat16)):
        assert stages.load_models(open_run(project, "11_personalize", more=f",anomalysd.precision={precision}").profile)[0].amp is amp


def test_a_finished_stage_needs_no_model(project, evaluated, monkeypatch):
    monkeypatch.setattr(stages, "load_models", lambda profile: pytest.fail("a finished stage needs no model"))
    again = stages.evaluate(open_run(project, "41_evaluate"))
    pd.testing.assert_frame_equal(again.predictions, evaluated.predictions)
    assert again.rows == evaluated.rows and np.array_equal(again.maps, evaluated.maps)


def test_a_killed_evaluation_goes_on_at_its_image_with_the_same_scores(project, evaluated, monkeypatch):
    run, judged = open_run(project, "41_evaluate"), []
    for name in ("predictions.parquet", "maps.npz", "rows.json"):
        run.product_path(name).unlink()
    run.sweep(partial=True)
    original = stages._Judge.__call__

    def judge(self, path, category):
        if stop and len(judged) == 5:
            raise KeyboardInterrupt
        judged.append(path)
        return original(self, path, category)

    monkeypatch.setattr(stages._Judge, "__call__", judge)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        stages.evaluate(run)
    assert not run.has("predictions.parquet")
    stop = False
    again = stages.evaluate(open_run(project, "41_evaluate"))
    assert len(judged) == len(set(judged)) == 8, "no image is judged twice"
    pd.testing.assert_frame_equal(again.predictions, evaluated.predictions)
    assert again.rows == evaluated.rows


@pytest.mark.parametrize("masks", [True, False])
def test_maps_are_kept_and_read_one_method_at_a_time(tmp_path, monkeypatch, masks):
    test = pd.DataFrame({"path": ["a", "b", "c"], "category": "gear", "split": "test", "label": [0, 1, 1], "defect": ["good", "hole", "hole"]})
    test["mask_path"] = [None, "b", "c"] if masks else None
    run = SimpleNamespace(dataset="folder", categories=["gear"], scratch=lambda name: tmp_path / name)
    made = {key: torch.rand(3, 8, 8) for key in (("winclip", "given"), ("anomalysd", "given"), ("patch_memory", "shared"))}
    entries, measured, measure = [], [], stages._measure

    def judge(path, name):
        return "gear", dict.fromkeys(made, float("abc".index(path))), {key: m["abc".index(path)] for key, m in made.items()}

    def watched(run, name, test, files):
        entries.extend(sorted(np.load(path).files) for path in files)
        return measure(run, name, test, files)

    monkeypatch.setattr(stages, "_measure", watched)
    monkeypatch.setattr(stages.datasets, "read_masks", lambda table, side: np.arange(3 * side * side).reshape(3, side, side) % 5 == 0)
    monkeypatch.setattr(stages, "pixel_metrics", lambda masks, maps, names=None: measured.append(maps) or {"pixel_auroc": 0.5, "aupro": 0.5})
    predictions, rows, small = stages._category(run, judge, "gear", test)
    # without masks only the maps of the pictures are kept
    assert entries == [["guess", "keys", *(["map-0", "map-1", "map-2"] if masks else ["map-1"]), "scores"]] * 3
    assert len(predictions) == 9 and len(rows) == 3 and np.allclose(small, made["anomalysd", "given"], atol=1e-3)
    assert len(measured) == (3 if masks else 0) and all(np.array_equal(a, m) for a, m in zip(measured, made.values(), strict=False))


def test_interrupted_fine_tuning_ends_with_the_same_weights(project, monkeypatch):
    whole = stages.tuned_run(open_run(project, "11_personalize", seed=1))
    stages.personalize(whole)
    expected = [load_file(whole.product_path(f"{part}.safetensors")) for part in ("unet", "decoder")]
    for path in whole.path.glob("*"):
        path.unlink() if path.is_file() else None
    whole.sweep(partial=True)

    def fail(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stages, "finetune_decoder", fail)
        with pytest.raises(KeyboardInterrupt):
            stages.personalize(whole)
    assert whole.has("unet.safetensors") and not whole.has("decoder.safetensors")
    monkeypatch.setattr(stages, "finetune_unet", fail)
    stages.personalize(whole)
    got = [load_file(whole.product_path(f"{part}.safetensors")) for part in ("unet", "decoder")]
    assert all(torch.equal(a[k], b[k]) for a, b in zip(got, expected, strict=True) for k in b)


def test_runs_that_differ_in_inference_share_their_model(project):
    plain = runs.open_run("11_personalize", "anomalysd", profile="mini", dataset="folder", category="all", shots=2, seed=0, data_root=str(project / "parts"))
    later = runs.open_run(
        "41_evaluate", "anomalysd", profile="mini", dataset="folder", category="all", shots=2, seed=0, data_root=plain.data_root,
        overrides="anomalysd.strength=0.6,anomalysd.scales=[2],winclip.tau=0.5,backbone.image_size=64,adp.tau=0.5",
    )  # fmt: skip
    assert stages.tuned_run(later).path == plain.path and stages.tuned_run(later).fingerprint == plain.fingerprint
    trained = runs.open_run(
        "41_evaluate", "anomalysd", profile="mini", dataset="folder", category="all", shots=2, seed=0, data_root=plain.data_root,
        overrides="anomalysd.strength=0.6,anomalysd.prompt_levels=[object],anomalysd.beta=0.5",
    )  # fmt: skip
    source = stages.tuned_run(trained)
    assert source.path != plain.path and source.profile.anomalysd.strength == plain.profile.anomalysd.strength
    assert source.profile.anomalysd.prompt_levels == ("object",) and source.profile.anomalysd.beta == 0.5


def test_words_for_a_product_that_is_not_there_are_refused(project):
    with pytest.raises(FsadError, match="anomalysd.parts has words for 'gaer'; expected a category of this run: gear, nut"):
        stages.personalize(open_run(project, "11_personalize", more=",anomalysd.parts=[[gaer,teeth]]"))


def test_rivals_are_given_the_same_word_for_a_product(project, evaluated, monkeypatch):
    monkeypatch.setattr(stages, "noun_of", lambda dataset, name: f"special {name}")
    _, winclip, _ = stages._Judge(open_run(project, "41_evaluate")).rivals
    assert {name: w.class_name for name, w in winclip.items()} == {"": None, "gear": "special gear", "nut": "special nut"}


def test_the_paper_profile_gives_the_same_scores_from_an_exported_checkpoint(project, evaluated, tmp_path):
    """A complete hub folder with text encoder and tokenizer of its own, loaded as Stable Diffusion inpainting would be."""
    import json

    from fsad_lib.foundation.miniatures.train_inpainting import export_paper_layout

    mini, own = project / "data/models/mini", open_run(project, "41_evaluate").profile
    export_paper_layout(mini, tmp_path / "inpainting")
    places = {
        "clip.checkpoint": mini / "clip", "winclip_clip.checkpoint": mini / "clip", "inpainting.checkpoint": tmp_path / "inpainting",
        "perceptual.checkpoint": mini / "lpips", "inpainting.image_size": 32, "backbone.image_size": 64, "clip.architecture": None,
        "winclip_clip.architecture": None,
    }  # fmt: skip
    values = {f"anomalysd.{name}": value for name, value in own.anomalysd.model_dump(mode="json").items()}
    run = runs.open_run(
        "41_evaluate", "anomalysd", profile="paper", dataset="folder", category="all", shots=2, seed=0, data_root=str(project / "parts"),
        overrides=",".join(f"{key}={json.dumps(value, default=str)}" for key, value in (places | values).items()),
    )  # fmt: skip
    found = stages.evaluate(run).predictions
    assert (found[["path", "method", "part"]] == evaluated.predictions[["path", "method", "part"]]).all(axis=None)
    assert np.abs(found.score - evaluated.predictions.score).max() < 1e-5


def test_twins_mask_by_mask(project, evaluated):
    made = stages.synthesize(open_run(project, "21_synthesize"))
    assert made.category == ["gear", "gear", "nut", "nut"] and made.label == [0, 1, 0, 1]
    assert made.x.shape == (4, 3, 32, 32) and made.x_hat.shape == (4, 6, 3, 32, 32) and made.k.tolist()[0] == [1, 2, 2, 2, 2, 0]
    outside = ~torch.from_numpy(made.m)[:, :, None].expand_as(made.x_hat)
    assert torch.equal(made.x_hat[outside], made.x[:, None].expand_as(made.x_hat)[outside])
    assert set(made.maps) == {"S1", "S2", "s_ms", "s_pg", "map"} and made.maps["map"].shape == (4, 32, 32)
    assert made.d.shape == (4, 6, 32, 32) and made.decoded.shape == made.x.shape
    assert set(figures.of_run(open_run(project, "21_synthesize"))) == {"losses", "overview"}
    assert figures.of_run(open_run(project, "21_synthesize", seed=7)) == {}, "nothing is drawn of what was not run"


def test_a_sample_is_half_good_and_does_not_depend_on_the_folder(project):
    run = open_run(project, "41_evaluate", more=",anomalysd.test_images=[[folder,2]]")
    result = stages.evaluate(run)
    assert len(result.paths) == 4 and result.predictions.drop_duplicates("path").label.tolist() == [0, 1, 0, 1]
    assert run.tag.startswith("set-"), "a sample never stands where a whole evaluation does"
    for limit, expected in (("[[elpv,2]]", None), ("[[elpv,4],[folder,2]]", 2), ("2", None), ("null", None)):
        assert limit_of(open_run(project, "41_evaluate", more=f",anomalysd.test_images={limit}").profile.anomalysd.test_images, "folder") == expected
    with pytest.raises(FsadError, match="test_images"):
        open_run(project, "41_evaluate", more=",anomalysd.test_images=[[elvp,2]]")
    table = pd.DataFrame({"path": [f"/a/x/test/good/{i}.png" for i in range(9)], "label": 0})
    moved = table.assign(path=table.path.str.replace("/a/x", "/elsewhere"))
    names = [[path.rsplit("/", 1)[1] for path in sample(t, 4).path] for t in (table, moved)]
    assert names[0] == names[1] and len(names[0]) == 2


def test_one_category_alone_is_a_run_too(project):
    run = open_run(project, "11_personalize", category="gear")
    assert run.categories == ["gear"] and len(run.shot_paths()) == 2
    with pytest.raises(FsadError, match="no.* 'all'|unknown|all"):
        runs.open_run("10_personalize", "adp", profile="mini", dataset="folder", category="all", shots=2, seed=0, data_root=run.data_root).table()


def test_neither_methods_models_enter_the_others_fingerprint(project):
    def ingredients(method):
        stage = {"adp": "10_personalize", "anomalysd": "11_personalize"}[method]
        return runs.open_run(stage, method, profile="mini", dataset="folder", category="gear", shots=2, seed=0, data_root=str(project / "parts")).ingredients["models"]

    before = {method: ingredients(method) for method in ("adp", "anomalysd")}
    extra = project / "data/models/mini/inpainting/unet/extra.json"
    extra.write_text("{}")
    runs.forget_inputs()
    assert ingredients("adp") == before["adp"] and ingredients("anomalysd") != before["anomalysd"]
    extra.unlink()
    other = project / "data/models/mini/diffusion/unet/extra.json"
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    runs.forget_inputs()
    assert ingredients("adp") != before["adp"] and ingredients("anomalysd") == before["anomalysd"]
    other.unlink(), other.parent.rmdir(), other.parent.parent.rmdir()
    runs.forget_inputs()


def test_what_the_last_stage_would_refuse_is_refused_before_the_training(project, monkeypatch):
    monkeypatch.setattr(stages, "load_models", lambda *_: pytest.fail("too late"))
    for more, message in (
        (",winclip.scales=[2,9]", "winclip.scales: found a window of 9 patches a side; expected at most 4"),
        (None, "anomalysd.scales: found 17 cells a side; expected at most 16, the latent cells"),
    ):
        run = open_run(project, "11_personalize", more=more, seed=5) if more else runs.open_run(
            "11_personalize", "anomalysd", profile="mini", dataset="folder", category="all", shots=2, seed=5, data_root=str(project / "parts"),
            overrides=OVERRIDES.replace("anomalysd.scales=[1,2]", "anomalysd.scales=[2,17]"),
        )  # fmt: skip
        with pytest.raises(FsadError, match=message):
            stages.personalize(run)


def test_missing_models_are_named_before_anything_starts(project):
    run = open_run(project, "11_personalize", more=",perceptual.checkpoint=nowhere", seed=3)
    with pytest.raises(FsadError, match="nowhere"):
        stages.personalize(run)
    with pytest.raises(FsadError, match="shots"):
        stages.personalize(open_run(project, "11_personalize", shots=9))

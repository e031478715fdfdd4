"""TGVIG's stages end to end on tiny random models: products, arms and their controls, resumption, what shares what."""

import json
from functools import partial
from types import SimpleNamespace

import lessons
import numpy as np
import pandas as pd
import pytest
import tiny_tgvig as tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fsad_lib import baselines, runs
from fsad_lib.datasets import read_images, read_masks
from fsad_lib.errors import FsadError
from fsad_lib.metrics import image_metrics, pixel_metrics
from fsad_lib.profiles import load_profile
from fsad_lib.tgvig import generator, integrator, stages

ARMS = ["shots", "generated", "duplicated", "augmented"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    yield from lessons.tiny_project(tmp_path_factory, tiny.write_project, stages)


def open_run(project, stage, seed=0, shots=2, more="", category="gear"):
    return runs.open_run(
        stage, "tgvig", profile="mini", dataset="folder", category=category, shots=shots, seed=seed, data_root=str(project / "parts"),
        overrides=tiny.OVERRIDES + more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(project):
    """The last stage makes the others."""
    return stages.evaluate(open_run(project, "42_evaluate"))


def test_a_detector_that_cannot_be_made_is_refused_before_anything_is_drawn(project, monkeypatch):
    def refuse(run, name):
        raise FsadError(f"no {name}")

    monkeypatch.setattr(stages, "make_detector", refuse)
    monkeypatch.setattr(stages, "synthesize", lambda run: pytest.fail("images were drawn first"))
    with pytest.raises(FsadError, match="no "):
        stages.augment(open_run(project, "32_augment", seed=8))


# ---------------------------------------------------------------- stage 22
def test_prompts_choose_among_the_sets_of_one_integration(project, evaluated):
    made = stages.synthesize(open_run(project, "22_synthesize"))
    assert made.x.shape == (2, 3, 32, 32) and made.origin.tolist() == [0, 0, 1, 1] and made.factor == 4
    assert made.prompts["word"] == "gear" and made.prompts["best"] == made.selection.best != made.prompts["worst"]
    assert len(made.selection.prompts) == len(made.candidates.words) == len(made.to_name)
    assert made.trace.iteration.tolist() == [1, 2, 3] and {"mse", "vq", "seconds"} < set(made.trace)
    for kind in stages.KINDS:
        assert made.chosen[kind] == made.trace.iteration[made.trace[kind].argmax()]
    assert made.chosen["last"] == 3 and all(images.shape == (4, 3, 32, 32) for images in made.sets.values())
    same = [kind for kind in stages.KINDS if made.chosen[kind] == 3]
    assert same and all(torch.equal(made.sets[kind], made.sets["last"]) for kind in same)
    # the integrator itself, asked for the best prompt, finds the same set
    vqgan, clip = stages.load_models(open_run(project, "22_synthesize").profile)
    t = open_run(project, "22_synthesize").profile.tgvig
    settings = integrator.Settings(t.iterations, t.images, t.augmented, t.lam, t.lr, augmentation=stages.augmentation(open_run(project, "22_synthesize").profile))
    alone = integrator.integrate(vqgan, made.x, clip, made.prompts["best"], settings)
    assert alone.chosen == made.chosen["best"] and (alone.images - made.sets["best"]).abs().max() <= 0.5 / 255 + 1e-6
    assert alone.similarity == pytest.approx(made.trace.best.tolist())
    worst = integrator.integrate(vqgan, made.x, clip, made.prompts["worst"], settings)
    assert worst.chosen == made.chosen["worst"] and worst.similarity == pytest.approx(made.trace.worst.tolist(), abs=1e-5)


def test_the_integrator_is_given_the_profiles_settings(project, monkeypatch):
    given, integrate = [], stages.integrate
    monkeypatch.setattr(stages, "integrate", lambda vqgan, x, clip, prompt, settings, *more: given.append((prompt, settings)) or integrate(vqgan, x, clip, prompt, settings, *more))
    made = stages.synthesize(open_run(project, "22_synthesize", seed=6, more=",tgvig.variance=none,tgvig.quantized=false,tgvig.lam=0.5,tgvig.gradient_checkpointing=true"))
    ((prompt, settings),) = given
    assert prompt == made.prompts["best"] and (settings.variance, settings.quantized, settings.lam, settings.seed) == ("none", False, 0.5, 6)
    assert settings.gradient_checkpointing is True


def test_quality_says_what_was_measured_on_how_many(project, evaluated):
    q = stages.synthesize(open_run(project, "22_synthesize")).quality
    assert q.generator.tolist() == ["original"] + 5 * ["tgvig"] and q.prompt.tolist() == ["", *stages.KINDS, "last"]
    assert q.inception_label.str.contains("proxy").all() and q.n.tolist() == [2, 4, 4, 4, 4, 4] and (q.inception <= q.n).all()
    original = q.iloc[0]
    assert original.ssim == pytest.approx(1) and original.lpips == 0 and np.isnan(original.psnr)


def test_an_interrupted_integration_goes_on_with_the_same_images(project, monkeypatch):
    whole = stages.source_run(open_run(project, "22_synthesize", seed=1))
    first, files = stages.synthesize(whole), ("prompt.json", "generated.npz", "trace.csv", "quality.json")
    for name in files:
        whole.product_path(name).unlink()
    whole.sweep(partial=True)
    original, calls = integrator.sample, []

    def interrupted(*args):
        calls.append(args[3])  # the iteration
        if stop and calls[-1] == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(integrator, "sample", interrupted)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        stages.synthesize(whole)
    assert whole.has("prompt.json") and not whole.has("generated.npz")
    stop = False
    calls.clear()
    again = stages.synthesize(open_run(project, "22_synthesize", seed=1))
    assert set(calls) == {3}, "only the interrupted iteration is repeated"
    assert not [path for path in whole.path.glob(".partial-*/**/*") if path.is_file()], "a finished integration leaves nothing behind"
    assert all(torch.equal(again.sets[k], first.sets[k]) for k in first.sets) and again.chosen == first.chosen
    pd.testing.assert_frame_equal(again.trace.drop(columns="seconds"), first.trace.drop(columns="seconds"))


def test_rivals_are_drawn_once_judged_and_added_one_image_each(project, monkeypatch):
    more = ",tgvig.rivals=[vqgan_clip_word,vqgan_clip_caption],tgvig.caption=a grey thing"
    run = open_run(project, "22_synthesize", more=more)
    made = stages.synthesize(run)
    assert set(made.rivals) == {"vqgan_clip_word", "vqgan_clip_caption"} and all(x.shape == (2, 3, 32, 32) for x in made.rivals.values())
    rows = made.quality.set_index(["generator", "prompt"])
    assert rows.loc[("vqgan_clip", "caption"), "text"] == "a grey thing" and rows.loc[("vqgan_clip", "word"), "n"] == 2
    monkeypatch.setattr(stages, "load_models", lambda profile: pytest.fail("a finished stage needs no model"))
    assert torch.equal(stages.synthesize(run).rivals["vqgan_clip_word"], made.rivals["vqgan_clip_word"])
    assert stages.arms(run) == [*ARMS, "vqgan_clip_word", "vqgan_clip_caption"]
    added = stages.added_images(run, made, "vqgan_clip_word")
    assert torch.equal(added, made.rivals["vqgan_clip_word"][:1]), "as in Table 1, one image"
    with pytest.raises(FsadError, match="caption is empty"):
        stages.synthesize(open_run(project, "22_synthesize", more=",tgvig.rivals=[vqgan_clip_caption]"))


def test_the_diffusion_model_is_loaded_once_for_all_its_images(monkeypatch):
    from fsad_lib.foundation import diffusion

    class Model:
        image_size = 16

        def sdedit(self, x, words, seed, **_):
            return x + int(seed[-1]) / 4

    loaded = []
    monkeypatch.setattr(diffusion, "load_diffusion", lambda *_, **__: loaded.append(1) or Model())
    monkeypatch.setattr(stages, "clip_of", lambda *_: "clip")
    stages._diffusion.cache_clear()
    run = SimpleNamespace(profile=load_profile("mini"), seed=0)
    made = [stages._diffuse(run, "a photo", torch.zeros(1, 3, 16, 16), i) for i in range(3)]
    stages._diffusion.cache_clear()
    assert len(loaded) == 1 and [float(x.mean()) for x in made] == [0, 0.25, 0.5]


# ---------------------------------------------------------------- stage 32
def test_arms_differ_only_in_what_they_add(project, evaluated):
    run = open_run(project, "32_augment")
    made, x = stages.synthesize(run), {}
    for arm in ARMS:
        x[arm] = stages.training_images(run, made, arm, 64)
    shots = read_images(run.shot_paths(), 64)
    assert all(torch.equal(found[:2], shots) for found in x.values()), "every arm begins with the very same shots"
    assert {arm: len(found) for arm, found in x.items()} == {"shots": 2, "generated": 6, "duplicated": 6, "augmented": 6}
    assert torch.equal(x["duplicated"][2:], shots[[0, 0, 1, 1]])
    added = stages.added_images(run, made, "augmented")
    expected = generator.augment(made.x[1], 3, 4, f"{run.seed}/control/1", stages.augmentation(run.profile))
    assert torch.equal(added[2:], expected[1:]), "the generator's own augmentations, and not the original"
    assert torch.equal(stages.added_images(run, made, "generated"), made.sets["best"])
    assert torch.equal(stages.added_images(run, made, "without_text"), made.sets["last"])


def test_an_interrupted_detector_goes_on_at_its_step(project, monkeypatch):
    run = open_run(project, "32_augment", more=",baselines.names=[reverse_distillation],baselines.arms=[shots]")
    seen = []

    def watch(stop):
        def show(done, total):
            seen.append(done)
            if done == stop:
                raise KeyboardInterrupt

        monkeypatch.setattr(stages, "counter", lambda label: show if "reverse" in label else None)

    watch(stop=1)
    with pytest.raises(KeyboardInterrupt):
        stages.augment(run)
    watch(stop=None)
    made = stages.augment(open_run(project, "32_augment", more=",baselines.names=[reverse_distillation],baselines.arms=[shots]"))
    assert seen == [1, 2] and len(made.losses) == 2 and not list(run.path.glob(".partial-*/*.pt"))


def test_equal_steps_and_one_memory_size_in_every_arm(project, evaluated, monkeypatch):
    run = open_run(project, "32_augment", more=",baselines.names=[patchcore,cflow,reverse_distillation],baselines.arms=[shots,generated]")
    original, seen = baselines.make, []

    def make(name, **settings):
        detector = original(name, **settings)
        fit = detector.fit

        def counted(x, steps=None, seed=0, **how):
            seen.append((name, len(x), steps, seed))
            return fit(x, steps=steps, seed=seed, **how)

        detector.fit = counted
        return detector

    monkeypatch.setattr(baselines, "make", make)
    made = stages.augment(run)
    for name, steps in (("patchcore", None), ("cflow", 2), ("reverse_distillation", 2)):
        assert [found[1:] for found in seen if found[0] == name] == [(2, steps, 0), (6, steps, 0)]
        fits = made.fits[made.fits.baseline == name].set_index("arm")
        assert fits.images.to_dict() == {"shots": 2, "generated": 6} and fits.steps.eq(steps or 0).all()
    memory = made.fits[made.fits.baseline == "patchcore"]
    assert memory.memory.eq(40).all() and memory.patches.tolist() == [128, 384]
    counts = made.losses.groupby(["baseline", "arm"]).step.max()
    assert counts["cflow"].eq(2).all() and counts["reverse_distillation"].eq(2).all() and "patchcore" not in counts


def test_a_killed_training_goes_on_at_its_arm(project, monkeypatch):
    run, original, trained = open_run(project, "32_augment", seed=1), stages._train, []

    def train(run, made, name, arm):
        if stop and arm == "duplicated":
            raise KeyboardInterrupt
        trained.append(arm)
        original(run, made, name, arm)

    monkeypatch.setattr(stages, "_train", train)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        stages.augment(run)
    stop = False
    stages.augment(open_run(project, "32_augment", seed=1))
    assert trained == ARMS, "no arm is trained twice"


def test_a_users_images_for_the_closed_generators(project, tmp_path):
    (tmp_path / "midjourney").mkdir()
    where = f",outside.checkpoint={tmp_path}"
    run = open_run(project, "32_augment", more=where)
    with pytest.raises(FsadError, match="no image in .*midjourney"):
        stages.augment(run)
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "midjourney/a.png")
    runs.forget_inputs()
    changed = open_run(project, "32_augment", more=where)
    assert changed.fingerprint != run.fingerprint, "the images are an input"
    assert stages.arms(changed) == [*ARMS, "midjourney"]
    made = stages.synthesize(changed)
    added = stages.added_images(changed, made, "midjourney")
    assert added.shape == (1, 3, 32, 32) and added.std() < 1e-6
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(FsadError, match="holds none of the folders web_image"):
        stages.arms(open_run(project, "32_augment", more=f",outside.checkpoint={tmp_path / 'elsewhere'}"))


@pytest.mark.slow
def test_efficientad_from_a_teacher_and_a_folder_of_other_things(project, tmp_path):
    from anomalib.models.image.efficient_ad.torch_model import SmallPatchDescriptionNetwork

    torch.manual_seed(0)
    save_file(SmallPatchDescriptionNetwork(4).state_dict(), tmp_path / "teacher.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "other.png")
    run = open_run(
        project, "32_augment",
        more=f",baselines.names=[efficientad],baselines.arms=[shots],efficientad_teacher.checkpoint={tmp_path / 'teacher.safetensors'}"
        f",efficientad_penalty.checkpoint={tmp_path}",
    )  # fmt: skip
    fits = stages.augment(run).fits
    assert fits.baseline.tolist() == ["efficientad"] and np.isfinite(fits.last_loss).all()
    assert not any(name.startswith("teacher.") for name in load_file(run.product_path("efficientad-shots.safetensors")))
    x = stages._penalty(run)
    assert x.shape == (1, 3, 256, 256) and float(x.min()) >= 0 and float(x.max()) <= 1


def test_photographs_of_other_things_are_drawn_from_all_of_a_folder(project, tmp_path):
    for name, level in (("a", 10), ("b", 120), ("c", 250)):
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.new("RGB", (40, 30), (level, 0, 0)).save(tmp_path / name / f"{i:02d}.png")
    run = open_run(project, "32_augment", more=f",efficientad_penalty.checkpoint={tmp_path},baselines.efficientad_penalty=12")
    x = stages._penalty(run)
    colour = x.amax((1, 2, 3)).round(decimals=2)
    assert len(x) == 12 and len(colour[x[:, 1].amax((1, 2)) == 0].unique()) == 3, "all folders are drawn from, not the first alone"
    assert torch.equal(x, stages._penalty(run))
    grey = (x[:, 0] == x[:, 1]).flatten(1).all(1)
    assert 0 < int(grey.sum()) < 12


# ---------------------------------------------------------------- stage 42
def test_scores_are_the_trained_detectors(project, evaluated):
    p, run = evaluated.predictions, open_run(project, "42_evaluate")
    assert p.columns.tolist() == ["path", "category", "label", "defect", "seen", "method", "part", "score"]
    assert [tuple(key) for key in p[["method", "part"]].drop_duplicates().to_numpy()] == [("patchcore", arm) for arm in ARMS]
    made, test = stages.synthesize(run), run.table().query("split == 'test'")
    for arm in ("shots", "generated"):
        detector = stages.make_detector(run, "patchcore")
        detector.fit(stages.training_images(run, made, arm, 64), seed=0)
        scores, maps = detector(read_images(test.path.tolist(), 64))
        rows = p[p.part == arm]
        assert rows.path.tolist() == test.path.tolist() and rows.score.tolist() == pytest.approx(scores.tolist(), rel=1e-5)
        row = next(r for r in evaluated.rows if r["part"] == arm)
        assert row["category"] == "gear" and row["n"] == 4 and row["image_auroc"] == image_metrics(rows.label, rows.score)["image_auroc"]
        maps = torch.nn.functional.avg_pool2d(maps[:, None], 2)[:, 0]
        assert row["pixel_auroc"] == pytest.approx(pixel_metrics(read_masks(test, 32), maps)["pixel_auroc"], abs=1e-4)
    assert evaluated.maps["patchcore/generated"].shape == (4, 32, 32) and evaluated.paths == test.path.tolist()


def test_an_unsorted_image_takes_no_pixel_metric_away(project, evaluated):
    run = open_run(project, "42_evaluate")
    test, rng = run.table().query("split == 'test'").reset_index(drop=True), np.random.default_rng(0)
    found = {("patchcore", "shots"): (rng.random(4), rng.random((4, 8, 8)).astype(np.float32))}
    plain = stages._measure(run, test, found)[1]
    unsorted = pd.concat([test.head(1).assign(label=-1, mask_path=None, defect="unknown"), test], ignore_index=True)
    more = {key: (np.append(0.9, scores), np.concatenate([maps[:1], maps])) for key, (scores, maps) in found.items()}
    predictions, rows = stages._measure(run, unsorted, more)
    assert len(predictions) == 5 and "pixel_auroc" in plain[0] and rows == plain


def test_a_killed_evaluation_goes_on_at_its_detector(project, evaluated, monkeypatch):
    run, loaded, original = open_run(project, "42_evaluate"), [], stages.load_detector
    for name in ("predictions.parquet", "maps.npz", "rows.json"):
        run.product_path(name).unlink()
    run.sweep(partial=True)

    def load(run, name, arm):
        if stop and arm == "augmented":
            raise KeyboardInterrupt
        loaded.append(arm)
        return original(run, name, arm)

    monkeypatch.setattr(stages, "load_detector", load)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        stages.evaluate(run)
    stop = False
    again = stages.evaluate(open_run(project, "42_evaluate"))
    assert loaded == ARMS
    pd.testing.assert_frame_equal(again.predictions, evaluated.predictions)
    assert again.rows == evaluated.rows


def test_logical_and_structural_defects_apart():
    test = pd.DataFrame({"defect": ["good", "logical_anomalies", "structural_anomalies"], "label": [0, 1, 1]})
    assert {k: v.tolist() for k, v in stages._kinds("mvtec_loco", test).items()} == {"logical": [False, True, False], "structural": [False, False, True]}
    assert stages._kinds("mvtec_loco", test[:2]) == {} and stages._kinds("folder", test) == {}
    fab = test.assign(defect=["good", "wrong_count", "scratch"])
    assert stages._kinds("minifab", fab)["logical"].tolist() == [False, True, False]


def test_mvtec_locos_regions_at_the_maps_size(tmp_path):
    from fsad_lib.metrics import au_spro

    folder = tmp_path / "ground_truth/logical_anomalies/000"
    folder.mkdir(parents=True)
    config = [{"defect_name": "part", "pixel_value": 255, "saturation_threshold": 0.5, "relative_saturation": True},
              {"defect_name": "thin", "pixel_value": 200, "saturation_threshold": 16, "relative_saturation": False}]  # fmt: skip
    (tmp_path / "defects_config.json").write_text(json.dumps(config))
    for name, value, box in (("000", 255, np.s_[:32, :64]), ("001", 200, np.s_[40, :32])):
        mask = np.zeros((64, 64), np.uint8)
        mask[box] = value
        Image.fromarray(mask).save(folder / f"{name}.png")
    found = stages._regions(pd.DataFrame({"mask_path": [str(folder), None]}), 16)
    (part, half), (thin, some) = found[0]
    assert found[1] == [] and part.sum() == 8 * 16 and half == 64 and part[:8].all()
    assert thin.sum() == 8 and some == 4, "16 of 32 pixels: half of the 8 that are left"
    scores = np.zeros((2, 16, 16))
    scores[0, :4], scores[0, thin] = 1, 1
    assert au_spro(found, scores) == pytest.approx(1), "half of a half-saturated part is all of it"


# ---------------------------------------------------------------- what belongs to what
def overridden(project, overrides, stage="42_evaluate"):
    """A run of the profile as it is, but for these overrides."""
    return runs.open_run(
        stage, "tgvig", profile="mini", dataset="folder", category="gear", shots=2, seed=0, data_root=str(project / "parts"), overrides=overrides
    )


def test_runs_that_differ_in_their_detectors_share_their_images(project):
    run = partial(overridden, project)
    plain = run("", "22_synthesize")
    other = run("baselines.names=[cflow],baseline_backbone.image_size=64")
    assert stages.source_run(other).path == plain.path and stages.source_run(other).fingerprint == plain.fingerprint
    assert other.tag.startswith("set-") and stages.source_run(run("")).path == plain.path
    mixed = stages.source_run(run("baselines.names=[cflow],tgvig.images=5"))
    assert mixed.path == run("tgvig.images=5", "22_synthesize").path and mixed.profile.baselines.names == ("patchcore",)
    steps = run("baselines.cflow_steps=7", "22_synthesize").ingredients
    assert steps["profile"] == plain.ingredients["profile"] and steps["models"] == plain.ingredients["models"]


def test_runs_that_judge_other_images_share_their_detectors(project):
    run = partial(overridden, project)
    plain, fewer = run("", "32_augment"), run("baselines.test_images=2,winclip.tau=0.5")
    assert stages.trained_run(fewer).path == plain.path and stages.trained_run(fewer).fingerprint == plain.fingerprint
    assert fewer.fingerprint != run("").fingerprint, "what is judged is another result"
    longer = stages.trained_run(run("baselines.test_images=2,baselines.neighbours=3"))
    assert longer.path == run("baselines.neighbours=3", "32_augment").path and longer.fingerprint != plain.fingerprint


def test_only_what_is_asked_for_must_be_there(project):
    run = open_run(project, "32_augment", more=",baselines.names=[efficientad]", seed=3)
    with pytest.raises(FsadError, match=r"efficientad_teacher: put it at .*teacher.safetensors"):
        stages.augment(run)
    stages.synthesize(open_run(project, "22_synthesize", more=",baselines.names=[efficientad]"))
    with pytest.raises(FsadError, match="vqgan: put it at"):
        stages.synthesize(open_run(project, "22_synthesize", more=",vqgan.checkpoint=nowhere"))
    with pytest.raises(FsadError, match="diffusion: put it at"):
        stages.synthesize(open_run(project, "22_synthesize", more=",tgvig.rivals=[diffusion]"))
    with pytest.raises(FsadError, match="shots"):
        stages.synthesize(open_run(project, "22_synthesize", shots=9))


@pytest.mark.parametrize("overrides", ["baselines.names=[patchkore]", "baselines.names=[]", "baselines.arms=[generate]", "tgvig.augmented=1", "tgvig.rivals=[dalle]"])
def test_settings_that_cannot_be_meant_are_refused(project, overrides):
    with pytest.raises(FsadError, match=overrides.partition("=")[0]):
        open_run(project, "42_evaluate", more=f",{overrides}")


def test_the_paper_profile_gives_the_same_scores_from_exported_checkpoints(project, evaluated, tmp_path):
    """The VQGAN as a taming-transformers checkpoint, everything else by the paper profile's keys."""
    from fsad_lib.foundation.vqgan import export_taming, load_vqgan

    mini, own = project / "data/models/mini", open_run(project, "42_evaluate").profile
    export_taming(load_vqgan(mini / "vqgan", mini / "lpips"), tmp_path / "taming")
    places = {
        "vqgan.checkpoint": tmp_path / "taming", "vqgan.image_size": 32, "tgvig_clip.checkpoint": mini / "clip", "tgvig_clip.architecture": None,
        "perceptual.checkpoint": mini / "lpips", "inception.name": "tf_efficientnet_lite0", "inception.checkpoint": None, "inception.image_size": 64,
        "baseline_backbone.checkpoint": mini / "backbones/resnet18.safetensors", "baseline_backbone.image_size": 64,
    }  # fmt: skip
    values = {f"{s}.{k}": v for s in ("tgvig", "baselines") for k, v in getattr(own, s).model_dump(mode="json").items()}
    run = runs.open_run(
        "42_evaluate", "tgvig", profile="paper", dataset="folder", category="gear", shots=2, seed=0, data_root=str(project / "parts"),
        overrides=",".join(f"{key}={json.dumps(value, default=str)}" for key, value in (places | values).items()),
    )  # fmt: skip
    found = stages.evaluate(run).predictions
    assert (found[["path", "method", "part"]] == evaluated.predictions[["path", "method", "part"]]).all(axis=None)
    assert np.abs(found.score - evaluated.predictions.score).max() < 1e-5

"""The detector of a finished run, on a project of tiny random models."""

import numpy as np
import pytest
import tiny_models as tiny
import torch
from test_adp_stages import evaluated, open_run, project  # noqa: F401 - fixtures

from fsad_lib.adp.held_out import build_detector, leave_one_out
from fsad_lib.datasets import read_images
from fsad_lib.errors import FsadError
from fsad_lib.profiles import load_profile


def test_the_rebuilt_detector_gives_the_saved_scores(project, evaluated):  # noqa: F811
    detector = build_detector(open_run(project, "40_evaluate"))
    got = detector(read_images(evaluated.paths, detector.clip.image_size))
    p = evaluated.predictions
    for part, values in (("sum", got.image), ("text", got.text), ("memory", got.memory)):
        saved = p[(p.method == "adp") & (p.part == part)].set_index("path").score[evaluated.paths]
        torch.testing.assert_close(values.cpu().double(), torch.tensor(saved.to_numpy()), atol=1e-6, rtol=0)
    with pytest.raises(FsadError, match="Unknown method 'adpl'"):
        build_detector(open_run(project, "40_evaluate"), method="adpl")


def test_a_left_out_shot_is_stranger_than_a_remembered_one(project, evaluated):  # noqa: F811
    run = open_run(project, "40_evaluate")
    detector = build_detector(run)
    remembered = detector(read_images(run.shot_paths(), detector.clip.image_size)).image.cpu().numpy()
    left_out = leave_one_out(run)
    assert left_out.shape == (2,) and np.all(left_out > remembered)
    assert leave_one_out(run, at_most=1).shape == (1,)
    shots = read_images(run.shot_paths(), detector.clip.image_size)
    literal = [float(build_detector(run, torch.cat([shots[:i], shots[i + 1 :]]))(shots[i : i + 1]).image) for i in range(2)]
    assert left_out == pytest.approx(literal, abs=1e-6)
    with pytest.raises(FsadError, match="at least 2"):
        leave_one_out(open_run(project, "40_evaluate", shots=1))


def test_leaving_one_out_encodes_every_shot_once(monkeypatch):
    from types import SimpleNamespace

    from fsad_lib.adp import held_out

    clip, encoded = tiny.clip(), []
    embed = type(clip).embed_patches
    monkeypatch.setattr(type(clip), "embed_patches", lambda self, x: encoded.append(len(x)) or embed(self, x))
    monkeypatch.setattr(held_out, "clip_model", lambda profile: clip)
    monkeypatch.setattr(held_out.datasets, "read_images", lambda paths, size: tiny.images(5, size))
    p = torch.nn.functional.normalize(torch.randn(2, clip.encode_text(["a"]).shape[1]), dim=-1)
    monkeypatch.setattr(held_out, "synthesize", lambda run: SimpleNamespace(prototypes={"adp": (p[0], p[1])}))
    profile = load_profile("mini", "winclip.scales=[2]")
    run = SimpleNamespace(shots=5, profile=profile, shot_paths=lambda: ["x"] * 5, upstream=lambda stage: None)
    assert leave_one_out(run).shape == (5,) and sum(encoded) == 5

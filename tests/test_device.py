"""Models run where the GPU is, if there is one; tensors made on the way do not stay behind on the CPU."""

import open_clip
import pytest
import tiny_models as tiny
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fsad_lib.adp.detector import ADP
from fsad_lib.foundation.device import best_device
from fsad_lib.winclip.memory import FeatureMemory
from fsad_lib.winclip.windows import extract


@pytest.mark.parametrize("gpu", [True, False])
def test_a_gpu_computes_in_float32(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert best_device() == ("cuda" if gpu else "cpu")
    assert torch.backends.cudnn.allow_tf32 != gpu


def test_judging_stays_on_the_models_device(monkeypatch):
    """With tensors that have a device and no numbers: an operation between two devices is an error, as on a real GPU."""
    clip = tiny.clip()
    for where in ("foundation.clip", "winclip.windows"):
        monkeypatch.setattr(f"fsad_lib.{where}.check_images", lambda x: x)  # it reads values
    with FakeTensorMode():
        with torch.device("cuda"):
            model = open_clip.CLIP(**tiny.ARCHITECTURE).eval().requires_grad_(False)
        clip.model, clip._text, clip._visual = model, model, model.visual
        clip._mean, clip._std = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)  # as loaded: on the CPU
        x, p = torch.rand(2, 3, 40, 40), torch.rand(2, clip.embed_dim)
        scores = ADP(clip, p[0], p[1], x, tau=0.1)(x)
        assert {v.device.type for v in (scores.image, scores.text, scores.memory, scores.maps)} == {"cuda"}
        assert FeatureMemory(clip).add_shots(x).maps(extract(clip, x)).device.type == "cuda"

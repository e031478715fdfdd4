"""The small networks that baselines insist on: trained as students, exported, and read where they are used."""

import json
import sys

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from fsad_lib.errors import FsadError
from fsad_lib.foundation.backbones import load_backbone, load_trunk
from fsad_lib.foundation.miniatures import train_students as t


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 8, 8, 3), dtype=np.uint8).repeat(16, 2).repeat(16, 3)
    np.save(folder / "images-000.npy", images)
    np.save(folder / "labels-000.npy", np.zeros((3, 3), np.int64))
    np.save(folder / "cells-000.npy", np.zeros((3, 16, 16), np.float16))
    return folder


@pytest.fixture
def run(pool, monkeypatch):
    def call(network, out, *options):
        parts = [] if "--export" in options else ["--pool", str(pool), "--batch", "2", "--amp", "none"]
        monkeypatch.setattr(sys, "argv", ["x", "--network", network, "--out", str(out), "--mini", str(out.parent / "mini"), *parts, *options])
        t.main()
        return torch.load(out / "checkpoint.pt", weights_only=True)

    return call


@pytest.mark.parametrize("network", ["resnet18", "pdn"])
def test_training_resumes_and_the_export_is_read_where_it_is_used(network, run, tmp_path):
    whole = run(network, tmp_path / "a", "--steps", "2")
    run(network, tmp_path / "b", "--steps", "2", "--until", "1")
    state = run(network, tmp_path / "b", "--steps", "2")
    assert all(torch.equal(whole["model"][k], state["model"][k]) for k in whole["model"])
    assert json.loads((tmp_path / "a/log.jsonl").read_text().splitlines()[-1])["loss"] > 0
    run(network, tmp_path / "a", "--export")
    file = tmp_path / "mini" / t.FILES[network]
    assert file.stat().st_size < 3_000_000
    if network == "resnet18":
        trunk = load_trunk("resnet18", file, 64)
        student = t.ResNetStudent(whole["channels"]).eval()
        student.load_state_dict(whole["model"])
        x = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            expected = student.trunk((x - student.mean) / student.std)
        for ours, theirs in zip(trunk.features(x), expected[1:], strict=True):  # stride 8 and 16
            assert (ours - theirs).norm() < 0.2 * (theirs - theirs.mean((0, 2, 3), keepdim=True)).norm()  # 8-bit kernels
    else:
        from fsad_lib.baselines.efficientad import load_teacher

        assert load_teacher(file)(torch.rand(1, 3, 256, 256)).shape == (1, t.PDN_CHANNELS, 56, 56)
    other = "pdn" if network == "resnet18" else "resnet18"
    with pytest.raises(FsadError, match="training of"):
        run(other, tmp_path / "a", "--steps", "2")
    with pytest.raises(FsadError, match="training of"):
        run(other, tmp_path / "a", "--export")


def test_the_window_of_the_patch_network_is_the_whole_images(run):
    """Its outputs on a window are those on the whole image, over the cells that the target takes."""
    torch.manual_seed(0)
    student = t.PdnStudent([40, 112])
    x, targets = torch.rand(1, 3, 256, 256), [torch.randn(1, 40, 32, 32), torch.randn(1, 112, 16, 16)]
    rng = np.random.default_rng(3)
    top, left = (int(v) for v in np.random.default_rng(3).integers(0, 41, 2))
    with torch.no_grad():
        whole, target = student.network(x), student.target(targets)
        assert whole.shape[-2:] == (56, 56) and target.shape == (1, 64, 64, 64)
        part = whole[..., top : top + 16, left : left + 16] - target[..., top + 4 : top + 20, left + 4 : left + 20]
        assert float(student.loss(x, targets, rng)) == pytest.approx(float(part.square().mean()), rel=1e-4)
    rows = student.projection[:, :, 0, 0]
    assert rows.shape == (64, 152) and torch.allclose(rows @ rows.T, torch.eye(64), atol=1e-5)


def test_reverse_distillation_takes_the_trunk(tmp_path):
    from fsad_lib import baselines

    torch.manual_seed(0)
    whole = timm.create_model("resnet18")
    save_file({k: v.half() if v.is_floating_point() else v for k, v in whole.state_dict().items() if not k.startswith(("layer4", "fc"))}, tmp_path / "r.safetensors")
    trunk = load_trunk("resnet18", tmp_path / "r.safetensors", 64)
    x = torch.rand(2, 3, 64, 64)
    detector = baselines.make("reverse_distillation", backbone=trunk, batch_size=2)
    assert len(detector.fit(x, steps=1)) == 1
    assert torch.equal(detector.model.encoder.feature_extractor.state_dict()["layer3.1.conv2.weight"], trunk.model.layer3[1].conv2.weight)
    with pytest.raises(FsadError, match="not the backbone's"):
        baselines.make("cflow", backbone=trunk, coupling_blocks=1).fit(x, steps=1)


def test_the_teachers_maps_have_the_strides_asked_for():
    teacher = t.load_network_teacher((4, 8, 16))
    assert [m.shape[-1] for m in teacher.features(torch.rand(1, 3, 256, 256))] == [64, 32, 16]


def test_trunks_of_whole_and_cut_checkpoints_are_alike_and_others_refused(tmp_path):
    torch.manual_seed(0)
    whole = timm.create_model("resnet18")
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    save_file({k: v for k, v in whole.state_dict().items() if not k.startswith(("layer4", "fc"))}, tmp_path / "cut.safetensors")
    x = torch.rand(1, 3, 64, 64)
    maps = [load_trunk("resnet18", tmp_path / f"{n}.safetensors", 64).features(x) for n in ("whole", "cut")]
    maps.append(load_backbone("resnet18", tmp_path / "whole.safetensors", 64).features(x))
    assert all(torch.allclose(a, b, atol=1e-6) for other in maps[1:] for a, b in zip(maps[0], other, strict=True))
    save_file({k: v for k, v in load_file(tmp_path / "cut.safetensors").items() if "layer2" not in k}, tmp_path / "less.safetensors")
    for name, file, match in (("resnet18", "less", "not those of"), ("resnet50", "cut", "not those of"), ("resnet18", "none", "no weights"), ("vit_tiny_patch16_224", "cut", "not one of")):
        with pytest.raises(FsadError, match=match):
            load_trunk(name, tmp_path / f"{file}.safetensors", 64)

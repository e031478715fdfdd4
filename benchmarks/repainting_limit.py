"""How far AnomalySD could get with the shipped miniatures: what perfect repainting would score, on the development designs.

    python benchmarks/repainting_limit.py --images 40

Every defective test image of MiniFab is a scene that can be drawn again without its defect. That photograph, encoded and decoded as a twin
is, stands in for what the U-Net paints under each mask; of a good image it is the image itself. Three image AUROC / pixel AUROC for each
category: the U-Net's own repainting, the perfect one, and none (the autoencoder inside the masks). Perfect is more than any model reaches:
it knows the grain of a good texture. What it lacks of 1, the autoencoder and D lose; what the U-Net lacks of it, the U-Net loses.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fsad_lib import datasets
from fsad_lib.anomalysd import stages
from fsad_lib.anomalysd.detector import AnomalySD
from fsad_lib.anomalysd.score import image_score
from fsad_lib.datasets.minifab.statistics import flawless_twin
from fsad_lib.datasets.sample import sample
from fsad_lib.runs import open_run

REPAINTING = ("its own", "perfect", "none")


def flawless(path: Path, category: str, x: Tensor) -> Tensor:
    """The photograph (1, 3, 128, 128) of the scene behind a development test image x without its defect; x itself where it has none."""
    if path.parent.name == "good":
        return x
    return torch.from_numpy(flawless_twin("development", category, path.parent.name, int(path.stem))).permute(2, 0, 1)[None].float() / 255


@torch.no_grad()
def maps(detector: AnomalySD, x: Tensor, twin: Tensor, category: str) -> dict[str, Tensor]:
    """S_map (1, H, W) of an image (1, 3, H, W), for each of :data:`REPAINTING`; `twin` is its flawless photograph."""
    model, (passes, x_hat) = detector.model, detector.twins(x, detector.passes(x, category), category)
    z, z_twin = (model.posterior(image)[0] for image in (x, twin))
    x, m = x.to(x_hat), torch.stack([p.m for p in passes])[:, None].to(x_hat.device)
    m_z = F.interpolate(m.float(), scale_factor=1 / model.factor)
    drawn = {"its own": x_hat, "perfect": model.decode(torch.where(m_z > 0, z_twin, z)), "none": model.decode(z)}
    return {name: detector.maps(x, torch.where(m, y, x), passes)["map"] for name, y in drawn.items()}


def judge(overrides: str, images: int | None) -> pd.DataFrame:
    """One row for each category: image and pixel AUROC of each repainting."""
    run, rows = open_run("41_evaluate", "anomalysd", profile="mini", dataset="minifab_dev", category="all", shots=1, seed=0, overrides=overrides), []
    detector, test = stages.build_detector(run), run.table().query("split == 'test'")
    for category in run.categories:
        chosen = sample(test[test.category == category], images)
        masks, size = np.asarray(datasets.read_masks(chosen, detector.model.image_size)), detector.model.image_size
        found = []
        for path, x in zip(chosen["path"], datasets.read_images(chosen["path"].tolist(), size).split(1), strict=True):
            found.append(maps(detector, x, flawless(Path(path), category, x), category))
        row = {"category": category}
        for name in REPAINTING:
            s = torch.cat([one[name] for one in found]).cpu()
            score = image_score(s, detector.settings.image_share)
            row |= {f"{name}, image": roc_auc_score(chosen["label"], score), f"{name}, pixel": roc_auc_score(masks.ravel(), s.numpy().ravel())}
        rows.append(row)
    return pd.DataFrame(rows).set_index("category")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="", metavar="KEY=VALUE,...", help="values of the mini profile to change")
    parser.add_argument("--images", type=int, default=None, help="test images of a category, half of them good; default: all")
    args = parser.parse_args()
    table = judge(args.set, args.images)
    table.loc["mean"] = table.mean()
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()

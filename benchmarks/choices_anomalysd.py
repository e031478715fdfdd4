"""How the mini profile's own choices for AnomalySD were made: on the development designs only.

    python benchmarks/choices_anomalysd.py --set "anomalysd.strength=0.6" "anomalysd.scales=[4,8]" --images 24

One model for all development categories (1 shot, seed 0 unless said otherwise). Each setting changes values of the mini profile; printed are
image AUROC / pixel AUROC (means over categories, category given) of S_map, of its parts, and of the autoencoder alone. What needs no new
pass is tried on the same maps: the weight alpha, and the share of the map that the image score averages.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from fsad_lib import datasets
from fsad_lib.anomalysd import stages
from fsad_lib.anomalysd.score import fuse, image_score
from fsad_lib.datasets.sample import sample
from fsad_lib.runs import open_run

SHARES = (0.0, 0.001, 0.003, 0.01, 0.03)


def judge(overrides: str, shots: int, seed: int, images: int | None) -> pd.DataFrame:
    """One row for each category and variant: image and pixel AUROC."""
    run = open_run("41_evaluate", "anomalysd", profile="mini", dataset="minifab_dev", category="all", shots=shots, seed=seed, overrides=overrides)
    detector, rows = stages.build_detector(run), []
    test = run.table().query("split == 'test'")
    for name in run.categories:
        chosen = sample(test[test.category == name], images)
        label, masks = chosen["label"].to_numpy(), np.asarray(datasets.read_masks(chosen, detector.model.image_size))
        scores = detector(datasets.read_images(chosen["path"].tolist(), detector.model.image_size), name, controls=True)
        maps = {"S_map": scores.map, "autoencoder": scores.controls["roundtrip"], "guided autoencoder": scores.controls["guided_roundtrip"], "against it": scores.controls["against_roundtrip"]}
        maps |= {f"S^({k})": detector.smooth(s) for k, s in scores.scales.items()}
        if scores.s_pg is not None:
            maps |= {f"alpha {a:g}": detector.smooth(fuse(scores.s_ms, scores.s_pg, a)) for a in stages.ALPHAS}
        for variant, m in maps.items():
            pixel = roc_auc_score(masks.ravel(), m.cpu().numpy().ravel())
            rows.append({"category": name, "variant": variant, "image": roc_auc_score(label, image_score(m, detector.settings.image_share).cpu()), "pixel": pixel})
        rows += [
            {"category": name, "variant": f"share {s:g}", "image": roc_auc_score(label, image_score(scores.map, s).cpu()), "pixel": np.nan}
            for s in SHARES
        ]
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help='settings, one run each; "" is the profile itself')
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=None, help="test images of a category, half of them good; default: all")
    args = parser.parse_args()
    for setting in args.set or [""]:
        start = time.process_time()
        found = judge(setting, args.shots, args.seed, args.images)
        mean = found.groupby("variant", sort=False)[["image", "pixel"]].mean()
        print(f"{setting or 'profile mini'}   {time.process_time() - start:.0f} s of processor time")
        print("  " + "  ".join(f"{r.Index} {r.image:.3f}" + (f"/{r.pixel:.3f}" if r.pixel == r.pixel else "") for r in mean.itertuples()))
        each = found.query("variant == 'S_map'")
        print("  " + "  ".join(f"{r.category} {r.image:.2f}/{r.pixel:.2f}" for r in each.itertuples()), flush=True)


if __name__ == "__main__":
    main()

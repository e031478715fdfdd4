"""How many steps the trained detectors of the mini profile get: on the development designs only.

    python benchmarks/choices_tgvig.py efficientad --steps 100 200 400
    python benchmarks/choices_tgvig.py reverse_distillation --set baselines.distillation_lr=0.001

One shot of each product, seed 0 unless said otherwise, no generated images. For each number of steps: image AUROC / pixel AUROC (means over
products), the loss over ten parts of the training, and seconds of processor time for one training. A loss that still falls in its last parts
has not converged.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from sklearn.metrics import roc_auc_score

from fsad_lib import datasets
from fsad_lib.datasets.sample import sample
from fsad_lib.runs import open_run
from fsad_lib.tgvig import stages

STEPS = {"cflow": "cflow_steps", "efficientad": "efficientad_steps", "reverse_distillation": "distillation_steps"}


def judge(name: str, category: str, shots: int, seed: int, images: int | None, overrides: str) -> tuple[float, float, list[float], float]:
    """Image and pixel AUROC of one product, the loss of each step, seconds of processor time for training."""
    run = open_run("42_evaluate", "tgvig", profile="mini", dataset="minifab_dev", category=category, shots=shots, seed=seed, overrides=overrides)
    detector, side = stages.make_detector(run, name), stages._side(run, name)
    start = time.process_time()
    losses = detector.fit(datasets.read_images(run.shot_paths(), side), steps=stages._steps(run, name), seed=seed)
    seconds = time.process_time() - start
    test = sample(run.table().query("split == 'test'"), images)
    scores, maps = detector(datasets.read_images(test["path"].tolist(), side))
    small = stages._shrunk(maps.numpy(), 128)
    masks = np.asarray(datasets.read_masks(test, small.shape[-1]))
    return roc_auc_score(test["label"], scores), roc_auc_score(masks.ravel(), small.ravel()), losses, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baseline", choices=sorted(STEPS))
    parser.add_argument("--steps", type=int, nargs="+", default=None, help="default: the profile's")
    parser.add_argument("--set", default="", metavar="KEY=VALUE,...", help="further changes over the profile")
    parser.add_argument("--category", nargs="+", default=None, help="default: all development products")
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=None, help="test images of a product, half of them good; default: all")
    args = parser.parse_args()
    for steps in args.steps or [None]:
        own = [f"baselines.{STEPS[args.baseline]}={steps}"] if steps else []
        overrides = ",".join([*own, *([args.set] if args.set else [])])
        names = args.category or datasets.categories("minifab_dev")
        found = [judge(args.baseline, name, args.shots, args.seed, args.images, overrides) for name in names]
        curve = np.mean([[part.mean() for part in np.array_split(losses, min(10, len(losses)))] for _, _, losses, _ in found], axis=0)
        image, pixel, seconds = (float(np.mean([row[i] for row in found])) for i in (0, 1, 3))
        print(f"{args.baseline} {overrides or '(profile mini)'}: {image:.3f}/{pixel:.3f}, {seconds:.0f} s a training; loss " + " ".join(f"{v:.3g}" for v in curve))
        print("  " + "  ".join(f"{name} {i:.2f}/{p:.2f}" for name, (i, p, _, _) in zip(names, found, strict=True)), flush=True)


if __name__ == "__main__":
    main()

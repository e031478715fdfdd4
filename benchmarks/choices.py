"""How the mini profile's own choices were made: on the development designs only.

    python benchmarks/choices.py --set adp.alpha=0.1 adp.alpha=0.1,adp.tau=0.05 --visual-weight 1 3 10

Each setting changes values of the mini profile; printed is the image AUROC from text alone (mean over development categories, 4 shots, seed 0)
for the untrained word, plain textual inversion, c_n, c_a, their mixture without and with the label, ADP's sum with the memory for each
weight of the memory, and the memory alone; and the share of c_a's steps at which the hinge of eq. 4 was above 0.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import lru_cache

import pandas as pd
from sklearn.metrics import roc_auc_score

from fsad_lib import datasets
from fsad_lib.adp import stages
from fsad_lib.adp.detector import anomaly_probability
from fsad_lib.datasets.minifab import CATEGORIES
from fsad_lib.runs import Run, open_run
from fsad_lib.winclip.memory import FeatureMemory

METHODS = ("object", "ti", "c_n", "c_a", "adp", "adp_l")


@lru_cache
def test_images(category: str, shots: int, seed: int):
    """What no setting changes: labels, image embeddings and memory scores of the test images."""
    run = _run(category, shots, seed, "")
    clip, test = stages.clip_model(run.profile), run.table().query("split == 'test'")
    memory = FeatureMemory(clip, run.profile.winclip.scales).add_shots(datasets.read_images(run.shot_paths(), clip.image_size))
    features = memory.features(datasets.read_images(test["path"].tolist(), clip.image_size))
    return test["label"].to_numpy(), features.f, memory.maps(features).amax((-2, -1)).double()


def _run(category: str, shots: int, seed: int, overrides: str) -> Run:
    return open_run("20_synthesize", "adp", profile="mini", dataset="minifab_dev", category=category, shots=shots, seed=seed, overrides=overrides)


def score(category: str, overrides: str, shots: int, seed: int = 0, weights: Sequence[float] = ()) -> dict[str, float]:
    """Image AUROC of one development category under `overrides`: method -> from text alone, "sum" -> ADP with the memory, "sum x w" ->
    the same with another weight of the memory, "memory"; and "hinge", the share of c_a's steps at which eq. 4 pushed."""
    label, f, memory = test_images(category, shots, seed)
    run = _run(category, shots, seed, overrides)
    adp, tuned = run.profile.adp, stages.synthesize(run)
    text = {m: anomaly_probability(f, *tuned.prototypes[m], adp.tau).cpu() for m in METHODS}
    sums = {"sum": adp.visual_weight} | {f"sum x {w:g}": w for w in weights}
    scores = text | {name: text["adp"] + w * memory.cpu() for name, w in sums.items()} | {"memory": memory.cpu()}
    trace = stages.personalize(run.upstream("10_personalize")).trace
    return {name: roc_auc_score(label, value.numpy()) for name, value in scores.items()} | {"hinge": (trace[trace.concept == "c_a"].hinge > 0).mean()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings, one run each; the profile itself comes first")
    parser.add_argument("--category", nargs="*", default=CATEGORIES["development"])
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--seed", type=int, nargs="*", default=[0])
    parser.add_argument("--visual-weight", type=float, nargs="*", default=[], help="weights of the memory to try; no run is repeated for them")
    args = parser.parse_args()
    for setting in ["", *args.set]:
        start = time.time()
        mean = pd.DataFrame([score(category, setting, args.shots, seed, args.visual_weight) for category in args.category for seed in args.seed]).mean()
        print(f"{setting or 'profile mini':44s} " + "  ".join(f"{name} {value:.3f}" for name, value in mean.items()) + f"   {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""How the mini profile's own choices were made: on the development designs only.

    python benchmarks/choices.py --set adp.lr=0.002 adp.lr=0.005 adp.lr=0.02

Each setting changes one value of the mini profile; printed is the image AUROC from text alone (mean over development categories, 4
shots, seed 0) for the untrained word, plain textual inversion, c_n, c_a and their mixture, and the sum with the memory.
"""

from __future__ import annotations

import argparse
import time

import pandas as pd

from fsad_lib.adp import stages
from fsad_lib.datasets.minifab import CATEGORIES
from fsad_lib.runs import open_run

METHODS = ("object", "ti", "c_n", "c_a", "adp", "adp_l")


def score(category: str, overrides: str, shots: int) -> pd.DataFrame:
    """The metric rows of one development category under `overrides`."""
    run = open_run("40_evaluate", "adp", profile="mini", dataset="minifab_dev", category=category, shots=shots, seed=0, overrides=overrides)
    return pd.DataFrame(stages.evaluate(run).rows).assign(category=category)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings, one run each; the profile itself comes first")
    parser.add_argument("--category", nargs="*", default=CATEGORIES["development"])
    parser.add_argument("--shots", type=int, default=4)
    args = parser.parse_args()
    for setting in ["", *args.set]:
        start = time.time()
        rows = pd.concat([score(category, setting, args.shots) for category in args.category])
        mean = rows[rows.group == "all"].groupby(["method", "part"]).image_auroc.mean()
        text = "  ".join(f"{m} {mean[m, 'text']:.3f}" for m in METHODS)
        print(f"{setting or 'profile mini':28s} text: {text}   sum: adp {mean['adp', 'sum']:.3f}   memory {mean['adp', 'memory']:.3f}   {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()

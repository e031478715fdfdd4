"""Run folders in the store's layout, filled with seeded random scores."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata

METHOD_PARTS = [
    *((m, p) for m in ("object", "ti", "c_n", "c_a", "adp", "label", "adp_l") for p in ("text", "memory", "sum")),
    *((m, p) for m in ("winclip", "winclip_adp_backbone") for p in ("text", "memory", "sum")),
    ("patch_memory", "memory"),
]
SEPARATION = {"ti": 0.4, "object": 0.8, "c_n": 1.2, "c_a": 1.1, "adp": 1.4, "label": 1.0, "adp_l": 1.5, "winclip": 1.1}


def auroc(label: np.ndarray, score: np.ndarray) -> float:
    """Mann and Whitney's statistic."""
    bad = label == 1
    return float((rankdata(score)[bad].sum() - bad.sum() * (bad.sum() + 1) / 2) / (bad.sum() * (~bad).sum()))


def fake_run(
    root: Path, dataset: str, category: str, shots: int, seed: int, *, profile="mini", tag="", n=20, drop=(), groups=True
) -> Path:
    """One complete 40_evaluate_adp run: predictions.parquet and metrics.json."""
    folder = root / "data" / "runs" / profile / dataset / category / "40_evaluate_adp"
    folder = folder / (f"k{shots}_seed{seed}" + (f"_{tag}" if tag else ""))
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, shots, *category.encode()])
    label = np.repeat([0, 1], [n, n])
    seen = np.arange(2 * n) % 3 != 0
    rows, tables = [], []
    for method, part in METHOD_PARTS:
        if method in drop:
            continue
        gap = (0.9 if part == "memory" else SEPARATION.get(method, 1.0)) + 0.03 * shots
        score = rng.normal(size=2 * n) + gap * label
        tables.append(
            pd.DataFrame(
                {"path": [f"{category}/{i:03d}.png" for i in range(2 * n)], "label": label,
                 "defect": np.where(label == 1, np.where(seen, "scratch", "hole"), "good"), "seen": seen,
                 "method": method, "part": part, "score": score}
            )
        )  # fmt: skip
        for group in ("all", "seen", "unseen") if groups else ("all",):
            use = np.ones(2 * n, bool) if group == "all" else (label == 0) | (seen == (group == "seen"))
            rows.append(
                {"method": method, "part": part, "group": group, "n": int(use.sum()),
                 "image_auroc": auroc(label[use], score[use]), "image_ap": 0.75, "image_f1max": 0.8,
                 "pixel_auroc": 0.9 if part != "text" else None, "aupro": 0.7 if part != "text" else None}
            )  # fmt: skip
    pd.concat(tables, ignore_index=True).to_parquet(folder / "predictions.parquet")
    (folder / "metrics.json").write_text(json.dumps({"rows": rows, "fingerprint": "x", "identity": {}, "files": []}))
    return folder

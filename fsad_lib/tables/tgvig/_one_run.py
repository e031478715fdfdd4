"""One run, for its own notebook."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fsad_lib.tables._rows import NONE, bootstrap_images, wins_of
from fsad_lib.tables._text import interval, number, verdict
from fsad_lib.tables.tgvig._names import ARMS, BASELINES, CONTROLS, SHOWN


def one_run(rows: Sequence[dict], group: str = "all") -> pd.DataFrame:
    """The rows of one run as text, one line for each baseline and arm, percent; the gain is that of the generated images over this arm.

    >>> rows = [{"method": "patchcore", "part": p, "group": "all", "image_auroc": v} for p, v in (("shots", 0.5), ("generated", 0.6))]
    >>> one_run(rows)[["arm", "image AUROC", "gain over it"]].to_numpy().tolist()
    [['shots alone', '50.0', '+10.0 (+20 %)'], ['shots + generated (TGVIG)', '60.0', '–']]
    """
    table = pd.DataFrame([row for row in rows if row["group"] == group])
    if table.empty:
        return pd.DataFrame({"nothing to show": []})
    records = []
    for name, block in table.groupby("method", sort=False):
        values = block.set_index("part").image_auroc
        for row in block.to_dict("records"):
            gap = 100 * (values.get("generated", np.nan) - row["image_auroc"])
            text = NONE if row["part"] == "generated" or pd.isna(gap) else f"{gap:+.1f}" + (f" ({gap / row['image_auroc']:+.0f} %)" if row["image_auroc"] else "")
            record = {"baseline": BASELINES.get(name, name), "arm": ARMS.get(row["part"], row["part"])}
            record |= {label: number(100 * row[m]) for m, label in SHOWN.items() if row.get(m) is not None and pd.notna(row.get(m))}
            records.append(record | {"gain over it": text})
    return pd.DataFrame(records).fillna(NONE)


def compare(predictions: pd.DataFrame, baseline: str, others: Sequence[str] = CONTROLS) -> str:
    """The generated arm against each of ``others``, one line each, with the 95 % interval over the images of one run."""
    table = predictions[(predictions.method == baseline) & (predictions.label >= 0)]
    if "generated" not in set(table.part):
        return f"{BASELINES.get(baseline, baseline)} was not run with generated images."
    wins = {}
    for arm, part in table.groupby("part", sort=False):
        part = part.sort_values("path")
        wins[arm] = wins_of([(part.path.to_numpy(object), part.label.to_numpy(int), part.seen.to_numpy(bool), part.score.to_numpy(float))])
    if wins.get("generated") is None:
        return "No image AUROC: it needs good and defective images."
    lines = []
    for arm in (name for name in others if name in wins):
        mean, low, high = (100 * v for v in bootstrap_images(wins["generated"] - wins[arm]))
        gap = {"mean": mean, "low": low, "high": high}
        says = {"yes": "better than", "no": "worse than"}.get(verdict(gap), "not told apart from")
        ours, theirs = (100 * wins[name].mean() for name in ("generated", arm))
        lines.append(f"{BASELINES[baseline]} with generated images ({ours:.1f}) is {says} {ARMS[arm]} ({theirs:.1f}): {interval(gap)} points")
    return "\n".join(lines)

"""Whether the trained detectors converged."""

from pathlib import Path

import numpy as np
import pandas as pd

from fsad_lib.runs import read_json
from fsad_lib.tables._rows import NONE, NOT_RUN
from fsad_lib.tables.tgvig._gains import rows_of
from fsad_lib.tables.tgvig._names import ARMS, BASELINES

LATE = 0.05
"""A loss is flat where the last fifth of its steps brings at most this share of its whole fall (a straight line: 0.22)."""


def losses(root: str | Path | None = None, profile: str = "mini", rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """The loss of every step of the trained detectors, from the stage 32 runs behind ``rows`` (None: the plain ones of :func:`rows_of`):
    data_set, profile, shots, baseline, arm, category, seed, step, loss. Empty where no trained detector was run."""
    rows = rows_of(root, profile) if rows is None else rows
    parts = []
    for row in rows[(rows.method != "patchcore") & (rows.group == "all")].itertuples():
        folder = Path(row.folder)
        values = (read_json(folder.parents[1] / "32_augment_tgvig" / folder.name / f"{row.method}-{row.part}.json") or {}).get("losses")
        if values:
            head = {"data_set": row.unit, "profile": row.profile, "shots": row.setting, "baseline": row.method, "arm": row.part}
            parts.append(pd.DataFrame(head | {"category": row.category, "seed": row.seed, "step": range(1, len(values) + 1), "loss": values}))
    columns = ["data_set", "profile", "shots", "baseline", "arm", "category", "seed", "step", "loss"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _course(curve: np.ndarray) -> dict:
    """First and last tenth of a loss, the share of its fall that its last fifth brings, and the verdict.

    >>> t = np.arange(100) / 100
    >>> [_course(c)["verdict"] for c in (1 - t, np.exp(-8 * t), t, np.abs(t - 0.6))]
    ['still falls', 'flat', 'did not fall', 'rises again']
    """
    tenth = max(1, len(curve) // 10)
    first, last = curve[:tenth].mean(), curve[-tenth:].mean()
    before, after = curve[-4 * tenth : -2 * tenth], curve[-2 * tenth :]
    late = (before.mean() - after.mean()) / (first - last) if first > last and len(before) else np.nan
    says = "did not fall" if first <= last else "too few steps" if np.isnan(late) else "still falls" if late > LATE else "rises again" if late < -LATE else "flat"
    return {"first_tenth": first, "last_tenth": last, "late_share": late, "verdict": says}


def convergence(curves: pd.DataFrame) -> pd.DataFrame:
    """Whether each trained detector has converged in each arm, from the mean of its runs' losses (:func:`losses`): data_set, profile, shots, baseline,
    arm, runs, steps, first_tenth, last_tenth, late_share, verdict."""
    head, records = ["data_set", "profile", "shots", "baseline", "arm"], []
    for key, block in curves.groupby(head, sort=False):
        wide = block.pivot_table(index="step", columns=["category", "seed"], values="loss").dropna()
        records.append(dict(zip(head, key, strict=True)) | {"runs": wide.shape[1], "steps": len(wide)} | _course(wide.mean(axis=1).to_numpy()))
    return pd.DataFrame.from_records(records, columns=[*head, "runs", "steps", "first_tenth", "last_tenth", "late_share", "verdict"])


def show_convergence(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`convergence` for reading."""
    if table.empty:
        return pd.DataFrame({"Data set": [NOT_RUN], "Detector": [NOT_RUN]})
    return pd.DataFrame(
        {"Data set": table.data_set, "Profile": table.profile, "Shots": table.shots, "Detector": table.baseline.map(BASELINES), "Arm": table.arm.map(ARMS),
         "Runs": table.runs, "Steps": table.steps, "Loss, first tenth": table.first_tenth.map("{:.3f}".format), "last tenth": table.last_tenth.map("{:.3f}".format),
         "of the fall, in the last fifth": [NONE if pd.isna(v) else f"{v:.0%}" for v in table.late_share], "Verdict": table.verdict}
    )  # fmt: skip

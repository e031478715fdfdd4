"""What the ADP paper claims in prose, and whether it holds."""

import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from fsad_lib.tables._paper import Block, blocks_of
from fsad_lib.tables._rows import (
    NONE,
    NOT_RUN,
    ROWS,
    bootstrap_categories,
    reported,
)
from fsad_lib.tables._text import interval, number, verdict

RULES = {
    "gain": "the difference is above 0, and so is its whole 95 % interval and, where there is one category, every seed's difference",
    "widens": "the difference at the most shots exceeds the one at the fewest, interval above 0; where there is one category, with every seed, and no interval",
    "closes": "the difference is below 0 at the fewest shots and exceeds that at the most, judged as one that widens",
    "order": "each step of the order is above 0 with its whole interval",
    "each": "better in every category; not judged where there is one category",
    "no_drop": "the difference is not below 0 with its whole interval; unclear where it is and the seeds of the one category disagree",
    "not_better": "the difference is not above 0 with its whole interval; unclear where it is and the seeds of the one category disagree",
    "level": "within two reported standard deviations",
    "reproduced": "within one standard deviation of the WinCLIP paper's own mean; needs no run",
    "figure": "judged by eye",
}
ONE_CATEGORY = "not judged: one category"
CHANCE = 50.0  # percent: the image AUROC of a coin
BELOW_CHANCE = {"no_drop": "not judged: below chance", "not_better": "not judged: below chance"} | dict.fromkeys(
    ("gain", "widens", "closes", "order", "each"), "no: below chance"
)
"""What a "yes" becomes where the method that the claim speaks for ranks the images no better than a coin: being less wrong than
another is no gain, and "no worse than another" says nothing there."""


def _gaps(block: Block, left: str, right: str, shots: Iterable[int]) -> dict[int, dict]:
    found = {k: block.gap(k, left, right) for k in shots}
    return {k: gap for k, gap in found.items() if gap is not None}


def _judge_gain(block: Block, claim, shots: list[int]) -> tuple[str, str]:
    gaps = {other: _gaps(block, claim.left, other, shots).get(shots[0]) for other in claim.right.split(";")}
    if any(gap is None for gap in gaps.values()):
        return NOT_RUN, NOT_RUN
    many = len(gaps) > 1
    text = "; ".join((f"against {ROWS[o].label} " if many else "") + interval(g) for o, g in gaps.items())
    verdicts = [verdict(gap) for gap in gaps.values()]
    worst = min(verdicts, key=lambda v: ["no", "no, no interval", "unclear", "yes, no interval", "yes"].index(v))
    return text, worst


def _judge_widens(block: Block, claim, shots: list[int]) -> tuple[str, str]:
    gaps = _gaps(block, claim.left, claim.right, shots)
    if len(gaps) < 2:
        return NOT_RUN, NOT_RUN
    few, many = min(gaps), max(gaps)
    text = ", ".join(f"{k} shots {gap['mean']:+.1f}" for k, gap in gaps.items())
    change = (gaps[many]["per_category"] - gaps[few]["per_category"]).dropna()
    if claim.kind == "closes" and gaps[few]["mean"] >= 0:
        return text, "no"  # nothing to catch up with
    if len(change) < 2:
        alone = all("per_seed" in gaps[k] for k in (few, many))  # else other categories were run at one of the two only
        seeds = (gaps[many]["per_seed"] - gaps[few]["per_seed"]).dropna() if alone else change
        return text, "yes, no interval" if (seeds > 0).all() else "no, no interval" if (seeds < 0).all() else "unclear"
    mean, low, high = bootstrap_categories(change)
    return text, verdict({"mean": mean, "low": low, "high": high})


def _judge_order(block: Block, claim, shots: list[int]) -> tuple[str, str]:
    names = claim.left.split(";")
    cells = [block.mean(shots[0], name) for name in names]
    steps = [_gaps(block, b, a, shots).get(shots[0]) for a, b in itertools.pairwise(names)]
    if any(step is None for step in steps) or any(c["state"] == NOT_RUN for c in cells):
        return NOT_RUN, NOT_RUN
    signs = ["<" if step["mean"] > 0 else ">" if step["mean"] < 0 else "=" for step in steps]
    text = f"{cells[0]['mean']:.1f}" + "".join(
        f" {s} {c['mean']:.1f}" for s, c in zip(signs, cells[1:], strict=True)
    )
    verdicts = {verdict(step) for step in steps}
    if verdicts == {"yes"}:
        return text, "yes"
    return text, "no" if any(v.startswith("no") for v in verdicts) else "unclear"


def _judge_each(block: Block, claim, shots: list[int]) -> tuple[str, str]:
    gap = _gaps(block, claim.left, claim.right, shots).get(shots[0])
    if gap is None:
        return NOT_RUN, NOT_RUN
    better, seeds = gap["per_category"] > 0, gap.get("per_seed")
    if len(better) == 1:  # "class by class" asks for several classes
        each = f"better with {(seeds > 0).sum()} of {len(seeds)} seeds" if seeds is not None else f"better in {better.sum()} of 1 categories"
        return each, ONE_CATEGORY
    return f"better in {better.sum()} of {len(better)} categories", "yes" if better.all() else "no"


def _judge_no_drop(block: Block, claim, shots: list[int]) -> tuple[str, str]:
    gap = _gaps(block, claim.left, claim.right, shots).get(shots[0])
    if gap is None:
        return NOT_RUN, NOT_RUN
    return interval(gap), _not_beyond(gap, gap["high"] < 0)


def _judge_not_better(block: Block, claim, shots: list[int]) -> tuple[str, str]:
    gap = _gaps(block, claim.left, claim.right, shots).get(shots[0])
    if gap is None:
        return NOT_RUN, NOT_RUN
    return interval(gap), _not_beyond(gap, gap["low"] > 0)


def _not_beyond(gap: dict, beyond: bool) -> str:
    """A claim that a difference does not lie `beyond` 0 with its whole interval: it does (no), does but not in every seed (unclear), or not (yes)."""
    if math.isnan(gap["low"]):
        return "no interval"
    if not beyond:
        return "yes"
    return "unclear" if verdict(gap) == "unclear" else "no"


def _judge_level(block: Block, claim, shots: list[int]) -> tuple[str, str]:
    cell = block.mean(shots[0], claim.left)
    if cell["state"] == NOT_RUN or (cell["state"] == "partial" and block.reported):
        return NOT_RUN, NOT_RUN
    text = number(cell["mean"], cell["std"], cell["n"])
    if not block.reported:
        return text, "not comparable"
    mean, std = (float(v) for v in claim.reported.split("±"))
    return text, "yes" if abs(cell["mean"] - mean) <= 2 * std else "no"


_JUDGES: dict[str, Callable] = {
    "gain": _judge_gain, "widens": _judge_widens, "closes": _judge_widens, "order": _judge_order, "each": _judge_each,
    "no_drop": _judge_no_drop, "not_better": _judge_not_better, "level": _judge_level,
}  # fmt: skip


def _judge(block: Block, claim, shots: list[int]) -> tuple[str, str]:
    """Ours and the verdict; no verdict where some of the data set's categories were not run."""
    ours, holds = _JUDGES[claim.kind](block, claim, shots)
    cells = [block.mean(k, claim.left.split(";")[-1]) for k in shots]
    covered, expected = min(c["categories"] for c in cells), max(c["expected"] for c in cells)
    if holds != NOT_RUN and covered < expected:
        return ours, f"not judged: {covered} of {expected} categories"
    return ours, _against_chance(block, claim, shots, holds)


def _against_chance(block: Block, claim, shots: list[int], holds: str) -> str:
    """The verdict, unless it is a "yes" for a method whose mean image AUROC (of a trend: at the most shots) does not exceed 50 %."""
    if claim.kind not in BELOW_CHANCE or not holds.startswith("yes"):
        return holds
    at = max(shots) if claim.kind in ("widens", "closes") else shots[0]
    level = block.mean(at, claim.left.split(";")[-1])["mean"]
    return holds if level > CHANCE else BELOW_CHANCE[claim.kind]


def claims(root: str | Path | None = None, profile: str = "mini") -> pd.DataFrame:
    """Each claim that the ADP paper makes in prose | Reported | Ours | Controls | Holds?

    A claim about MVTec AD or VisA is judged on that data set, with runs of the paper profile, or reads "not run". The
    same question asked of our own data sets follows in rows of its own, labelled with data set and profile, with no
    reported value: a miniature neither confirms nor refutes the paper. The column "Controls" gives the claimed method's
    distance to each control. All differences are in percent points of image AUROC with 95 % intervals. A comparison below chance
    supports no claim and reads so (:data:`BELOW_CHANCE`).
    """
    blocks = blocks_of(root, profile)
    table = reported("adp_claims", root)
    records = []
    for _, group in table.groupby("id", sort=False):
        first = group.iloc[0]
        shots = [int(k) for k in first.shots.split(";") if k]
        for claim in group.itertuples():
            block = next((b for b in blocks if b.reported and b.dataset == claim.dataset), None)
            ours, holds = _paper_claim(block, claim, shots, root)
            where, used = (block.unit, "paper") if block else ("qualitative", NONE)
            records.append(_claim_row(claim, where, used, claim.reported, ours, holds, block, shots, claim.note))
        if first.kind in ("reproduced", "figure"):
            continue
        for block in (b for b in blocks if not b.reported):
            ours, holds = _judge(block, first, shots)
            note = "not the paper's data" if profile == "paper" else "miniature: says nothing about the paper's models"
            records.append(_claim_row(first, block.unit, block.profile, NONE, ours, holds, block, shots, note))
    return pd.DataFrame.from_records(records)


def _paper_claim(block: Block | None, claim, shots: list[int], root) -> tuple[str, str]:
    if claim.kind == "figure":
        return "see the figure of pseudo-anomalies", "judge by eye"
    if claim.kind != "reproduced":
        return _judge(block, claim, shots)
    official = reported("winclip_official", root)
    official = official[(official.dataset == claim.dataset) & (official.shots == shots[0]) & (official.category == "")]
    official = official[(official.method == "WinCLIP+") & (official.metric == "image_auroc")].iloc[0]
    theirs = float(claim.reported.split("±")[0])
    holds = "yes" if abs(theirs - official["mean"]) <= official["std"] else "no"
    return f"the WinCLIP paper prints {number(official['mean'], official['std'])}", holds


def _claim_row(claim, where, profile, value, ours, holds, block, shots, note) -> dict:
    controls = NONE
    if block is not None and claim.controls:
        left = claim.left.split(";")[-1]
        parts = []
        for key in claim.controls.split(";"):
            gap = _gaps(block, left, key, shots[-1:]).get(shots[-1])
            parts.append(f"{ROWS[key].label}: {interval(gap) if gap else NOT_RUN}")
        controls = NOT_RUN if all(p.endswith(NOT_RUN) for p in parts) else f"{ROWS[left].label} − " + "; ".join(parts)
    return {
        "Claim": claim.claim, "Data set": where, "Profile": profile, "Shots": claim.shots.replace(";", ", ") or NONE,
        "Reported": value, "Ours": ours, "Controls": controls, "Holds?": holds, "Holds if": RULES[claim.kind],
        "Source": claim.source if value != NONE else NONE, "Note": note,
    }  # fmt: skip

"""Tables: what the papers report beside what our runs measured.

Rows come from the ``metrics.json`` of complete evaluate runs (:func:`collect`). Numbers are in percent in every table.
Three rules hold everywhere: a miniature's number never stands beside a paper's, what was not run reads "not run",
and the control rows are part of every table.
"""

from pathlib import Path

import pandas as pd

from fsad_lib.runs import project_root
from fsad_lib.tables._claims import claims
from fsad_lib.tables._paper import (
    all_metrics,
    hinge,
    memory_sentence,
    own_choices,
    per_category,
    seen_unseen,
    summary,
    table1,
    table2,
)
from fsad_lib.tables._rows import (
    CONTROLS,
    METRICS,
    NOT_RUN,
    ROWS,
    SHOTS,
    collect,
    difference,
    expected_categories,
    mean_over_categories,
    pick,
    reported,
    unit_name,
)
from fsad_lib.tables._text import (
    interval,
    latex_escape,
    number,
    show,
    to_latex,
    to_markdown,
    write_rows,
    write_table,
)

__all__ = [
    "CONTROLS", "METRICS", "NOT_RUN", "ROWS", "SHOTS", "all_metrics", "claims", "collect", "difference",
    "expected_categories", "hinge", "interval", "latex_escape", "mean_over_categories", "memory_sentence", "number", "own_choices",
    "per_category", "pick", "reported", "seen_unseen", "show", "summary", "table1", "table2", "to_latex", "to_markdown",
    "unit_name", "write_all", "write_claims", "write_results", "write_table",
]  # fmt: skip


def write_results(root: str | Path | None = None, profile: str = "mini") -> Path:
    """Write every collected row to ``data/results/adp_<profile>.csv`` (metrics in [0, 1], no local paths)."""
    root = Path(root or project_root())
    return write_rows(collect(root, profile), "adp", profile, root)


def write_all(root: str | Path | None = None, profile: str = "mini", shots: int = 4) -> list[Path]:
    """Every table of ADP into ``root/figures`` and the rows behind them into ``root/data/results``."""
    root = Path(root or project_root())
    folder = root / "figures"
    suffix = "" if profile == "mini" else f"_{profile}"
    choices = own_choices(root, profile)
    note = [f"Values not known from the sources at hand: adp_own_choices{suffix}."]
    paths = [write_results(root, profile)]
    for name, table, caption in (
        ("adp_table1", table1(root, profile), "ADP, Table 1: image AUROC at 2, 4, 8 and 16 shots"),
        ("adp_table2", table2(root, profile, shots), f"ADP, Table 2: learned concepts, {shots} shots"),
        ("adp_seen_unseen", seen_unseen(root, profile, shots), f"Defects seen in pretraining and unseen, {shots} shots"),
        ("adp_per_category", per_category(root, profile, shots), f"Image AUROC per category, {shots} shots"),
        ("adp_all_metrics", all_metrics(root, profile, shots), f"All metrics, {shots} shots"),
    ):
        paths += write_table(table, name + suffix, folder, caption=caption, notes=note)
    paths += write_claims(claims(root, profile), "adp_claims" + suffix, folder)
    paths += write_table(hinge(root, profile), "adp_hinge" + suffix, folder, caption="How often the hinge of eq. 4 worked")
    paths += write_table(choices, "adp_own_choices" + suffix, folder, caption="ADP: values not known from the sources at hand")
    return paths


def write_claims(table: pd.DataFrame, name: str, folder: str | Path) -> list[Path]:
    """Write :func:`claims`; for reading, the rules and the contradictions stand below the table."""
    notes = ["Differences in percent points of image AUROC with 95 % intervals over categories (seeds averaged first), or over images where there is one category, which says nothing of other seeds. \"Holds?\" is judged by fixed rules:"]
    for rule, group in table.groupby("Holds if", sort=False):
        notes.append(f"{'; '.join(dict.fromkeys(group['Claim']))}: holds if {rule}.")
    notes.append(
        '"below chance": the comparison would say yes, but the method that is claimed to be better, or no worse, has a mean image AUROC '
        "of at most 50 %, so it ranks the images no better than a coin."
    )
    paper = table[(table["Reported"] != "–") & (table["Note"] != "")]
    notes += [f"{row['Claim']}, {row['Data set']}: {row['Note']}." for _, row in paper.iterrows()]
    if (table["Profile"] == "mini").any():
        notes.append("Rows of the profile mini ask the same question of miniature models: they say nothing about the paper's.")
    display = table.drop(columns=["Holds if", "Source", "Note"])
    return write_table(
        table, name, folder, display=display, caption="What the ADP paper says, and what was found here", notes=notes
    )

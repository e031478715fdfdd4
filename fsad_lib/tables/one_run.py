"""Tables and sentences about one run, from its predictions; and which runs of a profile can be drawn."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fsad_lib.errors import FsadError
from fsad_lib.runs import open_run, project_root, read_record
from fsad_lib.tables._rows import (
    METRICS,
    NONE,
    NOT_RUN,
    PAPER_UNITS,
    ROWS,
    SHOTS,
    bootstrap_images,
    expected_categories,
    pick,
    unit_name,
    wins_of,
)
from fsad_lib.tables._text import count_cells, interval, verdict

__all__ = [
    "GRID_SEEDS", "by_defect", "control_sentences", "coverage", "describe", "destination", "drawable", "examples", "failures",
    "gap", "has_labels", "memory_verdict", "method_table", "scores_of", "something_to_show", "typical",
]  # fmt: skip

GRID_SEEDS = (0, 1, 2)
"""Seeds of the full grid, as in the paper: three."""


def examples(test: pd.DataFrame, n: int = 5) -> list[int]:
    """Row numbers of n test images to show, chosen without looking at any score: a good one, then the first images of kinds of
    defect spread over all kinds; more of each kind where there are fewer kinds.

    >>> examples(pd.DataFrame({"defect": ["dent", "good", "good", "hole", "scratch"]}), 3)
    [1, 0, 4]
    >>> examples(pd.DataFrame({"defect": ["unknown"] * 9}), 3)
    [0, 1, 2]
    """
    test = test.reset_index(drop=True)
    turn = test.groupby("defect").cumcount()
    good = test.index[test.defect == "good"].tolist()
    rounds = [test.index[(turn == t) & (test.defect != "good")].tolist() for t in range(n)]
    first, wanted = rounds[0], n - bool(good)
    if len(first) >= wanted:
        spread = [first[round(i * (len(first) - 1) / max(wanted - 1, 1))] for i in range(wanted)]
    else:
        spread = [i for one in rounds for i in one][:wanted]
    return (good[:1] + spread)[:n]


def has_labels(predictions: pd.DataFrame) -> bool:
    """Whether good and defective test images are both known, so that a metric exists.

    >>> has_labels(pd.DataFrame({"label": [-1, -1]})), has_labels(pd.DataFrame({"label": [0, 1, -1]}))
    (False, True)
    """
    return {0, 1} <= set(predictions["label"])


def scores_of(predictions: pd.DataFrame, key: str) -> pd.DataFrame:
    """One method of :data:`fsad_lib.tables.ROWS` ("adp", "memory", "winclip", ...): path, label, defect, seen, score, by path.

    Raises:
        FsadError: an unknown key, or a method that the run does not hold.
    """
    if key not in ROWS:
        raise FsadError(f"Unknown method {key!r}; the methods are {', '.join(ROWS)}.")
    found = pick(predictions, key)
    if found.empty:
        raise FsadError(f"The run holds no scores of {ROWS[key].label!r}; evaluate it again.")
    return found[["path", "label", "defect", "seen", "score"]].sort_values("path", ignore_index=True)


def gap(predictions: pd.DataFrame, left: str, right: str, group: str = "all") -> dict[str, float]:
    """Image AUROC of two methods on the same images, in percent: left, right, mean (left - right), low, high.

    The 95 % interval resamples images, both methods together. ``group``: "all", or defects "seen" or "unseen" in pretraining.

    >>> rows = [(str(i), i // 2, "x", True, m, p, s) for m, p, scores in
    ...         (("adp", "sum", (0, 1, 2, 3)), ("adp", "memory", (0, 2, 1, 3))) for i, s in enumerate(scores)]
    >>> table = pd.DataFrame(rows, columns=["path", "label", "defect", "seen", "method", "part", "score"])
    >>> gap(table, "adp", "memory")["mean"]
    25.0
    """
    wins = []
    for key in (left, right):
        table = scores_of(predictions[predictions.label >= 0], key)
        wins.append(wins_of([tuple(table[c].to_numpy() for c in ("path", "label", "seen", "score"))], group))
    if wins[0] is None:
        raise FsadError(f"Found no good, or no defective, image in group {group!r}; expected both.")
    mean, low, high = bootstrap_images(wins[0] - wins[1])
    return {
        "left": 100 * wins[0].mean(), "right": 100 * wins[1].mean(), "mean": 100 * mean, "low": 100 * low, "high": 100 * high
    }  # fmt: skip


def memory_verdict(predictions: pd.DataFrame) -> str:
    """Whether ADP's text score adds anything to its patch memory alone, and which of the two the sum follows, in plain words.

    The text score holds the words "flawless" and "damaged" as well as the learned ones: what the learned ones are worth is told by
    the untrained word "object" in their place (:func:`control_sentences`), not by this comparison.
    """
    if not has_labels(predictions):
        return "Good and defective test images are not both labelled: whether the sum beats memory alone cannot be measured here."
    found, text = gap(predictions, "adp", "memory"), gap(predictions, "adp_text", "memory")["left"]
    says = {
        "yes": "The sum is better than memory alone: the text score adds something the good patches do not hold.",
        "no": "The sum is WORSE than memory alone: on these images the text score does harm, and remembering good patches would do.",
    }.get(verdict(found), "The sum and memory alone are not told apart: on these images no gain of the text score is shown.")
    total = scores_of(predictions, "adp").score
    follows = {part: total.corr(scores_of(predictions, key).score, method="spearman") for part, key in (("text", "adp_text"), ("memory", "memory"))}
    return (
        f"{says}\n"
        f"Image AUROC: text alone {text:.1f} %, memory alone {found['right']:.1f} %, sum {found['left']:.1f} %; "
        f"sum - memory {interval(found)} points.\n"
        f"Rank correlation of the sum with its text part {follows['text']:.2f}, with its memory part {follows['memory']:.2f}."
    )


def control_sentences(predictions: pd.DataFrame, key: str = "adp", others: Sequence[str] = ()) -> str:
    """One line per comparison: what ``key`` gains or loses against each of ``others`` (default: every control in the run)."""
    names = others or [k for k, row in ROWS.items() if row.control and k != key]
    lines = []
    for other in names:
        found = gap(predictions, key, other)
        says = {"yes": "better than", "no": "worse than"}.get(verdict(found), "not told apart from")
        lines.append(f"{ROWS[key].label} is {says} {ROWS[other].label}: {interval(found)} points")
    return "\n".join(lines)


def method_table(rows: Sequence[dict[str, Any]], group: str = "all") -> pd.DataFrame:
    """All methods and controls of one run, in percent: image AUROC of text, memory and sum, then the other metrics of the sum.

    Args:
        rows: ``Evaluated.rows``: method, part, group and the metrics in [0, 1].
        group: "all", "seen" or "unseen".

    Returns:
        One row per method, as text; an empty table without rows of that group.
    """
    names = ("ti", "c_n", "c_a", "adp", "adp_l", "winclip", "object", "label", "winclip_adp_backbone", "patch_memory")
    table = pd.DataFrame([row for row in rows if row["group"] == group])
    if table.empty:
        return pd.DataFrame({"nothing to show": []})
    cells = table.set_index(["method", "part"])
    have = [m for m in METRICS if m in table and table[m].notna().any()]
    short = {"image_ap": "AP", "image_f1max": "F1-max", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}

    def value(method: str, part: str, metric: str) -> str:
        number = cells[metric].get((method, part), np.nan)
        return NONE if pd.isna(number) else f"{100 * number:.1f}"

    records = []
    for method in [m for m in names if m in set(table.method)]:
        shared = "adp" if method in ("ti", "c_n", "c_a", "adp_l", "object", "label") else method  # one memory for all ADP rows
        best = "sum" if (method, "sum") in cells.index else "memory"
        parts = {"text": (method, "text"), "memory": (shared, "memory"), "sum": (method, "sum")}
        record = {"method": ROWS[method].label, "role": "control" if ROWS[method].control else ""}
        record |= {f"AUROC {part}": value(*source, "image_auroc") for part, source in parts.items()}
        record |= {name: value(method, best, metric) for metric, name in short.items() if metric in have}
        records.append(record)
    return pd.DataFrame(records).set_index("method")


def by_defect(predictions: pd.DataFrame, keys: Sequence[str] = ("adp_text", "memory", "adp", "winclip")) -> pd.DataFrame:
    """Image AUROC (percent) of each kind of defect against all good images; columns n, seen (where some kinds are
    known to be unseen in pretraining), then the methods."""
    tables = {key: scores_of(predictions, key) for key in keys}
    first = next(iter(tables.values()))
    records = []
    for kind, seen in first[first.label == 1].groupby("defect")["seen"].first().items():
        record: dict[str, Any] = {"defect": kind, "n": int((first.defect == kind).sum()), "seen": bool(seen)}
        for key, table in tables.items():
            good, bad = table.score[table.label == 0].to_numpy(), table.score[table.defect == kind].to_numpy()
            steps = bad[:, None] - good[None]
            record[ROWS[key].label] = 100 * float(((steps > 0) + 0.5 * (steps == 0)).mean())
        records.append(record)
    table = pd.DataFrame(records).set_index("defect").round(1)
    table = table.sort_values(["seen", ROWS[keys[-2] if len(keys) > 1 else keys[0]].label], ascending=[False, True])
    return table.drop(columns="seen") if table["seen"].all() else table


def failures(predictions: pd.DataFrame, key: str = "adp", n: int = 6) -> pd.DataFrame:
    """The n defective images with the lowest and the n good images with the highest score, worst first.

    Adds ``worse``: the share of the other class that is scored on the wrong side of this image (a missed defect: how many good parts look
    more anomalous), and ``mistake``: "missed" or "false alarm", "no mistake" where that share is 0.
    """
    table = scores_of(predictions, key)
    good, bad = table[table.label == 0], table[table.label == 1]
    missed = bad.sort_values(["score", "path"]).head(n).assign(mistake="missed")
    alarms = good.sort_values(["score", "path"], ascending=[False, True]).head(n).assign(mistake="false alarm")
    missed["worse"] = [float((good.score >= s).mean()) for s in missed.score]
    alarms["worse"] = [float((bad.score <= s).mean()) for s in alarms.score]
    table = pd.concat([missed, alarms], ignore_index=True)
    return table.assign(mistake=table["mistake"].where(table["worse"] > 0, "no mistake"))


def typical(predictions: pd.DataFrame, key: str = "adp", n: int = 2) -> pd.DataFrame:
    """n good and n defective images with ordinary scores: those at evenly spaced ranks within their class, neither the best nor the
    worst; without labels n of all. Columns of :func:`scores_of` and ``memory``, ADP's memory score."""
    table = scores_of(predictions, key)
    table["memory"] = table.path.map(scores_of(predictions, "memory").set_index("path")["score"])
    chosen = []
    for label in (0, 1) if (table.label >= 0).any() else (-1,):
        group = table[table.label == label].sort_values(["score", "path"])
        chosen.append(group.iloc[sorted({(len(group) * (2 * i + 1)) // (2 * n) for i in range(n)})] if len(group) else group)
    return pd.concat(chosen, ignore_index=True)


# --- which runs there are --------------------------------------------------------------------------------------------


def coverage(
    rows: pd.DataFrame, profile: str = "mini", seeds: Sequence[int] = GRID_SEEDS, shots: Sequence[int] = SHOTS, papers: Mapping[str, str] = PAPER_UNITS
) -> pd.DataFrame:
    """What was run and what was not: data sets x shots, cells (category x seed) that are complete of those the full grid has.

    Args:
        rows: :func:`fsad_lib.tables.collect` of the profile. shots: the paper's. papers: the paper's data sets and their names.

    Returns:
        Text: "24 of 24", "3 of 24" or "not run"; column "profile" says which profile would fill the row.
    """
    wanted = [(dataset, name, "paper", expected_categories(dataset) or []) for dataset, name in papers.items()]
    if profile == "mini":
        wanted.append(("minifab", "MiniFab", "mini", expected_categories("minifab") or []))
        wanted += [("elpv", f"ELPV {kind}", "mini", [kind]) for kind in ("mono", "poly")]
    known = {name for _, name, _, _ in wanted}
    extra = rows[~rows.unit.isin(known)][["dataset", "unit", "category"]].drop_duplicates("unit")
    wanted += [(r.dataset, r.unit, profile, expected_categories(r.dataset) or [r.category]) for r in extra.itertuples()]
    have = rows[["profile", "unit", "category", "shots", "seed"]].drop_duplicates()
    shots = sorted(set(shots) | set(have.shots))
    records = []
    for _, unit, needs, categories in wanted:
        mine = have[(have.unit == unit) & (have.profile == needs)]
        record = {"data set": unit, "profile": needs}
        for k in shots:
            found = int((mine.shots == k).sum())
            record[f"{k} shots"] = f"{found} of {len(categories) * len(seeds)}" if found else NOT_RUN
        records.append(record)
    return pd.DataFrame(records).set_index("data set")


def something_to_show(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """A table without the data sets that were neither run nor reported, and a sentence that names them ("" if there are none).

    Args:
        table: from :func:`fsad_lib.tables.table1` and its like, with the columns data_set, profile, ours and maybe reported.
    """
    if table.empty:
        return table, "Not run: nothing of this table."
    filled = table.ours.notna() | (table.state != NOT_RUN)
    if "reported" in table:
        filled |= table.reported.notna()
    keep = filled.groupby([table.data_set, table.profile]).transform("any")
    empty = table[~keep].drop_duplicates(["data_set", "profile"])
    names = ", ".join(f"{r.data_set} (profile {r.profile})" for r in empty.itertuples())
    return table[keep], f"Not run: {names}." if names else ""


def destination(rows: pd.DataFrame, profile: str = "mini", root: str | Path | None = None, method: str = "adp") -> tuple[Path, str]:
    """Where tables and figures go, and why: ``figures/``, or ``figures/partial/`` when fewer cells are complete on this machine than
    stand behind the committed ``data/results/<method>_<profile>.csv``, so that a small run never replaces the full grid's tables."""
    root = Path(root or project_root())
    _, here, there = count_cells(rows, method, profile, root)
    if here >= max(there, 1):
        return root / "figures", f"{here} complete cells: tables and figures go to figures/."
    why = f"{here} complete cells here, {there} behind the committed tables" if there else "No complete cell of this profile here"
    return root / "figures" / "partial", f"{why}: what is drawn now goes to figures/partial/ and replaces nothing."


def drawable(profile: str = "mini", method: str = "adp", dataset: str | None = None) -> Iterator[Any]:
    """Evaluate runs of a profile whose products of all stages are on this machine and still match the code; the best to show first
    (generated data, 4 shots, the lowest seed). Yields :class:`fsad_lib.runs.Run`."""
    folder = project_root() / "data" / "runs" / profile
    found = []
    for path in folder.glob(f"{dataset or '*'}/*/40_evaluate_{method}/k*_seed*/predictions.parquet"):
        match = re.fullmatch(r"k(\d+)_seed(\d+)", path.parent.name)
        if match and (path.parent / "products.json").is_file():
            given = _parameters(path.parent)  # an own folder's runs lie under <category>-<mark of the folder>
            found.append((path.parts[-5], given.get("category", path.parts[-4]), int(match[1]), int(match[2]), given.get("data_root", "")))
    order = {"minifab": 0, "mvtec_ad": 0, "visa": 1, "elpv": 2}
    for name, category, shots, seed, data_root in sorted(found, key=lambda c: (order.get(c[0], 3), c[2] != 4, c[3], c[1] != "gear", c)):
        try:
            run = open_run(
                "40_evaluate", method, profile=profile, dataset=name, category=category, shots=shots, seed=seed, data_root=data_root
            )  # fmt: skip
            if _whole(run):
                yield run
        except FsadError:
            continue


def _parameters(folder: Path) -> dict:
    return read_record(folder / "provenance.json").get("parameters") or {}


def _whole(run: Any) -> bool:
    return (
        run.has("predictions.parquet", "maps.npz", "rows.json")
        and run.upstream("10_personalize").has("concepts.safetensors", "trace.csv", "pseudo_anomalies.npz")
        and run.upstream("20_synthesize").has("pseudo_tuning.npz", "weights.json", "prototypes.safetensors")
    )


def describe(run: Any) -> str:
    """A run in words, for captions: "MiniFab gear, 4 shots, seed 0, profile mini"."""
    unit = unit_name(run.dataset, run.category)
    name = unit if unit.endswith(run.category) or run.dataset == "elpv" else f"{unit} {run.category}"
    return f"{name}, {run.shots} shots, seed {run.seed}, profile {run.profile.name}"

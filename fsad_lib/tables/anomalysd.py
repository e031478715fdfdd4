"""AnomalySD's tables: one model for all categories, both protocols, controls and ablations; percent everywhere.

The rules are those of :mod:`fsad_lib.tables`: a miniature's number never stands beside a paper's, what was not run reads "not run", and
the controls are part of every table.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fsad_lib.metrics import bootstrap_mean
from fsad_lib.profiles import load_profile
from fsad_lib.runs import ALL, overrides_tag, project_root
from fsad_lib.tables._paper import own_choices
from fsad_lib.tables._rows import (
    NONE,
    NOT_RUN,
    PAPER_UNITS,
    bootstrap_images,
    collect,
    difference,
    expected_categories,
    mean_over_categories,
    reported,
    units,
    wins_of,
)
from fsad_lib.tables._text import MINI_NOTE, cell_text, interval, number, verdict, write_rows, write_table

__all__ = [
    "ABLATIONS", "CONTRIBUTIONS", "LAMBDAS", "METRICS", "NAMES", "ROWS", "SHOTS", "ablation_overrides", "ablations", "all_rows", "compare", "context", "contributions",
    "main_table", "one_run", "rows_of", "seen_unseen", "sensitivity", "show_ablations", "show_contributions", "show_main", "show_seen_unseen", "show_sensitivity", "write_all",
]  # fmt: skip

SHOTS = (1, 2, 4, 16)
"""Few shots (1 and 4 are known to be the paper's), and 16 for its "many", whose number is not known."""

METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}

ROWS: dict[tuple[str, str], tuple[str, str]] = {
    ("anomalysd", "given"): ("AnomalySD", "method"),
    ("anomalysd", "unknown"): ("AnomalySD", "method"),
    ("roundtrip", "given"): ("autoencoder alone, D(x, VAE(x))", "control"),
    ("guided_roundtrip", "given"): ("autoencoder and prototype-guided mask, nothing repainted", "control"),
    ("against_roundtrip", "given"): ("AnomalySD against the autoencoder, D(VAE(x), x_hat)", "control"),
    ("winclip", "given"): ("WinCLIP+", "rival"),
    ("winclip", "unknown"): ("WinCLIP+", "rival"),
    ("winclip", "shared"): ("WinCLIP+", "rival"),
    ("patch_memory", "given"): ("patch memory (nearest neighbour)", "rival"),
    ("patch_memory", "unknown"): ("patch memory (nearest neighbour)", "rival"),
    ("patch_memory", "shared"): ("patch memory (nearest neighbour)", "rival"),
}
"""(method, protocol) -> its name and role."""

CONTRIBUTIONS: dict[str, tuple[str, str]] = {
    "repainting, with the mask": ("anomalysd", "guided_roundtrip"),
    "repainting, without the mask": ("alpha_0", "roundtrip"),
    "the mask, without repainting": ("guided_roundtrip", "roundtrip"),
    "the mask's region, repainted, beside the memory that chose it": ("alpha_1", "patch_memory"),
    "the whole, beside the autoencoder": ("anomalysd", "roundtrip"),
    "the whole, beside the memory": ("anomalysd", "patch_memory"),
}
"""what is added -> (method with it, method without it), category given. The mask is a patch memory's; repainting is what the paper is about."""

NAMES = {
    "anomalysd": "whole method", "alpha_0": "whole without the mask's part", "alpha_1": "the mask's part alone",
    "roundtrip": "autoencoder alone", "guided_roundtrip": "autoencoder with the mask", "patch_memory": "patch memory",
}  # fmt: skip
"""The methods of :data:`CONTRIBUTIONS`, for reading."""

PROTOCOLS = {
    "given": "category given", "unknown": "category unknown: the one whose normal patches lie nearest to the image",
    "shared": "category unknown: one memory of all categories, the word \"object\"",
}  # fmt: skip

ABLATIONS: dict[str, str] = {
    "without fine-tuning": "anomalysd.steps_unet=0,anomalysd.steps_decoder=0",
    "without decoder fine-tuning": "anomalysd.steps_decoder=0",
    "without foreground mask": "anomalysd.foreground=false",
    "without prompt": "anomalysd.prompt_levels=[]",
    "object level only": "anomalysd.prompt_levels=[object]",
    "detail level only": "anomalysd.prompt_levels=[detail]",
    "one cell a pass": "anomalysd.packed=false",
    "a twin for every mask": "anomalysd.merged=false",
}
"""What is left out -> the overrides of its runs; single scales and the weight of the prototype-guided map need none."""

LAMBDAS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Strengths of the sensitivity figure; whole steps of the mini profile's five."""


def rows_of(root: str | Path | None = None, profile: str = "mini", tag: str = "") -> pd.DataFrame:
    """The metric rows of complete runs of all categories together, see :func:`fsad_lib.tables.collect`."""
    table = collect(root, profile, "anomalysd", tag)
    run_category = table["folder"].map(lambda folder: Path(folder).parts[-3]).astype(object)
    kept = table[run_category == ALL]
    kept.attrs["stale"] = table.attrs["stale"]
    return kept


def all_rows(root: str | Path | None = None, profile: str = "mini") -> pd.DataFrame:
    """The rows behind every table: those of the plain runs and of the runs of :func:`ablation_overrides`, told apart by the column tag."""
    tags = ["", *(overrides_tag(text) for text in ablation_overrides(profile))]
    found = [rows for rows in (rows_of(root, profile, tag) for tag in tags) if len(rows)]
    return pd.concat(found, ignore_index=True) if found else rows_of(root, profile)


def main_table(root: str | Path | None = None, profile: str = "mini", shots: Sequence[int] = SHOTS) -> pd.DataFrame:
    """Image AUROC, pixel AUROC and AUPRO of method, controls and rivals at 1, 2, 4 and 16 shots, under each protocol.

    One row per data set, profile, shots, metric, method and protocol: reported, ours, ours_std, n_seeds, low, high, difference,
    categories, expected, state. MVTec AD and VisA are filled only from runs of the paper profile.
    """
    mine, real = rows_of(root, profile), rows_of(root, "paper")
    said = reported("anomalysd_main", root).set_index(["dataset", "shots", "metric"])
    records = []
    for of, dataset, unit in units(PAPER_UNITS, mine, profile):
        block = (real if of == "paper" else mine).query("unit == @unit")
        for k in shots:
            for metric in METRICS:
                for (method, part), (label, role) in ROWS.items():
                    picked = block[(block.shots == k) & (block.method == method) & (block.part == part)]
                    cell = mean_over_categories(picked, expected_categories(dataset), metric)
                    key, value, note = (dataset, k, metric), np.nan, ""
                    if of == "paper" and (method, part) == ("anomalysd", "given") and key in said.index:
                        value, note = said.loc[key, "mean"], said.loc[key, "note"]
                    if cell["state"] == "partial" and of == "paper":  # part of a benchmark is not the benchmark
                        cell |= dict.fromkeys(("mean", "std", "low", "high"), np.nan)
                    records.append(
                        {"data_set": unit, "profile": of, "shots": k, "metric": metric, "method": label, "role": role,
                         "protocol": part, "reported": value, "ours": cell["mean"], "ours_std": cell["std"],
                         "n_seeds": cell["n"], "low": cell["low"], "high": cell["high"], "difference": cell["mean"] - value,
                         "categories": cell["categories"], "expected": cell["expected"], "state": cell["state"], "note": note}
                    )  # fmt: skip
    return pd.DataFrame.from_records(records)


def context(root: str | Path | None = None) -> pd.DataFrame:
    """What others report for the multi-class setting: one row a method and number of shots, the source named.

    >>> context().set_index(["Method", "Shots"]).loc[("PatchCore", 1), "MVTec AD: image AUROC"]
    '63.7'
    """
    table = reported("anomalysd_rivals", root)
    table["column"] = table.dataset.map(PAPER_UNITS) + ": " + table.metric.map(METRICS)
    wide = table.pivot_table(index=["method", "shots", "source"], columns="column", values="mean", sort=False)
    wide = wide.map(number).reset_index().rename(columns={"method": "Method", "shots": "Shots", "source": "Source"})
    return wide.rename_axis(columns=None)


def show_main(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`main_table` for reading: one row per data set, method, protocol and metric, columns Reported, Ours, Difference by shots; without
    the metrics that a data set does not have."""
    index, blocks = ["data_set", "profile", "method", "protocol", "role", "metric"], []
    for k, block in table.groupby("shots", sort=False):
        text = block.set_index(index)
        said = [number(v) for v in text.reported]
        gaps = [NONE if pd.isna(v) else f"{v:+.1f}" for v in text.difference]
        shot = f"{k} shot" if k == 1 else f"{k} shots"
        columns = {f"{shot}: Ours": [cell_text(r) for r in text.itertuples()]}
        if text.reported.notna().any():
            columns = {f"{shot}: Reported": said} | columns | {f"{shot}: Difference": gaps}
        blocks.append(pd.DataFrame(columns, index=text.index))
    shown = pd.concat(blocks, axis=1).reset_index()
    nothing = (shown.drop(columns=index) == NONE).all(axis=1).groupby([shown.data_set, shown.profile, shown.metric]).transform("all")
    shown = shown[~nothing].assign(metric=lambda rows: rows.metric.map(METRICS)).reset_index(drop=True)
    names = {"data_set": "Data set", "profile": "Profile", "method": "Method", "protocol": "Category", "role": "Role", "metric": "Metric"}
    return shown.rename(columns=names)


def seen_unseen(root: str | Path | None = None, profile: str = "mini", shots: int = 1) -> pd.DataFrame:
    """Method, controls and rivals on all defects, on the kinds that pretraining showed and on those it did not: data_set, profile, shots, method,
    role, protocol, metric, group, ours, ours_std, n_seeds, low, high (95 % over categories), categories; data sets with such groups only."""
    rows, records = rows_of(root, profile), []
    rows = rows[rows.shots == shots]
    for unit in rows[rows.group != "all"].unit.unique():
        block = rows[rows.unit == unit]
        for (method, part), (label, role) in ROWS.items():
            for metric in METRICS:
                for group in ("all", "seen", "unseen"):
                    mine = block[(block.method == method) & (block.part == part) & (block.group == group)]
                    cell = mean_over_categories(mine, sorted(mine.category.unique()), metric, group)
                    records.append(
                        {"data_set": unit, "profile": profile, "shots": shots, "method": label, "role": role, "protocol": part, "metric": metric,
                         "group": group, "ours": cell["mean"], "ours_std": cell["std"], "n_seeds": cell["n"], "low": cell["low"],
                         "high": cell["high"], "categories": cell["categories"]}
                    )  # fmt: skip
    columns = "data_set profile shots method role protocol metric group ours ours_std n_seeds low high categories".split()
    return pd.DataFrame.from_records(records, columns=columns)


def show_seen_unseen(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`seen_unseen` for reading: one row per method and metric, a column with the interval for each group."""
    text = table.assign(cell=[NONE if pd.isna(r.ours) else f"{r.ours:.1f} [{r.low:.1f}, {r.high:.1f}]" for r in table.itertuples()])
    index = ["data_set", "profile", "metric", "method", "protocol", "role"]
    wide = text.pivot_table(index=index, columns="group", values="cell", aggfunc="first", sort=False).reset_index().rename_axis(columns=None)
    wide["metric"] = wide["metric"].map(METRICS)
    names = {"data_set": "Data set", "profile": "Profile", "method": "Method", "protocol": "Category", "role": "Role", "metric": "Metric",
             "all": "All defects", "seen": "Seen kinds", "unseen": "Unseen kinds"}  # fmt: skip
    return wide.rename(columns=names)


# -------------------------------------------------------------------- ablations
def ablation_overrides(profile: str = "mini") -> list[str]:
    """The overrides of every run behind :func:`ablations` and :func:`sensitivity`, besides the plain one, which has the profile's own values.

    >>> "anomalysd.strength=0.8" in ablation_overrides(), "anomalysd.strength=0.6" in ablation_overrides()
    (True, False)
    """
    own = load_profile(profile)
    lambdas = (f"anomalysd.strength={value:g}" for value in LAMBDAS)
    return [text for text in (*ABLATIONS.values(), *lambdas) if load_profile(profile, text) != own]


def ablations(root: str | Path | None = None, profile: str = "mini", shots: int = 1) -> pd.DataFrame:
    """What each part of the method is worth: the whole method, and the method without it.

    One row per data set, variant and metric: ours, ours_std, n_seeds, state, and gap, gap_low, gap_high: variant minus whole in percent
    points over the categories and seeds that both have, with the 95 % interval over categories.
    """
    whole, records = rows_of(root, profile), []
    whole = whole[whole.shots == shots]
    found = {"whole method": whole[(whole.method == "anomalysd") & (whole.part == "given")]}
    for name in sorted(set(whole.method), key=lambda m: (len(m), m)):
        if name.startswith("scale_"):
            found[f"scale {name.removeprefix('scale_')} alone"] = whole[whole.method == name]
    for label, name in (("without prototype-guided mask", "alpha_0"), ("prototype-guided mask alone", "alpha_1")):
        found[label] = whole[whole.method == name]
    for label, overrides in ABLATIONS.items():
        rows = rows_of(root, profile, overrides_tag(overrides))
        if overrides not in ablation_overrides(profile):
            continue  # the profile's own value: nothing is left out
        found[label] = rows[(rows.shots == shots) & (rows.method == "anomalysd") & (rows.part == "given")]
    own = [(d, u) for of, d, u in units(PAPER_UNITS, whole, profile) if of == profile]
    for dataset, unit in own:
        base = found["whole method"].query("unit == @unit")
        for label, rows in found.items():
            rows = rows.query("unit == @unit")
            for metric in METRICS:
                cell = mean_over_categories(rows, expected_categories(dataset), metric)
                present = rows[metric].notna().any() and base[metric].notna().any()
                gap = difference(rows, base, metric) if label != "whole method" and present else None
                gap = gap or dict.fromkeys(("mean", "low", "high"), np.nan)
                records.append(
                    {"data_set": unit, "profile": profile, "shots": shots, "variant": label, "metric": metric, "ours": cell["mean"],
                     "ours_std": cell["std"], "n_seeds": cell["n"], "categories": cell["categories"], "expected": cell["expected"],
                     "state": cell["state"], "gap": gap["mean"], "gap_low": gap["low"], "gap_high": gap["high"]}
                )  # fmt: skip
    return pd.DataFrame.from_records(records)


def contributions(root: str | Path | None = None, profile: str = "mini", shots: int = 1) -> pd.DataFrame:
    """What repainting adds, and what the prototype-guided mask adds by itself: for each data set, metric and pair of :data:`CONTRIBUTIONS` the
    paired difference in percent points: gap, gap_low, gap_high (95 % over categories, seeds averaged first; over images where there is one)."""
    rows, records = rows_of(root, profile), []
    rows = rows[(rows.shots == shots) & (rows.group == "all") & (rows.part == "given")]
    for unit in [u for _, _, u in units(PAPER_UNITS, rows, profile) if u in set(rows.unit)]:
        for label, (one, other) in CONTRIBUTIONS.items():
            for metric in METRICS:
                a, b = (rows[(rows.unit == unit) & (rows.method == name) & rows[metric].notna()] for name in (one, other))
                gap = (difference(a, b, metric) if len(a) and len(b) else None) or dict.fromkeys(("mean", "low", "high"), np.nan)
                records.append({"data_set": unit, "profile": profile, "shots": shots, "adds": label, "method": one, "without": other, "metric": metric,
                                "gap": gap["mean"], "gap_low": gap["low"], "gap_high": gap["high"]})  # fmt: skip
    return pd.DataFrame(records, columns="data_set profile shots adds method without metric gap gap_low gap_high".split())


def show_contributions(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`contributions` for reading: one row per data set and what is added, a column per metric."""
    records = []
    for (unit, profile, label, one, other), block in table.groupby(["data_set", "profile", "adds", "method", "without"], sort=False):
        record = {"Data set": unit, "Profile": profile, "What is added": label, "Difference": f"{NAMES[one]} − {NAMES[other]}"}
        for row in block.itertuples():
            record[METRICS[row.metric]] = NONE if pd.isna(row.gap) else interval({"mean": row.gap, "low": row.gap_low, "high": row.gap_high})
        records.append(record)
    return pd.DataFrame(records or [{"Data set": NOT_RUN}])


def show_ablations(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`ablations` for reading: one row per data set and variant, for each metric that the data set has the value and the gap to the whole method."""
    table = table.assign(text=[cell_text(row) for row in table.itertuples()])
    lacking = table.groupby(["data_set", "profile", "metric"]).text.transform(lambda text: set(text) == {NONE, NOT_RUN})  # what was run lacks it: no masks
    records = []
    for (unit, profile, variant), block in table.assign(text=table.text.mask(lacking, NONE)).groupby(["data_set", "profile", "variant"], sort=False):
        record = {"Data set": unit, "Profile": profile, "Method": variant}
        for row in block.itertuples():
            gap = {"mean": row.gap, "low": row.gap_low, "high": row.gap_high}
            record[METRICS[row.metric]] = row.text
            record[f"{METRICS[row.metric]}: change"] = NONE if pd.isna(row.gap) else interval(gap)
        records.append(record)
    return pd.DataFrame(records)


def sensitivity(root: str | Path | None = None, profile: str = "mini", shots: int = 1) -> pd.DataFrame:
    """The effect of lambda (runs of their own, see :data:`LAMBDAS`) and of alpha (measured by every run).

    Every point of lambda's curve stands on the seeds that all its values have.

    Long: data_set, parameter ("lambda" or "alpha"), value, metric, ours, ours_std, n_seeds, low, high; only what was run.
    """
    plain, parts = rows_of(root, profile), []
    plain = plain[plain.shots == shots]
    for name in set(plain.method):
        if name.startswith("alpha_"):
            parts.append(("alpha", float(name.removeprefix("alpha_")), plain[plain.method == name]))
    a = load_profile(profile).anomalysd
    own, whole = a.strength, plain[(plain.method == "anomalysd") & (plain.part == "given")]
    if f"alpha_{a.alpha:g}" not in set(plain.method):
        parts.append(("alpha", a.alpha, whole))  # the method itself
    for value in sorted({*LAMBDAS, own}):
        rows = plain if value == own else rows_of(root, profile, overrides_tag(f"anomalysd.strength={value:g}"))
        parts.append(("lambda", value, rows[(rows.shots == shots) & (rows.method == "anomalysd") & (rows.part == "given")]))
    records = []
    seeds = [(unit, set(block.seed)) for parameter, _, rows in parts if parameter == "lambda" for unit, block in rows.groupby("unit")]
    for parameter, value, rows in parts:
        for (dataset, unit), block in rows.groupby(["dataset", "unit"]):
            if parameter == "lambda":  # a curve over one lambda's three seeds and another's one would show the seeds
                block = block[block.seed.isin(set.intersection(*(found for of, found in seeds if of == unit)))]
            for metric in METRICS:
                cell = mean_over_categories(block, expected_categories(dataset), metric)
                if cell["n"]:
                    records.append(
                        {"data_set": unit, "profile": profile, "shots": shots, "parameter": parameter, "value": value, "metric": metric,
                         "ours": cell["mean"], "ours_std": cell["std"], "n_seeds": cell["n"], "low": cell["low"], "high": cell["high"]}
                    )  # fmt: skip
    columns = "data_set profile shots parameter value metric ours ours_std n_seeds low high".split()
    return pd.DataFrame.from_records(records, columns=columns).sort_values(["data_set", "parameter", "metric", "value"], ignore_index=True)


def show_sensitivity(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`sensitivity` for reading: one row per data set and value, each metric with its 95 % interval."""
    records = []
    for (unit, profile, parameter, value), block in table.groupby(["data_set", "profile", "parameter", "value"], sort=False):
        shown = {METRICS[r.metric]: f"{r.ours:.1f}" + ("" if pd.isna(r.low) else f" [{r.low:.1f}, {r.high:.1f}]") for r in block.itertuples()}
        records.append({"Data set": unit, "Profile": profile, "Parameter": f"{parameter} {value:g}", **shown, "Seeds": block.n_seeds.iloc[0]})
    shown = pd.DataFrame(records)
    return shown[[*(name for name in shown if name != "Seeds"), "Seeds"]].fillna(NONE) if records else shown


# -------------------------------------------------------------------- one run
def one_run(rows: Sequence[dict], part: str | None = None, group: str = "all") -> pd.DataFrame:
    """The rows of one run as text: a line for each method and protocol, means over its categories in percent.

    Args:
        rows: ``Evaluated.rows``. part: one protocol only. group: "all", "seen" or "unseen".

    Example:
        >>> rows = [{"category": c, "method": "anomalysd", "part": "given", "group": "all", "image_auroc": v} for c, v in (("a", 0.5), ("b", 1.0))]
        >>> one_run(rows)["image AUROC"].tolist()
        ['75.0']
    """
    table = pd.DataFrame(rows)
    if table.empty:
        return pd.DataFrame({"nothing to show": []})
    table = table[(table.group == group) & (table.part == part if part else True)]
    records = []
    for (method, protocol), (label, role) in ROWS.items():
        found = table[(table.method == method) & (table.part == protocol)]
        if len(found):
            record = {"method": label, "category": protocol, "role": role}
            record |= {name: number(100 * found[metric].mean()) for metric, name in METRICS.items() if metric in found}
            records.append(record | {"categories": len(found)})
    return pd.DataFrame(records)


def compare(
    rows: Sequence[dict], others: Sequence[tuple[str, str]], metric: str = "image_auroc", predictions: pd.DataFrame | None = None
) -> str:
    """AnomalySD (category given) against each of ``others``, (method, protocol), one line each, from the rows of one run: the paired
    difference over its categories with the 95 % interval of a bootstrap over them; over the images of ``predictions`` where there is one
    category (image AUROC only), and without a verdict where no interval can be had."""
    table = pd.DataFrame([row for row in rows if row["group"] == "all" and row.get(metric) is not None])
    if table.empty:
        return f"No {METRICS[metric]}: it needs good and defective images{'' if metric == 'image_auroc' else ' with masks'}."
    wide, lines = table.set_index(["category", "method", "part"])[metric].unstack("category"), []
    mine = 100 * wide.loc[("anomalysd", "given")]
    for key in others:
        gaps = mine - 100 * wide.loc[key]
        label, _ = ROWS.get(key, (key[0], ""))
        if len(gaps) > 1:
            mean, low, high = bootstrap_mean(gaps.to_dict())
        elif predictions is not None and metric == "image_auroc":
            mean, low, high = (100 * value for value in _image_gap(predictions, key))
        else:
            lines.append(f"AnomalySD {mine.mean():.1f}, {label}, {key[1]} {(100 * wide.loc[key]).mean():.1f} {METRICS[metric]}; one product, no interval")
            continue
        gap = {"mean": mean, "low": low, "high": high}
        says = {"yes": "better than", "no": "worse than"}.get(verdict(gap), "not told apart from")
        lines.append(f"AnomalySD ({mine.mean():.1f}) is {says} {label}, {key[1]} ({(100 * wide.loc[key]).mean():.1f}): {interval(gap)} points of {METRICS[metric]}")
    return "\n".join(lines)


def _image_gap(predictions: pd.DataFrame, key: tuple[str, str]) -> tuple[float, float, float]:
    """Image AUROC of AnomalySD minus that of ``key``, (method, protocol), with the 95 % interval from resampling images of each class."""
    wins = []
    for method, part in (("anomalysd", "given"), key):
        table = predictions[(predictions.method == method) & (predictions.part == part) & (predictions.label >= 0)].sort_values("path")
        wins.append(wins_of([tuple(table[column].to_numpy() for column in ("path", "label", "seen", "score"))]))
    return bootstrap_images(wins[0] - wins[1])


# -------------------------------------------------------------------- files
def write_all(root: str | Path | None = None, profile: str = "mini", shots: int = 1, folder: Path | None = None) -> list[Path]:
    """Every table of AnomalySD into ``folder`` (``root/figures``); only there, the rows behind them into ``root/data/results``, too.

    Args:
        shots: of the ablations and of the seen and unseen kinds.
    """
    root = Path(root or project_root())
    suffix, folder = "" if profile == "mini" else f"_{profile}", folder or root / "figures"
    written = [write_rows(all_rows(root, profile), "anomalysd", profile, root)] if folder == root / "figures" else []
    main, parts = main_table(root, profile), ablations(root, profile, shots)
    notes = [
        "Percent. Mean ± standard deviation (n − 1) over seeds of the data-set mean, number of seeds in round brackets. One model for all "
        f'categories. "{NOT_RUN}": no complete run.',
        *(f"{name}: {text}." for name, text in PROTOCOLS.items()),
        "The patch memory stands where a reader may look for PatchCore: the same nearest neighbours, with neither coreset nor reweighting, so that no category's patches are dropped from a shared memory.",
        "Image AUROC alone: a data set without masks. –: nothing reported.",
        "Sources of the reported values: data/reported/anomalysd_main.csv. They stand at \"category given\"; which protocol the paper used is not known from the sources at hand.",
        *(f"{r.data_set}, {r.shots} shot{'s' if r.shots > 1 else ''}, {METRICS[r.metric]}: {r.note}." for r in main[main.note != ""].itertuples()),
        MINI_NOTE,
    ]  # fmt: skip
    over = "with the 95 % interval over categories (seeds averaged first), or over images where there is one category, which says nothing of other seeds"
    change = f"Change: variant minus whole method, percent points, {over}."
    added = contributions(root, profile, shots)
    apart, curves = seen_unseen(root, profile, shots), sensitivity(root, profile, shots)
    for name, table, display, caption, note in (
        ("main", main, show_main(main), "AnomalySD: one model for all categories", notes),
        ("seen_unseen", apart, show_seen_unseen(apart), f"AnomalySD: kinds of defect seen in pretraining, and unseen, {shots} shot",
         [f"Percent, {over}.", notes[-1]]),
        ("rivals", context(root), None, "Multi-class few-shot results that others report", ["No runs of ours."]),
        ("ablations", parts, show_ablations(parts), f"AnomalySD without its parts, {shots} shot", [change, notes[0]]),
        ("contributions", added, show_contributions(added), f"AnomalySD: what repainting adds, and what the mask adds, {shots} shot",
         [f"Percent points, {over}.", "The autoencoder alone: D(x, VAE(x)); with the mask: the method's own prototype-guided mask, nothing repainted; the mask's part: S_pg alone, the region of the mask repainted; "
          "patch memory: nearest neighbours, from which the mask comes.", notes[-1]]),
        ("sensitivity", curves, show_sensitivity(curves), f"Effect of lambda and alpha, {shots} shot",
         [f"Percent, {over}; columns low and high of the CSV.", "Lambda: over the seeds that all its values have; alpha: over all seeds.", notes[-1]]),
        ("own_choices", own_choices(root, profile, "anomalysd"), None, "AnomalySD: values not known from the sources at hand", []),
    ):
        written += write_table(table, f"anomalysd_{name}{suffix}", folder, display=table if display is None else display,
                               caption=caption, notes=note)  # fmt: skip
    return written

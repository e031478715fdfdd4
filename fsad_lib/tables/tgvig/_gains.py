"""Rows of runs, and what the generated images gain over each control: absolute, relative, per class, and beside the gains of the paper's text."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fsad_lib.runs import overrides_tag, project_root, read_json
from fsad_lib.tables._rows import (
    COLUMNS,
    NONE,
    NOT_RUN,
    bootstrap_categories,
    collect,
    difference,
    expected_categories,
    mean_over_categories,
    read_reported,
    units,
)
from fsad_lib.tables._text import cell_text, check_file_name, interval, number
from fsad_lib.tables.tgvig._names import (
    ARMS,
    BASELINES,
    CONTROLS,
    MEMORIES,
    METRICS,
    SETTINGS,
    SHOWN,
    TABLE1_TAG,
    UNITS,
    ablation_overrides,
    baseline_overrides,
    reported,
    surface,
    words,
)


def rows_of(root: str | Path | None = None, profile: str = "mini", overrides: str | None = None, tag: str = "") -> pd.DataFrame:
    """The metric rows of complete runs: method is the baseline, part the arm; ``setting`` the shots as text, or "full".

    Args:
        overrides: those of a run's; None: the plain runs, PatchCore's from the untagged ones, each other baseline's from its own.
    """
    if overrides is not None or tag:
        parts = [collect(root, profile, "tgvig", tag or overrides_tag(overrides))]
    else:
        parts = []
        for name in BASELINES:
            own = baseline_overrides(name)
            found = collect(root, profile, "tgvig", overrides_tag(own) if own else "")
            parts.append(found[found.method == name])
    table = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    available = {folder: (read_json(Path(folder) / "metrics.json") or {}).get("available") for folder in set(table.folder)}
    full = [shots == available[folder] for shots, folder in zip(table.shots, table.folder, strict=True)]
    table = table.assign(setting=["full" if f else str(k) for k, f in zip(table.shots, full, strict=True)])
    table.attrs["stale"] = [path for part in parts for path in part.attrs.get("stale", [])]
    return table


def committed_rows(profile: str = "mini", root: str | Path | None = None) -> pd.DataFrame:
    """The plain rows of ``data/results/tgvig_<profile>.csv``, as :func:`rows_of` gives them, for a machine without the runs.

    Without predictions there is no interval over test images, hence none for a single category.
    """
    from fsad_lib.datasets.minifab import TRAIN_GOOD

    path = Path(root or project_root()) / "data" / "results" / f"tgvig_{check_file_name(profile)}.csv"
    table = pd.read_csv(path, dtype={"category": str, "tag": str}).fillna({"tag": ""})
    own = {overrides_tag(text) if text else "": name for name, text in ((name, baseline_overrides(name)) for name in BASELINES)}
    table = table[table.tag.map(own) == table.method].reset_index(drop=True)
    full = (table.dataset == "minifab") & (table.shots == TRAIN_GOOD)
    return table.assign(folder="", setting=table.shots.astype(str).mask(full, "full")).reindex(columns=[*COLUMNS, "setting"])


def all_rows(root: str | Path | None = None, profile: str = "mini") -> pd.DataFrame:
    """The rows behind every table: those of the plain runs, of the ablations, of the memories and of Table 1, told apart by the column tag."""
    tags = [overrides_tag(text) for text in (*ablation_overrides(profile), *MEMORIES[profile].values()) if text]
    found = [rows_of(root, profile), *(rows_of(root, profile, tag=tag) for tag in dict.fromkeys([*tags, TABLE1_TAG]))]
    return pd.concat([rows for rows in found if len(rows)] or found[:1], ignore_index=True)


def paired_gap(rows: pd.DataFrame, left: str, right: str, metric: str = "image_auroc", group: str = "all") -> dict:
    """left - right over the categories and seeds that both arms have, in points with the interval, and relative to right in percent."""
    empty = dict.fromkeys(("mean", "low", "high", "relative"), np.nan) | {"per_category": pd.Series(dtype=float)}
    rows = rows[rows[metric].notna() & (rows.group == group)]
    a, b = rows[rows.part == left], rows[rows.part == right]
    found = difference(a, b, metric, group) if len(a) and len(b) else None
    if found is None:
        return empty
    index = ["category", "seed"]
    base = b.set_index(index)[metric].loc[a.set_index(index).index.intersection(b.set_index(index).index)].groupby("category").mean().mean()
    return found | {"relative": found["mean"] / base if base else np.nan}


def gains(root: str | Path | None = None, profile: str = "mini", settings: Sequence[str] = SETTINGS, rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every arm of every baseline, and what the generated images gain over each control.

    Args:
        rows: of :func:`rows_of` or :func:`committed_rows`; None: of the profile's runs.

    One row per data set, profile, setting, baseline, metric (MVTec LOCO: AU-sPRO too) and arm: reported (ours of the paper, arm "generated"),
    ours, ours_std, n_seeds, low, high, categories, expected, state; and gain, gain_low, gain_high, relative: generated minus this arm.
    """
    mine, real = rows_of(root, profile) if rows is None else rows, rows_of(root, "paper")
    said = reported("averages", root).set_index(["dataset", "shots", "baseline", "metric"])["mean"]
    records = []
    for of, dataset, unit in units(UNITS, mine, profile):
        block = (real if of == "paper" else mine).query("unit == @unit and group == 'all'")
        for setting in settings:
            for name in BASELINES:
                rows = block[(block.setting == setting) & (block.method == name)]
                for metric in SHOWN if dataset == "mvtec_loco" else METRICS:
                    for arm in ("shots", "generated", "duplicated", "augmented"):
                        cell = mean_over_categories(rows[rows.part == arm], expected_categories(dataset), metric)
                        if cell["state"] == "partial" and of == "paper":  # part of a benchmark is not the benchmark
                            cell |= dict.fromkeys(("mean", "std", "low", "high"), np.nan)
                        gap = paired_gap(rows, "generated", arm, metric) if arm in CONTROLS else paired_gap(rows[:0], "", "")
                        if of == "paper" and len(gap["per_category"]) < len(expected_categories(dataset) or [0]):
                            gap |= dict.fromkeys(("mean", "low", "high", "relative"), np.nan)
                        value = said.get((dataset, setting, name, metric), np.nan) if of == "paper" and arm == "generated" else np.nan
                        records.append(
                            {"data_set": unit, "profile": of, "shots": setting, "baseline": BASELINES[name], "metric": metric, "arm": arm,
                             "reported": value, "ours": cell["mean"], "ours_std": cell["std"], "n_seeds": cell["n"], "low": cell["low"],
                             "high": cell["high"], "difference": cell["mean"] - value, "categories": cell["categories"],
                             "expected": cell["expected"], "state": cell["state"], "gain": gap["mean"], "gain_low": gap["low"],
                             "gain_high": gap["high"], "relative": gap["relative"]}
                        )  # fmt: skip
    return pd.DataFrame.from_records(records)


def full_shot(root: str | Path | None = None) -> pd.DataFrame:
    """Are the detectors what they are elsewhere? anomalib's published full-shot means on MVTec AD beside ours with every normal image and nothing added:
    text, one row per detector, backbone and metric of theirs."""
    said = read_reported("anomalib_full_shot", root).query("category == ''")
    rows = rows_of(root, "paper").query("dataset == 'mvtec_ad' and setting == 'full' and group == 'all' and part == 'shots'")
    records = []
    for line in said.itertuples():
        cell = mean_over_categories(rows[rows.method == line.baseline], expected_categories("mvtec_ad"), line.metric)
        whole = cell["state"] not in (NOT_RUN, "partial")  # part of a benchmark is not the benchmark
        records.append(
            {"Data set": "MVTec AD", "Profile": "paper", "Detector": BASELINES[line.baseline], "anomalib's backbone": line.backbone or NONE, "Metric": METRICS[line.metric],
             "anomalib": number(float(line.mean)), "Ours, all images, nothing added": number(cell["mean"], cell["std"], cell["n"]) if whole else NOT_RUN,
             "Difference": f"{cell['mean'] - float(line.mean):+.1f}" if whole else NONE}
        )  # fmt: skip
    return pd.DataFrame.from_records(records)


def show_gains(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`gains` for reading: one row per data set, shots, baseline, metric and arm; blocks that were not run are one line."""
    records = []
    for (unit, profile, shots, name, metric), block in table.groupby(["data_set", "profile", "shots", "baseline", "metric"], sort=False):
        said = block.reported.dropna()
        head = {"Data set": unit, "Profile": profile, "Shots": shots, "Baseline": name, "Metric": SHOWN[metric]}
        for row in block.itertuples():
            if (block.state == NOT_RUN).all() and row.arm != "generated":
                continue
            gap = {"mean": row.gain, "low": row.gain_low, "high": row.gain_high}
            none = pd.isna(row.gain)
            records.append(
                head | {"Method": ARMS[row.arm], "Reported": number(said.iloc[0]) if row.arm == "generated" and len(said) else NONE,
                        "Ours": cell_text(row), "Difference": NONE if pd.isna(row.difference) else f"{row.difference:+.1f}",
                        "Gain of TGVIG over it, points": NONE if none else interval(gap),
                        "relative, %": NONE if none else f"{row.relative:+.1f}"}
            )  # fmt: skip
    return pd.DataFrame(records)


def run_part(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The blocks of :func:`gains` (data set, shots, baseline) that were run, and one sentence that names the others ("" if there are none).

    >>> none = {"profile": "mini", "state": "not run", "shots": "1"}
    >>> rows = [none | {"data_set": "A", "baseline": "CFlow"}, none | {"data_set": "B", "baseline": "CFlow", "state": "run"}, none | {"data_set": "B", "baseline": "PatchCore"}]
    >>> run_part(pd.DataFrame(rows))[1]
    'Not run: A (profile mini); PatchCore on B at 1 shot.'
    """
    run = (table.state != NOT_RUN).groupby([table.data_set, table.profile, table.shots, table.baseline]).transform("any")
    anything = run.groupby([table.data_set, table.profile]).transform("any")
    whole = table[~anything].drop_duplicates(["data_set", "profile"])
    texts = [f"{', '.join(block.data_set)} (profile {profile})" for profile, block in whole.groupby("profile", sort=False)]
    part = table[~run & anything].drop_duplicates(["data_set", "shots", "baseline"])
    part = part.groupby(["data_set", "shots"], sort=False).baseline.agg(lambda names: "all detectors" if len(names) == len(BASELINES) else ", ".join(names))
    for (names, shots), block in part.reset_index().groupby(["baseline", "shots"], sort=False):
        texts.append(f"{names} on {', '.join(block.data_set)} {'with' if shots == 'full' else 'at'} {words(shots)}")
    return table[run], f"Not run: {'; '.join(texts)}." if texts else ""


def memories(root: str | Path | None = None, profile: str = "mini", setting: str = "1") -> pd.DataFrame:
    """PatchCore with a memory of one size, with one that grows with the number of images, and with every patch kept: is it the images, or the memory?

    Columns as :func:`gains`, image AUROC only, and memory: the memory's size in words.
    """
    records = []
    for label, overrides in MEMORIES[profile].items():
        rows = rows_of(root, profile, overrides or None).query("group == 'all' and method == 'patchcore' and setting == @setting")
        for _, dataset, unit in [u for u in units(UNITS, rows, profile) if u[0] == profile]:
            block = rows[rows.unit == unit]
            for arm in ("shots", "generated", "duplicated", "augmented"):
                cell = mean_over_categories(block[block.part == arm], expected_categories(dataset), "image_auroc")
                gap = paired_gap(block, "generated", arm) if arm in CONTROLS else paired_gap(block[:0], "", "")
                records.append(
                    {"data_set": unit, "profile": profile, "shots": setting, "memory": label, "arm": arm, "ours": cell["mean"], "ours_std": cell["std"],
                     "n_seeds": cell["n"], "categories": cell["categories"], "expected": cell["expected"], "state": cell["state"],
                     "gain": gap["mean"], "gain_low": gap["low"], "gain_high": gap["high"]}
                )  # fmt: skip
    columns = ["data_set", "profile", "shots", "memory", "arm", "ours", "ours_std", "n_seeds", "categories", "expected", "state", "gain", "gain_low", "gain_high"]
    return pd.DataFrame(records, columns=columns).sort_values("data_set", kind="stable", ignore_index=True)


def show_memories(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`memories` for reading, without data sets that were run with one kind of memory only."""
    run = table[table.state != NOT_RUN].groupby("data_set").memory.nunique()
    table = table[table.data_set.isin(run.index[run > 1])]
    if table.empty:
        return pd.DataFrame({"Data set": [NOT_RUN], "PatchCore's memory": [NOT_RUN]})
    none = [pd.isna(v) for v in table.gain]
    gap = [NONE if n else interval({"mean": r.gain, "low": r.gain_low, "high": r.gain_high}) for n, r in zip(none, table.itertuples(), strict=True)]
    return pd.DataFrame(
        {"Data set": table.data_set, "Profile": table.profile, "PatchCore's memory": table.memory, "Method": table.arm.map(ARMS),
         "Ours": [cell_text(row) for row in table.itertuples()], "Gain of TGVIG over it, points": gap}
    )  # fmt: skip


def per_class(root: str | Path | None = None, profile: str = "paper", dataset: str = "mvtec_ad") -> pd.DataFrame:
    """Image AUROC of "ours" for each class, baseline and setting: reported (MVTec AD), ours, and the arm of the shots alone."""
    rows = rows_of(root, profile).query("dataset == @dataset and group == 'all'")
    said = reported("per_class", root)
    said = said[(said.dataset == dataset) & (profile == "paper")].set_index(["category", "shots", "baseline"])["mean"]
    means = 100 * rows.groupby(["category", "setting", "method", "part"]).image_auroc.mean()
    records = []
    for category in expected_categories(dataset) or sorted(rows.category.unique()):
        for setting in SETTINGS:
            for name, label in BASELINES.items():
                found = {arm: means.get((category, setting, name, arm), np.nan) for arm in ("generated", "shots", "augmented")}
                records.append(
                    {"category": category, "shots": setting, "baseline": label, "reported": said.get((category, setting, name), np.nan),
                     "ours": found["generated"], "ours_shots": found["shots"], "ours_augmented": found["augmented"]}
                )  # fmt: skip
    return pd.DataFrame(records, columns=["category", "shots", "baseline", "reported", "ours", "ours_shots", "ours_augmented"])


def show_per_class(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`per_class` for reading: one row per class, a column per baseline and setting."""
    wide = {}
    for (shots, name), block in table.groupby(["shots", "baseline"], sort=False):
        block = block.set_index("category")
        if block.reported.notna().any():
            wide[f"{name}, {shots}: Reported"] = block.reported.map(number)
        wide[f"{name}, {shots}: Ours"] = block.ours.map(lambda v: NOT_RUN if pd.isna(v) else number(v))
    return pd.DataFrame(wide).reset_index().rename(columns={"category": "Class"})


# -------------------------------------------------------------------- the gains that the paper's text gives
_DETECTION = {"image_auroc": "detection (image AUROC)", "pixel_auroc": "segmentation (pixel AUROC)"}


def _mean_gap(rows: pd.DataFrame, control: str, metric: str, group: str) -> dict:
    """generated - control, a mean over the baselines in ``rows``, on the products that all of them were run on; baselines, categories: how many."""
    each = {name: paired_gap(block, "generated", control, metric, group)["per_category"] for name, block in rows.groupby("method", sort=False)}
    each = {name: values for name, values in each.items() if len(values)}
    shared = sorted(set.intersection(*(set(values.index) for values in each.values()))) if each else []
    empty = dict.fromkeys(("mean", "low", "high", "relative"), np.nan)
    if not shared:
        return empty | {"baselines": 0, "categories": 0}
    found = [paired_gap(rows[(rows.method == name) & rows.category.isin(shared)], "generated", control, metric, group) for name in each]
    gap = found[0]
    if len(found) > 1:
        mean = pd.concat([g["per_category"] for g in found], axis=1).mean(axis=1)
        low, high = bootstrap_categories(mean)[1:] if len(mean) > 1 else (np.nan, np.nan)
        gap = {"mean": mean.mean(), "low": low, "high": high, "relative": float(np.mean([g["relative"] for g in found]))}
    return {name: gap[name] for name in empty} | {"baselines": len(found), "categories": len(shared)}


def gains_reported(root: str | Path | None = None, profile: str = "mini", rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """The gains that the paper's text and its Figures 4 to 6 give, each beside ours over the shots alone, in points and relative.

    In the profile "mini" a block on MiniFab asks the same: the mean over the baselines, objects and textures, logical and structural defects.

    Args:
        rows: as in :func:`gains`.

    Columns data_set, profile, what, shots, baseline, metric, reported_percent, ours, low, high, relative, over_augmented (with _low and _high),
    baselines and categories (run), wanted and expected (how many there should be), state.
    """
    mine, real = rows_of(root, profile) if rows is None else rows, rows_of(root, "paper")
    said = reported("gains", root).set_index(["dataset", "category", "shots", "baseline", "metric"]).gain_percent
    wanted = [("paper", *key) for key in dict.fromkeys(key[:4] for key in said.index)]
    if profile == "mini":
        wanted += [("mini", "minifab", "mean over four baselines", k, "four") for k in SETTINGS]
        wanted += [("mini", "minifab", kind, "1", "patchcore") for kind in ("objects", "textures", "logical", "structural")]
    records = []
    for of, dataset, what, setting, name in wanted:
        block = (real if of == "paper" else mine).query("dataset == @dataset and setting == @setting")
        group = what.removesuffix("_anomalies") if what.startswith(("logical", "structural")) else "all"
        block = block[(block.group == group) & ((name == "four") | (block.method == name))]
        chosen = expected_categories(dataset) or []
        if what in ("objects", "textures"):
            chosen = [c for c in chosen if surface(dataset, c) == what]
        elif what in chosen:
            chosen = [what]
        elif of == "mini" and group != "all":  # not every product has logical defects
            chosen = sorted(block.category.unique())
        block = block[block.category.isin(chosen)]
        for metric in METRICS:
            over, other = _mean_gap(block, "shots", metric, group), _mean_gap(block, "augmented", metric, group)
            full = over["categories"] == len(chosen) and over["baselines"] == (len(BASELINES) if name == "four" else 1)
            state = NOT_RUN if not over["categories"] else "run" if full else "partial"
            if state == "partial" and of == "paper":  # part of a benchmark is not the benchmark
                over |= dict.fromkeys(("mean", "low", "high", "relative"), np.nan)
                other = over
            records.append(
                {"data_set": UNITS.get(dataset, "MiniFab"), "profile": of, "what": "all products" if name == "four" else what.replace("_", " "), "shots": setting,
                 "baseline": "mean of four" if name == "four" else BASELINES[name], "metric": metric,
                 "reported_percent": said.get((dataset, what, setting, name, metric), np.nan) if of == "paper" else np.nan,
                 "ours": over["mean"], "low": over["low"], "high": over["high"], "relative": over["relative"], "over_augmented": other["mean"],
                 "over_augmented_low": other["low"], "over_augmented_high": other["high"], "baselines": over["baselines"],
                 "wanted": len(BASELINES) if name == "four" else 1, "categories": over["categories"], "expected": len(chosen), "state": state}
            )  # fmt: skip
    return pd.DataFrame.from_records(records)


def show_gains_reported(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`gains_reported` for reading: Reported | Ours, points | Ours, relative."""
    records = []
    for row in table.itertuples():
        gap = {"mean": row.ours, "low": row.low, "high": row.high}
        over = {"mean": row.over_augmented, "low": row.over_augmented_low, "high": row.over_augmented_high}
        none = row.state if row.state == NOT_RUN else "partial"
        covered = f"{row.categories} of {row.expected} products" + (f", {row.baselines} of {row.wanted} detectors" if row.wanted > 1 else "")
        if row.profile == "paper" and row.state == NOT_RUN and pd.isna(row.reported_percent):
            continue  # neither reported nor run
        records.append(
            {"Data set": row.data_set, "Profile": row.profile, "Where": row.what, "Shots": row.shots, "Detector": row.baseline,
             "Metric": _DETECTION[row.metric], "Reported, %": NONE if pd.isna(row.reported_percent) else f"{row.reported_percent:+.1f}",
             "Ours, points": none if pd.isna(row.ours) else interval(gap), "Ours, relative %": none if pd.isna(row.ours) else f"{row.relative:+.1f}",
             "Ours over augmentations, points": none if pd.isna(row.over_augmented) else interval(over),
             "Run on": NONE if row.state == NOT_RUN else covered}
        )  # fmt: skip
    return pd.DataFrame(records)

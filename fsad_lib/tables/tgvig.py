"""TGVIG's tables: gains over the controls, Tables 1 to 4, per class, claims; percent everywhere.

The rules are those of :mod:`fsad_lib.tables`: a miniature's number never stands beside a paper's, what was not run reads "not run", and
the controls are part of every table. Gains are given absolute (percent points) and relative (percent of the arm they are measured
against), since the paper does not say which of the two it prints.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from fsad_lib.runs import overrides_tag, project_root, read_json, replacing
from fsad_lib.tables._paper import own_choices
from fsad_lib.tables._rows import (
    COLUMNS,
    NONE,
    NOT_RUN,
    _read_csv,
    _stale,
    bootstrap_categories,
    collect,
    difference,
    expected_categories,
    mean_over_categories,
    units,
)
from fsad_lib.tables._text import check_name, interval, number, to_csv, verdict, write_rows, write_table

__all__ = [
    "ABLATIONS", "ARMS", "BASELINES", "CONTROLS", "MEMORIES", "METRICS", "SHOWN", "TABLE1_TAG", "ablation_overrides", "all_rows", "baseline_overrides",
    "claims", "committed_rows", "compare", "convergence", "gains", "gains_reported", "losses", "memories", "one_run", "per_class", "prompts", "quality",
    "quality_rows", "reported", "rows_of", "run_part", "show_convergence", "show_gains", "show_gains_reported", "show_memories", "surface", "table1",
    "table1_overrides", "table3", "words", "write_all",
]  # fmt: skip

BASELINES = {"patchcore": "PatchCore", "cflow": "CFlow", "efficientad": "EfficientAD", "reverse_distillation": "Reverse Distillation"}
ARMS = {
    "shots": "shots alone", "generated": "shots + generated (TGVIG)", "duplicated": "shots duplicated (control)",
    "augmented": "shots + augmentations, no VQGAN (control)", "without_text": "shots + generated, last iteration",
    "worst_prompt": "shots + generated, worst prompt",
    "word": "shots + generated, word alone", "naive": "shots + generated, naive prompt",
}  # fmt: skip
CONTROLS = ("shots", "duplicated", "augmented")
"""What the generated images are measured against; only the first is the paper's."""
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC"}
SHOWN = METRICS | {"au_spro": "AU-sPRO"}
"""The metrics of one run; AU-sPRO (up to 5 % of false positives) is MVTec LOCO's own."""
SETTINGS = ("1", "5", "full")
"""The paper's numbers of shots; "full": all normal training images."""
UNITS = {"mvtec_ad": "MVTec AD", "btad": "BTAD", "mvtec_loco": "MVTec LOCO"}
TABLE1_TAG = "table1"
COPIES = (1, 10, 20, 30, 50, 100)

_TWO = "baselines.arms=[shots,generated]"
ABLATIONS: dict[tuple[str, str], str] = {
    ("text", "without text"): "baselines.arms=[shots,generated,without_text]",
    **{("copies", str(n)): f"tgvig.images={n},{_TWO}" for n in COPIES},
    ("variance", "without variance"): f"tgvig.variance=none,{_TWO}",
    ("variance", "unit variance"): f"tgvig.variance=unit,{_TWO}",
}
"""(component, arm) of Table 3 -> the overrides of its runs."""

_SIZE, _SHARE, _ALL = "one size in every arm", "a tenth of an arm's patches, as published", "every patch"
_EVERY = "baselines.coreset=1,baselines.coreset_size=null"
MEMORIES = {
    "mini": {_SIZE: "", _SHARE: "baselines.coreset_size=null", _ALL: _EVERY},
    "paper": {_SHARE: "", _SIZE: "baselines.coreset_size=1000", _ALL: _EVERY},
}
"""profile -> what PatchCore's memory keeps -> the overrides of the runs. With one shot, a tenth is 78 patches, and eleven times as many
with ten images added, whatever these show. Where every patch is kept, none can push out another."""

TABLE1 = {
    "original": ("Original image alone", "shots"), "web_image": ("Web image", "web_image"), "midjourney": ("Midjourney", "midjourney"),
    "dalle": ("DALL-E", "dalle"), "vqgan_clip_word": ("VQGAN-CLIP, word alone", "vqgan_clip_word"),
    "vqgan_clip_naive": ("VQGAN-CLIP, naive prompt", "vqgan_clip_naive"), "vqgan_clip_caption": ("VQGAN-CLIP, generated prompt", "vqgan_clip_caption"),
    "tgvig": ("Ours", "generated"), "diffusion": ("Diffusion model, an edit of the original (added by us)", "diffusion"),
    "duplicated": ("Original image duplicated (control, added by us)", "duplicated"),
    "augmented": ("Original image augmented, no VQGAN (control, added by us)", "augmented"),
}  # fmt: skip
"""row of Table 1 -> its name and the arm that fills it."""

TABLE2 = {
    "original": ("original", ""), "only_word": ("tgvig", "word"), "naive_prompt": ("tgvig", "naive"), "worst_prompt": ("tgvig", "worst"),
    "our_prompt": ("tgvig", "best"),
}  # fmt: skip
"""row of Table 2 -> (generator, prompt) of a run's quality rows; further rows of a run are added as ours."""


def words(setting: str) -> str:
    """
    >>> words("1"), words("5"), words("full")
    ('1 shot', '5 shots', 'all images')
    """
    return "all images" if setting == "full" else f"{setting} shot{'' if setting == '1' else 's'}"


def baseline_overrides(name: str) -> str:
    """The overrides of the runs of one baseline; the profile's own, PatchCore, needs none.

    >>> baseline_overrides("patchcore"), baseline_overrides("cflow")
    ('', 'baselines.names=[cflow]')
    """
    return "" if name == "patchcore" else f"baselines.names=[{name}]"


def ablation_overrides(profile: str = "mini") -> list[str]:
    """The overrides of every run behind :func:`table3`, the same in each profile."""
    return list(ABLATIONS.values())


def table1_overrides(profile: str = "mini", outside: str = "") -> str:
    """The overrides of Table 1's runs (tag :data:`TABLE1_TAG`): every generator that can be run here, and a user's folder for the closed ones."""
    from fsad_lib.profiles import load_profile

    caption = ["vqgan_clip_caption"] if load_profile(profile).tgvig.caption else []
    drawn = ["vqgan_clip_word", "vqgan_clip_naive", *caption, "vqgan_clip_worst", "vqgan_clip_best", "diffusion"]
    return f"tgvig.rivals=[{','.join(drawn)}]" + (f",outside.checkpoint={outside}" if outside else "")


def reported(name: str, root: str | Path | None = None) -> pd.DataFrame:
    """One of the paper's tables, ``data/reported/tgvig_<name>.csv``, all columns text but mean, std and value.

    >>> table = reported("table1").set_index(["method", "metric"])["mean"]
    >>> float(table["tgvig", "image_auroc"])
    93.3
    """
    for folder in (Path(root or project_root()), Path(__file__).parents[2]):
        path = folder / "data" / "reported" / f"tgvig_{name}.csv"
        if path.is_file():
            break
    table = _read_csv(path, path.stat().st_mtime_ns).copy()
    for column in ("mean", "std", "value", "gain", "gain_percent"):
        if column in table:
            table[column] = pd.to_numeric(table[column])
    return table


# -------------------------------------------------------------------- rows of runs
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

    path = Path(root or project_root()) / "data" / "results" / f"tgvig_{check_name(profile)}.csv"
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


def _gap(rows: pd.DataFrame, left: str, right: str, metric: str = "image_auroc") -> dict:
    """left - right over the categories and seeds that both arms have, in points with the interval, and relative to right in percent."""
    empty = dict.fromkeys(("mean", "low", "high", "relative"), np.nan) | {"per_category": pd.Series(dtype=float)}
    rows = rows[rows[metric].notna()]
    a, b = rows[rows.part == left], rows[rows.part == right]
    found = difference(a, b, metric) if len(a) and len(b) else None
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
                        gap = _gap(rows, "generated", arm, metric) if arm in CONTROLS else _gap(rows[:0], "", "")
                        value = said.get((dataset, setting, name, metric), np.nan) if of == "paper" and arm == "generated" else np.nan
                        records.append(
                            {"data_set": unit, "profile": of, "shots": setting, "baseline": BASELINES[name], "metric": metric, "arm": arm,
                             "reported": value, "ours": cell["mean"], "ours_std": cell["std"], "n_seeds": cell["n"], "low": cell["low"],
                             "high": cell["high"], "difference": cell["mean"] - value, "categories": cell["categories"],
                             "expected": cell["expected"], "state": cell["state"], "gain": gap["mean"], "gain_low": gap["low"],
                             "gain_high": gap["high"], "relative": gap["relative"]}
                        )  # fmt: skip
    return pd.DataFrame.from_records(records)


def _cell(row) -> str:
    if row.state in (NOT_RUN, NONE):
        return row.state
    covered = f"{row.categories} of {row.expected} categories"
    if pd.isna(row.ours):
        return f"partial: {covered}"
    return number(row.ours, row.ours_std, row.n_seeds) + (f", {covered} only" if row.state == "partial" else "")


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
                        "Ours": _cell(row), "Difference": NONE if pd.isna(row.difference) else f"{row.difference:+.1f}",
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
                gap = _gap(block, "generated", arm) if arm in CONTROLS else _gap(block[:0], "", "")
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
         "Ours": [_cell(row) for row in table.itertuples()], "Gain of TGVIG over it, points": gap}
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


def _show_per_class(table: pd.DataFrame) -> pd.DataFrame:
    wide = {}
    for (shots, name), block in table.groupby(["shots", "baseline"], sort=False):
        block = block.set_index("category")
        if block.reported.notna().any():
            wide[f"{name}, {shots}: Reported"] = block.reported.map(number)
        wide[f"{name}, {shots}: Ours"] = block.ours.map(lambda v: NOT_RUN if pd.isna(v) else number(v))
    return pd.DataFrame(wide).reset_index().rename(columns={"category": "Class"})


# -------------------------------------------------------------------- the gains that the paper's text gives
_DETECTION = {"image_auroc": "detection (image AUROC)", "pixel_auroc": "segmentation (pixel AUROC)"}


def _mean_gap(rows: pd.DataFrame, control: str, metric: str) -> dict:
    """generated - control, a mean over the baselines in ``rows``, on the products that all of them were run on; baselines, categories: how many."""
    each = {name: _gap(block, "generated", control, metric)["per_category"] for name, block in rows.groupby("method", sort=False)}
    each = {name: values for name, values in each.items() if len(values)}
    shared = sorted(set.intersection(*(set(values.index) for values in each.values()))) if each else []
    empty = dict.fromkeys(("mean", "low", "high", "relative"), np.nan)
    if not shared:
        return empty | {"baselines": 0, "categories": 0}
    found = [_gap(rows[(rows.method == name) & rows.category.isin(shared)], "generated", control, metric) for name in each]
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
        block = block[(block.group == group) & ((name == "four") | (block.method == name))].assign(group="all")
        chosen = expected_categories(dataset) or []
        if what in ("objects", "textures"):
            chosen = [c for c in chosen if surface(dataset, c) == what]
        elif what in chosen:
            chosen = [what]
        elif of == "mini" and group != "all":  # not every product has logical defects
            chosen = sorted(block.category.unique())
        block = block[block.category.isin(chosen)]
        for metric in METRICS:
            over, other = _mean_gap(block, "shots", metric), _mean_gap(block, "augmented", metric)
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


# -------------------------------------------------------------------- convergence
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


# -------------------------------------------------------------------- Tables 1 to 4
_PLACE = {"mini": "MiniFab", "paper": "MVTec AD, hazelnut"}


def table1(root: str | Path | None = None, profile: str = "mini") -> pd.DataFrame:
    """Table 1: one image, PatchCore, one further image from each generator; mean over the products that were run with the tag "table1".

    Reported numbers stand beside runs of the paper profile on MVTec AD's hazelnut only.
    """
    said = reported("table1", root).set_index(["method", "metric"])["mean"]
    rows, records = rows_of(root, profile, tag=TABLE1_TAG).query("group == 'all' and shots == 1 and method == 'patchcore'"), []
    rows = rows[(rows.dataset == "mvtec_ad") & (rows.category == "hazelnut")] if profile == "paper" else rows[rows.dataset == "minifab"]
    for key, (label, arm) in TABLE1.items():
        picked = rows[rows.part == arm]
        record = {"data_set": _PLACE[profile], "method": label, "profile": profile, "products": picked.category.nunique(), "seeds": picked.seed.nunique()}
        for metric in METRICS:
            value = picked.groupby("category")[metric].mean().mean() if len(picked) else np.nan
            record |= {f"{metric}_reported": said.get((key, metric), np.nan) if profile == "paper" else np.nan, f"{metric}_ours": 100 * value}
        records.append(record)
    return pd.DataFrame(records)


def _show_table1(table: pd.DataFrame) -> pd.DataFrame:
    out = pd.DataFrame({"Data set": table.data_set, "Profile": table.profile, "Method": table.method})
    for metric, name in (("image_auroc", "Detection"), ("pixel_auroc", "Segmentation")):
        if table[f"{metric}_reported"].notna().any():
            out[f"{name}: Reported"] = table[f"{metric}_reported"].map(number)
        out[f"{name}: Ours"] = [
            number(v) if pd.notna(v) else "your own image: outside.checkpoint" if label in ("Web image", "Midjourney", "DALL-E") else NOT_RUN
            for v, label in zip(table[f"{metric}_ours"], table.method, strict=True)
        ]
    return out.assign(Products=table["products"], Seeds=table.seeds)


def _synthesized(root: str | Path | None, profile: str) -> pd.DataFrame:
    """metrics.json of every complete stage 22 run: dataset, category, shots, seed, tag, and what it holds."""
    root, records = Path(root or project_root()).resolve(), []
    for path in sorted((root / "data" / "runs" / profile).glob("*/*/22_synthesize_tgvig/k*_seed*/metrics.json")):
        metrics = read_json(path) or {}
        if root == project_root() and _stale(path.parent, "tgvig"):
            continue
        if "best" in metrics and path.parts[-5] != "folder":
            records.append({**{k: metrics["identity"][k] for k in ("dataset", "category", "shots", "seed", "tag")}, **metrics, "folder": str(path.parent)})
    columns = "dataset category shots seed tag best worst best_cosine worst_cosine similarity quality folder".split()
    return pd.DataFrame(records, columns=columns)


def quality_rows(root: str | Path | None = None, profile: str = "mini") -> pd.DataFrame:
    """The image quality of every complete stage 22 run: dataset, category, shots, seed, tag, and a run's rows (generator, prompt, text, n, ...)."""
    head = ["dataset", "category", "shots", "seed", "tag"]
    found = _synthesized(root, profile).sort_values(head)
    records = [{name: getattr(run, name) for name in head} | row for run in found.itertuples() for row in run.quality]
    measured = ["generator", "prompt", "text", "n", "inception", "inception_label", "ssim", "psnr", "lpips"]
    return pd.DataFrame.from_records(records, columns=None if records else [*head, *measured])


def quality(root: str | Path | None = None, profile: str = "mini") -> pd.DataFrame:
    """Table 2: Inception Score, SSIM, PSNR, LPIPS of one shot's images by prompt; means over the runs with the tag "table1", else the plain ones."""
    runs = _synthesized(root, profile).query("shots == 1")
    runs = runs[runs.tag == TABLE1_TAG] if (runs.tag == TABLE1_TAG).any() else runs[runs.tag == ""]
    runs = runs[(runs.dataset == "mvtec_ad") & (runs.category == "hazelnut")] if profile == "paper" else runs[runs.dataset == "minifab"]
    rows = pd.DataFrame([row for found in runs.quality for row in found])
    said = reported("table2", root).set_index(["method", "metric"])["value"]
    wanted = {key: (*pair, key) for key, pair in TABLE2.items()}
    if len(rows):
        for pair in rows[["generator", "prompt"]].drop_duplicates().itertuples(index=False):
            if tuple(pair) not in TABLE2.values():
                wanted[f"{pair[0]} {pair[1]}"] = (*pair, "")
    records = []
    for generator, prompt, of in wanted.values():
        found = rows[(rows.generator == generator) & (rows.prompt == prompt)] if len(rows) else rows
        record = {"data_set": _PLACE[profile], "generator": generator, "prompt": prompt or NONE, "profile": profile, "runs": len(found)}
        record |= {"n": found.n.iloc[0] if len(found) else np.nan, "network": found.inception_label.iloc[0] if len(found) else ""}
        for metric, column in (("inception_score", "inception"), ("ssim", "ssim"), ("psnr", "psnr"), ("lpips", "lpips")):
            record[f"{metric}_reported"] = said.get((of, metric), np.nan) if profile == "paper" else np.nan
            record[f"{metric}_ours"] = pd.to_numeric(found[column]).mean() if len(found) else np.nan
        records.append(record)
    return pd.DataFrame(records)


_QUALITY = {"inception_score": "IS", "ssim": "SSIM", "psnr": "PSNR", "lpips": "LPIPS"}


def _quality_block(table: pd.DataFrame) -> pd.DataFrame:
    out = pd.DataFrame(
        {"Data set": table.data_set, "Profile": table.profile, "Method": table.generator, "Prompt": table.prompt, "Runs": table.runs,
         "n": table.n.map(lambda v: NONE if pd.isna(v) else f"{v:.0f}")}
    )  # fmt: skip
    label = next((text for text in table.network if text), "")  # of this block's runs: another profile's network says nothing about it
    for metric, name in _QUALITY.items():
        head = f"IS ({label.partition('(')[2].rstrip(')')})" if metric == "inception_score" and "proxy" in label else name
        if table[f"{metric}_reported"].notna().any():  # the paper's is a plain Inception Score
            out[f"{name}: Reported"] = table[f"{metric}_reported"].map(lambda v: NONE if pd.isna(v) else f"{v:.2f}")
        out[f"{head}: Ours"] = [NOT_RUN if not n else "∞" if pd.isna(v) else f"{v:.2f}" for v, n in zip(table[f"{metric}_ours"], table.runs, strict=True)]
    return out


def _show_quality(table: pd.DataFrame) -> pd.DataFrame:
    shown = pd.concat([_quality_block(block) for _, block in table.groupby(["data_set", "profile"], sort=False)], ignore_index=True).fillna(NONE)
    place = {name: i for i, name in enumerate(_QUALITY.values())}
    return shown[sorted(shown, key=lambda head: place.get(head.split(":")[0].split(" (")[0], -1))]  # sorted keeps the order of equals


_SAME = ("whole method", "on the variants' products")


def table3(root: str | Path | None = None, profile: str = "mini", setting: str = "1", metric: str = "image_auroc") -> pd.DataFrame:
    """Table 3: PatchCore without text, with other numbers of images, with other variances: each against the shots of the same run, and
    against their augmentations in the plain run. The paper states neither class nor shots, so its numbers have a block of their own."""
    said = reported("table3", root).query("metric == @metric").set_index(["component", "arm"])
    plain, records = rows_of(root, profile), []
    jobs = [("whole method", "plain run", plain, "generated")]
    for (component, arm), overrides in ABLATIONS.items():
        jobs.append((component, arm, rows_of(root, profile, overrides), "without_text" if component == "text" else "generated"))
    varied = {pair for _, _, rows, _ in jobs[1:] for pair in zip(rows.dataset, rows.category, strict=True)}
    if varied:  # the variants were run on fewer products: the whole beside them, on the same ones
        same = [pair in varied for pair in zip(plain.dataset, plain.category, strict=True)]
        jobs.insert(1, (*_SAME, plain[same], "generated"))
    own = [(d, u) for of, d, u in units(UNITS, plain, profile) if of == profile]
    for dataset, unit in own:
        for component, arm, rows, part in jobs:
            rows = rows[(rows.unit == unit) & (rows.setting == setting) & (rows.method == "patchcore") & (rows.group == "all")]
            if (component, arm) == _SAME and rows.category.nunique() in (0, plain[(plain.unit == unit) & (plain.setting == setting)].category.nunique()):
                continue
            cell = mean_over_categories(rows[rows.part == part], expected_categories(dataset), metric)
            gap = _gap(rows, part, "shots", metric)
            base = plain.query("unit == @unit and setting == @setting and method == 'patchcore' and group == 'all' and part == 'augmented'")
            against = _gap(pd.concat([rows[rows.part == part], base]), part, "augmented", metric)
            records.append(
                {"data_set": unit, "profile": profile, "shots": setting, "component": component, "variant": arm,
                 "reported": np.nan, "reported_gain": np.nan, "ours": cell["mean"], "ours_std": cell["std"], "n_seeds": cell["n"], "categories": cell["categories"],
                 "expected": cell["expected"], "state": cell["state"], "gain": gap["mean"], "gain_low": gap["low"], "gain_high": gap["high"],
                 "relative": gap["relative"], "over_augmented": against["mean"], "over_augmented_low": against["low"], "over_augmented_high": against["high"]}
            )  # fmt: skip
    paper = [
        {"data_set": "class not stated", "profile": "paper", "shots": "not stated", "component": component, "variant": arm, "reported": row["mean"],
         "reported_gain": row["gain"], "state": NOT_RUN} for (component, arm), row in said.iterrows()
    ]  # fmt: skip
    counts = ["n_seeds", "categories", "expected"]  # whole numbers, also beside the paper's rows, which have none
    return pd.DataFrame.from_records(paper + records).pipe(lambda t: t.astype(dict.fromkeys([c for c in counts if c in t], "Int64")))


def _show_table3(table: pd.DataFrame) -> pd.DataFrame:
    records = []
    for row in table.itertuples():
        gap, over = ({"mean": getattr(row, n), "low": getattr(row, f"{n}_low"), "high": getattr(row, f"{n}_high")} for n in ("gain", "over_augmented"))
        records.append(
            {"Data set": row.data_set, "Profile": row.profile, "Method": f"{row.component}: {row.variant}", "Ours": _cell(row),
             "Gain over the shots, points": NONE if pd.isna(row.gain) else interval(gap), "relative, %": NONE if pd.isna(row.gain) else f"{row.relative:+.1f}",
             "Over augmentations, points": NONE if pd.isna(row.over_augmented) else interval(over),
             "Reported": number(row.reported), "Reported gain, points": NONE if pd.isna(row.reported_gain) else f"{row.reported_gain:+.1f}"}
        )  # fmt: skip
    return pd.DataFrame(records)


def prompts(root: str | Path | None = None, profile: str = "mini") -> pd.DataFrame:
    """Table 4: best and worst prompt of each object (1 shot, plain runs, lowest seed), the paper's words beside those of its objects."""
    runs = _synthesized(root, profile).query("shots == 1 and tag == ''").sort_values("seed").drop_duplicates(["dataset", "category"])
    said = reported("table4", root).set_index("object") if profile == "paper" else pd.DataFrame()
    records = []
    for row in runs.itertuples():
        key = row.category.replace("_", "")
        words = said.loc[key] if key in said.index else {}
        records.append(
            {"Data set": row.dataset, "Object": row.category, "Best prompt": row.best, "cosine": f"{row.best_cosine:.3f}", "Worst prompt": row.worst,
             "cosine ": f"{row.worst_cosine:.3f}", "Paper: best": words.get("best", NONE), "Paper: worst": words.get("worst", NONE)}
        )  # fmt: skip
    if not records and profile == "mini":
        records.append({"Data set": "minifab", "Object": NOT_RUN} | dict.fromkeys(["Best prompt", "Worst prompt"], NOT_RUN))
    if profile == "paper":  # what was not run stays visibly empty
        for name, words in said.iterrows():
            if name not in {r["Object"].replace("_", "") for r in records}:
                records.append({"Data set": "mvtec_ad", "Object": name, "Best prompt": NOT_RUN, "cosine": NONE, "Worst prompt": NOT_RUN, "cosine ": NONE,
                                "Paper: best": words.best, "Paper: worst": words.worst})  # fmt: skip
    columns = ["Data set", "Object", "Best prompt", "cosine", "Worst prompt", "cosine ", "Paper: best", "Paper: worst"]
    return pd.DataFrame(records, columns=columns).fillna(NONE)


# -------------------------------------------------------------------- claims
def surface(dataset: str, category: str) -> str:
    """ "objects", "textures", or "" for BTAD's third product, which the paper leaves out.

    >>> surface("btad", "01"), surface("btad", "02"), surface("btad", "03"), surface("minifab", "wood")
    ('objects', 'textures', '', 'textures')
    """
    from fsad_lib.datasets.minifab import TEXTURES

    if dataset == "btad":
        return {"01": "objects", "02": "textures"}.get(category, "")
    textures = TEXTURES if dataset.startswith("minifab") else ("carpet", "grid", "leather", "tile", "wood") if dataset == "mvtec_ad" else ()
    return "textures" if category in textures else "objects"


def claims(root: str | Path | None = None, profile: str = "mini", setting: str = "1", rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """What the paper claims in prose, and whether it holds in our runs: id, claim, reported, ours, holds. In ``mini`` on MiniFab, which can
    neither confirm nor refute it; in ``paper`` on the paper's own data. ``rows``: as in :func:`gains`."""
    said, unit = reported("claims", root), {"mini": "minifab", "paper": "mvtec_ad"}[profile]
    rows = rows_of(root, profile) if rows is None else rows
    records = []
    for claim in said.itertuples():
        dataset = {"btad": "btad", "mvtec_loco": "mvtec_loco"}.get(claim.dataset, unit) if profile == "paper" else unit
        ours, holds = _JUDGES.get(claim.id, _by_eye)(root, profile, rows[rows.dataset == dataset], dataset, setting)
        records.append({"id": claim.id, "Claim": claim.claim, "Reported": claim.reported, "Ours": ours, "Holds": holds, "Where": dataset, "Note": claim.note})
    return pd.DataFrame(records)


def _by_eye(*_: object) -> tuple[str, str]:
    return NOT_RUN, NOT_RUN


def _judge_general(root, profile, rows, dataset, setting) -> tuple[str, str]:
    texts, worst = [], "yes"
    for of in SETTINGS:
        for name, label in BASELINES.items():
            block = rows[(rows.setting == of) & (rows.method == name) & (rows.group == "all")]
            for control in CONTROLS:
                gap = _gap(block, "generated", control)
                if pd.isna(gap["mean"]):
                    continue
                says = verdict(gap)
                says = says if says in ("yes", "no") else "unclear"  # no interval, no verdict
                worst = min(worst, says, key=["no", "unclear", "yes"].index)
                texts.append(f"{label}, {words(of)}, over {control}: {interval(gap)}")
    missing = len(SETTINGS) * len(BASELINES) * len(CONTROLS) - len(texts)
    return ("; ".join(texts), worst if not missing or worst == "no" else f"{worst} in what was run") if texts else (NOT_RUN, NOT_RUN)


def _judge_fewer(root, profile, rows, dataset, setting) -> tuple[str, str]:
    found = {of: _gap(rows[(rows.setting == of) & (rows.method == "patchcore") & (rows.group == "all")], "generated", "shots")["mean"] for of in SETTINGS}
    have = {of: v for of, v in found.items() if pd.notna(v)}
    if len(have) < 2:
        return NOT_RUN, NOT_RUN
    values = list(have.values())
    text = "PatchCore: " + ", ".join(f"{words(of)} {v:+.1f}" for of, v in have.items())
    return text, "yes, no interval" if values == sorted(values, reverse=True) else "no, no interval"


_TASKS = {"image_auroc": "detection", "pixel_auroc": "segmentation"}


def _both(says: dict[str, bool]) -> str:
    """One verdict of detection's and segmentation's.

    >>> _both({}), _both({"detection": True, "segmentation": True}), _both({"detection": False, "segmentation": True})
    ('not run', 'yes, no interval', 'detection no, segmentation yes, no interval')
    """
    if not says:
        return NOT_RUN
    if len(set(says.values())) == 1:
        return "yes, no interval" if all(says.values()) else "no, no interval"
    return ", ".join(f"{task} {'yes' if holds else 'no'}" for task, holds in says.items()) + ", no interval"


def _judge_objects(root, profile, rows, dataset, setting) -> tuple[str, str]:
    block = rows[(rows.setting == setting) & (rows.method == "patchcore") & (rows.group == "all")]
    texts, says = [], {}
    for metric, task in _TASKS.items():
        gap = _gap(block, "generated", "shots", metric)["per_category"]
        kind = np.array([surface(dataset, category) for category in gap.index], dtype=object)
        a, b = gap[kind == "objects"], gap[kind == "textures"]
        if len(a) and len(b):
            texts.append(f"{task}: objects {a.mean():+.1f} ({len(a)}), textures {b.mean():+.1f} ({len(b)})")
            says[task] = a.mean() > max(b.mean(), 0)  # losing less is no gain
    return "; ".join(texts) or NOT_RUN, _both(says)


def _judge_logical(root, profile, rows, dataset, setting) -> tuple[str, str]:
    texts, says = [], {}
    for metric, task in _TASKS.items():
        found = {}
        for group in ("logical", "structural"):
            block = rows[(rows.setting == setting) & (rows.method == "patchcore") & (rows.group == group)].assign(group="all")
            found[group] = _gap(block, "generated", "shots", metric)["mean"]
        if not any(map(pd.isna, found.values())):
            texts.append(f"{task}: " + ", ".join(f"{group} {gap:+.1f}" for group, gap in found.items()))
            says[task] = all(gap > 0 for gap in found.values())
    return "; ".join(texts) or NOT_RUN, _both(says)


def _judge_quality(root, profile, rows, dataset, setting) -> tuple[str, str]:
    table = table1(root, profile).set_index("method").image_auroc_ours
    original, others = table.get("Original image alone", np.nan), [TABLE1[key][0] for key in TABLE1 if key not in ("original", "tgvig", "duplicated", "augmented")]
    have = table[table.index.isin(others)].dropna()
    if pd.isna(original) or have.empty:
        return NOT_RUN, NOT_RUN
    below = have.index[have < original].tolist()
    return f"other generators below the original alone: {', '.join(below) or 'none'} (of {len(have)}); nothing here measures looks", "yes, no interval" if below else "no, no interval"


def _judge_prompt(root, profile, rows, dataset, setting) -> tuple[str, str]:
    table = quality(root, profile)
    table = table[table.generator == "tgvig"].set_index("prompt")
    table = table.loc[[p for p in ("best", "worst", "word", "naive") if p in table.index]]
    if table.empty or table.lpips_ours.isna().any():
        return NOT_RUN, NOT_RUN
    says = {}
    for name, metric, sign in (("IS", "inception_score", 1), ("SSIM", "ssim", 1), ("PSNR", "psnr", 1), ("LPIPS", "lpips", -1)):
        values = sign * table[f"{metric}_ours"]
        top = values.index[values >= values.max() - 1e-9]  # prompts that chose the same set are equal
        says[name] = top[0] if len(top) == 1 else "equal: " + ", ".join(top)
    return "; ".join(f"{name}: {p}" for name, p in says.items()), "yes" if set(says.values()) == {"best"} else "no"


def _judge_peak(root, profile, rows, dataset, setting) -> tuple[str, str]:
    runs = _synthesized(root, profile)
    runs = runs[(runs.dataset == dataset) & (runs.shots == 1) & (runs.tag == "")]
    if runs.empty:
        return NOT_RUN, NOT_RUN
    inside = [0 < int(np.argmax(s)) < len(s) - 1 for s in runs.similarity]
    chance = float(np.mean([max(0, len(s) - 2) / len(s) for s in runs.similarity]))  # of numbers in random order
    says = binomtest(sum(inside), len(inside), chance, alternative="greater").pvalue < 0.05
    return f"an inner peak in {sum(inside)} of {len(inside)} runs; random order: {chance:.0%}", "yes" if says else "not told from chance"


def _judge_one(root, profile, rows, dataset, setting) -> tuple[str, str]:
    """One image with the method against the same detector with all images (else five) and without it, PatchCore."""
    block = rows[(rows.method == "patchcore") & (rows.group == "all")]
    for many in ("full", "5"):
        one, other = block[(block.setting == "1") & (block.part == "generated")], block[(block.setting == many) & (block.part == "shots")]
        if len(one) and len(other):
            gap = _gap(pd.concat([one, other]), "generated", "shots")
            return f"against {words(many)} without it: {interval(gap)}", verdict(gap)
    return NOT_RUN, NOT_RUN


def _component(name: str):
    def judge(root, profile, rows, dataset, setting) -> tuple[str, str]:
        table = table3(root, profile, setting)
        table = table[table.data_set.isin(rows.unit.unique()) & table.gain.notna()].set_index(["component", "variant"])
        part = table.loc[[key for key in table.index if key[0] == name]]
        if part.empty or ("whole method", "plain run") not in table.index:
            return NOT_RUN, NOT_RUN
        whole = table.loc[_SAME if _SAME in table.index else ("whole method", "plain run"), "gain"]
        text = f"whole {whole:+.1f}; " + ", ".join(f"{v} {g:+.1f}" for (_, v), g in part.gain.items())
        if name == "copies":
            few, many = part.gain.iloc[0], part.gain.iloc[-1]
            return text, "yes, no interval" if many - few < 1.1 else "no, no interval"  # the paper calls its own 1.1 points saturated
        if name == "variance":  # "the largest single effect": what is lost without it, beside what is lost without text
            others = [whole - g for (component, _), g in table.gain.items() if component == "text"]
            if not others:
                return text + "; text was not run", NOT_RUN
            return text + f"; without text {whole - max(others):+.1f}", "yes, no interval" if (whole - part.gain > max(0.0, *others)).all() else "no, no interval"
        return text, "yes, no interval" if (part.gain < whole).all() else "no, no interval"

    return judge


_JUDGES = {
    "general": _judge_general, "fewer_more": _judge_fewer, "objects": _judge_objects, "logical": _judge_logical, "quality": _judge_quality,
    "prompt": _judge_prompt, "peak": _judge_peak, "text": _component("text"), "saturation": _component("copies"), "variance": _component("variance"),
    "one_beats_many": _judge_one,
}  # fmt: skip


# -------------------------------------------------------------------- one run
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
    from fsad_lib.tables._rows import _bootstrap_images, _wins

    table = predictions[(predictions.method == baseline) & (predictions.label >= 0)]
    wins = {}
    for arm, part in table.groupby("part", sort=False):
        part = part.sort_values("path")
        wins[arm] = _wins([(part.path.to_numpy(object), part.label.to_numpy(int), part.seen.to_numpy(bool), part.score.to_numpy(float))])
    if wins.get("generated") is None:
        return "No image AUROC: it needs good and defective images."
    lines = []
    for arm in (name for name in others if name in wins):
        mean, low, high = (100 * v for v in _bootstrap_images(wins["generated"] - wins[arm]))
        gap = {"mean": mean, "low": low, "high": high}
        says = {"yes": "better than", "no": "worse than"}.get(verdict(gap), "not told apart from")
        ours, theirs = (100 * wins[name].mean() for name in ("generated", arm))
        lines.append(f"{BASELINES[baseline]} with generated images ({ours:.1f}) is {says} {ARMS[arm]} ({theirs:.1f}): {interval(gap)} points")
    return "\n".join(lines)


# -------------------------------------------------------------------- files
def _write_rows(root: Path, profile: str) -> list[Path]:
    """What the tables are made of: data/results/tgvig_<profile>.csv, tgvig_quality_<profile>.csv."""
    path = root / "data" / "results" / f"tgvig_quality_{check_name(profile)}.csv"
    with replacing(path) as temporary:
        temporary.write_text(to_csv(quality_rows(root, profile)), encoding="utf-8")
    return [write_rows(all_rows(root, profile), "tgvig", profile, root), path]


def write_all(root: str | Path | None = None, profile: str = "mini", setting: str = "1", folder: Path | None = None) -> list[Path]:
    """Every table of TGVIG into ``folder`` (``root/figures``); only there, the rows behind them into ``root/data/results``, too: metrics, and
    the quality of the images."""
    root = Path(root or project_root())
    suffix, folder = "" if profile == "mini" else f"_{profile}", folder or root / "figures"
    mini = "Profile mini: miniature models. Its numbers cannot be compared with a paper's."
    percent = f'Percent. Mean ± standard deviation (n − 1) over seeds of the data-set mean, number of seeds in round brackets. "{NOT_RUN}": no complete run.'
    gain = (
        "Gain: shots + generated minus this arm, in percent points, with the 95 % interval over categories (seeds averaged first; over the test "
        "images where there is one category, which says nothing of other seeds; of two categories it is no more than their range); "
        "relative: in percent of this arm."
    )
    sources = (
        "Reported: Lee and Choi, arXiv 2403.06247v1, and the tables in the authors' repository; data/reported/tgvig_*.csv holds every "
        "source and inconsistency."
    )
    closed = "Percent. Web image, Midjourney and DALL-E are closed: put an image into web_image/, midjourney/ or dalle/ of a folder of yours."
    notes_of = {name: list(dict.fromkeys(n for n in reported(name, root).note if n)) for name in ("table1", "table2", "table3", "table4", "averages", "gains")}
    main, first, second, third = gains(root, profile), table1(root, profile), quality(root, profile), table3(root, profile, setting)
    if profile == "mini":  # the paper's rows, in blocks of their own
        first = pd.concat([table1(root, "paper"), first], ignore_index=True)
        second = pd.concat([quality(root, "paper"), second], ignore_index=True)
    sentences = prompts(root, profile) if profile == "paper" else pd.concat([prompts(root, "paper"), prompts(root, profile)], ignore_index=True)
    kept = memories(root, profile, setting)
    fab = per_class(root, profile, "minifab" if profile == "mini" else "mvtec_ad")
    said_class = per_class(root, "paper")
    text_gains, ends = gains_reported(root, profile), convergence(losses(root, profile))
    course = (
        f"From the mean of the runs' losses. Flat: the last fifth of the steps brings at most {LATE:.0%} of the whole fall (of a straight line it would be 22 %). "
        "A detector whose loss still falls is undertrained in every arm alike: the steps are equal."
    )
    spro = "AU-sPRO: MVTec LOCO's own metric, up to 5 % of false positives, measured at the maps' size."
    written = _write_rows(root, profile) if folder == root / "figures" else []
    for name, table, display, caption, notes in (
        ("gains", main, show_gains(main), "TGVIG: four detectors with generated images, and their controls",
         [percent, gain, "The gains that the paper's text gives: tgvig_gains_reported.", spro, sources, *notes_of["averages"], mini]),
        ("gains_reported", text_gains, show_gains_reported(text_gains), "TGVIG: the gains of the paper's text, and ours",
         ["Gain of shots + generated over the shots alone, as in the paper; beside it the gain over the same augmentations without a VQGAN. Points: difference of two percentages, "
          "with the 95 % interval over products where there are several. Relative: in percent of the shots alone; of several detectors the mean. MiniFab, logical and structural: the products that have both kinds.", sources, *notes_of["gains"], mini]),
        ("convergence", ends, show_convergence(ends), "TGVIG: do the trained detectors converge?", [course, mini]),
        ("table1", first, _show_table1(first), "TGVIG, Table 1: PatchCore from one image and what generators add to it",
         [closed, sources, *notes_of["table1"], mini]),
        ("table2", second, _show_quality(second), "TGVIG, Table 2: how good and how different the generated images are",
         ["n: images of a run, the upper bound of an Inception Score (one split). ∞: equal images.", sources, *notes_of["table2"], mini]),
        ("table3", third, _show_table3(third), f"TGVIG, Table 3: its parts, PatchCore, {words(setting)}", [percent, gain, sources, *notes_of["table3"], mini]),
        ("memory", kept, show_memories(kept), f"TGVIG: PatchCore's memory, {words(setting)}: added by us", [percent, gain, mini]),
        ("table4", sentences, None, "TGVIG, Table 4: prompts", [sources, *notes_of["table4"], mini]),
        ("per_class", said_class, _show_per_class(said_class), "TGVIG, MVTec AD: image AUROC of every class", [percent, sources, *notes_of["averages"]]),
        ("per_category", fab, _show_per_class(fab), "TGVIG: image AUROC of every category", [percent, mini]),
        ("claims", claims(root, profile, setting), None, "TGVIG: what the paper claims",
         ["A miniature's verdict neither confirms nor refutes the paper.", sources]),
        ("own_choices", own_choices(root, profile, "tgvig"), None, "Values that the TGVIG paper leaves open", []),
    ):  # fmt: skip
        written += write_table(table, f"tgvig_{name}{suffix}", folder, display=table if display is None else display, caption=caption, notes=notes)
    return written

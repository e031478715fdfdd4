"""Rows of complete runs, the papers' numbers, and means and intervals over them."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from fsad_lib import datasets
from fsad_lib.errors import FsadError
from fsad_lib.metrics import bootstrap_mean
from fsad_lib.runs import open_run, project_root, read_record

SHOTS = (2, 4, 8, 16)
METRICS = ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "aupro")
LOCO_METRIC = "au_spro"
"""MVTec LOCO's own, beside those of every data set: empty elsewhere."""
NOT_RUN = "not run"
NONE = "–"


@dataclass(frozen=True)
class Row:
    """One method of a table: its name there, and the (method, part) of ``metrics.json`` that hold it."""

    key: str
    label: str
    source: tuple[str, str]
    control: bool = False


ROWS: dict[str, Row] = {
    row.key: row
    for row in (
        Row("ti", "TI", ("ti", "sum")),
        Row("c_n", "c_n", ("c_n", "sum")),
        Row("c_a", "c_a", ("c_a", "sum")),
        Row("winclip", "WinCLIP+", ("winclip", "sum")),
        Row("adp", "ADP", ("adp", "sum")),
        Row("adp_l", "ADP_l", ("adp_l", "sum")),
        Row("memory", "memory only", ("adp", "memory"), True),
        Row("adp_text", "ADP, text only", ("adp", "text"), True),
        Row("object", 'untrained word "object"', ("object", "sum"), True),
        Row("object_text", 'untrained word "object", text only', ("object", "text"), True),
        Row("label", "class label, untrained", ("label", "sum"), True),
        Row("winclip_text", "WinCLIP, text only", ("winclip", "text"), True),
        Row("winclip_adp_backbone", "WinCLIP+ on ADP's backbone", ("winclip_adp_backbone", "sum"), True),
        Row("patch_memory", "patch memory (nearest neighbour)", ("patch_memory", "memory"), True),
    )
}
CONTROLS = tuple(key for key, row in ROWS.items() if row.control)
TABLE1 = ("winclip", "adp", "adp_l")
TABLE2 = ("ti", "c_n", "c_a", "adp")

PAPER_UNITS = {"mvtec_ad": "MVTec AD", "visa": "VisA"}
PROTOCOLS = {
    "mvtec_ad": "official test split, one model a category, direct resize to a square",
    "visa": "official 1-class split, one model a category, direct resize to a square",
    "minifab": "generated images, evaluation designs, one model a category",
    "minifab_dev": "generated images, development designs, one model a category",
    "mvtec_loco": "official test split, one model a category, direct resize to a square",
    "btad": "official test split, one model a category, direct resize to a square",
    "elpv": "defect probability 0 against 1, the middle left out, shots from a fixed pool outside the test set",
    "folder": "the user's own folder, one model a category",
}

COLUMNS = [
    "profile", "dataset", "category", "unit", "shots", "seed", "tag", "method", "part", "group", *METRICS, LOCO_METRIC, "n", "folder",
]  # fmt: skip
CELL = ["dataset", "category", "shots", "seed", "tag"]  # what one row of a grid is


def unit_name(dataset: str, category: str) -> str:
    """What a mean is taken over: the data set; for ELPV and for users' folders the single category.

    >>> unit_name("mvtec_ad", "bottle"), unit_name("elpv", "mono"), unit_name("minifab", "gear")
    ('MVTec AD', 'ELPV mono', 'MiniFab')
    """
    names = PAPER_UNITS | {"minifab": "MiniFab", "minifab_dev": "MiniFab (development)", "btad": "BTAD", "mvtec_loco": "MVTec LOCO"}
    if dataset in names:
        return names[dataset]
    if dataset == "elpv":
        return f"ELPV {category.removesuffix('_half')}" + (" (defect >= 0.5)" if category.endswith("_half") else "")
    return f"folder {category}"


def units(papers: dict[str, str], rows: pd.DataFrame, profile: str) -> list[tuple[str, str, str]]:
    """(profile, data set, unit) of a table: a paper's data sets, the profile's usual ones, whatever else was run.

    Args:
        papers: data set -> its name in the tables. rows: of :func:`collect`.
    """
    found = [("paper", dataset, name) for dataset, name in papers.items()]
    usual = [("minifab", "MiniFab"), ("elpv", "ELPV mono"), ("elpv", "ELPV poly")] if profile == "mini" else []
    run = rows[["dataset", "unit"]].drop_duplicates().sort_values("unit").itertuples(index=False)
    return list(dict.fromkeys([*found, *((profile, dataset, name) for dataset, name in [*usual, *run])]))


def expected_categories(dataset: str) -> list[str] | None:
    """The categories a data-set mean must cover; None where a unit is a single category (ELPV, a user's folder)."""
    if dataset in ("elpv", "folder"):
        return None
    return datasets.categories(dataset)


def protocol(dataset: str, category: str = "") -> str:
    """What was measured, in half a line."""
    if category.endswith("_half"):
        return "defect probability of at least 0.5 against less, shots from a fixed pool outside the test set"
    return PROTOCOLS.get(dataset, "")


def collect(root: str | Path | None = None, profile: str = "mini", method: str = "adp", tag: str = "") -> pd.DataFrame:
    """The metric rows of every complete evaluate run below ``root/data/runs/profile``.

    Args:
        root: project folder (default: the current project).
        profile: "mini" or "paper".
        method: whose evaluate runs: "adp", "anomalysd" or "tgvig".
        tag: only runs with this tag; untagged ones by default, so that experiments never enter a table.

    Runs on a user's own folder are left out: their results lie in the run's folder, and tables that are committed or shared must not
    depend on whose machine drew them.

    Returns:
        One row per run, method, part and group; columns :data:`COLUMNS`, metrics in [0, 1], empty when nothing ran.
        ``attrs["stale"]`` lists the runs left out because they no longer match the code, the data or the models; a run
        whose data or models are not on this machine is kept.

    Raises:
        FsadError: a ``metrics.json`` that cannot be read, or lacks a field, or holds a value outside [0, 1].
    """
    root = Path(root or project_root()).resolve()
    paths = sorted((root / "data" / "runs" / profile).glob(f"*/*/[0-9][0-9]_evaluate_{method}/k*_seed*/metrics.json"))
    paths = [path for path in paths if path.parts[-5] != "folder"]
    stamps = tuple(path.stat().st_mtime_ns for path in paths)
    table = _collected(root, profile, method, tag, tuple(paths), stamps)
    copy = table.copy()
    copy.attrs["stale"] = list(table.attrs["stale"])
    return copy


@lru_cache(maxsize=64)
def _collected(root: Path, profile: str, method: str, tag: str, paths: tuple[Path, ...], stamps: tuple[int, ...]) -> pd.DataFrame:
    records, stale = [], []
    for path in paths:
        match = re.fullmatch(r"k(\d+)_seed(\d+)(?:_(.+))?", path.parent.name)
        if match is None or (match[3] or "") != tag:
            continue
        rows = _metric_rows(path)
        if rows and root == project_root() and is_stale(path.parent, method):
            stale.append(str(path.parent.relative_to(root)))
            continue
        dataset = path.parts[-5]
        for row in rows:
            category = row.get("category", path.parts[-4])  # a run of all categories names them in its rows
            records.append(
                {
                    **{name: row.get(name) for name in (*METRICS, LOCO_METRIC, "n")},
                    "profile": profile, "dataset": dataset, "category": category,
                    "unit": unit_name(dataset, category), "shots": int(match[1]), "seed": int(match[2]),
                    "tag": tag, "method": row["method"], "part": row["part"], "group": row.get("group", "all"),
                    "folder": str(path.parent),
                }
            )  # fmt: skip
    table = pd.DataFrame.from_records(records, columns=COLUMNS).astype(dict.fromkeys((*METRICS, LOCO_METRIC), float))
    table.attrs["stale"] = stale
    return table


def is_stale(folder: Path, method: str) -> bool:
    """Whether a finished run would be repeated today; False where that cannot be found out on this machine."""
    provenance = read_record(folder / "provenance.json")
    given, then = provenance.get("parameters") or {}, provenance.get("ingredients") or {}
    identity = read_record(folder / "metrics.json").get("identity") or {}  # a run need not be given every value; its notebook has defaults
    if "overrides" not in given and str(identity.get("tag", "")).startswith("set-"):  # its notebook's own, which may have changed since
        return False
    given = identity | given
    try:
        run = open_run(
            folder.parent.name.removesuffix(f"_{method}"),
            method,
            **{k: given[k] for k in ("profile", "dataset", "category", "shots", "seed")},
            **{k: given[k] for k in ("tag", "data_root", "overrides") if k in given},
        )
        return any(run.ingredients[k] != then[k] for k in run.ingredients if k != "params" and k in then)
    except (FsadError, KeyError):
        return False


def _metric_rows(path: Path) -> list[dict]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        for row in rows:
            row["method"], row["part"], row["image_auroc"]
            wrong = [key for key in ("method", "part", "group", "category") if not isinstance(row.get(key, ""), str)]
            if wrong:
                raise ValueError(f"{wrong[0]} is {row[wrong[0]]!r}, expected text")
            for metric in (m for m in (*METRICS, LOCO_METRIC) if row.get(m) is not None):
                if not 0 <= float(row[metric]) <= 1:
                    raise ValueError(f"{metric} of {row['method']} is {row[metric]}, expected a number in [0, 1]")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise FsadError(
            f"{path} cannot be used: {what}. Expected {{'rows': [{{method, part, group, image_auroc, ...}}]}}; "
            "delete the run's folder and run it again."
        ) from error
    return rows


@lru_cache(maxsize=16)
def read_csv(path: Path, stamp: int) -> pd.DataFrame:
    """A CSV with its shots as text and empty cells as they are, remembered for its time ``stamp``: copy it before changing it."""
    with _usable(path):
        return pd.read_csv(path, dtype={"shots": str}, keep_default_na=False)


@contextlib.contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Within the block, a table of a run that cannot be read is named, with what to do."""
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError) as error:  # pandas' and pyarrow's own are among them
        text = " ".join(str(error).split())[:300]
        remedy = "Delete the run's folder and run it again" if "runs" in path.parts else "Restore the file"
        raise FsadError(f"{path} cannot be used: {type(error).__name__}: {text}. {remedy}.") from error


def reported(name: str, root: str | Path | None = None) -> pd.DataFrame:
    """One of the papers' tables in ``data/reported``: "adp_table1", "adp_table2", "adp_claims", "winclip_official", "anomalysd_main",
    "anomalysd_rivals".

    >>> table = reported("adp_table1")
    >>> table[(table.dataset == "visa") & (table.shots == 4) & (table.method == "adp")]["mean"].item()
    87.7
    """
    table = read_reported(name, root)
    if name != "adp_claims":
        table["shots"] = table["shots"].astype(int)
        table["mean"] = table["mean"].astype(float)
        table["std"] = pd.to_numeric(table["std"])
    return table


def read_reported(name: str, root: str | Path | None = None) -> pd.DataFrame:
    """``data/reported/<name>.csv`` of the project in ``root``, else of the one that holds this library; numbers as they are read, shots as text.

    Raises:
        FsadError: no such table; those that exist are named.
    """
    folders = [Path(folder) / "data" / "reported" for folder in (root or project_root(), Path(__file__).parents[2])]
    for folder in folders:
        path = folder / f"{name}.csv"
        if path.is_file():
            return read_csv(path, path.stat().st_mtime_ns).copy()
    known = sorted(p.stem for folder in folders for p in folder.glob("*.csv"))
    raise FsadError(f"No reported table {name!r} in {folders[0]}; there are: {', '.join(dict.fromkeys(known)) or 'none'}.")


def pick(rows: pd.DataFrame, key: str) -> pd.DataFrame:
    """The rows of one method of :data:`ROWS`, from a table with the columns method and part; none where it was not run."""
    method, part = ROWS[key].source
    return rows[(rows.method == method) & (rows.part == part)]


def bootstrap_categories(values: pd.Series) -> tuple[float, float, float]:
    """(mean, low, high) over a Series indexed by category."""
    return bootstrap_mean({str(name): float(value) for name, value in values.items()})


@lru_cache(maxsize=256)
def _predictions(path: Path, stamp: int, category: str) -> dict[tuple[str, str], tuple[np.ndarray, ...]]:
    """(method, part) -> path, label, seen, score of one category's images, sorted by path."""
    with _usable(path):
        table = pd.read_parquet(path).drop_duplicates(["method", "part", "path"]).sort_values("path")
        if "category" in table:
            table = table[table.category == category]
        return {
            key: (part.path.to_numpy(object), part.label.to_numpy(int), part.seen.to_numpy(bool), part.score.to_numpy(float))
            for key, part in table.groupby(["method", "part"])
        }


def _seed_scores(picked: pd.DataFrame) -> list[tuple[np.ndarray, ...]] | None:
    """Each run's predictions restricted to the images that all runs share; None where predictions are missing."""
    found = []
    for run in picked.itertuples():
        path = Path(run.folder) / "predictions.parquet"
        if not path.is_file():
            return None
        table = _predictions(path, path.stat().st_mtime_ns, run.category).get((run.method, run.part))
        if table is None:
            return None
        found.append(table)
    if not found:
        return None
    shared = set(found[0][0]).intersection(*(t[0] for t in found[1:]))
    keep = [np.fromiter((name in shared for name in t[0]), bool, len(t[0])) for t in found]
    return [tuple(column[k] for column in t) for t, k in zip(found, keep, strict=True)]


def wins_of(seeds: list[tuple[np.ndarray, ...]], group: str = "all") -> np.ndarray | None:
    """(anomalous, normal) matrix of the share of seeds in which the anomalous image scores higher (ties half); its mean is
    the mean AUROC over the seeds. None without images of both classes.

    Args:
        seeds: path, label, seen and score, each (N,), of every seed; the same images in the same order. group: "all", "seen" or "unseen".
    """
    _, label, seen, _ = seeds[0]
    bad = (label == 1) & (True if group == "all" else seen == (group == "seen"))
    good = label == 0
    if not bad.any() or not good.any():
        return None
    gaps = [score[bad][:, None] - score[good][None] for *_, score in seeds]
    return np.mean([(gap > 0) + 0.5 * (gap == 0) for gap in gaps], axis=0)


@lru_cache(maxsize=8)
def _draws(size: int, n: int, seed: int) -> np.ndarray:
    counts = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), n)
    return (counts / size).astype(np.float32)


def bootstrap_images(wins: np.ndarray, n: int = 2000) -> tuple[float, float, float]:
    """Mean, 2.5 and 97.5 % percentile of a matrix of :func:`wins_of`, or of the difference of two: images are resampled within their class."""
    draws = ((_draws(wins.shape[0], n, 0) @ wins.astype(np.float32)) * _draws(wins.shape[1], n, 1)).sum(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(wins.mean()), float(low), float(high)


def mean_over_categories(
    picked: pd.DataFrame, expected: Sequence[str] | None, metric: str = "image_auroc", group: str = "all"
) -> dict:
    """The data-set mean of one method at one number of shots, over seeds.

    For each seed the mean over the categories; then mean and standard deviation (n - 1) of those means over the seeds.
    A seed that lacks a category does not count. The 95 % interval averages each category over the seeds first and then
    resamples categories; with one category it resamples images (needs ``predictions.parquet``; image AUROC only).

    Args:
        picked: rows of :func:`collect` for one unit, shots, method and part.
        expected: categories the mean must cover; None takes those that are there.

    Returns:
        mean, std, low, high in percent (NaN where there is none), n (seeds), categories, expected, state
        ("run", "partial": some expected category is missing from every seed, "not run", "–": run, but it has no such metric: no masks, no map).
    """
    judged = (picked.group == group).any()
    picked = picked[(picked.group == group) & picked[metric].notna()]
    wanted = sorted(picked.category.unique()) if expected is None else list(expected)
    empty = dict.fromkeys(("mean", "std", "low", "high"), np.nan) | {"n": 0, "categories": 0, "expected": len(wanted)}
    if picked.empty:
        return empty | {"state": NONE if judged else NOT_RUN}
    if picked.duplicated(["category", "seed"]).any():
        twice = picked[picked.duplicated(["category", "seed"], keep=False)].folder.unique()
        raise FsadError(f"Two runs give the same category and seed: {', '.join(twice)}. Keep one of them.")
    grid = picked.pivot(index="category", columns="seed", values=metric)
    covered = [c for c in wanted if c in grid.index]
    if not covered:
        return empty | {"state": NOT_RUN}
    grid = grid.loc[covered]
    full = grid.dropna(axis=1)
    partial = len(covered) < len(wanted) or full.shape[1] == 0
    if full.shape[1] == 0:  # no seed has them all: the best covered seed
        seed = grid.notna().sum().idxmax()
        full = grid[[seed]].dropna()
    per_seed = full.mean()
    low = high = np.nan
    if len(full) > 1:
        _, low, high = bootstrap_categories(full.mean(axis=1))
    elif metric == "image_auroc":
        seeds = _seed_scores(picked[picked.category.isin(full.index) & picked.seed.isin(full.columns)])
        wins = None if seeds is None else wins_of(seeds, group)
        if wins is not None:
            _, low, high = bootstrap_images(wins)
    return {
        "mean": 100 * per_seed.mean(),
        "std": 100 * per_seed.std(ddof=1) if len(per_seed) > 1 else np.nan,
        "low": 100 * low,
        "high": 100 * high,
        "n": len(per_seed),
        "categories": len(full),
        "expected": len(wanted),
        "state": "partial" if partial else "run",
    }


def difference(left: pd.DataFrame, right: pd.DataFrame, metric: str = "image_auroc", group: str = "all") -> dict | None:
    """Paired difference left - right in percent points over the categories and seeds that both have.

    Seeds are averaged first; the interval resamples categories, or images where there is one category (of the groups "all", "seen" and "unseen",
    which predictions tell apart).
    Returns mean, low, high, per_category (Series) and, where there is one category, per_seed (Series); None when they share nothing.
    """
    index = ["category", "seed"]
    a = left[left.group == group].set_index(index)
    b = right[right.group == group].set_index(index)
    shared = a.index.intersection(b.index)
    if not len(shared):
        return None
    per_category = (100 * (a.loc[shared, metric] - b.loc[shared, metric])).groupby("category").mean()
    if len(per_category) > 1:
        _, low, high = bootstrap_categories(per_category)
    else:
        low = high = np.nan
        seeds = _seed_scores(pd.concat([a.loc[shared], b.loc[shared]]).reset_index())
        wins = [None] if seeds is None else [wins_of(part, group) for part in (seeds[: len(shared)], seeds[len(shared) :])]
        if all(w is not None for w in wins) and metric == "image_auroc" and group in ("all", "seen", "unseen"):
            _, low, high = (100 * v for v in bootstrap_images(wins[0] - wins[1]))
    found = {"mean": per_category.mean(), "low": low, "high": high, "per_category": per_category}
    return found if len(per_category) > 1 else found | {"per_seed": (100 * (a.loc[shared, metric] - b.loc[shared, metric])).groupby("seed").mean()}

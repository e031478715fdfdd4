"""ADP's tables, with the controls in every one."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from fsad_lib.errors import FsadError
from fsad_lib.profiles import load_profile
from fsad_lib.runs import project_root
from fsad_lib.tables._rows import (
    CONTROLS,
    METRICS,
    NONE,
    NOT_RUN,
    PAPER_UNITS,
    ROWS,
    SHOTS,
    TABLE1,
    TABLE2,
    collect,
    difference,
    expected_categories,
    mean_over_categories,
    protocol,
    read_csv,
    reported,
)
from fsad_lib.tables._text import MINI_NOTE, interval, number, verdict


@dataclass(frozen=True)
class Block:
    """Rows that share a data set and a profile; ``reported`` tells whether a paper's numbers belong beside them."""

    profile: str
    dataset: str
    unit: str
    reported: bool
    rows: pd.DataFrame

    @cached_property
    def _groups(self) -> dict[tuple[int, str, str], pd.DataFrame]:
        return dict(list(self.rows.groupby(["shots", "method", "part"])))

    def pick(self, shots: int, key: str) -> pd.DataFrame:
        """The rows of one method of :data:`ROWS` at one number of shots."""
        return self._groups.get((shots, *ROWS[key].source), self.rows.iloc[:0])

    def mean(self, shots: int, key: str, metric: str = "image_auroc") -> dict:
        """One method's mean over the data set, see :func:`fsad_lib.tables.mean_over_categories`."""
        return mean_over_categories(self.pick(shots, key), self.expected, metric)

    @cached_property
    def _gaps(self) -> dict[tuple[int, str, str], dict | None]:
        return {}

    def gap(self, shots: int, left: str, right: str) -> dict | None:
        """The paired difference of two methods; None unless both were run (on a benchmark: on all of it)."""
        key = (shots, left, right)
        if key not in self._gaps:
            rows = self.pick(shots, left), self.pick(shots, right)
            whole = not self.reported or all(self.mean(shots, name)["state"] == "run" for name in (left, right))
            self._gaps[key] = difference(*rows) if whole else None
        return self._gaps[key]

    @cached_property
    def expected(self) -> list[str] | None:
        """The categories that a mean must cover, see :func:`fsad_lib.tables.expected_categories`."""
        return expected_categories(self.dataset)


def blocks_of(root: str | Path | None, profile: str, paper_units: bool = True) -> list[Block]:
    """The blocks of a table: the paper's data sets (only with ``paper_units``), the profile's usual ones, whatever else was run."""
    ours = collect(root, profile)
    real = ours if profile == "paper" else collect(root, "paper")
    blocks = []
    if paper_units:
        blocks += [Block("paper", d, u, True, real[real.dataset == d]) for d, u in PAPER_UNITS.items()]
    usual = {"MiniFab": "minifab", "ELPV mono": "elpv", "ELPV poly": "elpv"} if profile == "mini" else {}
    found = dict(zip(ours.unit, ours.dataset, strict=True))
    for unit, dataset in (usual | {u: found[u] for u in sorted(found)}).items():
        if dataset in PAPER_UNITS and profile == "paper":
            continue
        blocks.append(Block(profile, dataset, unit, False, ours[ours.unit == unit]))
    return blocks


def _grid(blocks: list[Block], keys: Iterable[str], shots: Iterable[int], paper_values: pd.DataFrame) -> pd.DataFrame:
    records = []
    for block in blocks:
        for k in shots:
            for key in keys:
                cell = block.mean(k, key)
                value, spread, note = np.nan, np.nan, ""
                if block.reported:
                    hit = paper_values[
                        (paper_values.dataset == block.dataset) & (paper_values.shots == k) & (paper_values.method == key)
                    ]
                    if len(hit):
                        value, spread = float(hit["mean"].iloc[0]), float(hit["std"].iloc[0])
                        note = hit["note"].iloc[0]
                if cell["state"] == "partial" and block.reported:  # part of a benchmark is not the benchmark
                    cell |= dict.fromkeys(("mean", "std", "low", "high"), np.nan)
                records.append(
                    {
                        "data_set": block.unit, "profile": block.profile, "shots": k, "key": key,
                        "method": ROWS[key].label, "role": "control" if ROWS[key].control else "method",
                        "reported": value, "reported_std": spread,
                        "ours": cell["mean"], "ours_std": cell["std"], "n_seeds": cell["n"],
                        "low": cell["low"], "high": cell["high"], "difference": cell["mean"] - value,
                        "categories": cell["categories"], "expected": cell["expected"], "state": cell["state"],
                        "note": note, "protocol": protocol(block.dataset, "_half" if "0.5" in block.unit else ""),
                    }
                )  # fmt: skip
    return pd.DataFrame.from_records(records)


def table1(root: str | Path | None = None, profile: str = "mini", shots: Sequence[int] = SHOTS) -> pd.DataFrame:
    """ADP's Table 1 (image AUROC in percent; WinCLIP+, ADP, ADP_l at 2, 4, 8, 16 shots) with the control rows.

    One row per data set, profile, shots and method: reported, reported_std, ours, ours_std, n_seeds, low, high
    (95 %), difference (ours - reported), categories, expected, state, protocol. MVTec AD and VisA are filled only from
    runs of the paper profile; a miniature's runs stand in rows of their own, without a reported value. :func:`show`
    makes it readable.
    """
    return _grid(blocks_of(root, profile), (*TABLE1, *CONTROLS), shots, reported("adp_table1", root))


def table2(root: str | Path | None = None, profile: str = "mini", shots: int = 4) -> pd.DataFrame:
    """ADP's Table 2 (plain textual inversion, c_n, c_a and ADP at 4 shots) with the controls; columns as in
    :func:`table1` and ``text_only``, ``text_only_std``: the same without the patch memory, since the paper does not say
    whether its Table 2 includes it."""
    blocks = blocks_of(root, profile)
    values = reported("adp_table2", root)
    table = _grid(blocks, (*TABLE2, "winclip", *CONTROLS), [shots], values)
    text = []
    for block in blocks:
        rows = block.rows[(block.rows.shots == shots) & (block.rows.part == "text")]
        for row in table[(table.data_set == block.unit) & (table.profile == block.profile)].itertuples():
            method = ROWS[row.key].source[0]
            wanted = row.key in (*TABLE2, "object", "label", "winclip", "winclip_adp_backbone")
            cell = mean_over_categories(rows[rows.method == method] if wanted else rows.iloc[:0], block.expected)
            hidden = cell["state"] == "partial" and block.reported
            text.append((np.nan, np.nan) if hidden else (cell["mean"], cell["std"]))
    table[["text_only", "text_only_std"]] = text
    return table


def seen_unseen(root: str | Path | None = None, profile: str = "mini", shots: int = 4) -> pd.DataFrame:
    """Image AUROC for all defects, and for the kinds that the miniatures saw in pretraining and those they did not,
    apart. One row per data set, method and group; columns as in :func:`table1` without the reported ones."""
    records = []
    for block in blocks_of(root, profile, paper_units=profile == "paper"):
        rows = block.rows[block.rows.shots == shots]
        groups = [g for g in ("seen", "unseen") if (rows.group == g).any()]
        for key in (*TABLE2, "winclip", "adp_l", *CONTROLS) if groups else ():
            for group in ("all", *groups):
                cell = mean_over_categories(block.pick(shots, key), _group_categories(block, rows, group), group=group)
                records.append(
                    {"data_set": block.unit, "profile": block.profile, "shots": shots, "key": key,
                     "method": ROWS[key].label, "role": "control" if ROWS[key].control else "method",
                     "group": group, "ours": cell["mean"], "ours_std": cell["std"], "n_seeds": cell["n"],
                     "low": cell["low"], "high": cell["high"], "categories": cell["categories"],
                     "expected": cell["expected"], "state": cell["state"]}
                )  # fmt: skip
    columns = "data_set profile shots key method role group ours ours_std n_seeds low high categories expected state"
    return pd.DataFrame.from_records(records, columns=columns.split())


def hinge(root: str | Path | None = None, profile: str = "mini") -> pd.DataFrame:
    """How often eq. 4's hinge taught *c_a* anything, and what *c_a* is worth beside *c_n*: text, one row per data set and number of shots.

    Read from the ``trace.csv`` of the runs' first stage; "–" for the columns about it where that stage is not on this machine.
    """
    records = []
    for block in blocks_of(root, profile):
        for shots, rows in block.rows.groupby("shots"):
            folders = [Path(folder) for folder in rows.folder.unique()]
            paths = [folder.parent.with_name("10_personalize_adp") / folder.name / "trace.csv" for folder in folders]
            traces = [read_csv(path, path.stat().st_mtime_ns) for path in paths if path.is_file()]
            steps = [(trace.hinge[trace.concept == "c_a"].astype(float) > 0) for trace in traces]
            gap = block.gap(shots, "c_a", "c_n")
            records.append(
                {"Data set": block.unit, "Profile": block.profile, "Shots": str(shots), "Runs": str(len(folders)),
                 "Hinge above 0, % of the steps": f"{100 * np.mean([s.mean() for s in steps]):.0f}" if steps else NONE,
                 "Runs in which it never was": str(sum(not s.any() for s in steps)) if steps else NONE,
                 "c_a - c_n, points": interval(gap) if gap else NONE}
            )  # fmt: skip
        if block.rows.empty:
            records.append({"Data set": block.unit, "Profile": block.profile, "Shots": NOT_RUN})
    table = pd.DataFrame.from_records(records).fillna("")
    table.attrs["notes"] = [
        "Points: percent points of image AUROC with the 95 % interval over categories (seeds averaged first), or over images where there is one category, "
        'which says nothing of other seeds. The control, the untrained word "object", stands in Table 2 and beside the claims.',
        *([MINI_NOTE] if (table.Profile == "mini").any() else []),
    ]
    return table


def _group_categories(block: Block, rows: pd.DataFrame, group: str) -> list[str] | None:
    expected = block.expected
    if group == "all" or expected is None:
        return expected
    with_group = set(rows[rows.group == group].category)
    not_run = set(expected) - set(rows.category)
    return [c for c in expected if c in with_group | not_run]


def per_category(
    root: str | Path | None = None, profile: str = "mini", shots: int = 4, metric: str = "image_auroc"
) -> pd.DataFrame:
    """One row per category and method: mean and standard deviation over seeds (percent) and their number.

    The ADP paper's per-category values are in a supplement that was not at hand, so there is no reported column.
    """
    if metric not in METRICS:
        raise FsadError(f"Unknown metric {metric!r}; the metrics are {', '.join(METRICS)}.")
    records = []
    for block in blocks_of(root, profile, paper_units=profile == "paper"):
        rows = block.rows[(block.rows.shots == shots) & (block.rows.group == "all")]
        names = block.expected or sorted(rows.category.unique()) or [block.unit.split(" ")[-1]]
        for category in names:
            for key in (*TABLE2, "winclip", "adp_l", *CONTROLS):
                picked = block.pick(shots, key)
                values = 100 * picked[(picked.category == category) & (picked.group == "all")][metric].dropna()
                records.append(
                    {"data_set": block.unit, "profile": block.profile, "shots": shots, "category": category, "key": key,
                     "method": ROWS[key].label, "role": "control" if ROWS[key].control else "method", "metric": metric,
                     "ours": values.mean(), "ours_std": values.std(ddof=1), "n_seeds": len(values),
                     "state": "run" if len(values) else NOT_RUN}
                )  # fmt: skip
    return pd.DataFrame.from_records(records)


def all_metrics(root: str | Path | None = None, profile: str = "mini", shots: int = 4) -> pd.DataFrame:
    """Image AUROC, AP, F1-max (threshold chosen on the test images: an oracle) and, where there are masks, pixel AUROC
    and AUPRO of every method, as data-set means in percent."""
    records = []
    for block in blocks_of(root, profile, paper_units=profile == "paper"):
        for key in (*TABLE2, "winclip", "adp_l", *CONTROLS):
            for metric in METRICS:
                cell = block.mean(shots, key, metric)
                records.append(
                    {"data_set": block.unit, "profile": block.profile, "shots": shots, "key": key,
                     "method": ROWS[key].label, "role": "control" if ROWS[key].control else "method", "metric": metric,
                     "ours": cell["mean"], "ours_std": cell["std"], "n_seeds": cell["n"],
                     "categories": cell["categories"], "expected": cell["expected"], "state": cell["state"]}
                )  # fmt: skip
    return pd.DataFrame.from_records(records)


def summary(root: str | Path | None = None, profile: str = "mini", shots: int | None = None) -> pd.DataFrame:
    """A small text table for the end of the demo: methods x data sets that were run, image AUROC in percent.

    ``shots`` defaults to 4 where a data set has it, else its smallest. Column heads say shots, seeds and how many of the
    data set's categories the mean covers. Empty when nothing ran.
    """
    columns: dict[str, list[str]] = {}
    for block in blocks_of(root, profile, paper_units=profile == "paper"):
        if block.rows.empty:
            continue
        have = sorted(block.rows.shots.unique())
        k = shots if shots is not None else 4 if 4 in have else have[0]
        cells = {key: block.mean(k, key) for key in ROWS}
        best = max(cells.values(), key=lambda cell: (cell["n"], cell["categories"]))
        if not best["n"]:
            continue
        covered = f", {best['categories']} of {best['expected']} categories" if best["expected"] > 1 else ""
        seeds = f"{best['n']} seed{'s' if best['n'] > 1 else ''}"
        columns[f"{block.unit} ({profile}), {k} shots, {seeds}{covered}"] = [
            NOT_RUN if cell["state"] == NOT_RUN else number(cell["mean"], cell["std"]) for cell in cells.values()
        ]
    index = pd.Index([f"{row.label}{' (control)' if row.control else ''}" for row in ROWS.values()], name="image AUROC, %")
    return pd.DataFrame(columns, index=index)


def memory_sentence(root: str | Path | None = None, profile: str = "mini", shots: int = 4) -> str:
    """One sentence per data set that was run: what adding the text score changes against ADP's own patch memory alone."""
    lines = []
    for block in blocks_of(root, profile, paper_units=profile == "paper"):
        gap = block.gap(shots, "adp", "memory")
        if gap is not None:
            alone = block.mean(shots, "memory")["mean"]
            text = block.mean(shots, "adp_text")["mean"]
            says = {"yes": "better than memory alone", "no": "worse than memory alone"}.get(verdict(gap), "not told apart from memory alone")
            lines.append(
                f"On {block.unit} ({profile} profile, {shots} shots): ADP's memory alone {alone:.1f} % image AUROC, its text alone "
                f"{text:.1f} %; the sum is {says} ({interval(gap)} points)."
            )
    return "\n".join(lines) or f"No ADP run with {shots} shots in the {profile} profile yet."


def own_choices(root: str | Path | None = None, profile: str = "mini", method: str = "adp") -> pd.DataFrame:
    """Each value that a method's paper leaves open: name, our value, the reason, the range tried and its effect.

    Values and reasons are the profile's YAML (the comment behind a value); ``data/own_choices.csv`` (other methods:
    ``own_choices_<method>.csv``) adds the choices that are not a number in the profile, and what was tried (rows of this
    profile, or of every profile).

    >>> own_choices(profile="mini").set_index("Name").loc["adp.alpha", "Value"]
    '0.3'
    """
    text = (Path(__file__).parents[1] / "profiles" / f"{load_profile(profile).name}.yaml").read_text(encoding="utf-8")
    settings = load_profile(profile)
    wanted = {f"{method}.{name}" for name in type(getattr(settings, method)).model_fields} | {"winclip.tau"}
    wanted |= {"diffusion.image_size"} if method == "adp" else {"inpainting.checkpoint", "inpainting.image_size"}
    if method == "tgvig":
        named = ("tgvig", "baselines", "vqgan", "baseline_backbone", "distillation_backbone", "efficientad_teacher", "inception")
        wanted = {f"{section}.{name}" for section in named for name in type(getattr(settings, section)).model_fields} - {
            f"{section}.{name}" for section in named for name in ("checkpoint", "source") if section != "vqgan" or name == "source"
        }  # fmt: skip
    extra = _extra_choices(root, "own_choices.csv" if method == "adp" else f"own_choices_{method}.csv")
    extra = extra[extra.profile.isin(["", profile])].set_index("name")
    records, section = [], ""
    for line in text.splitlines():
        match = re.match(r"(\s*)([\w]+):\s*([^#]*?)\s*(?:#\s*(.*))?$", line)
        if match is None or line.lstrip().startswith("#"):
            continue
        indent, key, value, reason = match.groups()
        if not indent:
            section = key
        name = f"{section}.{key}"
        reason = (reason or "").removeprefix("own choice:").strip()
        if indent and name in wanted and not re.match(r"(from the )?(paper|abstract|secondary summary)\b", reason):
            tried = extra.loc[name] if name in extra.index else {}
            records.append(
                {"Name": name, "Value": value, "Reason": tried.get("reason") or reason or NONE,
                 "Tried": tried.get("tried") or NONE, "Effect": tried.get("effect") or NONE}
            )  # fmt: skip
    known = {record["Name"] for record in records}
    for name, row in extra.iterrows():
        if name not in known and name not in wanted:
            records.append(
                {"Name": name, "Value": row["value"], "Reason": row["reason"], "Tried": row["tried"] or NONE,
                 "Effect": row["effect"] or NONE}
            )  # fmt: skip
    return pd.DataFrame.from_records(records, columns=["Name", "Value", "Reason", "Tried", "Effect"])


def _extra_choices(root: str | Path | None, name: str) -> pd.DataFrame:
    for folder in (Path(root or project_root()), Path(__file__).parents[2]):
        path = folder / "data" / name
        if path.is_file():
            return read_csv(path, path.stat().st_mtime_ns).copy()
    return pd.DataFrame(columns=["profile", "name", "value", "reason", "tried", "effect"])

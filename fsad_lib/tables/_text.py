"""Numbers as text; tables as CSV, Markdown and LaTeX."""

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fsad_lib.errors import FsadError
from fsad_lib.runs import project_root, replacing
from fsad_lib.tables._rows import CELL, COLUMNS, NONE, NOT_RUN, read_csv

MINI_NOTE = "Profile mini: miniature models. Its numbers cannot be compared with a paper's."


def number(mean: float, std: float = np.nan, n: int | None = None) -> str:
    """Mean, standard deviation and number of seeds, to one place.

    >>> number(95.84, 0.41, 3), number(95.84), number(float("nan"))
    ('95.8 ± 0.4 (3)', '95.8', '–')
    """
    if mean is None or math.isnan(mean):
        return NONE
    text = f"{mean:.1f}" + ("" if std is None or math.isnan(std) else f" ± {std:.1f}")
    return text if n is None else f"{text} ({n})"


def interval(gap: dict) -> str:
    """A difference with its 95 % interval (mean, low, high), to one place; without the brackets where there is no interval.

    >>> interval({"mean": 1.74, "low": -0.2, "high": 3.01})
    '+1.7 [-0.2, +3.0]'
    """
    if math.isnan(gap["low"]):
        return f"{gap['mean']:+.1f}"
    return f"{gap['mean']:+.1f} [{gap['low']:+.1f}, {gap['high']:+.1f}]"


def verdict(gap: dict) -> str:
    """Whether a difference is above 0 with its whole 95 % interval: yes, no (below 0), unclear.

    An interval over the images of one category knows nothing of other seeds: there every seed must agree as well.

    >>> verdict({"mean": 1.0, "low": 0.2, "high": 2.0}), verdict({"mean": 1.0, "low": -0.2, "high": 2.0})
    ('yes', 'unclear')
    >>> verdict({"mean": 1.0, "low": 0.2, "high": 2.0, "per_seed": pd.Series([4.0, -1.0, 0.0])})
    'unclear'
    """
    if math.isnan(gap["low"]):
        return "yes, no interval" if gap["mean"] > 0 else "no, no interval"
    says = "yes" if gap["low"] > 0 else "no" if gap["high"] < 0 else "unclear"
    seeds = gap.get("per_seed")
    return says if seeds is None or (seeds > 0).all() or (seeds < 0).all() else "unclear"


def cell_text(row: Any) -> str:
    """Our value of a row with ours, ours_std, n_seeds, categories, expected and state: "95.8 ± 0.4 (3)", and what it does not cover.

    >>> from types import SimpleNamespace
    >>> cell = dict(ours=95.84, ours_std=0.41, n_seeds=3, categories=2, expected=8)
    >>> cell_text(SimpleNamespace(**cell, state="partial")), cell_text(SimpleNamespace(**cell, state="not run"))
    ('95.8 ± 0.4 (3), 2 of 8 categories only', 'not run')
    """
    if row.state in (NOT_RUN, NONE):
        return row.state
    covered = f"{row.categories} of {row.expected} categories"
    if pd.isna(row.ours):
        return f"partial: {covered}"
    return number(row.ours, row.ours_std, row.n_seeds) + (f", {covered} only" if row.state == "partial" else "")


def show(table: pd.DataFrame) -> pd.DataFrame:
    """A result of ``table1``, ``table2``, ``seen_unseen``, ``per_category`` or ``all_metrics``
    as text, for reading: one row per data set and method.

    "95.8 ± 0.4 (3)" is mean, standard deviation over seeds, number of seeds; the bracket after it the 95 % interval.
    """
    if table.empty:
        return pd.DataFrame({"nothing to show": []})
    table = table.copy()
    table["role"] = table["role"].where(table["role"] == "control", "")
    index = ["data_set", "profile", "method", "role"]
    blocks = []
    for _, block in table.groupby(["data_set", "profile"], sort=False):
        kind = next((c for c in ("category", "metric", "group") if c in block and block[c].nunique() > 1), "shots")
        if "category" in block:
            kind = "category"
        out = block[index].drop_duplicates().set_index("method", drop=False)
        for value, part in block.groupby(kind, sort=False):
            part = part.set_index("method")
            head = f"{value} shots" if kind == "shots" else str(value)
            columns = {}
            if "reported" in part:
                if block.reported.notna().any():
                    columns["Reported"] = [number(r.reported, r.reported_std) for r in part.itertuples()]
                columns["Ours"] = [cell_text(r) for r in part.itertuples()]
                if block.difference.notna().any():
                    columns["Difference"] = [NONE if math.isnan(v) else f"{v:+.1f}" for v in part.difference]
            elif "expected" in part:
                columns[""] = [cell_text(r) for r in part.itertuples()]
            else:
                columns[""] = [
                    NOT_RUN if r.state == NOT_RUN else number(r.ours, r.ours_std, r.n_seeds) for r in part.itertuples()
                ]
            if "low" in part and block.low.notna().any():
                columns["95 %"] = [
                    NONE if math.isnan(r.low) else f"[{r.low:.1f}, {r.high:.1f}]" for r in part.itertuples()
                ]
            if "text_only" in part:
                columns["Ours, text only"] = [number(r.text_only, r.text_only_std) for r in part.itertuples()]
            for name, column in columns.items():
                out[f"{head}: {name}" if name else head] = pd.Series(column, index=part.index)
        blocks.append(out.reset_index(drop=True))
    shown = pd.concat(blocks, ignore_index=True).fillna(NONE)
    heads = [c for c in shown if c not in index]
    first = list(dict.fromkeys(c.split(":")[0] for c in heads))
    inner = ["Reported", "Ours", "Difference", "95 %", "Ours, text only"]
    order = {c: (first.index(c.split(":")[0]), inner.index(c.split(": ")[1]) if ": " in c else -1) for c in heads}
    shown = shown[index + sorted(heads, key=order.__getitem__)]
    return shown.rename(columns={"data_set": "Data set", "profile": "Profile", "method": "Method", "role": "Role"})


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "−": "$-$", "<": "$<$", ">": "$>$",
    "τ": r"$\tau$", "α": r"$\alpha$", "γ": r"$\gamma$", "×": r"$\times$", "≥": r"$\geq$", "≤": r"$\leq$", "∞": r"$\infty$", "|": r"\textbar{}",
}  # fmt: skip
_SYMBOLS = {r"ADP\_l": r"ADP$_\ell$", r"c\_n": "$c_n$", r"c\_a": "$c_a$"}


def latex_escape(text: object) -> str:
    r"""A text as LaTeX prints it, with the symbols of the methods' names.

    >>> latex_escape("50 % of c_n & ADP_l")
    '50 \\% of $c_n$ \\& ADP$_\\ell$'
    >>> latex_escape("∞: equal images")
    '$\\infty$: equal images'
    """
    out = "".join(_LATEX.get(ch, ch) for ch in str(text))
    for plain, symbol in _SYMBOLS.items():
        out = re.sub(rf"(?<![\w\\]){re.escape(plain)}(?!\w|\\_)", lambda _, s=symbol: s, out)
    return out


def _markdown_escape(text: object) -> str:
    return re.sub(r"([|<>*_`])", r"\\\1", str(text)).replace("\n", " ")


def _sections(display: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """One sub-table per data set and profile, without the columns that say nothing in it."""
    by = [c for c in ("Data set", "Profile") if c in display]
    if len(by) < 2 or "Claim" in display:
        return [("", display)]
    parts = []
    for (data_set, profile), block in display.groupby(by, sort=False):
        block = block.drop(columns=by)
        keep = [c for c in block if c == "Method" or not block[c].astype(str).isin([NONE, "", "nan"]).all()]
        parts.append((f"{data_set}, profile {profile}", block[keep]))
    return parts


def to_markdown(display: pd.DataFrame, caption: str = "", notes: Sequence[str] = ()) -> str:
    """GitHub Markdown: a table per data set, the caption above, the notes below."""
    lines = [f"**{caption}**", ""] if caption else []
    for title, block in _sections(display):
        lines += [f"### {title}", ""] if title else []
        lines.append("| " + " | ".join(map(_markdown_escape, block.columns)) + " |")
        lines.append("|" + "---|" * len(block.columns))
        lines += ["| " + " | ".join(map(_markdown_escape, row)) + " |" for row in block.itertuples(index=False)]
        lines.append("")
    lines += [f"- {note}" for note in notes]
    return "\n".join(lines).rstrip() + "\n"


def to_latex(display: pd.DataFrame, caption: str = "", label: str = "", notes: Sequence[str] = ()) -> str:
    """A ``table`` for LaTeX with one ``tabular`` per data set; needs the packages booktabs and graphicx."""
    lines = [r"% \usepackage{booktabs, graphicx}", r"\begin{table}", r"\centering\small"]
    if caption:
        lines.append(rf"\caption{{{latex_escape(caption)}}}")
    if label:
        lines.append(rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', label)}}}")
    for title, block in _sections(display):
        lines += [rf"\textbf{{{latex_escape(title)}}}\\[2pt]"] if title else []
        wide = len(block.columns) > 6
        lines += [r"\resizebox{\linewidth}{!}{%"] if wide else []
        lines += [rf"\begin{{tabular}}{{{'l' * len(block.columns)}}}", r"\toprule"]
        lines += [" & ".join(map(latex_escape, block.columns)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(latex_escape, row)) + r" \\" for row in block.itertuples(index=False)]
        lines += [r"\bottomrule", r"\end{tabular}" + ("}" if wide else "") + r"\\[6pt]"]
    lines += [rf"\par\footnotesize {latex_escape(note)}" for note in notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def check_file_name(name: str) -> str:
    """``name`` as the name of a file without its ending; FsadError for one that could leave its folder."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or ".." in name:
        raise FsadError(f"Found the file name {name!r}; expected letters, digits, '_', '-' and single dots, no folders.")
    return name


def to_csv(table: pd.DataFrame) -> str:
    """CSV without an index, numbers to four places."""
    out = io.StringIO()
    rounded = table.copy()
    for column in rounded.select_dtypes("float"):
        rounded[column] = rounded[column].round(4)
    rounded.to_csv(out, index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    return out.getvalue()


def count_cells(rows: pd.DataFrame, method: str, profile: str, root: Path) -> tuple[Path, int, int]:
    """``data/results/<method>_<profile>.csv``, the number of complete cells in `rows`, and the number behind that file (0: there is none)."""
    path = root / "data" / "results" / f"{check_file_name(method)}_{check_file_name(profile)}.csv"
    there = len(read_csv(path, path.stat().st_mtime_ns)[CELL].drop_duplicates()) if path.is_file() else 0
    return path, len(rows[CELL].drop_duplicates()), there


def write_rows(rows: pd.DataFrame, method: str, profile: str, root: Path) -> Path:
    """Every collected row into ``data/results/<method>_<profile>.csv`` (metrics in [0, 1], no local paths).

    Raises:
        FsadError: the file there holds more cells than `rows`: a few runs never replace the grid behind the committed tables.
    """
    path, here, there = count_cells(rows, method, profile, root)
    if here < there:
        raise FsadError(
            f"{path.name} holds {there} cells (category, shots, seed, tag), {here} of them are complete on this machine. Run the grid first "
            f"(python -m fsad_lib grid {method}), give another folder for the tables, or remove {path} to begin anew."
        )
    with replacing(path) as temporary:
        order = ["dataset", "category", "shots", "seed", "tag", "method", "part", "group"]
        temporary.write_text(to_csv(rows[[c for c in COLUMNS if c != "folder"]].sort_values(order)), encoding="utf-8")
    return path


def write_table(
    table: pd.DataFrame,
    name: str,
    folder: str | Path | None = None,
    *,
    display: pd.DataFrame | None = None,
    caption: str = "",
    notes: Sequence[str] = (),
) -> list[Path]:
    """Write ``name.csv`` (the numbers), ``name.md`` and ``name.tex`` (for reading) into ``folder`` (default: figures).

    Args:
        table: what goes into the CSV.
        display: what people read; default: :func:`show` of a numeric table, else the table itself.
        caption, notes: stand above and below the Markdown and LaTeX tables; so do notes that a table brings along (``attrs["notes"]``).

    Returns:
        The three paths. Files are replaced one by one, never half-written.
    """
    check_file_name(name)
    folder = Path(folder) if folder is not None else project_root() / "figures"
    if table.index.name is not None:
        table = table.reset_index()
    if display is None:
        display = show(table) if "key" in table else table
    notes = [*notes, *table.attrs.get("notes", ()), *_standard_notes(table)]
    texts = {
        "csv": to_csv(table),
        "md": to_markdown(display, caption, notes),
        "tex": to_latex(display, caption, name, notes),
    }
    paths = []
    for kind, text in texts.items():
        paths.append(folder / f"{name}.{kind}")
        with replacing(paths[-1]) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def _standard_notes(table: pd.DataFrame) -> list[str]:
    if "key" not in table:
        return []
    notes = ["Percent. Mean ± standard deviation (n − 1) over seeds of the data-set mean, number of seeds in round brackets."]
    notes.append(f'"{NOT_RUN}": no complete run. Rows marked "control" are not in the paper.')
    if "low" in table and table.low.notna().any():
        notes.append(
            "95 %: bootstrap over categories (seeds averaged first), over images where a data set has one category."
        )
    if "note" in table:
        noted = table[table.note != ""].groupby(["note", "data_set", "method"], sort=False)["shots"].unique()
        for (note, unit, method), shots in noted.items():
            notes.append(f"{unit}, {method}, {', '.join(map(str, shots))} shots: {note}.")
    if "protocol" in table:
        pairs = table[["data_set", "protocol"]].drop_duplicates().itertuples(index=False)
        notes.append("Protocol: " + "; ".join(f"{unit}: {protocol}" for unit, protocol in pairs if protocol) + ".")
    if "profile" in table and (table.profile == "mini").any():
        notes.append(MINI_NOTE)
    return notes

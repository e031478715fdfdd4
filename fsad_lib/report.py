"""What a user with a folder of parts takes home: a ranked list, heat maps, a contact sheet and a plain word about limits."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from fsad_lib import plots
from fsad_lib.datasets import read_image
from fsad_lib.errors import FsadError
from fsad_lib.metrics import auroc
from fsad_lib.runs import replacing

LABELS = {0: "good", 1: "defective"}
SCORES = {
    ("adp", "sum"): "ADP's score, words plus memory (the heat maps are the memory's)", ("anomalysd", "given"): "AnomalySD's score",
    ("patchcore", "generated"): "PatchCore, trained on the shots and generated images",
}  # fmt: skip
ORDERS = {("adp", "sum"): "Order: ADP's score. Heat: its memory alone, which may disagree."}
"""What the contact sheet says where order and heat come from different scores."""


def threshold_note(k: int) -> str:
    """Why ``k`` good images, at least 1, give a ranking and no reliable threshold.

    If a threshold is the highest score of k good images that the detector has not seen, the next good image exceeds it
    with probability 1 / (k + 1), whatever the scores' distribution.

    >>> threshold_note(4).splitlines()[0]
    '4 good images give no reliable threshold between good and defective.'
    """
    if k < 1:
        raise FsadError(f"Found {k} good images; expected at least 1.")
    needed = math.ceil(math.log(0.05) / math.log(0.99))  # the least n with 0.99^n <= 0.05: the maximum of n is exceeded by at most 1 %
    return "\n".join(
        [
            f"{k} good image{'s' if k > 1 else ''} give{'' if k > 1 else 's'} no reliable threshold between good and defective.",
            "The scores rank the images: look at them from the top and stop where the defects end.",
            f"Even a threshold at the highest score of {k} further good image{'s' if k > 1 else ''} would reject about "
            f"{100 / (k + 1):.0f} % of all good parts.",
            f"For at most 1 % false alarms, with 95 % confidence, score at least {needed} further good images and take their maximum.",
        ]
    )


def contact_sheet(images: pd.DataFrame, maps: np.ndarray | None = None, *, limit: int = 24, size: int = 160, title: str = "") -> Figure:
    """:func:`fsad_lib.plots.contact_sheet` of a table, each image named in full: product, kind of defect and file.

    Args:
        images: one row per image: path, label (0, 1, -1 unknown), score, and where they are known category and defect.
        maps: (N, h, w), in the order of the rows, or None.
    """
    names = [f"  {row.get('category', '')}\n{short_name(row.get('defect', ''), row['path'])}" for _, row in images.iterrows()]
    labels = images["label"].astype(int).tolist()
    return plots.contact_sheet(images["path"].tolist(), images["score"].tolist(), maps, labels, limit, size, title, names)


def short_name(kind: str, path: str, length: int = 26) -> str:
    """Kind of defect and file name without its ending; where both are too long, the kind is cut.

    >>> short_name("good", "capsule/test/good/031.png"), short_name("", "parts/a.png"), short_name("contamination", "x/part_0004.png", 20)
    ('good 031', 'a', 'contamina… part_0004')
    """
    stem, kind = Path(path).stem, "" if kind in ("", "unknown") else kind
    room = length - len(stem) - 1
    kind = kind if len(kind) <= room else f"{kind[: max(room - 1, 1)]}…"
    return f"{kind} {stem}".strip()


def write_report(
    folder: Any,
    predictions: pd.DataFrame,
    maps: np.ndarray | None = None,
    paths: Sequence[str] | None = None,
    *,
    shots: int,
    method: str = "adp",
    part: str = "sum",
    size: int = 256,
    limit: int = 24,
) -> dict[str, Path]:
    """Write ``predictions.csv``, ``heatmaps/``, ``contact_sheet.png`` and ``report.md``.

    Several products are ranked apart, for the scores of one do not compare with another's: each has a folder of its own with all of that, and
    ``report.md`` and ``predictions.csv`` above them have a part for each.

    Args:
        folder: a Run (the files go to its ``report/``) or a path.
        predictions: the long table path, label (0, 1, -1 unknown), method, part, score; higher = more anomalous. Its columns category and
            defect, where it has them, name the images on the contact sheet; category tells the products apart.
        maps: (N, h, w) anomaly maps of ``paths``, in that order, or None.
        shots: how many good images were given.
        method, part: which score ranks the images; the other scores become further columns.
        size: side of a heat map in pixels; limit: images on the contact sheet.

    Returns:
        name -> path: report, predictions and, of one product, contact_sheet and, with maps, heatmaps (the folder).

    Raises:
        FsadError: no such score, a map without a prediction, or nothing can be written.
    """
    note = "" if isinstance(folder, str | Path) else masks_note(folder.table())
    folder = Path(folder) if isinstance(folder, str | Path) else folder.path / "report"
    products = predictions["category"].unique().tolist() if "category" in predictions else []
    rank(predictions, method, part)  # refuses what cannot be ranked before anything is written
    if len(products) < 2:
        out, ranked = _write_product(folder, predictions, maps, paths, shots, method, part, size, limit)
        text = _markdown(ranked, shots, method, part, note)
    else:
        parts = {}
        for product in products:
            mine = predictions[predictions["category"] == product]
            parts[product] = _write_product(folder / product, mine, maps, paths, shots, method, part, size, limit)[1]
        out, text = {"predictions": folder / "predictions.csv"}, _markdown_of_several(parts, shots, method, part, note)
        ranked = pd.concat([table.assign(category=product) for product, table in parts.items()], ignore_index=True)
        ranked.insert(0, "category", ranked.pop("category"))
        if "heatmap" in ranked:
            ranked["heatmap"] = ranked["category"] + "/" + ranked["heatmap"]
        with replacing(out["predictions"]) as temporary:
            ranked.to_csv(temporary, index=False, float_format="%.6g")
    out["report"] = folder / "report.md"
    with replacing(out["report"]) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out


def _write_product(folder: Path, predictions: pd.DataFrame, maps: Any, paths: Any, shots: int, method: str, part: str, size: int, limit: int) -> tuple[dict[str, Path], pd.DataFrame]:
    """One product's list, heat maps and contact sheet -> name -> path, and the list."""
    ranked = rank(predictions, method, part)
    out: dict[str, Path] = {}
    if maps is not None:
        maps = np.asarray(maps, dtype=float)
        if paths is None or len(paths) != len(maps) or maps.ndim != 3:
            raise FsadError(f"Found maps of shape {maps.shape} for {len(paths or [])} paths; expected (N, h, w), one per path.")
        where = {str(p): i for i, p in enumerate(paths)}
        missing = [p for p in ranked["path"] if p not in where]
        if missing:
            raise FsadError(f"No map for {len(missing)} of {len(ranked)} images, the first {missing[0]}; expected one for each.")
        maps = maps[[where[p] for p in ranked["path"]]]
        out["heatmaps"] = folder / "heatmaps"
        ranked["heatmap"] = _write_heatmaps(out["heatmaps"], ranked, maps, size)
    out["predictions"] = folder / "predictions.csv"
    with replacing(out["predictions"]) as temporary:
        ranked.to_csv(temporary, index=False, float_format="%.6g")
    known = predictions.drop_duplicates("path")
    known = known[[column for column in ("path", "label", "category", "defect") if column in known]]
    images = ranked[["path", "score"]].merge(known, on="path", how="left")
    order = ORDERS.get((method, part), "") if maps is not None else ""
    sheet = contact_sheet(images, maps, limit=limit, title=f"Most anomalous first. {threshold_note(shots).splitlines()[0]}\n{order}")
    out["contact_sheet"] = folder / "contact_sheet.png"
    with replacing(out["contact_sheet"]) as temporary:
        sheet.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
    return out, ranked


def masks_note(table: pd.DataFrame) -> str:
    """What stands in the way of pixel metrics, where some masks were drawn; "" where there are none or all.

    >>> table = pd.DataFrame({"split": "test", "label": [0, 1, 1], "mask_path": [None, "hole/000_mask.png", None]})
    >>> masks_note(table)
    '1 of 2 defective images has a mask; pixel metrics need all of them, so they are left out.'
    """
    bad = table[(table["split"] == "test") & (table["label"] == 1)]
    masks = int(bad["mask_path"].notna().sum())
    if masks in (0, len(bad)):
        return ""
    return f"{masks} of {len(bad)} defective images ha{'s a mask' if masks == 1 else 've masks'}; pixel metrics need all of them, so they are left out."


def _memory_of(ranked: pd.DataFrame) -> str | None:
    """The column of the patch memory, where it is not what ranks the images."""
    return next((column for column in ("patch_memory_memory", "patch_memory_given") if column in ranked), None)


def _aurocs(ranked: pd.DataFrame, what: str) -> dict[str, float]:
    """How well the two rankings of one product agree with the labels, in percent; empty unless there are labels of both kinds."""
    known = ranked[ranked["label"] != ""]
    if known["label"].nunique() < 2:
        return {}
    found = {what: known["score"]} | ({"patch memory": known[_memory_of(ranked)]} if _memory_of(ranked) else {})
    bad = (known["label"] == "defective").to_numpy()
    return {name: 100 * auroc(bad, score.to_numpy()) for name, score in found.items()}


def _auroc_sentence(found: dict[str, float], of: str = "") -> str:
    return f"Against the labels, image AUROC in percent{of}: " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()) + "."


def rank(predictions: pd.DataFrame, method: str = "adp", part: str = "sum") -> pd.DataFrame:
    """One row per image, most anomalous first: rank, path, label ("good", "defective" or ""), score, and the other scores.

    Raises:
        FsadError: a score that is not finite, or no score of this method and part.

    >>> table = pd.DataFrame({"path": ["a", "b"], "label": [-1, 1], "method": "adp", "part": "sum", "score": [0.1, 0.9]})
    >>> rank(table)[["rank", "path", "label"]].values.tolist()
    [[1, 'b', 'defective'], [2, 'a', '']]
    """
    if len(lost := predictions[~np.isfinite(predictions["score"])]):
        row = lost.iloc[0]
        raise FsadError(f"The {row.method} {row.part} score of {row.path} is missing or not finite; run the evaluation again.")
    wide = predictions.pivot_table(index="path", columns=["method", "part"], values="score", sort=False)
    if (method, part) not in wide:
        have = ", ".join(f"{m} {p}" for m, p in wide.columns)
        raise FsadError(f"No score {method} {part}; the predictions hold: {have or 'nothing'}.")
    bad = wide.index[~np.isfinite(wide[method, part])]
    if len(bad):
        raise FsadError(f"The {method} {part} score of {bad[0]} is missing or not finite; run the evaluation again.")
    label = predictions.drop_duplicates("path").set_index("path")["label"].map(LABELS).fillna("")
    table = pd.DataFrame({"path": wide.index, "label": label[wide.index].to_numpy(), "score": wide[method, part].to_numpy()})
    for column in wide.columns:
        if column != (method, part):
            table["_".join(column)] = wide[column].to_numpy()
    table = table.sort_values(["score", "path"], ascending=[False, True], ignore_index=True)
    table.insert(0, "rank", range(1, len(table) + 1))
    return table


def _file_stem(path: str) -> str:
    r"""The stem of a name that we may write beside others: printable, and short enough for every file system with what is put around it.

    >>> _file_stem("x/part 4.png"), _file_stem("a\nb.png"), len(_file_stem("é" * 120 + ".png"))
    ('part 4', 'a_b', 75)
    """
    text = "".join(ch if ch.isprintable() else "_" for ch in Path(path).stem)
    return text.encode()[:150].decode(errors="ignore")  # a character cut in two is left out


def _cell(text: str) -> str:
    r"""A name in a cell of a Markdown table.

    >>> print(_cell("<b>a|b\nc.png"))
    &lt;b>a\|b\nc.png
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode() for ch in text)


def _write_heatmaps(folder: Path, ranked: pd.DataFrame, maps: np.ndarray, size: int) -> list[str]:
    low, high = plots.heat_range(maps)
    names, digits = [], len(str(len(ranked)))
    for row, map_ in zip(ranked.itertuples(), maps, strict=True):
        pixels = plots.to_pixels(read_image(row.path, size))[0]
        heat = plots.in_proportion(plots.blend(pixels, map_, low, high), row.path)
        both = np.concatenate([plots.in_proportion(pixels, row.path), heat], axis=1)
        names.append(f"heatmaps/{row.rank:0{digits}d}_{_file_stem(row.path)}.png")
        with replacing(folder.parent / names[-1]) as temporary:
            Image.fromarray((both * 255).round().astype(np.uint8)).save(temporary, format="png")
    for old in set(folder.glob("*.png")) - {folder.parent / name for name in names}:
        old.unlink()  # of an earlier ranking
    return names


def _markdown(ranked: pd.DataFrame, shots: int, method: str, part: str, note: str = "") -> str:
    lines = [*_head(shots, note), f"{len(ranked)} images, ranked by {_what(method, part)}; higher is more anomalous.", "", *_beside(ranked)]
    return "\n".join([*lines, *_list(ranked, method, part)]) + "\n"


def _markdown_of_several(parts: dict[str, pd.DataFrame], shots: int, method: str, part: str, note: str = "") -> str:
    """One ranking a product, and the mean of their AUROCs: pooled, a product whose scores are all high would hide another's defects."""
    first = next(iter(parts.values()))
    lines = [*_head(shots, note), f"{len(parts)} products, each ranked by {_what(method, part)}; higher is more anomalous. Scores of two products do not compare.", "", *_beside(first)]
    aurocs = [found for found in (_aurocs(table, _short(method, part)) for table in parts.values()) if found]
    if len(aurocs) > 1:
        lines += [_auroc_sentence(pd.DataFrame(aurocs).mean().to_dict(), f", mean of {len(aurocs)} products"), ""]
    for product, table in parts.items():
        lines += [f"## {_cell(product)}", "", f"{len(table)} images; heat maps and contact sheet in `{_cell(product)}/`.", "", *_list(table, method, part), ""]
    return "\n".join(lines)


def _what(method: str, part: str) -> str:
    return SCORES.get((method, part), f"{method} {part}")


def _short(method: str, part: str) -> str:
    return _what(method, part).partition(" (")[0]


def _head(shots: int, note: str) -> list[str]:
    return ["# Report", "", *threshold_note(shots).splitlines(), "", *([note, ""] if note else [])]


def _beside(ranked: pd.DataFrame) -> list[str]:
    if not _memory_of(ranked):
        return []
    return [
        "Beside it the rank that the patch memory gives: nearest neighbours of the good images' patches in an ordinary ImageNet network. The miniature models "
        "(profile mini) have never seen a photograph of your part: with them, go by the patch memory first.", "",
    ]  # fmt: skip


def _list(ranked: pd.DataFrame, method: str, part: str) -> list[str]:
    """The AUROCs of one product, where there are labels, and its first 20 images as a table."""
    lines, memory = [], _memory_of(ranked)
    if memory:
        ranked = ranked.assign(memory_rank=ranked[memory].rank(ascending=False, method="first").astype(int))
    if found := _aurocs(ranked, _short(method, part)):
        lines += [_auroc_sentence(found), ""]
    lines += ["| rank | image | score | label |", "|---|---|---|---|"] if not memory else ["| rank | rank by patch memory | image | score | label |", "|---|---|---|---|---|"]
    root = os.path.commonpath([os.path.dirname(path) for path in ranked["path"]])  # names below it are unique
    lines += [
        f"| {r.rank} | {f'{r.memory_rank} | ' if memory else ''}{_cell(Path(r.path).relative_to(root).as_posix())} | {r.score:.4f} | {r.label} |"
        for r in ranked.head(20).itertuples()
    ]
    if len(ranked) > 20:
        lines.append(f"\nThe other {len(ranked) - 20} images are in predictions.csv.")
    return lines

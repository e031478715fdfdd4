"""Figures in one quiet, colour-blind-safe style.

Every function returns a closed matplotlib figure: as the last line of a notebook cell it is shown once.
:func:`save_figure` writes PNG and PDF. Images are (B, 3, H, W) tensors or arrays in [0, 1].
"""

import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

from fsad_lib.datasets import read_image
from fsad_lib.datasets.images import image_size
from fsad_lib.errors import FsadError
from fsad_lib.runs import project_root, replacing
from fsad_lib.tables import ROWS
from fsad_lib.tables._text import check_file_name

# Okabe and Ito's palette: distinguishable with every common colour vision
BLUE, ORANGE, GREEN, RED, SKY, PURPLE, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442",
)  # fmt: skip
INK, GREY, PALE = "#222222", "#8A8A8A", "#EDEDED"
NORMAL, PSEUDO, ANOMALOUS = BLUE, ORANGE, RED

STYLE = {
    "figure.dpi": 100, "savefig.dpi": 150, "figure.facecolor": "white", "font.family": "DejaVu Sans", "font.size": 9,
    "axes.titlesize": 10, "axes.titlelocation": "left", "axes.labelsize": 9, "axes.edgecolor": GREY, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": PALE,
    "grid.linewidth": 0.8, "xtick.color": GREY, "ytick.color": GREY, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "text.color": INK, "axes.labelcolor": INK, "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.8,
    "lines.markersize": 5, "pdf.fonttype": 42, "svg.hashsalt": "fsad", "image.interpolation": "nearest",
}  # fmt: skip

LOOKS = {
    "adp": (BLUE, "o", "-"), "adp_l": (SKY, "s", "-"), "winclip": (RED, "D", "-"), "ti": (PURPLE, "v", "-"),
    "c_n": (GREEN, "^", "-"), "c_a": (ORANGE, ">", "-"), "memory": (INK, "x", "--"), "patch_memory": (INK, "+", ":"),
    "object": (GREY, "P", "-."), "winclip_adp_backbone": (RED, "d", ":"), "adp_text": (BLUE, "o", ":"),
}  # fmt: skip
"""key of :data:`fsad_lib.tables.ROWS` -> colour, marker, line; controls are dashed or dotted."""


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator: the function draws in this project's style, and returns its figure closed."""

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            figure.set_facecolor("white")
        plt.close(figure)
        return figure

    return drawn


def show_picture(ax: Axes, picture: np.ndarray, title: str = "", edge: str | None = None, width: float = 1.6, **how: Any) -> None:
    """A picture (H, W, 3) in [0, 1] or a map (H, W) without axes; ``edge``, ``width``: colour and width of its frame. ``how``: see ``Axes.imshow``."""
    ax.imshow(picture, **how)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set(visible=edge is not None, color=edge or GREY, linewidth=width)
    if title:
        ax.set_title(title, fontsize=8, loc="center", parse_math=_reads(title))


def _reads(text: str) -> bool:
    """Whether matplotlib can read the mathematics in a text; a user's name such as "a$\\b$" is drawn as it stands."""
    try:
        return all("$" not in line or bool(MathTextParser("path").parse(line)) for line in text.splitlines())
    except ValueError:
        return False


def to_pixels(x: Any) -> np.ndarray:
    """(B, 3, H, W) or (3, H, W), tensor or array in [0, 1], also of one channel -> (B, H, W, 3) float array; FsadError for another shape or pixels
    that are not finite.

    >>> to_pixels(np.zeros((3, 4, 5))).shape
    (1, 4, 5, 3)
    """
    x = x.detach().cpu().float().numpy() if hasattr(x, "detach") else np.asarray(x, dtype=float)
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise FsadError(f"Found images of shape {tuple(x.shape)}; expected (B, 3, H, W) in [0, 1].")
    if not np.isfinite(x).all():
        raise FsadError("Found pixels that are not finite; expected values in [0, 1].")
    x = np.clip(x, 0, 1).transpose(0, 2, 3, 1)
    return np.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x


def _maps(maps: Any) -> np.ndarray:
    """Maps (N, h, w), or one (h, w), tensor or array -> (N, h, w) float array."""
    maps = maps.detach().cpu().float().numpy() if hasattr(maps, "detach") else np.asarray(maps, dtype=float)
    return maps[None] if maps.ndim == 2 else maps



# ------------------------------------------------------------------------------------------------------------- images


@styled
def image_grid(x: Any, titles: Sequence[str] | None = None, columns: int = 6, size: float = 1.4, title: str = "") -> Figure:
    """Images (B, 3, H, W) in rows of ``columns``, each with a title (B of them)."""
    pixels = to_pixels(x)
    if titles is not None and len(titles) != len(pixels):
        raise FsadError(f"Found {len(titles)} titles for {len(pixels)} images; expected one for each.")
    columns = min(columns, len(pixels))
    rows = math.ceil(len(pixels) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(size * columns, (size + (0.25 if titles is not None else 0)) * rows),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for i, ax in enumerate(axes.flat):
        if i >= len(pixels):
            ax.set_axis_off()
            continue
        show_picture(ax, pixels[i])
        if titles is not None:
            ax.set_title(titles[i], fontsize=8, loc="center", parse_math=_reads(titles[i]))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, parse_math=_reads(title))
    return figure


def blend(pixels: np.ndarray, map_: np.ndarray, low: float, high: float) -> np.ndarray:
    """(H, W, 3) image in grey with the (h, w) map over it, from ``low`` (clear) to ``high`` (hot)."""
    level = np.clip((map_ - low) / max(high - low, 1e-12), 0, 1)
    if level.shape != pixels.shape[:2]:
        from skimage.transform import resize

        level = resize(level, pixels.shape[:2], order=1)
    grey = np.repeat(pixels.mean(-1, keepdims=True), 3, -1) * 0.85 + 0.1
    opacity = 0.85 * level[..., None] ** 0.8
    return grey * (1 - opacity) + mpl.colormaps["inferno"](level)[..., :3] * opacity


def outline(ax: Axes, mask: np.ndarray, width: float = 1.2) -> None:
    """The border of a (H, W) mask: yellow on a dark line, so that it shows on every ground. Gaps of a pixel or two are closed first, or a speckled
    mask's outline would hide what it is drawn around."""
    from scipy.ndimage import binary_closing

    mask = np.asarray(mask) > 0
    closed = mask | binary_closing(np.pad(mask, 3), np.ones((5, 5)))[3:-3, 3:-3]
    for colour, extra in ((INK, 1.6), (YELLOW, 0)):
        ax.contour(closed.astype(float), [0.5], colors=[colour], linewidths=width + extra)


def heat_range(maps: np.ndarray) -> tuple[float, float]:
    """Where heat begins and ends in the maps (N, h, w) of a list of images: the lower half of all pixels stays clear, and one odd image must not
    leave all others dark, so that it ends at the 90 % quantile of the images' largest values."""
    low = float(np.quantile(maps, 0.5))
    return low, max(float(np.quantile(maps.max((1, 2)), 0.9)), low + 1e-12)


@styled
def heatmap_overlay(x: Any, maps: Any, masks: Any = None, titles: Sequence[str] | None = None, size: float = 1.7, name: str = "anomaly map") -> Figure:
    """Image, heat map over it, and the true defect's outline, one row an image.

    Args:
        x: (B, 3, H, W) in [0, 1]; maps: (B, h, w), higher = more anomalous; masks: (B, H, W) bool, or None; name: of the maps.

    All maps share one colour scale, so that rows can be compared; its bar is blended over a middle grey, as the maps are over their images.
    """
    pixels, maps = to_pixels(x), _maps(maps)
    if len(maps) != len(pixels):
        raise FsadError(f"Found {len(maps)} maps for {len(pixels)} images; expected one for each.")
    low, high = np.quantile(maps, 0.02), maps.max()
    columns = 2 if masks is None else 3
    figure, axes = plt.subplots(
        len(pixels), columns, figsize=(size * columns + 0.9, size * len(pixels) + 0.3), squeeze=False, layout="constrained"
    )
    for row, picture, map_, i in zip(axes, pixels, maps, range(len(pixels)), strict=True):
        show_picture(row[0], picture)
        show_picture(row[1], blend(picture, map_, low, high))
        if masks is not None:
            mask = np.asarray(masks[i]).astype(float)
            show_picture(row[2], picture)
            if mask.any():
                outline(row[2], mask)
            else:
                row[2].set_xlabel("no defect", fontsize=8)
        if titles is not None:
            row[0].set_ylabel(titles[i], fontsize=8, rotation=0, ha="right", va="center", labelpad=6, parse_math=False)
    for ax, head in zip(axes[0], ("image", name, "true defect"), strict=False):
        ax.set_title(head, fontsize=9, loc="center")
    shades = blend(np.full((1, 256, 3), 0.5), np.linspace(low, high, 256)[None], low, high)[0]
    bar = figure.colorbar(
        mpl.cm.ScalarMappable(mpl.colors.Normalize(low, high), mpl.colors.ListedColormap(shades)), ax=axes[:, -1], shrink=0.8, aspect=30, pad=0.02
    )
    bar.set_label(f"{name}: value of a pixel", fontsize=8)
    bar.outline.set_visible(False)
    return figure


def in_proportion(pixels: np.ndarray, path: str | Path) -> np.ndarray:
    """A square picture (S, S, 3) in [0, 1] in the proportions of the image file it was read from, longer side S: the models see squares, people the part.

    >>> import tempfile; from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (30, 20)).save(f"{folder}/part.png")
    ...     in_proportion(np.zeros((12, 12, 3)), f"{folder}/part.png").shape
    (8, 12, 3)
    """
    from skimage.transform import resize

    width, height = image_size(path)
    side = len(pixels)
    shape = max(1, round(side * height / max(width, height))), max(1, round(side * width / max(width, height)))
    return pixels if shape == (side, side) else np.clip(resize(pixels, shape, order=1, anti_aliasing=True), 0, 1)


@styled
def contact_sheet(
    paths: Sequence[str | Path],
    scores: Sequence[float],
    maps: Any = None,
    labels: Sequence[int] | None = None,
    limit: int = 24,
    size: int = 160,
    title: str = "",
    names: Sequence[str] | None = None,
) -> Figure:
    """The images at ``paths``, most anomalous first, each with rank, name, score and, if given, its heat map.

    ``labels``: 1 defective (orange frame), 0 good (blue), -1 unknown (none). Shows the ``limit`` highest scores; when there
    are more images, the lowest few follow so that the contrast is visible. ``names``: what follows rank and score of each image; by default a line with
    its folder and file.
    """
    if len(paths) != len(scores):
        raise FsadError(f"Found {len(scores)} scores for {len(paths)} images; expected one for each.")
    order = sorted(range(len(paths)), key=lambda i: (-scores[i], str(paths[i])))
    shown = order if len(order) <= limit else order[: limit - 6] + order[-6:]
    maps = None if maps is None else _maps(maps)
    low, high = (0.0, 1.0) if maps is None else heat_range(maps)
    columns = min(6, max(4, len(shown)))  # of one or two images the header is wider
    rows = math.ceil(len(shown) / columns)
    tall = max((height / width for width, height in (image_size(paths[i]) for i in shown)), default=1.0)
    head, more = title or "Most anomalous first", []
    if len(order) > limit:
        more.append(f"(the {limit - 6} highest and the 6 lowest of {len(order)})")
    if labels is not None and set(map(int, labels)) - {-1}:
        more.append("frame: orange = defective, blue = good")
    if maps is not None:
        more.append(f"heat: the map, from {low:.2g} (clear) to {high:.2g}")
    header = [*head.rstrip().split("\n"), *([", ".join(more)] if more else [])]
    top, gap, cell = 0.15 + 0.17 * len(header), 0.5, 1.6 * min(max(tall, 0.2), 1.5) * (1 if maps is None else 2)  # inches: header, titles, picture
    height = top + (gap + cell) * rows + 0.1
    figure, axes = plt.subplots(rows, columns, figsize=(1.75 * columns, height), squeeze=False)
    figure.subplots_adjust(0.01, 0.1 / height, 0.99, 1 - (top + gap) / height, wspace=0.08, hspace=gap / cell)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, i in zip(axes.flat, shown, strict=False):
        pixels = to_pixels(read_image(paths[i], size))[0]
        heat = None if maps is None else in_proportion(blend(pixels, maps[i], low, high), paths[i])
        pixels = in_proportion(pixels, paths[i])
        if heat is not None:
            pixels = np.concatenate([pixels, np.ones((4, pixels.shape[1], 3)), heat])
        label = -1 if labels is None else int(labels[i])
        ax.set_axis_on()
        ax.set_anchor("NW")  # below its title
        show_picture(ax, pixels, edge={0: BLUE, 1: RED}.get(label), width=2.4)
        place = "/".join(Path(paths[i]).parts[-2:])
        lines, most = (names[i].split("\n"), 26) if names is not None else (["", place], 18)
        name = "\n".join(line if len(line) <= most else f"…{line[1 - most :]}" for line in lines)
        ax.set_title(f"{order.index(i) + 1}.  {scores[i]:.3f}{name}", fontsize=8, loc="left", parse_math=False)  # a file's name may hold "$"
    figure.suptitle("\n".join(header), x=0.01, y=1 - 0.06 / height, va="top", ha="left", fontsize=10, parse_math=False)
    return figure


# ------------------------------------------------------------------------------------------------------------- curves


def _label(key: str) -> str:
    return mathematical(ROWS[key].label) if key in ROWS else key


def mathematical(text: str) -> str:
    """A word's or a method's name with its index set as mathematics.

    >>> mathematical("c_n"), mathematical("WinCLIP+")
    ('$c_n$', 'WinCLIP+')
    """
    return {"c_n": "$c_n$", "c_a": "$c_a$", "ADP_l": r"ADP$_\ell$"}.get(text, text)


@styled
def score_histograms(scores: Mapping[str, Sequence[float]] | pd.DataFrame, method: str = "adp", part: str = "sum") -> Figure:
    """Histograms of normal, pseudo-anomalous and anomalous images over one axis, every image a tick below them.

    Args:
        scores: name -> scores ("normal", "pseudo-anomalous", "anomalous", in this order), or a run's long prediction
            table, from which ``method`` and ``part`` are taken.
    """
    if isinstance(scores, pd.DataFrame):
        rows = scores[(scores.method == method) & (scores.part == part)]
        scores = {"normal": rows.score[rows.label == 0], "anomalous": rows.score[rows.label == 1]}
    import seaborn as sns  # here, because it takes a second

    groups = {name: np.asarray(values, dtype=float) for name, values in scores.items() if len(values)}
    if not groups:
        raise FsadError(f"No scores of method {method!r}, part {part!r}; expected some for normal or anomalous images.")
    colours = {"normal": NORMAL, "pseudo-anomalous": PSEUDO, "anomalous": ANOMALOUS}
    every = np.concatenate(list(groups.values()))
    bins = np.linspace(every.min(), every.max() + 1e-9, 25)
    figure, axes = plt.subplots(len(groups), 1, figsize=(5.5, 1.05 * len(groups) + 0.7), sharex=True, squeeze=False, layout="constrained")
    for ax, (name, values) in zip(axes[:, 0], groups.items(), strict=True):
        sns.histplot(x=values, bins=bins, color=colours.get(name, GREY), alpha=0.85, edgecolor="white", linewidth=0.5, ax=ax)
        sns.rugplot(x=values, color=INK, height=0.08, linewidth=0.6, ax=ax)
        ax.axvline(np.median(values), color=INK, linewidth=1.2)
        ax.set_ylabel("images", fontsize=8)
        ax.set_title(f"{name} ({len(values)})", fontsize=9, color=colours.get(name, INK), fontweight="bold")
        ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(2, integer=True))
    axes[-1, 0].set_xlabel("anomaly score   (black line: median)")
    return figure


@styled
def auroc_against_shots(
    table: pd.DataFrame, keys: Sequence[str] = ("adp", "adp_l", "winclip", "memory", "object", "patch_memory")
) -> Figure:
    """Image AUROC against the number of shots, a panel per data set, from :func:`fsad_lib.tables.table1`.

    Lines with bars: our mean and standard deviation over seeds. Hollow points: reported by the paper.
    """
    table = table[table.key.isin(keys)]
    panels = [
        (name, block) for name, block in table.groupby(["data_set", "profile"], sort=False)
        if block.ours.notna().any() or block.reported.notna().any()
    ]  # fmt: skip
    if not panels:
        raise FsadError("Nothing to draw: no run is complete and nothing is reported. Run the grid first.")
    lines = [[p for p in panels if p[1].reported.notna().any()], [p for p in panels if p[1].reported.isna().all()]]
    lines = [line[i : i + 3] for line in lines for i in range(0, len(line), 3)]
    columns = max(map(len, lines))
    figure, axes = plt.subplots(
        len(lines), columns, figsize=(2.9 * columns + 2.1, 2.9 * len(lines)), squeeze=False, layout="constrained"
    )
    for line, row in zip(lines, axes, strict=True):
        for ax in row[len(line) :]:
            ax.set_axis_off()
    used = [ax for line, row in zip(lines, axes, strict=True) for ax in row[: len(line)]]
    panels = [panel for line in lines for panel in line]
    shots = sorted(table.shots.unique())
    handles: dict[str, object] = {}
    for ax, ((data_set, profile), block) in zip(used, panels, strict=True):
        for j, key in enumerate(keys):
            rows_of = block[block.key == key].sort_values("shots")
            colour, marker, line = LOOKS.get(key, (GREY, "o", "-"))
            ours = rows_of[rows_of.ours.notna()]
            if len(ours):
                where = np.array([shots.index(k) for k in ours.shots]) + 0.06 * (j - len(keys) / 2)
                handle = ax.errorbar(where, ours.ours, ours.ours_std.fillna(0), color=colour, marker=marker, linestyle=line,
                                     elinewidth=1, capsize=0, alpha=0.95)  # fmt: skip
                handles.setdefault(_label(key), handle)
            said = rows_of[rows_of.reported.notna()]
            if len(said):
                where = [shots.index(k) for k in said.shots]
                (handle,) = ax.plot(where, said.reported, color=colour, marker=marker, markerfacecolor="white", linestyle="-",
                                    linewidth=0.7, markeredgewidth=1.4)  # fmt: skip
                handles.setdefault(f"{_label(key)}, reported", handle)
        state = "reported by the paper; not run here" if block.ours.isna().all() else f"profile {profile}"
        ax.set_title(f"{data_set}\n", fontsize=10, fontweight="bold", parse_math=False)
        ax.text(0, 1.03, state, transform=ax.transAxes, fontsize=8, color="#555555")
        ax.set_xticks(range(len(shots)), [str(k) for k in shots])
        ax.set(xlabel="normal images (shots)", ylabel="image AUROC, %" if ax in axes[:, 0] else "")
        ax.margins(x=0.12)
    names = sorted(handles, key=lambda name: name.endswith("reported"))
    figure.legend([handles[name] for name in names], names, loc="outside right upper")
    figure.supxlabel("bars: standard deviation over seeds", x=0.01, ha="left", fontsize=7.5, color="#555555")
    return figure


@styled
def interval_plot(table: pd.DataFrame, keys: Sequence[str] | None = None) -> Figure:
    """Means with 95 % intervals of every method at one number of shots, a panel per data set.

    ``table``: :func:`fsad_lib.tables.table1` or ``table2``, restricted to one number of shots. The dashed line is the mean of the
    patch memory alone. Each bar is the interval of one method by itself; products differ far more than methods do, and they move
    all bars together. So bars that overlap do not decide a comparison: that takes the interval of the paired difference
    (:func:`fsad_lib.tables.difference`, shown in :func:`fsad_lib.tables.claims`).
    """
    if table.shots.nunique() != 1:
        raise FsadError(f"Found {table.shots.nunique()} numbers of shots; expected one: restrict the table first.")
    table = table[table.ours.notna()]
    if table.empty:
        raise FsadError("Nothing to draw: no run with this number of shots is complete.")
    panels = list(table.groupby(["data_set", "profile"], sort=False))
    order = [key for key in dict.fromkeys(table.key) if keys is None or key in keys]
    roles = table.drop_duplicates("key").set_index("key")["role"]
    order = [k for k in order if roles[k] == "method"] + [k for k in order if roles[k] == "control"]
    labels = table.drop_duplicates("key").set_index("key")["method"]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(2.5 * len(panels) + 2.4, 0.28 * len(order) + 1.1), sharey=True, squeeze=False, layout="constrained"
    )
    n_methods = sum(roles[k] == "method" for k in order)
    for ax, ((data_set, profile), block) in zip(axes[0], panels, strict=True):
        block = block.set_index("key")
        if "memory" in block.index:
            ax.axvline(block.ours["memory"], color=INK, linewidth=1, linestyle="--", alpha=0.6)
        ax.axvline(50, color=GREY, linewidth=0.9, linestyle=":")
        for y, key in enumerate(order):
            if key not in block.index:
                continue
            row = block.loc[key]
            colour = LOOKS.get(key, (GREY, "", ""))[0] if roles[key] == "method" else GREY
            if not math.isnan(row.low):
                ax.plot([row.low, row.high], [y, y], color=colour, linewidth=2)
            ax.plot(row.ours, y, "o" if roles[key] == "method" else "D", color=colour)
        ax.axhline(n_methods - 0.5, color=PALE, linewidth=1.5)
        seeds = int(block.n_seeds.max())
        ax.set_title(f"{data_set}\n", fontsize=10, fontweight="bold", parse_math=False)
        ax.text(0, 1.02, f"profile {profile}, {block.shots.iloc[0]} shots, {seeds} seed{'s' if seeds > 1 else ''}",
                transform=ax.transAxes, fontsize=7.5, color="#555555")  # fmt: skip
        ax.set_xlabel("image AUROC, %")
        ax.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(len(order)), [mathematical(labels[k]) + ("  (control)" if roles[k] == "control" else "") for k in order])
    axes[0, 0].set_ylim(len(order) - 0.4, -0.6)
    figure.supxlabel(
        "bar: 95 % interval of each method by itself (bars that overlap decide no comparison)     dashed: memory only     dotted: chance",
        fontsize=7.5, color="#555555",
    )  # fmt: skip
    return figure


# ---------------------------------------------------------------------------------------------------- ADP's own figures


@styled
def pseudo_anomaly_comparison(shots: Any, simple: Any, learned: Any, columns: int = 6, scores: Mapping[str, Sequence[float]] | None = None) -> Figure:
    """Shots, pseudo-anomalies from the simple prompt, pseudo-anomalies from the learned word, in three rows.

    ``scores`` ("shots", "simple", "learned") prints P(damaged object) under each image, where given: what CLIP says with the *untrained* word. With the
    learned word, the row it was trained on would be set beside one that it has not seen.
    """
    rows = [
        ("normal shots", 'what the model was given', to_pixels(shots), NORMAL, (scores or {}).get("shots")),
        ("simple prompt", '"a photo with damage"', to_pixels(simple), PSEUDO, (scores or {}).get("simple")),
        ("learned word", '"a photo of a damaged [$c_a$]"', to_pixels(learned), PSEUDO, (scores or {}).get("learned")),
    ]
    columns = min(columns, max(len(r[2]) for r in rows))
    figure, axes = plt.subplots(3, columns, figsize=(1.35 * columns + 2.0, 4.4), squeeze=False)
    for line, (name, prompt, pixels, colour, values) in zip(axes, rows, strict=True):
        for j, ax in enumerate(line):
            if j >= len(pixels):
                ax.set_axis_off()
                continue
            show_picture(ax, pixels[j], edge=colour)
            if values is not None and j < len(values):
                ax.set_xlabel(f"P(damaged object) {values[j]:.2f}", fontsize=7, labelpad=2)
        box = line[0].get_position()
        figure.text(0.01, (box.y0 + box.y1) / 2, f"{name}\n", fontsize=10, fontweight="bold", va="center", color=colour)
        figure.text(0.01, (box.y0 + box.y1) / 2 - 0.03, prompt, fontsize=8, va="center", color="#555555")
    figure.subplots_adjust(left=2.0 / (1.35 * columns + 2.0), right=0.995, top=0.98, bottom=0.05, wspace=0.06, hspace=0.22)
    for line, text in zip(axes, zip(figure.texts[::2], figure.texts[1::2], strict=True), strict=True):
        box = line[0].get_position()
        text[0].set_y((box.y0 + box.y1) / 2 + 0.01)
        text[1].set_y((box.y0 + box.y1) / 2 - 0.035)
    return figure


class _Canvas:
    """A page measured in inches from the lower left corner, for boxes, arrows, text and small pictures."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = plt.figure(figsize=(width, height))
        self.ax = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, width), ylim=(0, height))
        self.ax.set_axis_off()

    def box(self, x, y, w, h, face="white", edge=GREY, line=1.0, radius=0.08) -> None:
        self.ax.add_patch(
            FancyBboxPatch((x, y), w, h, boxstyle=f"round,pad=0,rounding_size={radius}", facecolor=face, edgecolor=edge, linewidth=line)
        )

    def text(self, x, y, text, size=9.0, colour=INK, ha="center", va="center", bold=False, style="normal") -> None:
        weight = "bold" if bold else "normal"
        self.ax.text(x, y, text, fontsize=size, color=colour, ha=ha, va=va, fontweight=weight, fontstyle=style, parse_math=_reads(text))

    def chip(self, x, y, text, colour, w=0.62, h=0.34, size=11.0) -> None:
        self.box(x - w / 2, y - h / 2, w, h, face=colour, edge=colour, radius=0.15)
        self.text(x, y - 0.01, text, size, "white", bold=True)

    def arrow(self, start, end, colour=INK, bend=0.0, line=1.4, both=False, dashed=False) -> None:
        self.ax.add_patch(
            FancyArrowPatch(start, end, arrowstyle="<|-|>" if both else "-|>", mutation_scale=11, color=colour, linewidth=line,
                            connectionstyle=f"arc3,rad={bend}", shrinkA=2, shrinkB=2, linestyle=(0, (4, 2)) if dashed else "-")
        )  # fmt: skip

    def picture(self, x, y, size, pixels, edge=GREY, line=1.6) -> None:
        ax = self.figure.add_axes((x / self.width, y / self.height, size / self.width, size / self.height))
        show_picture(ax, pixels, edge=edge, width=line)

    def strip(self, x, y, size, images, edge, gap=0.07, limit=4) -> float:
        for j, pixels in enumerate(images[:limit]):
            self.picture(x + j * (size + gap), y, size, pixels, edge)
        return x + min(len(images), limit) * (size + gap) - gap


@styled
def adp_overview(
    shots: Any,
    pseudo: Any,
    tuning: Any,
    weights: Mapping[str, float],
    tests: Any,
    scores: Sequence[float],
    labels: Sequence[int],
    *,
    memory: Sequence[float] | None = None,
    subtitle: str = "",
) -> Figure:
    """The three stages of ADP with the products of one run (our own drawing of what the paper's Figure 1 shows).

    Args:
        shots: (K, 3, H, W) the normal images; pseudo: (L, ...) drawn from the simple prompt; tuning: (L', ...) drawn
            with c_a.
        weights: concept -> w(c) of eq. 5, in [0, 2], e.g. {"c_n": 1.31, "c_a": 1.22}.
        tests: (N, 3, H, W) test images; scores: (N,) final scores, higher = more anomalous; labels: (N,) 0, 1, or -1 unknown.
        memory: (N,) the patch-memory part of the score, drawn apart where given.
        subtitle: which run this is ("MiniFab gear, 4 shots, seed 0, profile mini").
    """
    shots, pseudo, tuning, tests = (to_pixels(x) for x in (shots, pseudo, tuning, tests))
    if not len(tests) == len(scores) == len(labels):
        raise FsadError(f"Found {len(tests)} test images, {len(scores)} scores, {len(labels)} labels; expected as many of each.")
    page = _Canvas(13.2, 6.9)
    bottom, height, size = 0.25, 5.75, 0.82
    panels = [(0.2, 3.85), (4.3, 4.2), (8.75, 4.25)]
    tints = ["#EAF2F8", "#FDF3E1", "#EAF5F0"]
    titles = ["Personalize: a word for “normal”", "Damage: a word that knows “anomalous”", "Detect"]
    page.text(0.2, 6.62, "ADP: anomaly detection via personalization", 13, ha="left", bold=True)
    page.text(0.2, 6.31, subtitle or "real products of one run", 9, "#555555", ha="left")
    for i, ((x, w), tint, title) in enumerate(zip(panels, tints, titles, strict=True)):
        page.box(x, bottom, w, height, tint, tint, radius=0.15)
        page.chip(x + 0.3, bottom + height - 0.3, str(i + 1), INK, 0.34, 0.34, 10)
        page.text(x + 0.58, bottom + height - 0.31, title, 10.5, ha="left", bold=True)

    # stage 1
    x, w = panels[0]
    cx = x + w / 2
    page.text(x + 0.2, 5.32, f"{len(shots)} normal images (shots)", 8.5, ha="left")
    end = x + 0.2 + min(len(shots), 4) * (size + 0.07) - 0.07
    page.strip(x + 0.2, 4.36, size, shots, NORMAL)
    page.arrow(((x + 0.2 + end) / 2 if len(shots) < 3 else cx, 4.34), (cx, 3.98))
    page.box(x + 0.2, 3.02, w - 0.4, 0.95)
    page.text(cx, 3.78, "Textual inversion, guided by CLIP  (eq. 3)", 9, bold=True)
    page.text(cx, 3.49, "diffusion: “a photo of a [$c_n$]” must draw the shots", 8)
    page.text(cx, 3.23, "CLIP: the shots must look “flawless [$c_n$]”", 8)
    page.arrow((cx, 3.0), (cx, 2.5))
    page.chip(cx, 2.3, "$c_n$", GREEN)
    page.text(cx + 0.45, 2.3, "normal-aware word,\nstarts from “object”", 8, "#555555", ha="left")
    page.box(x + 0.2, 0.92, 1.65, 0.48)
    page.text(x + 1.025, 1.16, "diffusion model", 8.5)
    page.box(x + w - 1.85, 0.92, 1.65, 0.48)
    page.text(x + w - 1.025, 1.16, "CLIP", 8.5)
    page.arrow((cx - 0.15, 2.1), (x + 1.025, 1.42), GREEN)
    page.arrow((cx + 0.15, 2.1), (x + w - 1.025, 1.42), GREEN)
    page.text(cx, 0.62, "one vector serves both models; nothing else is trained", 8, "#555555")

    # stage 2
    x2, w2 = panels[1]
    cx2 = x2 + w2 / 2
    page.text(x2 + 0.2, 5.32, "the shots, edited with “a photo with damage”; the first three", 8.5, ha="left")
    page.picture(x2 + 0.2, 4.36, size, shots[0], NORMAL)
    page.arrow((x2 + 0.2 + size, 4.36 + size / 2), (x2 + 0.2 + size + 0.48, 4.36 + size / 2))
    page.strip(x2 + 0.2 + size + 0.5, 4.36, size, pseudo, PSEUDO, limit=3)
    page.text(x2 + w2 - 0.18, 4.2, "pseudo-anomalies", 8, "#B06A00", ha="right")
    page.arrow((cx2, 4.34), (cx2, 3.98))
    page.box(x2 + 0.2, 3.02, w2 - 0.4, 0.95)
    page.text(cx2, 3.78, "The same, and push the damaged away  (eq. 4)", 9, bold=True)
    page.text(cx2, 3.49, "shots must look “flawless [$c_a$]”", 8, NORMAL)
    page.text(cx2, 3.23, "pseudo-anomalies must not", 8, "#B06A00")
    page.arrow((cx2, 3.0), (cx2, 2.5))
    page.chip(cx2, 2.3, "$c_a$", ORANGE)
    page.text(cx2 + 0.45, 2.3, "anomaly-aware word,\nstarts from $c_n$", 8, "#555555", ha="left")
    page.arrow((cx + 0.33, 2.42), (cx2 - 0.34, 2.36), GREY, -0.12, dashed=True)
    page.arrow((cx2, 2.1), (cx2, 1.66))
    page.text(x2 + 0.2, 1.55, "new edits: “a photo of a damaged [$c_a$]”", 8.5, ha="left")
    page.strip(x2 + 0.2, 0.55, size, tuning, PSEUDO)

    # stage 3
    x3, w3 = panels[2]
    page.text(x3 + 0.2, 5.32, "weights: how well each word tells shots from new edits (eq. 5)", 8.5, ha="left")
    colours = {"c_n": GREEN, "c_a": ORANGE}
    for j, (name, value) in enumerate(list(weights.items())[:3]):
        name = name.strip("<>")
        y = 5.02 - 0.25 * j
        page.text(x3 + 0.62, y, f"$w({name})$" if name in colours else f"w({name})", 9, ha="right")
        page.box(x3 + 0.72, y - 0.09, 2.4, 0.18, "white", "white", 0, 0.02)
        page.box(x3 + 0.72, y - 0.09, max(0.02, 2.4 * min(value, 2) / 2), 0.18, colours.get(name, GREY), "white", 0, 0.02)
        page.text(x3 + 3.2, y, f"{value:.2f} of 2", 8, ha="left")
    page.arrow((x2 + 0.2 + min(len(tuning), 4) * (size + 0.07), 0.98), (x3 + 0.14, 4.92), GREY, 0.1, dashed=True)
    page.arrow((x3 + w3 / 2 + 0.12, 5.02 - 0.25 * min(len(weights), 3) + 0.1), (x3 + w3 / 2 + 0.12, 4.26))
    cx3 = x3 + w3 / 2
    page.box(x3 + 0.45, 3.4, w3 - 0.65, 0.84)
    page.text(cx3 + 0.12, 4.05, "two prototypes, weighted means (eq. 6)", 9, bold=True)
    page.text(cx3 + 0.12, 3.77, "$p_n$: “flawless [$c_n$]”, “flawless [$c_a$]”", 8, NORMAL)
    page.text(cx3 + 0.12, 3.54, "$p_a$: “damaged [$c_n$]”, “damaged [$c_a$]”", 8, ANOMALOUS)
    page.text(cx3 + 0.12, 3.22, "score = P($p_a$ rather than $p_n$), eq. 7, + patch memory", 8)
    page.arrow((cx3 + 0.12, 3.1), (cx3 + 0.12, 2.86))
    shown = min(len(tests), 4)
    values = np.asarray(scores, dtype=float)
    low, high = min(0.0, values.min()), values.max()
    step = (w3 - 0.4) / shown
    for j in range(shown):
        left = x3 + 0.2 + j * step + (step - size) / 2
        colour = {0: NORMAL, 1: ANOMALOUS}.get(int(labels[j]), GREY)
        page.picture(left, 1.78, size, tests[j], colour)
        page.text(left + size / 2, 2.71, "defective" if labels[j] else "good", 8, colour)
        level = 0.02 + 0.98 * (values[j] - low) / max(high - low, 1e-12)
        page.box(left + 0.26, 0.72, 0.3, 0.78 * level, colour, colour, 0, 0.02)
        page.text(left + size / 2, 0.72 + 0.78 * level + 0.11, f"{values[j]:.2f}", 8.5, bold=True)
        if memory is not None:
            page.text(left + size / 2, 0.6, f"memory {memory[j]:.2f}", 7, "#555555")
    page.text(cx3, 0.42, "anomaly score", 8.5)
    return page.figure


# ------------------------------------------------------------------------------------------------------------- saving

LIMIT = 300_000  # bytes of a PNG: a page of figures stays quick to load


def save_figure(figure: Figure, name: str, folder: str | Path | None = None, note: str = "") -> list[Path]:
    """Write ``name.png`` (below 300 KB) and ``name.pdf`` (below 500 KB where fewer dots get it there) into ``folder`` (default: figures), atomically, without dates.
    ``note``: written into the lower right corner: which runs and which profile these are, for a picture that is shown without its page.

    Returns:
        The two paths. The same figure gives the same bytes.
    """
    check_file_name(name)
    if note:
        with mpl.rc_context(STYLE):
            _sign(figure, note)
    folder = Path(folder) if folder is not None else project_root() / "figures"
    with mpl.rc_context(STYLE):
        png = _png(figure)
        for dpi in (100, 72, 50):  # of the photographs in it; lines and letters have none
            pdf = io.BytesIO()
            figure.savefig(pdf, format="pdf", dpi=dpi, metadata={"Creator": None, "Producer": None, "CreationDate": None})
            if pdf.tell() <= 500_000:
                break
    paths = []
    for kind, data in (("png", png), ("pdf", pdf.getvalue())):
        paths.append(folder / f"{name}.{kind}")
        with replacing(paths[-1]) as temporary:
            temporary.write_bytes(data)
    return paths


def _sign(figure: Figure, note: str) -> None:
    """A small line at the foot of a figure; where the figure has one already, behind it."""
    if figure.get_supxlabel():
        figure.supxlabel(f"{figure.get_supxlabel()}     {note}", fontsize=7.5, color="#555555")
    elif figure.get_layout_engine() is not None:  # which then leaves room for it
        figure.supxlabel(note, x=0.995, ha="right", fontsize=7, color="#555555")
    else:
        parts = note.split(", ")  # in two lines, as broad as the rows' names, under which it stands
        half = -(-len(parts) // 2)
        lines = [", ".join(part) for part in (parts[:half], parts[half:]) if part]
        figure.text(0.01, 0.008, ",\n".join(lines), ha="left", va="bottom", fontsize=7, color="#555555")


def _png(figure: Figure) -> bytes:
    """The sharpest PNG within the limit: true colour first, then a palette of 256 colours."""
    best = b""
    for dpi, palette in ((150, False), (120, False), (100, False), (150, True), (120, True), (100, True), (80, True), (60, True)):
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
        if palette:
            small = io.BytesIO()
            _palette(Image.open(out)).save(small, format="png", optimize=True)
            out = small
        best = out.getvalue()
        if len(best) <= LIMIT:
            break
    return best


def _palette(picture: Image.Image) -> Image.Image:
    """A PIL image in 256 colours. The default, a median cut, gives rare colours, a legend's or a colour bar's, to their frequent neighbours."""
    picture = picture.convert("RGB")
    few = picture.resize((-(-picture.width // 3), -(-picture.height // 3)), 0)  # every third pixel of every third line: the same colours, sooner
    palette = few.quantize(255, method=1, kmeans=1)  # maximum coverage, then each colour the mean of its pixels
    palette.putpalette([*palette.getpalette()[: 3 * 255], 255, 255, 255])
    shown = picture.quantize(palette=palette, dither=0)
    shown.paste(255, mask=Image.fromarray(np.asarray(picture).min(-1) == 255))  # the nearest colour is Pillow's within four levels; the paper stays white
    return shown


def compact(figure: Figure, dpi: int = 80) -> Any:
    """A figure of photographs for a notebook: a PNG of 256 colours, about a third of the bytes. The last line of a cell shows it.

    >>> compact(image_grid(np.random.default_rng(0).random((2, 3, 32, 32)))).format
    'png'
    """
    from IPython.display import Image as Shown
    full, small = io.BytesIO(), io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(full, format="png", dpi=dpi)
    _palette(Image.open(full)).save(small, format="png", optimize=True)
    return Shown(data=small.getvalue(), format="png")


def show_file(path: str | Path, width: int = 800) -> Any:
    """A picture that lies on disk, for a notebook: at most ``width`` pixels wide, 256 colours."""
    from IPython.display import Image as Shown
    picture, small = Image.open(path).convert("RGB"), io.BytesIO()
    picture.thumbnail((width, 10 * width))
    _palette(picture).save(small, format="png", optimize=True)
    return Shown(data=small.getvalue(), format="png")

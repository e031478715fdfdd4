"""Figures of AnomalySD: rows of pictures, masks, twins, differences, fusion; loss curves; sensitivity; the method in one picture.

Every function returns a closed matplotlib figure in the style of :mod:`fsad_lib.plots`. Images are (B, 3, H, W) in [0, 1].
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from fsad_lib import datasets
from fsad_lib.anomalysd.prompts import inference_prompt, training_prompts
from fsad_lib.errors import FsadError
from fsad_lib.plots import (
    ANOMALOUS,
    BLUE,
    GREEN,
    GREY,
    INK,
    NORMAL,
    ORANGE,
    outline,
    save_figure,
    show_picture,
    styled,
    to_pixels,
)
from fsad_lib.profiles import load_profile
from fsad_lib.runs import ALL, open_run, project_root
from fsad_lib.tables import anomalysd as tables

__all__ = [
    "foregrounds", "loss_curves", "map_strip", "of_run", "overview", "picture_rows", "reason_sentence", "score_sentence", "sensitivity", "twin_rows", "write_all",
]  # fmt: skip

COLOURS = {"image_auroc": BLUE, "pixel_auroc": GREEN, "aupro": ORANGE}
ORDER = ("MVTec AD", "VisA", "MiniFab", "MiniFab (development)")  # of data sets; all others after them
NAMES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _masked(pixels: np.ndarray, m: np.ndarray) -> np.ndarray:
    """The image with the masked region in grey, as the U-Net is shown it."""
    return np.where(m[..., None], 0.5, pixels)


def _bar(figure: Figure, axes: Sequence[Axes], low: float, high: float, label: str = "", shrink: float = 0.85, aspect: float = 14) -> None:
    """A thin colour bar below ``axes``, with its two ends as numbers."""
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, high), "inferno"), ax=list(axes), location="bottom", ticks=[low, high], shrink=shrink, aspect=aspect, pad=0.02
    )
    digits = 2 if high < 1e-6 else min(max(1 - math.floor(math.log10(high)), 2), 5)
    bar.ax.set_xticklabels([f"{low:.{digits}f}", f"{high:.{digits}f}"])
    for text, side in zip(bar.ax.get_xticklabels(), ("left", "right"), strict=True):
        text.set_horizontalalignment(side)
    bar.ax.tick_params(labelsize=7, length=0)
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=8)


@styled
def picture_rows(rows: Mapping[str, object], titles: Sequence[str] | None = None, size: float = 1.1) -> Figure:
    """Images in labelled rows, one above the other: name -> (B, 3, H, W), as many in each; titles: B, above the first row."""
    pixels = {name: to_pixels(x) for name, x in rows.items()}
    counts = [len(x) for x in pixels.values()]
    if len(set(counts)) != 1 or (titles is not None and len(titles) != counts[0]):
        raise FsadError(f"found rows of {counts} images and {'no' if titles is None else len(titles)} titles; expected as many of each.")
    figure, axes = plt.subplots(
        len(pixels), counts[0], figsize=(size * counts[0] + 0.6, size * len(pixels) + 0.2), squeeze=False, layout="constrained"
    )
    for row, (name, pictures) in zip(axes, pixels.items(), strict=True):
        for i, ax in enumerate(row):
            show_picture(ax, pictures[i], titles[i] if titles is not None and ax in axes[0] else "")
        row[0].set_ylabel(name, fontsize=8)
    return figure


@styled
def foregrounds(x: Any, where: Any, masks: Any, titles: Sequence[str] | None = None, size: float = 1.15) -> Figure:
    """Shots, their foreground, and random rectangles restricted to it: one column per image.

    Args:
        x: (B, 3, H, W); where: (B, 1, H, W) bool; masks: (B, M, H, W) bool, M rectangles of each image.
    """
    pixels, where, masks = to_pixels(x), _array(where)[:, 0], _array(masks)
    rows = 2 + masks.shape[1]
    figure, axes = plt.subplots(rows, len(pixels), figsize=(size * len(pixels) + 0.6, size * rows), squeeze=False, layout="constrained")
    for i, picture in enumerate(pixels):
        show_picture(axes[0, i], picture, titles[i] if titles is not None else "", NORMAL)
        show_picture(axes[1, i], picture * np.where(where[i][..., None], 1, 0.25))
        for j, m in enumerate(masks[i]):
            show_picture(axes[2 + j, i], _masked(picture, m))
    for row, name in enumerate(["shot", "foreground", *["masked"] * masks.shape[1]]):
        axes[row, 0].set_ylabel(name, fontsize=8)
    return figure


@styled
def loss_curves(unet: pd.DataFrame, decoder: pd.DataFrame) -> Figure:
    """Fine-tuning: the U-Net's loss, and the decoder's squared error and perceptual distance; pale: every step, bold: smoothed.

    Args:
        unet: columns step, loss. decoder: step, mse, perceptual, loss. A trace without steps is drawn as such.
    """
    panels = (
        (unet, "loss", "U-Net: noise prediction", "mean squared error of eps (or v)", BLUE),
        (decoder, "mse", "Decoder: squared error", "mean over pixels in [0, 1]", GREEN),
        (decoder, "perceptual", "Decoder: perceptual distance", "LPIPS, before it is weighted by beta", ORANGE),
    )
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.6), layout="constrained")
    for ax, (trace, column, title, caption, colour) in zip(axes, panels, strict=True):
        ax.set_title(f"{title}\n", fontsize=10)
        ax.text(0, 1.03, caption, transform=ax.transAxes, fontsize=7.5, color="#555555")
        ax.set_xlabel("step")
        if column not in trace or trace.empty:
            ax.text(0.5, 0.5, "not trained", transform=ax.transAxes, ha="center", color=GREY)
            ax.set(xticks=[], yticks=[])
            continue
        ax.plot(trace["step"], trace[column], color=colour, alpha=0.25, linewidth=0.9)
        smooth = trace[column].rolling(max(1, len(trace) // 10), min_periods=1, center=True).mean()
        ax.plot(trace["step"], smooth, color=colour)
        ax.set_ylim(bottom=0)
    return figure


@styled
def twin_rows(x: Any, m: Any, x_hat: Any, d: Any, titles: Sequence[str], limit: float | None = None, size: float = 1.15) -> Figure:
    """One image and some of its passes: the masked image, the normal twin, their difference with its colour bar; one column per pass.

    Args:
        x: (3, H, W); m: (P, H, W) bool; x_hat: (P, 3, H, W); d: (P, H, W); titles: P.
        limit: D at full heat; default: the largest value inside the masks.
    """
    picture, twins, m, d = to_pixels(x)[0], to_pixels(x_hat), _array(m), _array(d)
    if not len(m) == len(twins) == len(d) == len(titles):
        raise FsadError(f"found {len(m)} masks, {len(twins)} twins, {len(d)} differences and {len(titles)} titles; expected as many of each.")
    inside = np.where(m, d, 0)
    top = limit or max(float(inside.max()), 1e-9)
    figure, axes = plt.subplots(3, len(m), figsize=(size * len(m) + 0.6, size * 3 + 0.6), squeeze=False, layout="constrained")
    for i in range(len(m)):
        show_picture(axes[0, i], _masked(picture, m[i]), titles[i])
        show_picture(axes[1, i], twins[i])
        show_picture(axes[2, i], inside[i], cmap="inferno", vmin=0, vmax=top)
    for ax, name in zip(axes[:, 0], ("masked", "normal twin", "difference D"), strict=True):
        ax.set_ylabel(name, fontsize=8)
    _bar(figure, axes.flat, 0, top, "D" if len(m) == 1 else "D, the same scale in every column", aspect=14 if len(m) == 1 else 40)
    return figure


@styled
def map_strip(x: Any, maps: Mapping[str, object], masks: Any = None, titles: Sequence[str] | None = None, size: float = 1.15) -> Figure:
    """From the scales to the final map: image, every map, the true defect; one row per image. Each column of maps has one colour scale, from its
    smallest to its largest value, which stand at the bar below it.

    Args:
        x: (B, 3, H, W); maps: name -> (B, h, w); masks: (B, H, W) bool or None.
    """
    pixels, arrays = to_pixels(x), {name: _array(v) for name, v in maps.items()}
    columns = 1 + len(arrays) + (masks is not None)
    figure, axes = plt.subplots(
        len(pixels), columns, figsize=(size * columns + 0.8, size * len(pixels) + 0.9), squeeze=False, layout="constrained"
    )
    scales = {name: (float(v.min()), max(float(v.max()), float(v.min()) + 1e-9)) for name, v in arrays.items()}
    for i, row in enumerate(axes):
        show_picture(row[0], pixels[i], "image" if i == 0 else "")
        if titles is not None:
            row[0].set_ylabel(titles[i], fontsize=8, rotation=0, ha="right", va="center", labelpad=6)
        for ax, (name, values) in zip(row[1:], arrays.items(), strict=False):
            show_picture(ax, values[i], name if i == 0 else "", cmap="inferno", vmin=scales[name][0], vmax=scales[name][1])
        if masks is not None:
            show_picture(row[-1], pixels[i], "true defect" if i == 0 else "")
            mask = _array(masks)[i]
            if mask.any():
                outline(row[-1], mask)
            else:
                row[-1].set_xlabel("no defect", fontsize=8)
    for column, (low, high) in enumerate(scales.values(), 1):
        _bar(figure, axes[:, column], low, high)
    for ax in axes.flat:
        ax.set_anchor("S")  # a colour bar moves its own column there
    return figure


@styled
def sensitivity(table: pd.DataFrame, chosen: Mapping[str, float] | None = None) -> Figure:
    """The effect of lambda and alpha: one row per data set, MiniFab before real images, one column per parameter; bars are 95 % intervals.

    Args:
        table: :func:`fsad_lib.tables.anomalysd.sensitivity`. chosen: "lambda" and "alpha" of the profile, marked by a line.
    """
    if table.empty:
        raise FsadError("Nothing to draw: no run is complete. Run the grid first: python -m fsad_lib grid anomalysd.")
    units = sorted(set(table.data_set), key=lambda unit: (ORDER.index(unit) if unit in ORDER else len(ORDER), unit))
    several = table.groupby(["data_set", "parameter"]).value.nunique()
    figure, axes = plt.subplots(len(units), 2, figsize=(8, 2.6 * len(units) + 0.3), squeeze=False, layout="constrained", sharey="row")
    for row, unit in zip(axes, units, strict=True):
        for ax, parameter in zip(row, ("lambda", "alpha"), strict=True):
            block = table[(table.data_set == unit) & (table.parameter == parameter)]
            for metric, points in block.groupby("metric", sort=False):
                points = points.sort_values("value")
                spread = np.nan_to_num(np.clip([points.ours - points.low, points.high - points.ours], 0, None))
                if several[unit, parameter] > 1:
                    ax.errorbar(points.value, points.ours, spread, color=COLOURS[metric], marker="o", elinewidth=0.8, capsize=0, label=NAMES[metric])
            if several.get((unit, parameter), 0) < 2:
                only = "" if block.empty else f"only {block.value.iloc[0]:g} was "
                ax.text(0.5, 0.5, f"{only or 'not '}run", transform=ax.transAxes, ha="center", color=GREY)
            if chosen and parameter in chosen:
                ax.axvline(chosen[parameter], color=INK, linewidth=0.9, linestyle=":", zorder=0)
            symbol = {"lambda": r"$\lambda$: noise strength, $\tilde T = \lambda T$", "alpha": r"$\alpha$: weight of the prototype-guided map"}
            ax.set_xlim(-0.05, 1.05)
            ax.set(xlabel=symbol[parameter], ylabel="percent" if parameter == "lambda" else "")
            ax.set_title(unit if parameter == "lambda" else "", fontsize=10, fontweight="bold")
            if "n_seeds" in block and several.get((unit, parameter), 0) > 1:
                seeds = int(block.n_seeds.max())
                ax.set_title(f"{seeds} seed{'' if seeds == 1 else 's'}", fontsize=8, loc="right")
    named = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}  # not every unit has masks
    if named:
        figure.legend(named.values(), named.keys(), loc="outside right upper")
    bars = "Bars: 95 % interval over products, seeds averaged first; over images where a data set is one product.\nλ: the seeds that all its values have; α: all seeds."
    figure.supxlabel(bars, x=0.01, ha="left", fontsize=8, color="#555555")
    return figure


def score_sentence(good: float, bad: float) -> str:
    """Which of two scores is higher, in words.

    >>> score_sentence(0.2, 0.3)
    'The defective part scores higher (0.300) than the good one (0.200), as it should.'
    """
    if bad > good:
        return f"The defective part scores higher ({bad:.3f}) than the good one ({good:.3f}), as it should."
    return f"The defective part scores {bad:.3f}, the good one {good:.3f}: on this pair the score is wrong."


def reason_sentence(ratio: dict[str, float], outranked: bool) -> str:
    """Why a defect was, or was not, found: ratios of the score inside it to the score elsewhere, compared in words.

    Args:
        ratio: "S^{(k)}" of each scale, "S_{map}", and of the two controls "guided autoencoder" and "autoencoder".
        outranked: whether a good part scores as high. "Clearly" means by a tenth; one and a half is far above the surroundings: our own lines.

    >>> reason_sentence({"S^{(2)}": 1.5, "S_{map}": 1.3, "guided autoencoder": 1.3, "autoencoder": 1.5}, True)
    'Repainting cannot be told from the autoencoder alone: no scale reaches clearly more (1.50) than it does (1.50).'
    """
    whole, guided, alone = (ratio[name] for name in ("S_{map}", "guided autoencoder", "autoencoder"))
    best = max(value for name, value in ratio.items() if name.startswith("S^"))
    if best < 1.1 * alone:
        return f"Repainting cannot be told from the autoencoder alone: no scale reaches clearly more ({best:.2f}) than it does ({alone:.2f})."
    beyond = f"A scale sets the defect off ({best:.2f}) beyond the autoencoder alone ({alone:.2f})"
    if whole < 0.9 * alone:
        return f"{beyond}, but the fusion loses it: the fused map ({whole:.2f}) lies below the autoencoder alone."
    if whole < 1.1 * alone:
        return f"{beyond}, but the fused map ({whole:.2f}) cannot be told from the autoencoder alone."
    if whole < 1.1 * guided:
        return f"{beyond}, but the fused map ({whole:.2f}) cannot be told from the guided autoencoder ({guided:.2f}): the mask alone does as much."
    if whole < 1.5:
        return f"{beyond}, but other places differ nearly as much in the fused map ({whole:.2f}): the twins are not close enough to the part."
    lost = "; the image score loses it, since good parts have peaks as high somewhere" if outranked else ""
    return f"{beyond}, and the fused map finds the place ({whole:.2f}){lost}."


@styled
def overview(
    shots: Any, where: Any, trace: pd.DataFrame, twins: Any, index: int, mask: Any = None, *, training_prompt: str = "", prompt: str = "", subtitle: str = ""
) -> Figure:
    """The method in one picture, drawn from the products of one run (our own drawing; the paper's figure was not seen). All maps have one colour
    scale; each one's largest value stands below it.

    Args:
        shots: (N, 3, H, W), the first six are shown; where: (N, 1, H, W) bool, their foreground; trace: the U-Net's, columns step, loss.
        twins: a :class:`fsad_lib.anomalysd.stages.Synthesized`; index: which of its images; mask: (H, W) bool, its true defect;
            None where it is not known.
        training_prompt: a sentence that the first shot is repainted with; prompt: the one of the test image.
    """
    pixels, where = to_pixels(shots)[:6], _array(where)[:6, 0]
    figure = plt.figure(figsize=(12, 6.6))
    figure.text(0.012, 0.965, "AnomalySD: one inpainting model for all categories", fontsize=13, fontweight="bold", va="center")
    figure.text(0.012, 0.93, subtitle or "real products of one run", fontsize=9, color="#555555", va="center")
    left, right = figure.add_gridspec(1, 2, width_ratios=(1, 2.3), left=0.012, right=0.99, top=0.83, bottom=0.04, wspace=0.06)

    # fine-tuning
    grid = left.subgridspec(4, min(3, len(pixels)), height_ratios=(1, 1, 1, 1.2), hspace=0.25, wspace=0.06)
    figure.text(0.012, 0.89, "1  Fine-tune on the shots of every category", fontsize=10.5, fontweight="bold")
    for i in range(min(3, len(pixels))):
        show_picture(figure.add_subplot(grid[0, i]), pixels[i], edge=NORMAL)
        ax = figure.add_subplot(grid[1, i])
        show_picture(ax, pixels[i] * np.where(where[i][..., None], 1, 0.25), "foreground" if i == min(1, len(pixels) - 1) else "")
        if not where[i].all():
            outline(ax, where[i])
        else:
            ax.set_xlabel("all of it", fontsize=7, labelpad=2)
    words = figure.add_subplot(grid[2, :])
    words.set_axis_off()
    words.text(0.0, 0.85, "random rectangles inside the foreground are repainted,\neach product's guided by its own sentences, such as", fontsize=8.5, va="top")
    words.text(0.0, 0.36, textwrap.fill(f"“{training_prompt}”", 50), fontsize=8, va="top", color=NORMAL)
    curve = figure.add_subplot(grid[3, :])
    if len(trace):
        curve.plot(trace["step"], trace["loss"].rolling(max(1, len(trace) // 10), min_periods=1, center=True).mean(), color=BLUE)
    curve.set_title("U-Net loss over steps, smoothed", fontsize=8)
    curve.tick_params(labelsize=7)
    curve.yaxis.tick_right()  # there is room between the two halves
    curve.spines[["left", "right"]].set_visible([False, True])

    # judging
    picture, k = to_pixels(twins.x[index])[0], twins.k[index]
    chosen = [int(np.flatnonzero(k == scale)[0]) for scale in dict.fromkeys(k.tolist())]
    columns = max(len(chosen) + 1, 4)
    grid = right.subgridspec(4, columns, hspace=0.4, wspace=0.08)
    figure.text(0.335, 0.89, "2  Judge: repaint as normal, measure what changed", fontsize=10.5, fontweight="bold")
    show_picture(figure.add_subplot(grid[0, 0]), picture, "test image", ANOMALOUS if twins.label[index] == 1 else NORMAL)
    if prompt:
        words = figure.add_subplot(grid[1, 0])
        words.set_axis_off()
        words.text(0, 1.0, "repainted, guided by", fontsize=8.5, va="top")
        words.text(0, 0.84, textwrap.fill(f"“{prompt}”", 25), fontsize=8, va="top", color=NORMAL)
    inside = np.where(twins.m[index], twins.d[index], 0)
    top = max(1e-9, *(float(np.max(values[index])) for values in twins.maps.values()))

    def show_map(place, values, head: str) -> Axes:
        ax = figure.add_subplot(place)
        show_picture(ax, values, head, cmap="inferno", vmin=0, vmax=top)
        ax.set_xlabel(f"largest {float(np.max(values)):.2g}", fontsize=7, labelpad=2)
        return ax

    for column, p in enumerate(chosen, 1):
        head = "prototype-guided mask" if k[p] == 0 else f"mask, {k[p]} x {k[p]} cells\npass 1 of {int((k == k[p]).sum())}"
        show_picture(figure.add_subplot(grid[0, column]), _masked(picture, twins.m[index][p]), head)
        show_picture(figure.add_subplot(grid[1, column]), to_pixels(twins.x_hat[index, p])[0], "normal twin")
        name = "s_pg" if k[p] == 0 else f"S{k[p]}"
        head = "$S_{pg}$" if k[p] == 0 else f"$S^{{({k[p]})}}$"
        show_map(grid[2, column], twins.maps.get(name, [inside[p]] * len(twins.x))[index], head)
    last = [("s_ms", "$S_{ms}$, harmonic mean"), ("map", r"$S_{map}=(1-\alpha)S_{ms}+\alpha S_{pg}$")]
    for column, (name, head) in enumerate(last, 1):
        last_map = show_map(grid[3, column], twins.maps[name][index], head)
    ax = figure.add_subplot(grid[3, 3])
    show_picture(ax, picture, "true defect")
    if mask is None:
        ax.set_xlabel("this data set has no masks", fontsize=7, labelpad=2)
    elif _array(mask).any():
        outline(ax, _array(mask))
    place = figure.add_subplot(grid[3, 0])
    place.set_axis_off()
    bar = figure.colorbar(last_map.images[0], cax=place.inset_axes((0.1, 0.45, 0.8, 0.1)), orientation="horizontal", ticks=[0, top])
    bar.ax.set_xticklabels(["0", f"{top:.2g}"], fontsize=7)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    bar.ax.set_title("scale of all maps", fontsize=7, loc="center")
    return figure


# -------------------------------------------------------------------- files
def write_all(root: str | Path | None = None, profile: str = "mini", shots: int = 1, folder: Path | None = None) -> list[Path]:
    """The figures of the runs that are complete, into ``folder`` (``root/figures``): sensitivity, and of each data set's lowest seed the loss curves
    and the overview. Nothing is drawn of what was not run."""
    folder = folder or Path(root or project_root()) / "figures"
    a, suffix, written = load_profile(profile).anomalysd, "" if profile == "mini" else f"_{profile}", []
    table = tables.sensitivity(root, profile, shots)
    if len(table):
        figure = sensitivity(table, {"lambda": a.strength, "alpha": a.alpha})
        written += save_figure(figure, f"anomalysd_sensitivity{suffix}", folder, f"profile {profile}, {shots} shot{'' if shots == 1 else 's'}")
    rows = tables.rows_of(root, profile)
    for dataset, found in rows[(rows.shots == shots) & (rows.dataset != "folder")].groupby("dataset"):
        run = open_run(
            "21_synthesize", "anomalysd", profile=profile, dataset=dataset, category=ALL, shots=shots, seed=int(found.seed.min())
        )
        for name, figure in of_run(run).items():
            note = "" if name == "overview" else f"{dataset}, {run.shots} shot{'' if run.shots == 1 else 's'}, seed {run.seed}, profile {profile}"  # the overview says so at its top
            written += save_figure(figure, f"anomalysd_{name}_{dataset}{suffix}", folder, note)
    return written


def of_run(run: Any) -> dict[str, Figure]:
    """"losses" and "overview" of a run of stage 21 whose products, and those of its stage 11, are on this machine; empty otherwise."""
    from fsad_lib.anomalysd import stages  # here, because it reads the models' libraries

    source = stages.tuned_run(run)
    if not run.has("twins.npz") or not source.has("unet.safetensors", "decoder.safetensors", "trace_unet.csv", "trace_decoder.csv"):
        return {}
    tuned, twins = stages.personalize(source), stages.synthesize(run)
    index = max(range(len(twins.x)), key=lambda i: (twins.label[i], twins.maps["map"][i].max()))
    row = run.table().query("path == @twins.path[@index]")
    mask = datasets.read_masks(row, twins.x.shape[-1])[0] if datasets.has_masks(row) else None
    category = twins.category[index]
    levels = run.profile.anomalysd.prompt_levels
    prompt, training = inference_prompt(tuned.prompts[category], levels), training_prompts(tuned.prompts[tuned.category[0]], levels)
    told = f"{run.dataset}, {category}, {run.shots} shot{'s' if run.shots > 1 else ''}, seed {run.seed}, profile {run.profile.name}; of its examples the defective one whose map peaks highest"
    return {
        "losses": loss_curves(tuned.trace_unet, tuned.trace_decoder),
        "overview": overview(tuned.x, tuned.foreground, tuned.trace_unet, twins, index, mask, training_prompt=training[0], prompt=prompt, subtitle=told),
    }

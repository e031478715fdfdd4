"""Figures of TGVIG, 1 to 9 of the paper as far as runs allow, drawn from their products.

Every function returns a closed matplotlib figure in the style of :mod:`fsad_lib.plots`. Images are (B, 3, H, W) in [0, 1].
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsad_lib.errors import FsadError
from fsad_lib.plots import (
    BLUE,
    GREEN,
    GREY,
    INK,
    NORMAL,
    ORANGE,
    YELLOW,
    outline,
    save_figure,
    show_picture,
    styled,
    to_pixels,
)
from fsad_lib.runs import open_run, project_root, replacing
from fsad_lib.tables import mean_over_categories
from fsad_lib.tables import tgvig as tables

__all__ = [
    "CAPTIONS", "arm_points", "captions", "gain_points", "image_rows", "loss_curves", "map_rows", "of_rows", "of_run", "overview", "prompt_similarity",
    "similarity_curves", "variance_map", "write_all",
]  # fmt: skip

COLOURS = {"shots": GREY, "duplicated": YELLOW, "augmented": ORANGE, "generated": BLUE}
NAMES = {"shots": "shots alone", "duplicated": "duplicated (control)", "augmented": "augmented, no VQGAN (control)", "generated": "generated (TGVIG)"}

SHOWN = {"mini": "gear", "paper": "hazelnut"}
"""profile -> the product of Figures 3, 7 and 9: the gear, on which generated images show what is wrong with them; the paper's own."""

CAPTIONS = {
    "figure1_one_product": "**Figure 1.** One product and every detector that was run on it, in each arm: mean over seeds (small dots: each seed). A 95 % interval over test "
    "images is drawn only where a run's predictions are at hand; in the committed figure there is none, and its third panel is one seed. The paper shows its own gain on metal nut; here it is the product with most detectors.",
    "figure2_generators": "**Figure 2.** One shot and what other generators make of its name: VQGAN-CLIP driven by the word alone, the naive, the worst and the best prompt, a diffusion "
    "model that edits the shot, and TGVIG. A web image and those of Midjourney and DALL-E are not made here and not shown.",
    "figure3_overview": "**Figure 3.** The method in one picture, drawn from the products of one run: related words make prompts and CLIP ranks them; images are drawn from the shot's own "
    "latents, updated and scored; the detector learns from the shot with each arm's additions. Three images of each set are shown.",
    "figure4_gains": "**Figure 4, top.** What the generated images gain over each control: the paired difference in image AUROC, with its 95 % interval over products (seeds averaged first; "
    "over test images where there is one product). Left of the line they lose. Dotted: no interval, but the range of two products.",
    "figure4_classes": "**Figure 4, bottom.** The same gain for each product, 1 shot, without an interval. The paper shows the five classes that gain most; here no product is chosen.",
    "figure5_objects_textures": "**Figure 5.** Objects and textures apart, PatchCore, detection and segmentation: means over products and seeds, 95 % intervals over products, each of one arm by itself: "
    "bars that overlap decide no comparison (Figure 4 has the paired gains). In the profile paper on BTAD's first two products, as there.",
    "figure6_logical_structural": "**Figure 6.** Logical defects (a part is missing or swapped, or the number of parts is wrong) and structural ones apart, each against all good images, PatchCore, detection and "
    "segmentation: means over the products that have both kinds, 95 % intervals over products, each of one arm by itself: bars that overlap decide no comparison. The paper's maps of single images below its plots have no counterpart here; notebook 42 shows maps.",
    "figure7_prompts": "**Figure 7, top.** Every candidate prompt's cosine to the object's name (left) and to the shot (right), sorted. Only the right one chooses the best prompt.",
    "figure7_images": "**Figure 7, bottom.** The shot and the sets of images that each prompt chose, with the iteration that it chose; equal iterations are equal images.",
    "figure8_similarity": "**Figure 8.** The cosine between the generated set and the best prompt over the integrator's iterations; the chosen iteration is marked. "
    "Every panel spans as much; each has a level of its own.",
    "figure9_variance": "**Figure 9.** The shot and images drawn with the estimated variance of its latents, with unit variance everywhere, and with none. Each row is the set that its own run "
    "chose: the updates differ, since they see the images drawn.",
    "losses": "**Losses (added by us).** The loss of each trained detector over its optimizer steps, in each arm: mean over runs. Flat or still falling is judged in the table.",
}
"""Figure (its file's name, or how it begins) -> its caption. Numbers are the paper's."""


@styled
def image_rows(rows: Mapping[str, Any], columns: int = 8, size: float = 1.0, masks: Mapping[str, Any] | None = None) -> Figure:
    """Sets of images, one row each, the row's name at its left (Figures 2, 7 and 9).

    Args:
        rows: name -> (n, 3, H, W); the first ``columns`` are shown.
        masks: name of a row -> (n, H, W) bool, outlined in its pictures.
    """
    pixels = {name: to_pixels(x[:columns]) for name, x in rows.items()}
    columns = max(len(p) for p in pixels.values())
    figure, axes = plt.subplots(len(pixels), columns, figsize=(size * columns + 1.6, size * len(pixels) + 0.1), squeeze=False, layout="constrained")
    for line, (name, pictures) in zip(axes, pixels.items(), strict=True):
        for i, ax in enumerate(line):
            if i < len(pictures):
                show_picture(ax, pictures[i])
                _outline(ax, (masks or {}).get(name), i)
            else:
                ax.set_axis_off()
        line[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center", labelpad=6)
    return figure


def _outline(ax: Axes, masks: Any, i: int) -> None:
    if masks is not None and np.asarray(masks[i]).any():
        outline(ax, np.asarray(masks[i]))


def _scatter(ax: Axes, cosine: np.ndarray, best: int, worst: int, label: str) -> None:
    order = np.argsort(cosine)
    place = np.empty(len(order), int)
    place[order] = np.arange(len(order))
    ax.plot(place, cosine, ".", color=GREY, markersize=3)
    for i, colour, name in ((best, GREEN, "best"), (worst, INK, "worst")):
        ax.plot(place[i], cosine[i], "o", color=colour, label=f"{name}: {cosine[i]:.3f}")
    ax.set(xlabel="prompts, sorted", ylabel=f"cosine to {label}")
    ax.legend(fontsize=8)


@styled
def prompt_similarity(selection: Any, to_name: Any = None) -> Figure:
    """Figure 7, top: the cosine of every prompt to the object's name (left, where given) and to the original images (right).

    Args:
        selection: of :func:`fsad_lib.tgvig.keyword_prompts.best_prompt`. to_name: (T,).
    """
    best, worst = (selection.prompts.index(p) for p in (selection.best, selection.worst))
    panels = ([(np.asarray(to_name), "the object's name")] if to_name is not None else []) + [(np.asarray(selection.cosine), "the image")]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 2.7), squeeze=False, layout="constrained")
    for ax, (values, label) in zip(axes[0], panels, strict=True):
        _scatter(ax, values, best, worst, label)
    return figure


@styled
def similarity_curves(traces: Mapping[str, pd.DataFrame], columns: int = 3) -> Figure:
    """Figure 8: the cosine between the generated set and the best prompt over iterations; the chosen iteration is marked.

    Args:
        traces: title -> trace of a run (columns iteration, best).
    """
    columns = min(columns, len(traces))
    lines = -(-len(traces) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.2 * columns, 2.4 * lines), squeeze=False, layout="constrained")
    for ax in axes.flat[len(traces) :]:
        ax.set_axis_off()
    span = max(0.01, *(trace.best.max() - trace.best.min() for trace in traces.values()))  # the same for all: noise must not look like a peak
    for ax, (title, trace) in zip(axes.flat, traces.items(), strict=False):
        ax.plot(trace.iteration, trace.best, color=BLUE, marker=".")
        top = trace.best.argmax()
        ax.plot(trace.iteration[top], trace.best[top], "o", color=GREEN)
        middle = (trace.best.max() + trace.best.min()) / 2
        ax.set(xlabel="iteration", ylabel="similarity to the prompt", xticks=trace.iteration, ylim=(middle - 0.6 * span, middle + 0.6 * span))
        ax.set_title(f"{title}: spread {trace.best.max() - trace.best.min():.3f}", fontsize=9)
    return figure


@styled
def variance_map(x: Any, mean: Any, variance: Any, images: Any, size: float = 1.5) -> Figure:
    """An original, its latent distribution (mean and standard deviation of every cell, averaged over the channels), and images drawn from it.

    Args:
        x: (3, H, W). mean, variance: (C, h, w). images: (n, 3, H, W).
    """
    pictures = to_pixels(images)
    figure, axes = plt.subplots(1, 3 + len(pictures), figsize=(size * (3 + len(pictures)), size + 0.7), layout="constrained")
    show_picture(axes[0], to_pixels(x)[0], "original", NORMAL)
    for ax, (values, title) in zip(axes[1:3], ((mean, "mean latent"), (variance.sqrt(), "standard deviation")), strict=True):
        show_picture(ax, values.detach().mean(0).cpu().numpy(), title, cmap="viridis")
        bar = figure.colorbar(ax.images[0], ax=ax, orientation="horizontal", shrink=0.9, aspect=14, pad=0.03)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
    for i, (ax, picture) in enumerate(zip(axes[3:], pictures, strict=True)):
        show_picture(ax, picture, f"sample {i + 1}")
    return figure


def _rounded(value: float) -> str:
    """Two figures, and no rounding error in place of a zero.

    >>> _rounded(-3.6e-07), _rounded(1.482)
    ('0', '1.5')
    """
    return f"{value if abs(value) > 1e-6 else 0:.2g}"


@styled
def map_rows(x: Any, maps: Mapping[str, Any], masks: Any = None, titles: Sequence[str] | None = None, size: float = 1.15, shared: bool = False) -> Figure:
    """Test images, their anomaly maps in several arms, the true defect: one row per image. Each column has one colour scale, from the lowest to the
    highest value of its maps, or, ``shared``, all columns have one; a column's head gives its own two values.

    Args:
        x: (B, 3, H, W); maps: name -> (B, h, w); masks: (B, H, W) bool or None.
    """
    pixels, arrays = to_pixels(x), {name: np.asarray(v) for name, v in maps.items()}
    lowest, highest = min(float(v.min()) for v in arrays.values()), max(float(v.max()) for v in arrays.values())
    columns = 1 + len(arrays) + (masks is not None)
    figure, axes = plt.subplots(len(pixels), columns, figsize=(size * columns + 0.8, size * len(pixels) + 0.3), squeeze=False, layout="constrained")
    for i, row in enumerate(axes):
        show_picture(row[0], pixels[i], "image" if i == 0 else "")
        if titles is not None:
            row[0].set_ylabel(titles[i], fontsize=8, rotation=0, ha="right", va="center", labelpad=6)
        for ax, (name, values) in zip(row[1:], arrays.items(), strict=False):
            low, high = float(values.min()), float(values.max())
            head = f"{name}\n{_rounded(low)} to {_rounded(high)}" if i == 0 else ""
            if shared:
                low, high = lowest, highest
            show_picture(ax, values[i], head, cmap="inferno", vmin=low, vmax=max(high, low + 1e-9))
        if masks is not None:
            show_picture(row[-1], pixels[i], "true defect" if i == 0 else "")
            _outline(row[-1], masks, i)
            if not np.asarray(masks[i]).any():
                row[-1].set_xlabel("no defect", fontsize=8)
    return figure


def _panels(groups: Mapping[str, pd.DataFrame], column: str, columns: int, width: float, height: float, per_label: float = 0.0, **how: Any) -> tuple[Figure, list[tuple[Axes, str, pd.DataFrame]]]:
    """A figure with a panel for each group that has a value in ``column``, without the labels that have none; a line of panels is ``height`` and
    ``per_label`` for each of its labels high. ``how``: see ``pyplot.subplots``."""
    groups = {title: t[t.groupby("label")[column].transform("count") > 0] for title, t in groups.items()}
    groups = {title: t for title, t in groups.items() if len(t)}
    if not groups:
        raise FsadError("Nothing to draw: no run is complete. Run the grid first: python -m fsad_lib grid tgvig.")
    columns = min(columns, len(groups))
    lines = -(-len(groups) // columns)
    most = [max(t.label.nunique() for t in list(groups.values())[columns * i : columns * (i + 1)]) for i in range(lines)]
    heights = [height + per_label * n for n in most]
    figure, axes = plt.subplots(
        lines, columns, figsize=(width * columns, sum(heights)), squeeze=False, layout="constrained", gridspec_kw={"height_ratios": heights}, **how
    )
    for ax in axes.flat[len(groups) :]:
        ax.set_axis_off()
    if per_label:  # labels lie equally far apart in every panel of a line
        for line, n in zip(axes, most, strict=True):
            for ax in line:
                ax.set_ylim(n - 0.5, -0.5)
    return figure, [(ax, title, table) for ax, (title, table) in zip(axes.flat, groups.items(), strict=False)]


def _legend(figure: Figure, panels: Sequence[tuple[Axes, str, pd.DataFrame]], columns: int) -> None:
    found = {name: handle for ax, *_ in panels for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, fontsize=8)


@styled
def arm_points(groups: Mapping[str, pd.DataFrame], ylabel: str = "percent", columns: int = 3) -> Figure:
    """Figures 1, 5 and 6: the arms beside each other, a point with its 95 % interval for each; the axis need not begin at 0.

    Args:
        groups: title of a panel -> table with the columns label (a group of points), arm, ours, low, high; note (text below the label), and
            optionally each: the values of single seeds.
    """
    figure, panels = _panels(groups, "ours", columns, 4.4, 3.0)
    for ax, title, table in panels:
        labels = list(dict.fromkeys(table.label))
        arms = [arm for arm in COLOURS if arm in set(table.arm)]
        for j, arm in enumerate(arms):
            part = table[table.arm == arm].set_index("label").reindex(labels)
            at = np.arange(len(labels)) + 0.6 * (j - (len(arms) - 1) / 2) / len(arms)
            spread = np.nan_to_num(np.clip([part.ours - part.low, part.high - part.ours], 0, None).astype(float))
            ax.errorbar(at, part.ours, spread, fmt="o", color=COLOURS[arm], ecolor=INK, elinewidth=0.9, markersize=6, markeredgecolor=INK, markeredgewidth=0.5, label=NAMES[arm])
            for x, values in zip(at, part.get("each", pd.Series([()] * len(labels))), strict=True):
                if isinstance(values, Sequence) and len(values) > 1:
                    ax.plot([x + 0.05] * len(values), values, "o", color=COLOURS[arm], markersize=3, markeredgecolor=INK, markeredgewidth=0.3, zorder=4)
        notes = dict(zip(table.label, table.note, strict=True))
        ax.set_xticks(range(len(labels)), ["\n".join(filter(None, (label.replace(" ", "\n"), notes[label]))) for label in labels], fontsize=8)
        ax.set(xlim=(-0.5, len(labels) - 0.5), ylabel=ylabel)
        if ax.get_ylim()[0] < 52:
            ax.axhline(50, color=GREY, linewidth=0.9, linestyle=":")
            ax.annotate("chance", (1, 50), xycoords=("axes fraction", "data"), xytext=(-2, 2), textcoords="offset points", fontsize=7, ha="right", color=GREY)
        ax.set_title(title, fontsize=9)
    _legend(figure, panels, 4 if len(panels) > 1 else 2)
    return figure


@styled
def gain_points(groups: Mapping[str, pd.DataFrame], xlabel: str = "gain of TGVIG, points of image AUROC", columns: int = 2) -> Figure:
    """Figure 4: what the generated images gain over each control, with the 95 % interval where there is one, and a line at no gain.

    Args:
        groups: title of a panel -> table with the columns label (a group of points), arm (the control), gain, gain_low, gain_high and note (text
            below the label), and optionally categories: of two, the ends are drawn as what they are, two products. Labels without a gain are left out.
    """
    figure, panels = _panels(groups, "gain", columns, 7.5 if len(groups) == 1 else 4.8, 0.8, 0.5, sharex=True)
    for ax, title, table in panels:
        labels = list(dict.fromkeys(table.label))
        arms = [arm for arm in COLOURS if arm in set(table.arm)]
        ax.axvline(0, color=INK, linewidth=1)
        for j, arm in enumerate(arms):
            part = table[table.arm == arm].set_index("label").reindex(labels)
            at = np.arange(len(labels)) + 0.6 * (j - (len(arms) - 1) / 2) / len(arms)
            spread = np.nan_to_num(np.clip([part.gain - part.gain_low, part.gain_high - part.gain], 0, None).astype(float))
            few = (part["categories"] == 2).to_numpy() if "categories" in part else np.zeros(len(part), bool)
            for chosen, line in ((~few, "-"), (few, ":")):  # of two products the ends are the products themselves
                for y, value, (low, high) in zip(at[chosen], part.gain[chosen], spread.T[chosen], strict=True):
                    ax.plot([value - low, value + high], [y, y], color=INK, linewidth=1.1, linestyle=line, marker="|" if line == ":" else "", zorder=3)
            ax.plot(part.gain, at, "o", color=COLOURS[arm], markersize=5, markeredgecolor=INK, markeredgewidth=0.5, label=f"over {NAMES[arm]}")
        notes = dict(zip(table.label, table.note, strict=True))
        ax.set_yticks(range(len(labels)), ["\n".join(filter(None, (label, notes[label]))) for label in labels], fontsize=8)
        ax.set(xlabel=xlabel)
        ax.tick_params(labelbottom=True)
        ax.set_title(title, fontsize=9)
    _legend(figure, panels, 3)
    return figure


@styled
def loss_curves(losses: pd.DataFrame, columns: int = 3) -> Figure:
    """The loss of the trained detectors over their steps, one panel per detector, data set and number of shots, one line per arm: mean over runs.

    Args:
        losses: of :func:`fsad_lib.tables.tgvig.losses`.
    """
    groups = {key: block for key, block in losses.groupby(["baseline", "data_set", "shots"], sort=False)}
    if not groups:
        raise FsadError("Nothing to draw: no trained detector was run. Run: python -m fsad_lib grid tgvig --baselines cflow efficientad reverse_distillation.")
    columns = min(columns, len(groups))
    lines = -(-len(groups) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(max(5.0, 3.6 * columns), 2.6 * lines), squeeze=False, layout="constrained")
    for ax in axes.flat[len(groups) :]:
        ax.set_axis_off()
    panels = []
    for ax, ((name, unit, shots), block) in zip(axes.flat, groups.items(), strict=False):
        for arm in (arm for arm in COLOURS if arm in set(block.arm)):
            mine = block[block.arm == arm]
            curve, runs = mine.groupby("step").loss.mean(), mine[["category", "seed"]].drop_duplicates()
            ax.plot(curve.index, curve, color=COLOURS[arm], linewidth=1.2, label=NAMES[arm])
        ax.set(xlabel="optimizer step", ylabel="loss")
        ax.set_title(f"{tables.BASELINES[name]}, {unit}, {tables.words(shots)}, {len(runs)} run{'' if len(runs) == 1 else 's'}", fontsize=9)
        panels.append((ax, "", block))
    _legend(figure, panels, 4 if columns > 2 else 2)
    return figure


@styled
def overview(made: Any, result: pd.DataFrame | None = None, subtitle: str = "") -> Figure:
    """Figure 3 with the products of one run: keyword-to-prompt generator, variance-aware generator, integrator, detector (our own drawing).

    Args:
        made: a :class:`fsad_lib.tgvig.stages.Synthesized`. result: columns arm, ours (image AUROC in percent) of its detector, or None.
    """
    figure = plt.figure(figsize=(12, 5.6))
    figure.text(0.012, 0.965, "TGVIG: a prompt chooses among images drawn from the shots' own latents", fontsize=13, fontweight="bold", va="center")
    figure.text(0.012, 0.925, subtitle or "real products of one run", fontsize=9, color="#555555", va="center")
    grid = figure.add_gridspec(3, 9, left=0.055, right=0.985, top=0.8, bottom=0.12, hspace=0.55, wspace=0.3, width_ratios=(1, 1, 1, 0.35, 1, 1, 1, 1.25, 2))
    heads = ((0.012, "1  Keywords to a prompt"), (0.385, "2  Variance-aware images, updated and scored"), (0.74, "3  The detector learns from both"))
    for left, head in heads:
        figure.text(left, 0.865, head, fontsize=10.5, fontweight="bold")
    show_picture(figure.add_subplot(grid[0, 0]), to_pixels(made.x)[0], "shot", NORMAL)
    words = figure.add_subplot(grid[0, 1:3])
    words.set_axis_off()
    words.text(0, 0.5, f"{len(made.selection.prompts)} prompts from WordNet\nbest: “{made.selection.best}”\nworst: “{made.selection.worst}”", fontsize=8, va="center")
    ax = figure.add_subplot(grid[1:, :3])
    best, worst = (made.selection.prompts.index(p) for p in (made.selection.best, made.selection.worst))
    _scatter(ax, np.asarray(made.selection.cosine), best, worst, "the image")
    for row, kind in enumerate(("best", "worst")):
        for column, picture in enumerate(to_pixels(made.sets[kind][:3])):
            show_picture(figure.add_subplot(grid[row, 4 + column]), picture, f"{kind}: iteration {made.chosen[kind]}" if column == 1 else "")
    ax = figure.add_subplot(grid[2, 4:7])
    ax.plot(made.trace.iteration, made.trace.best, color=BLUE, marker=".")
    for kind, colour in (("best", GREEN), ("worst", INK)):
        ax.plot(made.chosen[kind], made.trace.best[made.chosen[kind] - 1], "o", color=colour, label=f"chosen by the {kind} prompt")
    low, high = made.trace.best.min(), made.trace.best.max()
    middle, half = (low + high) / 2, max(0.012, 0.9 * (high - low))  # noise must not look like a peak
    ax.set_ylim(middle - half, middle + half)
    ax.legend(fontsize=7, loc="upper left", ncols=2, borderpad=0.1, handletextpad=0.1, columnspacing=0.8)
    ax.set_xlabel("iteration", fontsize=8)
    ax.set_ylabel("similarity to\nthe best prompt", fontsize=8)
    ax = figure.add_subplot(grid[:, 8])
    if result is None or result.ours.isna().all():
        ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center", color=GREY)
        ax.set(xticks=[], yticks=[])
    else:
        for place, (arm, value) in enumerate(zip(result.arm, result.ours, strict=True)):  # points: the axis does not begin at 0
            ax.plot(value, place, "o", color=COLOURS.get(arm, GREEN), markersize=9, markeredgecolor=INK, markeredgewidth=0.5)
            ax.annotate(f"{value:.1f}", (value, place), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=8)
        ax.set_yticks(range(len(result)), [NAMES.get(arm, arm).replace(" (", "\n(").replace(", ", "\n") for arm in result.arm], fontsize=8)
        middle, half = (result.ours.max() + result.ours.min()) / 2, max(3.0, result.ours.max() - result.ours.min())
        ax.set(xlim=(middle - half, middle + half), ylim=(len(result) - 0.5, -0.5))
        ax.set_xlabel("image AUROC of this run, percent", fontsize=8)
    return figure


# -------------------------------------------------------------------- files
def of_run(run: Any, result: pd.DataFrame | None = None) -> dict[str, Figure]:
    """Figures of one stage 22 run whose products are on this machine ("overview", "prompts", "images"); empty otherwise."""
    from fsad_lib.tgvig import stages  # here, because it reads the models' libraries

    source = stages.source_run(run)
    if not source.has("prompt.json", "generated.npz", "trace.csv", "quality.json"):
        return {}
    made = stages.synthesize(run)
    names = {"best": "best prompt", "worst": "worst prompt", "word": "word alone", "naive": "naive prompt", "last": "last iteration"}
    title = f"{run.dataset} {run.category}, {run.shots} shot{'' if run.shots == 1 else 's'}, seed {run.seed}, profile {run.profile.name}"
    found = {
        "overview": overview(made, result, f"real products of one run: {title}"),
        "prompts": prompt_similarity(made.selection, made.to_name),
        "images": image_rows({"shot": made.x} | _of_iterations(made, names), 5, 1.6),
    }
    if made.rivals:
        found["rivals"] = image_rows({"original": made.x} | {name.replace("_", " ").replace("vqgan clip", "VQGAN-CLIP,"): x for name, x in made.rivals.items()} | {"TGVIG": made.sets["best"]}, 4)
    return found


def _of_iterations(made: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """The sets of a run, named by the prompts that chose them: prompts that chose the same iteration share a row, for its images are the same."""
    chosen: dict[int, list[str]] = {}
    for kind in made.sets:
        chosen.setdefault(int(made.chosen[kind]), []).append(kind)
    return {"\n".join([*(names[k] for k in kinds), f"iteration {i}"]): made.sets[kinds[0]] for i, kinds in chosen.items()}


def write_all(root: str | Path | None = None, profile: str = "mini", setting: str = "1", folder: Path | None = None) -> list[Path]:
    """The figures of the runs that are complete, numbered as in the paper (arXiv v1), and their captions, into ``folder`` (``root/figures``). Nothing is drawn of
    what was not run."""
    from fsad_lib.tgvig import stages  # here, because it reads the models' libraries

    folder = folder or Path(root or project_root()) / "figures"
    suffix, written = "" if profile == "mini" else f"_{profile}", []

    def save(figure: Figure, name: str, of: str = "") -> None:
        written.extend(save_figure(figure, f"tgvig_{name}{suffix}", folder, f"{of}profile {profile}"))

    def stage22(dataset: str, category: str, seed: int, **more: str) -> Any:
        return open_run("22_synthesize", "tgvig", profile=profile, dataset=dataset, category=category, shots=1, seed=seed, **more)

    everything = tables.rows_of(root, profile)
    for name, figure in of_rows(everything, tables.gains(root, profile), profile, setting).items():
        save(figure, name)
    curves = tables.losses(root, profile, everything)
    if len(curves):
        save(loss_curves(curves), "losses")
    rows = everything[everything.dataset.isin(["minifab"] if profile == "mini" else list(tables.UNITS))]
    one = rows[(rows.shots == 1) & (rows.method == "patchcore") & (rows.group == "all")]
    traces, varied = {}, False
    for (dataset, category), block in one.groupby(["dataset", "category"], sort=False):
        seed = int(block.seed.min())
        run = stage22(dataset, category, seed)
        result = block[(block.seed == seed) & block.part.isin(COLOURS)].assign(arm=lambda t: t.part, ours=lambda t: 100 * t.image_auroc)
        drawn = of_run(run, result)
        if not drawn:
            continue
        of = f"{dataset} {category}, 1 shot, seed {seed}, "
        made = stages.synthesize(run)
        traces[f"{category}"] = made.trace
        shown = len(traces) == 1 or category == SHOWN.get(profile)
        if shown:  # one product stands for all; another one's files are replaced
            save(drawn["overview"], "figure3_overview"), save(drawn["prompts"], "figure7_prompts", of), save(drawn["images"], "figure7_images", of)
        several = {"estimated variance": made.sets["best"]}
        for label, overrides in (("unit variance", tables.ABLATIONS["variance", "unit variance"]), ("no variance", tables.ABLATIONS["variance", "without variance"])):
            other = stages.source_run(stage22(dataset, category, seed, overrides=overrides))
            if other.has("prompt.json", "generated.npz", "trace.csv", "quality.json"):
                several[label] = stages.synthesize(other).sets["best"]
        if len(several) > 1 and (not varied or shown):  # the first product that was run with other variances, too
            save(image_rows({"shot": made.x} | several), "figure9_variance", of)
            varied = True
        drawn = of_run(stage22(dataset, category, seed, overrides=tables.table1_overrides(profile), tag=tables.TABLE1_TAG))
        if "rivals" in drawn:
            save(drawn["rivals"], f"figure2_generators_{category}", of)
    if traces:
        save(similarity_curves(traces), "figure8_similarity", f"1 shot, seed {int(one.seed.min())}, ")
    path = folder / f"tgvig_captions{suffix}.md"
    with replacing(path) as temporary:
        temporary.write_text(captions([p.name for p in written], suffix), encoding="utf-8")
    return [*dict.fromkeys(written), path]


def captions(files: Sequence[str], suffix: str = "") -> str:
    """Markdown: every figure's caption, and its picture where it is among ``files``.

    >>> captions(["tgvig_losses.png"]).splitlines()[-1]
    '![](tgvig_losses.png)'
    """
    lines = ["# TGVIG: captions of the figures", "", "The rows behind them: `data/results/`."]
    for name, text in CAPTIONS.items():
        found = sorted({file for file in files if file.startswith(f"tgvig_{name}") and file.endswith(f"{suffix}.png")})
        lines += ["", text, "", *([f"![]({file})" for file in found] or ["Not drawn: no complete run."])]
    return "\n".join(lines) + "\n"


def of_rows(rows: pd.DataFrame, gains: pd.DataFrame, profile: str = "mini", setting: str = "1") -> dict[str, Figure]:
    """Figures 1, 4, 5 and 6 from metric rows, by the names of their files; only those that have something to show.

    Args:
        rows: of :func:`fsad_lib.tables.tgvig.rows_of` or :func:`fsad_lib.tables.tgvig.committed_rows`. gains: of :func:`fsad_lib.tables.tgvig.gains`.
    """
    found = {name: gain_points(groups) for name, groups in _gains(rows, gains, profile).items() if groups}
    points = _levels(rows, profile, setting)
    return found | {name: arm_points(groups, columns=3 if name.startswith("figure1") else 2) for name, groups in points.items() if groups}


def _counted(n: int, what: str) -> str:
    """A number and what it counts, in the plural where there are several.

    >>> _counted(1, "seed"), _counted(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{n} {what}{'' if n == 1 else 's'}"


def _gains(rows: pd.DataFrame, gains: pd.DataFrame, profile: str) -> dict[str, dict[str, pd.DataFrame]]:
    """Figure 4 -> title -> points: every detector's gain, then that of each product at 1 shot."""
    table = gains[(gains.profile == profile) & (gains.metric == "image_auroc") & gains.gain.notna()]
    label = [f"{r.data_set}, {tables.words(r.shots)}, {r.baseline}" for r in table.itertuples()]
    note = [f"{_counted(int(r.categories), 'product')}, {_counted(int(r.n_seeds), 'seed')}" for r in table.itertuples()]
    whole = {"": table.assign(label=label, note=note)} if len(table) else {}
    main = "minifab" if profile == "mini" else "mvtec_ad"
    one, classes = rows[(rows.dataset == main) & (rows.setting == "1") & (rows.group == "all")], {}
    for name, block in one.groupby("method", sort=False):
        each = {arm: tables.paired_gap(block, "generated", arm)["per_category"] for arm in tables.CONTROLS}
        order = each["shots"].sort_values(ascending=False).index
        long = [pd.DataFrame({"label": order, "arm": arm, "gain": values.reindex(order).to_numpy()}) for arm, values in each.items() if len(values)]
        if long:
            title = f"{tables.BASELINES.get(name, name)}, 1 shot, {_counted(block.seed.nunique(), 'seed')}"
            classes[title] = pd.concat(long, ignore_index=True).assign(gain_low=np.nan, gain_high=np.nan, note="")
    order = sorted(classes, key=lambda title: -classes[title].label.nunique())
    return {"figure4_gains": whole, "figure4_classes": {title: classes[title] for title in order}}


def _level(block: pd.DataFrame, label: str, metric: str, group: str = "all") -> pd.DataFrame:
    """The arms of one group of points: means over the categories and seeds of ``block``, with their 95 % intervals."""
    records = []
    for arm in COLOURS:
        part = block[(block.part == arm) & (block.group == group)]
        cell = mean_over_categories(part, None, metric, group)
        single = cell["categories"] == 1
        note = f"{'' if single else _counted(cell['categories'], 'product') + ', '}{_counted(cell['n'], 'seed')}"
        each = (100 * part.groupby("seed")[metric].mean().dropna()).tolist() if single else []
        records.append({"label": label, "arm": arm, "ours": cell["mean"], "low": cell["low"], "high": cell["high"], "note": note, "each": each})
    return pd.DataFrame(records)


def _levels(rows: pd.DataFrame, profile: str, setting: str) -> dict[str, dict[str, pd.DataFrame]]:
    """Figures 1, 5 and 6 -> title -> points: one product, objects and textures, logical and structural defects."""
    rows = rows[rows.dataset.isin(["minifab"] if profile == "mini" else list(tables.UNITS))]
    found: dict[str, dict[str, pd.DataFrame]] = {"figure1_one_product": {}, "figure5_objects_textures": {}, "figure6_logical_structural": {}}
    whole = rows[rows.group == "all"]
    several = whole.groupby("category").method.nunique()
    if len(several):
        product = "metal_nut" if profile == "paper" and "metal_nut" in several else several.idxmax()  # the first by name of those with most detectors
        for shots in (k for k in tables.SETTINGS if k in set(whole.setting)):
            block = whole[(whole.category == product) & (whole.setting == shots)]
            names = [name for name in tables.BASELINES if name in set(block.method)]
            if names:
                title = f"{product}, {tables.words(shots)}: image AUROC"
                found["figure1_one_product"][title] = pd.concat([_level(block[block.method == n], tables.BASELINES[n], "image_auroc") for n in names])
    patchcore = rows[(rows.method == "patchcore") & (rows.setting == setting)]
    for metric, task in tables.METRICS.items():
        title, kinds, defects = f"PatchCore, {tables.words(setting)}: {task}", [], []
        for dataset, block in patchcore.groupby("dataset", sort=False):
            surface = block.category.map(lambda category, of=dataset: tables.surface(of, category))
            place = f"{tables.UNITS[dataset]}\n" if profile == "paper" else ""
            if dataset != "mvtec_loco":
                kinds += [_level(block[surface == kind], f"{place}{kind}", metric) for kind in ("objects", "textures") if (surface == kind).any()]
            present = [group for group in ("logical", "structural") if (block.group == group).any()]
            defects += [_level(block, f"{place}{group}", metric, group) for group in present]
        for name, parts in (("figure5_objects_textures", kinds), ("figure6_logical_structural", defects)):
            if any(part.ours.notna().any() for part in parts):
                found[name][title] = pd.concat(parts)
    return found

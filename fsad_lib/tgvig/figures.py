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
    RED,
    YELLOW,
    save_figure,
    show_picture,
    styled,
    to_pixels,
)

__all__ = ["arm_bars", "image_rows", "map_rows", "of_run", "overview", "prompt_similarity", "similarity_curves", "variance_map", "write_all"]

COLOURS = {"shots": GREY, "duplicated": YELLOW, "augmented": ORANGE, "generated": BLUE}
NAMES = {"shots": "shots alone", "duplicated": "duplicated (control)", "augmented": "augmented, no VQGAN (control)", "generated": "generated (TGVIG)"}


@styled
def image_rows(rows: Mapping[str, Any], columns: int = 8, size: float = 1.0) -> Figure:
    """Sets of images, one row each, the row's name at its left (Figures 2, 7 and 9).

    Args:
        rows: name -> (n, 3, H, W); the first ``columns`` are shown.
    """
    pixels = {name: to_pixels(x[:columns]) for name, x in rows.items()}
    columns = max(len(p) for p in pixels.values())
    figure, axes = plt.subplots(len(pixels), columns, figsize=(size * columns + 1.6, size * len(pixels) + 0.1), squeeze=False, layout="constrained")
    for line, (name, pictures) in zip(axes, pixels.items(), strict=True):
        for i, ax in enumerate(line):
            if i < len(pictures):
                show_picture(ax, pictures[i])
            else:
                ax.set_axis_off()
        line[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center", labelpad=6)
    return figure


def _scatter(ax: Axes, cosine: np.ndarray, best: int, worst: int, label: str) -> None:
    order = np.argsort(cosine)
    place = np.empty(len(order), int)
    place[order] = np.arange(len(order))
    ax.plot(place, cosine, ".", color=GREY, markersize=3)
    for i, colour, name in ((best, RED, "best"), (worst, BLUE, "worst")):
        ax.plot(place[i], cosine[i], "o", color=colour, label=f"{name}: {cosine[i]:.3f}")
    ax.set(xlabel="prompts, sorted", ylabel=f"cosine to {label}")
    ax.legend(fontsize=8)


@styled
def prompt_similarity(selection: Any, to_name=None) -> Figure:
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
    for ax, (title, trace) in zip(axes.flat, traces.items(), strict=False):
        ax.plot(trace.iteration, trace.best, color=BLUE, marker=".")
        top = trace.best.argmax()
        ax.plot(trace.iteration[top], trace.best[top], "o", color=RED)
        ax.set(xlabel="iteration", ylabel="similarity to the prompt")
        ax.set_title(title, fontsize=9)
    return figure


@styled
def variance_map(x, mean, variance, images, size: float = 1.5) -> Figure:
    """An original, its latent distribution (channel means of E_d and of the standard deviation), and images drawn from it (Figure 9).

    Args:
        x: (3, H, W). mean, variance: (C, h, w). images: (n, 3, H, W).
    """
    pictures = to_pixels(images)
    figure, axes = plt.subplots(1, 3 + len(pictures), figsize=(size * (3 + len(pictures)), size + 0.4), layout="constrained")
    show_picture(axes[0], to_pixels(x)[0], "original", NORMAL)
    for ax, (values, title) in zip(axes[1:3], ((mean, "mean latent"), (variance.sqrt(), "standard deviation")), strict=True):
        show_picture(ax, values.detach().mean(0).cpu().numpy(), title, cmap="viridis")
    for i, (ax, picture) in enumerate(zip(axes[3:], pictures, strict=True)):
        show_picture(ax, picture, f"sample {i + 1}")
    return figure


@styled
def map_rows(x, maps: Mapping[str, Any], masks=None, titles: Sequence[str] | None = None, size: float = 1.15) -> Figure:
    """Test images, their anomaly maps in several arms, the true defect; a row an image, a colour scale a column.

    Args:
        x: (B, 3, H, W); maps: name -> (B, h, w); masks: (B, H, W) bool or None.
    """
    pixels, arrays = to_pixels(x), {name: np.asarray(v) for name, v in maps.items()}
    columns = 1 + len(arrays) + (masks is not None)
    figure, axes = plt.subplots(len(pixels), columns, figsize=(size * columns + 0.8, size * len(pixels) + 0.3), squeeze=False, layout="constrained")
    for i, row in enumerate(axes):
        show_picture(row[0], pixels[i], "image" if i == 0 else "")
        if titles is not None:
            row[0].set_ylabel(titles[i], fontsize=8, rotation=0, ha="right", va="center", labelpad=6)
        for ax, (name, values) in zip(row[1:], arrays.items(), strict=False):
            show_picture(ax, values[i], name if i == 0 else "", cmap="inferno", vmin=float(values.min()), vmax=max(float(values.max()), 1e-9))
        if masks is not None:
            show_picture(row[-1], pixels[i], "true defect" if i == 0 else "")
            mask = np.asarray(masks[i]).astype(float)
            if mask.any():
                row[-1].contour(mask, [0.5], colors=[YELLOW], linewidths=1.2)
    return figure


@styled
def arm_bars(groups: Mapping[str, pd.DataFrame], ylabel: str = "image AUROC, percent", columns: int = 3) -> Figure:
    """Figures 1, 4, 5 and 6: the arms beside each other, a panel a group of bars.

    Args:
        groups: title -> table with the columns label (a group of bars), arm and ours, and optionally low and high (95 %).
    """
    groups = {title: t for title, t in groups.items() if t.ours.notna().any()}
    if not groups:
        raise FsadError("Nothing to draw: no run is complete. Run the grid first: python -m fsad_lib grid tgvig.")
    columns = min(columns, len(groups))
    lines = -(-len(groups) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.4 * columns, 2.9 * lines), squeeze=False, layout="constrained")
    for ax in axes.flat[len(groups) :]:
        ax.set_axis_off()
    for ax, (title, table) in zip(axes.flat, groups.items(), strict=False):
        labels = list(dict.fromkeys(table.label))
        arms = [arm for arm in COLOURS if arm in set(table.arm)]
        for j, arm in enumerate(arms):
            part = table[table.arm == arm].set_index("label").reindex(labels)
            at = np.arange(len(labels)) + 0.8 * (j - (len(arms) - 1) / 2) / len(arms)
            ax.bar(at, part.ours, 0.75 / len(arms), color=COLOURS[arm], label=NAMES[arm])
            if "low" in part:
                spread = np.nan_to_num(np.clip([part.ours - part.low, part.high - part.ours], 0, None).astype(float))
                ax.errorbar(at, part.ours, spread, fmt="none", ecolor=INK, elinewidth=0.8)
        run = set(table.label[table.ours.notna()])
        part = {r.label: f"\n{r.categories} of {r.expected}" for r in table.itertuples() if getattr(r, "state", "") == "partial"}
        shown = [label.replace(" ", "\n") if len(labels) > 2 else label for label in labels]  # long names side by side would overlap
        ax.set_xticks(range(len(labels)), [s + (part.get(label, "") if label in run else "\nnot run") for s, label in zip(shown, labels, strict=True)], fontsize=8)
        low = table.low.min() if "low" in table and table.low.notna().any() else table.ours.min()
        ax.set(ylim=(max(0, 10 * np.floor((min(low, table.ours.min()) - 5) / 10)), 100), ylabel=ylabel)
        ax.set_title(title, fontsize=9)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names) if columns > 1 else 2, fontsize=8)
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
    grid = figure.add_gridspec(3, 9, left=0.055, right=0.985, top=0.8, bottom=0.09, hspace=0.55, wspace=0.3, width_ratios=(1, 1, 1, 0.35, 1, 1, 1, 1.25, 2))
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
    ax.plot(made.chosen["best"], made.trace.best[made.chosen["best"] - 1], "o", color=RED)
    ax.set_xlabel("iteration", fontsize=8)
    ax.set_ylabel("similarity", fontsize=8)
    ax = figure.add_subplot(grid[:, 8])
    if result is None or result.ours.isna().all():
        ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center", color=GREY)
        ax.set(xticks=[], yticks=[])
    else:
        ax.barh(range(len(result)), result.ours, color=[COLOURS.get(arm, GREEN) for arm in result.arm])
        ax.set_yticks(range(len(result)), [NAMES.get(arm, arm).replace(" (", "\n(").replace(", ", "\n") for arm in result.arm], fontsize=8)
        ax.invert_yaxis()
        ax.set(xlim=(max(0, result.ours.min() - 10), 100), xlabel="image AUROC, percent")
    return figure


# -------------------------------------------------------------------- files
def of_run(run: Any, result: pd.DataFrame | None = None) -> dict[str, Figure]:
    """Figures of one stage 22 run whose products are on this machine ("overview", "prompts", "images", "similarity"); empty otherwise."""
    from fsad_lib.tgvig import stages

    source = stages.source_run(run)
    if not source.has("prompt.json", "generated.npz", "trace.csv", "quality.json"):
        return {}
    made = stages.synthesize(run)
    names = {"best": "best prompt", "worst": "worst prompt", "word": "word alone", "naive": "naive prompt", "last": "last iteration"}
    title = f"{run.dataset} {run.category}, {run.shots} shot(s), seed {run.seed}, profile {run.profile.name}"
    found = {
        "overview": overview(made, result, f"real products of one run: {title}"),
        "prompts": prompt_similarity(made.selection, made.to_name),
        "images": image_rows({"shot": made.x} | {f"{names[k]}\niteration {made.chosen[k]}": x for k, x in made.sets.items()}),
        "similarity": similarity_curves({run.category: made.trace}),
    }
    if made.rivals:
        found["rivals"] = image_rows({"original": made.x} | {name.replace("_", " "): x for name, x in made.rivals.items()} | {"ours": made.sets["best"]}, 4)
    return found


def write_all(root: str | Path | None = None, profile: str = "mini", setting: str = "1", folder: Path | None = None) -> list[Path]:
    """The figures of the runs that are complete, numbered as in the paper, into ``folder`` (``root/figures``). Nothing is drawn of what was not run."""
    from fsad_lib.runs import open_run, project_root
    from fsad_lib.tables import tgvig as tables

    folder = folder or Path(root or project_root()) / "figures"
    suffix, written = "" if profile == "mini" else f"_{profile}", []

    def save(figure: Figure, name: str) -> None:
        written.extend(save_figure(figure, f"tgvig_{name}{suffix}", folder))

    def stage22(dataset: str, category: str, seed: int, **more: str) -> Any:
        return open_run("22_synthesize", "tgvig", profile=profile, dataset=dataset, category=category, shots=1, seed=seed, **more)

    rows = tables.rows_of(root, profile)
    rows = rows[rows.dataset.isin(["minifab"] if profile == "mini" else list(tables.UNITS))]
    for name, groups in _bars(tables.gains(root, profile), rows, profile, setting).items():
        if any(t.ours.notna().any() for t in groups.values()):
            save(arm_bars(groups), name)
    one = rows[(rows.shots == 1) & (rows.method == "patchcore") & (rows.group == "all")]
    traces = {}
    for (dataset, category), block in one.groupby(["dataset", "category"], sort=False):
        seed = int(block.seed.min())
        run = stage22(dataset, category, seed)
        result = block[(block.seed == seed) & block.part.isin(COLOURS)].assign(arm=lambda t: t.part, ours=lambda t: 100 * t.image_auroc)
        drawn = of_run(run, result)
        if not drawn:
            continue
        from fsad_lib.tgvig import stages

        made = stages.synthesize(run)
        traces[f"{category}"] = made.trace
        if len(traces) == 1 or (profile == "paper" and category == "hazelnut"):  # one product stands for all, the first by name
            save(drawn["overview"], "figure3_overview"), save(drawn["prompts"], "figure7_prompts"), save(drawn["images"], "figure7_images")
            several = {"estimated variance": made.sets["best"]}
            for label, overrides in (("unit variance", tables.ABLATIONS["variance", "unit variance"]), ("no variance", tables.ABLATIONS["variance", "without variance"])):
                other = stages.source_run(stage22(dataset, category, seed, overrides=overrides))
                if other.has("prompt.json", "generated.npz", "trace.csv", "quality.json"):
                    several[label] = stages.synthesize(other).sets["best"]
            if len(several) > 1:
                save(image_rows({"shot": made.x} | several), "figure9_variance")
        drawn = of_run(stage22(dataset, category, seed, overrides=tables.table1_overrides(profile), tag=tables.TABLE1_TAG))
        if "rivals" in drawn:
            save(drawn["rivals"], f"figure2_generators_{category}")
    if traces:
        save(similarity_curves(traces), "figure8_similarity")
    return written


def _words(setting: str) -> str:
    """
    >>> _words("1"), _words("5"), _words("full")
    ('1 shot', '5 shots', 'all images')
    """
    return "all images" if setting == "full" else f"{setting} shot{'' if setting == '1' else 's'}"


def _bars(gains: pd.DataFrame, rows: pd.DataFrame, profile: str, setting: str) -> dict[str, dict[str, pd.DataFrame]]:
    """figure -> title -> bars: 1 one product, 4 all baselines and shots, 5 objects and textures, 6 logical and structural."""
    from fsad_lib.tables import tgvig as tables

    units = {"mini": ["MiniFab"], "paper": ["MVTec AD"]}[profile]
    table = gains[(gains.profile == profile) & gains.data_set.isin(units) & (gains.metric == "image_auroc")].assign(label=lambda t: t.baseline)
    figures = {"figure4_gains": {f"{u}, {_words(k)}": t for (u, k), t in table.groupby(["data_set", "shots"], sort=False)}}

    def means(block: pd.DataFrame, label: str) -> pd.DataFrame:
        found = block.groupby(["category", "part"]).image_auroc.mean().groupby("part").mean().mul(100)
        return pd.DataFrame({"label": label, "arm": found.index, "ours": found.to_numpy()})

    everything = rows[rows.group == "all"]
    product = "metal_nut" if profile == "paper" else (sorted(everything.category) or [""])[0]
    mine = everything[everything.category == product]
    parts = [means(block, tables.BASELINES[name]).assign(shots=k) for (k, name), block in mine.groupby(["setting", "method"], sort=False)]
    if parts:
        joined = pd.concat(parts)
        figures["figure1_one_product"] = {f"{product}, {_words(k)}": t for k, t in joined.groupby("shots", sort=False)}
    patchcore = rows[(rows.method == "patchcore") & (rows.setting == setting)]
    kinds, defects = [], []
    for dataset, block in patchcore.groupby("dataset"):
        texture = block.category.isin(tables._textures(dataset))
        for name, part in (("objects", block[~texture]), ("textures", block[texture])):
            if dataset != "mvtec_loco":
                kinds.append(means(part[part.group == "all"], f"{name}" if profile == "mini" else f"{dataset}\n{name}"))
        for name in ("logical", "structural"):
            defects.append(means(block[block.group == name], name))
    if any(map(len, kinds)):
        figures["figure5_objects_textures"] = {f"PatchCore, {_words(setting)}": pd.concat(kinds)}
    if any(map(len, defects)):
        figures["figure6_logical_structural"] = {f"PatchCore, {_words(setting)}": pd.concat(defects)}
    return figures

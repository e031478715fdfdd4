"""Figures of ADP's words: what they draw, what CLIP says with them, and what moves them.

Same style and rules as :mod:`fsad_lib.plots`: every function returns a closed matplotlib figure.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsad_lib.adp.probes import ordered_pairs
from fsad_lib.adp.pseudo_anomalies import resize_and_crop
from fsad_lib.adp.stages import Pseudo
from fsad_lib.errors import FsadError
from fsad_lib.plots import (
    ANOMALOUS,
    BLUE,
    GREEN,
    GREY,
    INK,
    NORMAL,
    ORANGE,
    PALE,
    PSEUDO,
    PURPLE,
    RED,
    SKY,
    mathematical,
    show_picture,
    styled,
    to_pixels,
)

__all__ = ["cropped", "hinge_plot", "image_rows", "spoil_plot", "strength_plot", "told", "weight_bars", "why_adp", "word_strips"]

WORDS = {"ti": PURPLE, "c_n": GREEN, "c_a": ORANGE, "label": SKY, "object": GREY}
SOFT = "#555555"


def told(pseudo: Pseudo, sentence: str, shots: int | None = None) -> torch.Tensor:
    """The pseudo-anomalies (m, 3, H, W) that were edited towards one sentence, in the order of their shots. With ``shots``, a row to set below the
    first so many shots, (shots, 3, H, W): one edit of each, white where the sentence edited none; empty where it edited none of them.

    >>> from types import SimpleNamespace
    >>> pseudo = SimpleNamespace(x=torch.arange(4.0).view(4, 1, 1, 1), shot=[0, 2, 2, 0], prompt=["dent", "hole", "dent", "hole"])
    >>> told(pseudo, "hole").flatten().tolist(), told(pseudo, "hole", 3).flatten().tolist()
    ([3.0, 1.0], [3.0, 1.0, 1.0])
    """
    return _row([None if j is None else pseudo.x[j] for j in _told(pseudo, sentence, shots)], pseudo.x)


def _told(pseudo: Pseudo, sentence: str, shots: int | None) -> list[int | None]:
    rows = [i for i, text in enumerate(pseudo.prompt) if text == sentence]
    rows = sorted(rows, key=lambda i: pseudo.shot[i])
    if shots is None:
        return rows
    of = {int(pseudo.shot[i]): i for i in reversed(rows)}  # the first edit of each
    return [of.get(shot) for shot in range(shots)]


def _row(images: Sequence[torch.Tensor | None], like: torch.Tensor) -> torch.Tensor:
    if all(image is None for image in images):
        return like[:0]
    return torch.stack([torch.ones_like(like[0]) if image is None else image for image in images])


def cropped(
    pseudo: Pseudo, sentence: str, x: torch.Tensor, crop_scale: tuple[float, float], seed: int | str, shots: int | None = None
) -> torch.Tensor:
    """The control of :func:`told`: the shots x (K, 3, H, W) that were edited towards the sentence, unedited, each in its edit's own crop, (m, 3, H, W).

    >>> from types import SimpleNamespace
    >>> pseudo = SimpleNamespace(x=torch.rand(4, 3, 8, 8), shot=[0, 1, 1, 0], prompt=["dent", "hole", "dent", "hole"])
    >>> x = torch.rand(2, 3, 8, 8)
    >>> cropped(pseudo, "hole", x, (1.0, 1.0), seed=0).equal(x)
    True
    """
    rows = _told(pseudo, sentence, shots)
    return _row([None if j is None else resize_and_crop(x[pseudo.shot[j]][None], crop_scale, seed, first_index=j)[0] for j in rows], x)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The centred moving average of (N,) values over ``window`` of them, fewer at the ends: (N,).

    >>> smooth(np.array([0.0, 3.0, 0.0]), 3).tolist()
    [1.5, 1.0, 1.5]
    """
    return pd.Series(values).rolling(window, min_periods=1, center=True).mean().to_numpy()


def _word(name: str) -> str:
    name = name.strip("<>")
    return {"ti": "TI", "adp": "ADP", "adp_l": r"ADP$_\ell$"}.get(name) or mathematical(name)


@styled
def image_rows(
    rows: Mapping[str, object],
    captions: Mapping[str, Sequence[str]] | None = None,
    heads: Sequence[str] | None = None,
    size: float = 1.0,
    label_width: float = 1.5,
    edges: Mapping[str, str] | None = None,
) -> Figure:
    """Rows of images, each with its name on the left.

    Args:
        rows: name -> (B, 3, H, W) in [0, 1]; rows may differ in length. A name may have several lines: the first is bold.
        captions: name -> one text under each image of that row.
        heads: a text above each column.
        edges: name -> colour of the frames.
    """
    if not rows or not all(len(x) for x in rows.values()):
        raise FsadError("image_rows needs at least one row, and at least one image in each.")
    pixels = {name: _small(to_pixels(x), round(100 * size)) for name, x in rows.items()}
    captions, edges = captions or {}, edges or {}
    wrong = [name for name, texts in captions.items() if len(texts) != len(pixels.get(name, ()))]
    if wrong:
        raise FsadError(f"rows {wrong}: expected one caption for each image of an existing row.")
    columns = max(map(len, pixels.values()))
    heights = [size + (0.2 if name in captions else 0.0) for name in pixels]
    top = 0.28 if heads else 0.05
    width, height = label_width + columns * (size + 0.06), sum(heights) + 0.06 * len(heights) + top
    figure = plt.figure(figsize=(width, height))
    y = height - top
    for name, tall in zip(pixels, heights, strict=True):
        first, _, rest = name.partition("\n")
        middle = (y - size / 2) / height
        figure.text(0.04 / width, middle + (0.09 / height if rest else 0), first, fontsize=9, fontweight="bold", va="center")
        if rest:
            figure.text(0.04 / width, middle - 0.03 / height, rest, fontsize=8, va="top", color=SOFT)
        for j, image in enumerate(pixels[name]):
            x = label_width + j * (size + 0.06)
            ax = figure.add_axes((x / width, (y - size) / height, size / width, size / height))
            show_picture(ax, image, edge=edges.get(name))
            if name in captions:
                ax.set_xlabel(captions[name][j], fontsize=8, labelpad=2)
            if heads and y == height - top and j < len(heads):
                ax.set_title(heads[j], fontsize=8.5, loc="center", pad=3)
        y -= tall + 0.06
    return figure


def _small(pixels: np.ndarray, side: int) -> np.ndarray:
    """(B, H, W, 3) at the size they are shown, in 32 levels a channel: camera noise would be most of a notebook's bytes."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    if min(x.shape[-2:]) > side:
        scale = side / min(x.shape[-2:])
        x = F.interpolate(x, scale_factor=scale, mode="bilinear", antialias=True)
    return (x.clamp(0, 1) * 31).round().div(31).permute(0, 2, 3, 1).numpy()


@styled
def word_strips(
    table: pd.DataFrame, normal: str | None = None, colours: Mapping[str, str] | None = None, label: str = "P(flawless [c] | image)"
) -> Figure:
    """One row per word, one dot per image: does the word keep the normal images apart from the damaged ones?

    Args:
        table: :func:`fsad_lib.adp.probes.p_normal`: word, group, image, p_normal.
        normal: the group that should lie to the right; the first by default. Beside each row stands, for every other group, the share
            of pairs in the right order (1 = perfect, 0.5 = chance).
        colours: group -> colour; by default blue for ``normal``, yellow for pseudo-anomalies, orange and others for the rest.
    """
    words, groups = list(dict.fromkeys(table["word"])), list(dict.fromkeys(table["group"]))
    normal = normal or groups[0]
    others = [group for group in groups if group != normal]
    if normal not in groups:
        raise FsadError(f"No group {normal!r}; found {', '.join(groups)}.")
    values = {key: block["p_normal"].to_numpy(float) for key, block in table.groupby(["word", "group"], sort=False)}
    free = iter((ANOMALOUS, PURPLE, GREEN, SKY, GREY) * 3)
    own = {group: PSEUDO if group.startswith("pseudo") else next(free) for group in others}
    colours = {normal: NORMAL, **own, **(colours or {})}
    figure, ax = plt.subplots(figsize=(7.6, 0.42 + (0.2 + 0.17 * len(groups)) * len(words) + 0.5), layout="constrained")
    lanes = np.linspace(-0.3, 0.3, len(groups)) if len(groups) > 1 else [0.0]
    for row, word in enumerate(words):
        for lane, group in zip(lanes, [normal, *others], strict=True):
            v = values[word, group]
            ax.plot(v, np.full(len(v), row + lane), "o", color=colours[group], alpha=0.55, markeredgewidth=0, markersize=5.5)
            ax.plot([np.median(v)] * 2, [row + lane - 0.09, row + lane + 0.09], color=colours[group], linewidth=2.4)
        for lane, group in zip(lanes[1:], others, strict=True):
            share = ordered_pairs(values[word, normal], values[word, group])
            ax.text(1.02, row + lane, f"{share:.2f}", transform=ax.get_yaxis_transform(), fontsize=9, va="center",
                    color=colours[group], fontweight="bold")  # fmt: skip
        if row:
            ax.axhline(row - 0.5, color=PALE, linewidth=1.2)
    every = np.concatenate(list(values.values()))
    low, high = min(every.min(), 0.45), max(every.max(), 0.55)
    pad = 0.04 * (high - low)
    ax.set(xlim=(max(low - pad, -0.02), min(high + pad, 1.02)), ylim=(len(words) - 0.5, -0.5), xlabel=f"{label}   (tick: median)")
    ax.axvline(0.5, color=GREY, linewidth=0.9, linestyle=":")
    ax.set_yticks(range(len(words)), [_word(word) for word in words], fontsize=10)
    ax.grid(axis="y", visible=False)
    if others:
        ax.text(1.02, -0.56, "pairs in\nright order", transform=ax.get_yaxis_transform(), fontsize=7.5, color=SOFT, va="bottom")
    for group in [normal, *others]:
        ax.plot([], [], "o", color=colours[group], label=group)
    figure.legend(loc="outside lower center", ncols=len(groups))
    return figure


@styled
def hinge_plot(before: Sequence[float], after: Sequence[float], gamma: float, names: tuple[str, str] = ("c_n", "c_a")) -> Figure:
    """The hinge (P - gamma)^+ of eq. 4 with the pseudo-anomalies on it, under the word before and after learning."""
    p = np.linspace(0, 1, 201)
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.5), sharey=True, layout="constrained")
    for ax, values, name in zip(axes, (before, after), names, strict=True):
        v = np.asarray(values, dtype=float)
        inside = v <= gamma
        ax.axvspan(0, gamma, color="#EAF5F0", linewidth=0)
        ax.plot(p, np.maximum(p - gamma, 0), color=INK, linewidth=1.2)
        ax.plot(v, np.maximum(v - gamma, 0), "o", color=PSEUDO, alpha=0.75, markeredgewidth=0, markersize=7)
        ax.set(xlim=(0, 1), xlabel="P(flawless [c] | pseudo-anomaly)")
        ax.set_title(f"{_word(name)}: {inside.sum()} of {len(v)} at rest, mean penalty {np.maximum(v - gamma, 0).mean():.3f}")
    axes[0].set_ylabel("penalty")
    axes[0].text(gamma / 2, 0.9 * max(1 - gamma, 0.05), "at rest", ha="center", va="top", color=GREEN, fontsize=8)
    return figure


@styled
def why_adp(trace: pd.DataFrame, sweep: pd.DataFrame, gradients: pd.DataFrame, *, gamma: float, tau: float) -> Figure:
    """Why ADP works or not, on one page: the three terms of eq. 2 to 4 per step, and what tau does to them.

    Args:
        trace: concept, step, denoising_loss, p_normal, hinge.
        sweep: :func:`fsad_lib.adp.concepts.tau_sweep` on the shots, which eq. 3 pulls up; pale lines are single shots, bold is their median.
        gradients: :func:`fsad_lib.adp.probes.gradient_sweep`: tau, denoising_gradient, clip_gradient and maybe hinge_gradient.
        gamma, tau: the values in use.
    """
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 5.6), layout="constrained")
    _terms(axes[0], trace, gamma)
    bottom = axes[1]
    captions = (
        ("p_normal", "P(flawless | shot)", "small τ: surer   (pale: one shot; bold: median)"),
        ("gradient", "|dP / d similarity|", "small τ: steep near P = 0.5, flat far from it"),
    )
    for ax, (column, title, caption) in zip(bottom, captions, strict=False):
        for _, one in sweep.groupby("image"):
            ax.plot(one["tau"], one[column], color=NORMAL, alpha=0.3, linewidth=0.9)
        middle = sweep.groupby("tau")[column].median()
        ax.plot(middle.index, middle, color=NORMAL, marker="o")
        _head(ax, title, caption)
    ax = bottom[2]
    ax.plot(gradients["tau"], gradients["clip_gradient"], color=NORMAL, marker="o", label="eq. 3 on the shots (times α)")
    ax.plot(gradients["tau"], gradients["denoising_gradient"], color=INK, linestyle="--", label="textual inversion")
    if "hinge_gradient" in gradients:
        hinge = gradients["hinge_gradient"]
        rests = "" if (hinge > 0).any() else ": 0, none above γ"  # a logarithmic axis cannot show 0
        ax.plot(gradients["tau"], hinge.where(hinge > 0), color=PSEUDO, marker="s", label=f"hinge of eq. 4{rests}")
    ax.set_yscale("log")
    _head(ax, "Pull on the word", "length of each term's gradient with respect to c")
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.24), fontsize=7.5)  # below the panel, clear of the curves
    bottom[0].set_ylim(-0.02, 1.02)
    for ax in bottom:
        ax.set(xscale="log", xlabel="τ")
        ax.axvline(tau, color=RED, linewidth=1.2, linestyle="--")
    bottom[0].annotate(f"used here: {tau:g}", (tau, 0), xycoords=("data", "axes fraction"), xytext=(4, 6), textcoords="offset points",
                    color=RED, fontsize=8)  # fmt: skip
    return figure


def _head(ax: Axes, title: str, caption: str) -> None:
    ax.set_title(f"{title}\n", fontsize=10, fontweight="bold")
    ax.text(0, 1.03, caption, transform=ax.transAxes, fontsize=7.5, color=SOFT)


def _terms(axes: Sequence[Axes], trace: pd.DataFrame, gamma: float) -> None:
    panels = (
        ("denoising_loss", "Denoising loss", "does the word draw the shots? lower is better"),
        ("p_normal", "P(flawless | shot)", "does CLIP call the shots flawless? higher is better"),
        ("hinge", "Hinge of eq. 4", f"pseudo-anomalies still called flawless, above γ = {gamma:g}"),
    )
    for ax, (column, title, caption) in zip(axes, panels, strict=True):
        for concept, block in trace.groupby("concept", sort=False):
            values = block[column].to_numpy(float)
            if np.isfinite(values).any():
                colour = WORDS.get(str(concept).strip("<>"), BLUE)
                ax.plot(block["step"], values, color=colour, alpha=0.25, linewidth=0.9)
                ax.plot(block["step"], smooth(values, max(1, len(values) // 6)), color=colour, label=_word(str(concept)))
        _head(ax, title, caption)
        ax.set_xlabel("step")
    axes[1].set_ylim(0, 1)
    axes[1].axhline(0.5, color=GREY, linewidth=0.9, linestyle=":")
    axes[2].set_ylim(bottom=0)
    axes[1].legend(loc="lower right")


@styled
def weight_bars(details: Mapping[str, Mapping[str, float]], used: Sequence[str] = ("c_n", "c_a", "label")) -> Figure:
    """Eq. 5 in its two halves, one bar per word: P(flawless | shots) + P(damaged | pseudo-anomalies).

    Args:
        details: word -> {"p_normal_shots": ..., "p_normal_pseudo": ...}.
        used: the words that eq. 6 mixes; the others are drawn pale.
    """
    figure, ax = plt.subplots(figsize=(7.2, 0.38 * len(details) + 1.0), layout="constrained")
    for row, (word, values) in enumerate(details.items()):
        shots, pseudo = values["p_normal_shots"], 1 - values["p_normal_pseudo"]
        alpha = 1.0 if word in used else 0.35
        ax.barh(row, shots, 0.62, color=NORMAL, alpha=alpha)
        ax.barh(row, pseudo, 0.62, left=shots, color=PSEUDO, alpha=alpha)
        ax.text(shots + pseudo + 0.02, row, f"{shots + pseudo:.2f}", va="center", fontsize=9, fontweight="bold")
    ax.axvline(1, color=INK, linewidth=1, linestyle=":")
    ax.set(xlim=(0, 2.12), ylim=(len(details) - 0.4, -0.6), xlabel="w(c) of eq. 5   (dotted: a word that knows nothing; 2: a perfect one)")
    ax.set_yticks(range(len(details)), [_word(word) for word in details], fontsize=10)
    ax.grid(axis="y", visible=False)
    ax.barh(0, 0, color=NORMAL, label="P(flawless | shots)")
    ax.barh(0, 0, color=PSEUDO, label="P(damaged | pseudo-anomalies)")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def spoil_plot(table: pd.DataFrame, partner: float, names: tuple[str, str] = ("c_a", "c_n")) -> Figure:
    """Eq. 5 and 6 while one word is spoiled: its weight, and its share of the mix.

    Args:
        table: share (of the word that is chance), seed, weight, apart (pairs in the right order under the spoiled word).
        partner: weight of the other word, which stays as it is.
        names: the spoiled word and its partner.
    """
    spoiled, other = (_word(name) for name in names)
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.7), layout="constrained")
    table = table.assign(mix=table["weight"] / (table["weight"] + partner))
    panels = (
        ("apart", f"What {spoiled} still knows", "shots and pseudo-anomalies in the right order"),
        ("weight", "Its weight (eq. 5)", "1: a word that knows nothing"),
        ("mix", "Its share of the mix (eq. 6)", "0.5: equal weights"),
    )
    for ax, (column, title, caption) in zip(axes, panels, strict=True):
        for _, one in table.groupby("seed"):
            ax.plot(one["share"], one[column], color=ORANGE, alpha=0.35, linewidth=1)
        mean = table.groupby("share")[column].mean()
        ax.plot(mean.index, mean, color=ORANGE, marker="o", label=f"{spoiled}, spoiled")
        _head(ax, title, caption)
        ax.set_xlabel("share of the word that is chance")
    axes[0].set_ylim(-0.03, 1.03)
    axes[1].axhline(partner, color=GREEN, label=f"{other}, as it is")
    axes[1].axhline(1, color=INK, linewidth=1, linestyle=":")
    axes[1].set_ylim(0, 2)
    axes[1].legend(loc="lower left")
    axes[2].axhline(0.5, color=INK, linewidth=1, linestyle=":")
    axes[2].set_ylim(0, 1)
    return figure


@styled
def strength_plot(table: pd.DataFrame, chosen: float | None = None) -> Figure:
    """SDEdit's strength: how damaged CLIP finds the edits, and how much of the shot is left.

    ``table``: prompt, strength, p_damaged, likeness (cosine of CLIP's embeddings of edit and shot); several rows of each are averaged.
    """
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.8), layout="constrained")
    panels = (
        ("p_damaged", "P(damaged | edit)", "what CLIP sees; higher = more damaged"),
        ("likeness", "Likeness to the shot", "cosine of the embeddings; 1 = the same"),
    )
    for ax, (column, title, caption) in zip(axes, panels, strict=True):
        for (prompt, block), colour in zip(table.groupby("prompt", sort=False), (ORANGE, BLUE, GREEN, PURPLE) * 3, strict=False):
            mean = block.groupby("strength")[column].agg(["mean", "min", "max"])
            ax.plot(mean.index, mean["mean"], color=colour, marker="o", label=prompt.replace("<c_a>", "[$c_a$]"))
            ax.fill_between(mean.index, mean["min"], mean["max"], color=colour, alpha=0.12, linewidth=0)
        _head(ax, title, caption)
        ax.set_xlabel("strength")
        if chosen is not None:
            ax.axvline(chosen, color=RED, linewidth=1.2, linestyle="--")
    axes[0].axhline(0.5, color=GREY, linewidth=0.9, linestyle=":")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure

"""What the miniatures know: recognition, states, the VAE's round trip, edits; and the record of their training.

Nothing here trains, and no method uses it. The scenes are of the development split, whose designs pretraining never drew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...errors import FsadError
from ..images import resize

__all__ = [
    "Pairs", "around", "at_side", "cka", "edits", "missing", "p_damaged", "pairs", "read_commands", "read_logs", "recognition", "repaint", "round_trip", "state_table", "students",
    "training_curves", "training_table",
]  # fmt: skip

SAMPLES_PER_STEP = {
    "clip_patch16": 128, "clip": 128, "clip_more": 128, "vae": 16, "unet": 32, "unet_more": 32, "unet_inpainting": 32, "unet_inpainting_more": 32, "vae_lpips": 16,
    "vae_anchored": 16, "vae_colours": 16, "unet_inpainting_new": 32, "unet_new": 64, "vqgan": 16, "resnet18": 8, "pdn": 8,
}  # fmt: skip; the scripts' defaults; a log's column "batch" says otherwise
RATE = {part: {"clip": "images_per_s", "vae": "crops_per_s", "unet": "samples_per_s", "vqgan": "images_per_s", "resnet18": "images_per_s", "pdn": "images_per_s"}[part.split("_")[0]] for part in SAMPLES_PER_STEP}


def missing(profile, *sections: str) -> str:
    """What a profile lacks of the checkpoints of `sections`, as a sentence to print; "" where nothing is missing."""
    from ...profiles import missing_checkpoints

    try:
        missing_checkpoints(profile, sections)
    except FsadError as error:
        return f"Passed over: {error}"
    return ""


class Pairs(NamedTuple):
    """Photographs of scenes without and with a defect. good, bad: (N, 3, 128, 128) in [0, 1]; mask: (N, 128, 128) bool; labels: N rows
    of noun, colour, kind."""

    good: Tensor
    bad: Tensor
    mask: Tensor
    labels: pd.DataFrame


def pairs(per_noun: int = 2, split: str = "development", seed: int = 0, nouns: Sequence[str] | None = None) -> Pairs:
    """Scenes of designs that pretraining never drew: `per_noun` designs of each noun, with the seen kinds of defect in turn.

    >>> pairs(1, nouns=["gear"]).good.shape
    torch.Size([1, 3, 128, 128])
    """
    from ...datasets.minifab import NOUNS, SEEN, _rng, defects, make_design, render

    good, bad, masks, rows = [], [], [], []
    for i, noun in enumerate(nouns or NOUNS):
        for j in range(per_noun):
            rng = _rng("inspect", split, seed, noun, j)
            scene, kind = render.sample_scene(make_design(noun, split, rng), rng), SEEN[(i + j) % len(SEEN)]
            image, mask = defects.apply(scene, kind, rng)
            good.append(render.photograph(render.render(scene), scene.seed + 2))
            bad.append(image)
            masks.append(mask)
            rows.append((noun, scene.design.colour, kind))
    x = [torch.from_numpy(np.stack(a)).permute(0, 3, 1, 2).float() / 255 for a in (good, bad)]
    return Pairs(*x, torch.from_numpy(np.stack(masks)), pd.DataFrame(rows, columns=["noun", "colour", "kind"]))


@torch.no_grad()
def p_damaged(clip, x: Tensor, words: str | Sequence[str]) -> Tensor:
    """P("a photo of a damaged <word>") against "flawless", at the model's own temperature: (B,) in [0, 1], on the CPU.

    `words`: one for all images, or one per image.
    """
    words = [words] * len(x) if isinstance(words, str) else list(words)
    unique = sorted(set(words))
    prompts = [f"a photo of a {state} {word}" for word in unique for state in ("flawless", "damaged")]
    g = clip.encode_text(prompts).view(len(unique), 2, -1)[[unique.index(word) for word in words]]
    return (clip.logit_scale * torch.einsum("bd,bsd->bs", clip.encode_image(x), g)).softmax(-1)[:, 1].cpu()


@torch.no_grad()
def recognition(clip, scenes: Pairs) -> pd.DataFrame:
    """Zero-shot questions about `scenes`: question, choices, chance, correct (share); and the confusions of nouns in ``attrs``.

    The last two rows compare each scene's two photographs: correct when the damaged one has the higher P(damaged).
    """
    from ...datasets.minifab import COLOURS, NOUNS

    f, labels = clip.encode_image(scenes.good), scenes.labels
    ask = lambda prompts: (f @ clip.encode_text(prompts).T).argmax(1).tolist()  # noqa: E731
    named = [NOUNS[i] for i in ask([f"a photo of a {noun}" for noun in NOUNS])]
    painted = [list(COLOURS)[i] for i in ask([f"a photo of a {colour} object" for colour in COLOURS])]
    rows = [
        ('which noun? "a photo of a {noun}"', len(NOUNS), 1 / len(NOUNS), float(np.mean(labels["noun"] == named))),
        ('which colour? "a photo of a {colour} object"', len(COLOURS), 1 / len(COLOURS), float(np.mean(labels["colour"] == painted))),
    ]
    for name, words in (("{noun}", labels["noun"].tolist()), ("object", "object")):
        better = (p_damaged(clip, scenes.bad, words) > p_damaged(clip, scenes.good, words)).float().mean()
        rows.append((f'which of two is the "damaged {name}"?', 2, 0.5, float(better)))
    table = pd.DataFrame(rows, columns=["question", "choices", "chance", "correct"])
    wrong = labels.assign(said=named).query("noun != said").groupby(["noun", "said"]).size()
    table.attrs["confusions"] = [f"{noun} called {said} ({n})" for (noun, said), n in wrong.sort_values(ascending=False).items()]
    return table


@torch.no_grad()
def state_table(clip, data_root: str | Path | None = None) -> pd.DataFrame:
    """Image AUROC of "damaged" against "flawless" from two sentences, for each development category and their mean.

    Columns: noun_seen, noun_unseen, object_seen, object_unseen: the word in the sentence, and the kinds of defect.
    """
    from ... import datasets
    from ...datasets.minifab import UNSEEN
    from ...metrics import auroc

    rows = {}
    for category in datasets.categories("minifab_dev"):
        test = datasets.load("minifab_dev", category, data_root).query("split == 'test'").reset_index(drop=True)
        x = datasets.read_images(test["path"].tolist(), clip.image_size)
        good, unseen, rows[category] = test["defect"].eq("good"), test["defect"].isin(UNSEEN), {}
        for name, word in (("noun", category), ("object", "object")):
            score = p_damaged(clip, x, word).double().numpy()
            for group, bad in (("seen", ~good & ~unseen), ("unseen", unseen)):
                rows[category][f"{name}_{group}"] = auroc(bad[good | bad], score[good | bad])
    table = pd.DataFrame(rows).T
    table.loc["mean"] = table.mean()
    return table.rename_axis("category")


class RoundTrip(NamedTuple):
    """decoded_good, decoded_bad: (N, 3, H, W); psnr: dB over all images; kept: (N,) share of each defect's contrast, in the defect's
    own direction (1 = all of it, 0 = none); together: the share of all defects' contrast at once, where strong ones weigh most."""

    decoded_good: Tensor
    decoded_bad: Tensor
    psnr: float
    kept: Tensor
    together: float


@torch.no_grad()
def round_trip(model, scenes: Pairs) -> RoundTrip:
    """Send both photographs of each scene through a diffusion model's VAE, or a VQGAN's codes, and see what is left of the difference between them.

    kept_i = <D(bad_i) - D(good_i), bad_i - good_i> / |bad_i - good_i|², over the pixels of the mask; together: both sums over all i.
    """
    def back(x: Tensor) -> Tensor:
        y = model.reconstruct(x.to(model.device)) if hasattr(model, "reconstruct") else model.decode(model.posterior(x)[0])
        return resize(y.cpu(), x.shape[-1])

    good, bad = back(scenes.good), back(scenes.bad)
    mse = torch.cat([(good - scenes.good) ** 2, (bad - scenes.bad) ** 2]).mean()
    before, after = ((b - a) * scenes.mask[:, None] for a, b in ((scenes.good, scenes.bad), (good, bad)))
    product, energy = (before * after).flatten(1).sum(1), before.square().flatten(1).sum(1).clamp_min(1e-9)
    return RoundTrip(good, bad, float(-10 * torch.log10(mse)), product / energy, float(product.sum() / energy.sum()))


@torch.no_grad()
def edits(
    clip, diffusion, x: Tensor, nouns: Sequence[str], prompts: Sequence[str], strengths: Sequence[float], *, guidance_scale: float,
    num_inference_steps: int, seed: int | str = 0,
) -> tuple[dict[float, Tensor], pd.DataFrame]:  # fmt: skip
    """Image-to-image edits of x (B, 3, H, W) towards one prompt each, at several strengths, and what CLIP says of them.

    Returns:
        strength -> (B, 3, H, W); and a table with strength, p_damaged (mean, asked with the image's noun), recognized (share whose
        most similar noun is still the right one) and changed (mean absolute difference of pixels). The first row is x itself.
    """
    from ...datasets.minifab import NOUNS

    if not len(x) == len(nouns) == len(prompts):
        raise FsadError(f"found {len(x)} images, {len(nouns)} nouns and {len(prompts)} prompts; expected one of each for every image.")
    made = {
        s: resize(
            diffusion.sdedit(x, prompts, strength=s, guidance_scale=guidance_scale, num_inference_steps=num_inference_steps, seed=seed).cpu(),
            x.shape[-1],
        )
        for s in strengths
    }
    g = clip.encode_text([f"a photo of a {noun}" for noun in NOUNS])
    rows = []
    for name, y in ({"original": x} | made).items():
        said = (clip.encode_image(y) @ g.T).argmax(1).tolist()
        right = float(np.mean([NOUNS[i] == noun for i, noun in zip(said, nouns)]))
        rows.append((name, float(p_damaged(clip, y, nouns).mean()), right, float((y - x).abs().mean())))
    return made, pd.DataFrame(rows, columns=["strength", "p_damaged", "recognized", "changed"])


@torch.no_grad()
def repaint(
    model, lpips, scenes: Pairs, prompts: Sequence[str], strengths: Sequence[float], *, num_inference_steps: int, margin: int = 4, seed: int = 0
) -> tuple[dict[str, Tensor], Tensor, pd.DataFrame]:
    """Repaint the defects of `scenes`, each under the smallest rectangle that holds it, and compare with the photograph without defect.

    Args:
        model: an inpainting model (see ``foundation/inpainting.py``). lpips: the perceptual distance. prompts: one for each scene.
        margin: pixels by which the rectangle is larger than the defect, on each side.

    Returns:
        name -> (N, 3, 128, 128): "strength <s>", and "interpolated", the biharmonic interpolation of the surroundings, which knows of no
        products; the rectangles (N, 1, 128, 128) bool; and a table: what stands in the rectangle, error (mean absolute difference to the
        photograph without defect inside it), perceptual (LPIPS of the whole images), medians over the scenes. The first row leaves the
        defect in place.
    """
    from skimage.restoration import inpaint_biharmonic

    m = torch.zeros_like(scenes.mask[:, None])
    for i, defect in enumerate(scenes.mask):
        rows, columns = (defect.any(axis).nonzero()[[0, -1], 0].tolist() for axis in (1, 0))
        m[i, :, max(0, rows[0] - margin) : rows[1] + margin + 1, max(0, columns[0] - margin) : columns[1] + margin + 1] = True
    size, side = model.image_size, model.image_size // model.factor
    x, hole = resize(scenes.bad, size), torch.nn.functional.interpolate(m.float(), (size, size))
    noise = torch.randn(len(m), model.vae.config.latent_channels, side, side, generator=torch.Generator().manual_seed(seed))
    made = {
        f"strength {s:g}": resize(
            model.inpaint(x, hole, list(prompts), strength=s, noise=noise, num_inference_steps=num_inference_steps).cpu(), m.shape[-1]
        )
        for s in strengths
    }
    filled = [inpaint_biharmonic(x.permute(1, 2, 0).numpy(), hole[0].numpy(), channel_axis=-1) for x, hole in zip(scenes.bad, m, strict=True)]
    made["interpolated"] = torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).float().clamp(0, 1)
    rows = []
    for name, y in ({"the defect": scenes.bad} | made).items():
        inside = ((y - scenes.good).abs().mean(1, keepdim=True) * m).flatten(1).sum(1) / m.flatten(1).sum(1)
        apart = lpips.distance(scenes.good.to(model.device), y.to(model.device)).cpu()
        rows.append((name, float(inside.median()), float(apart.median())))
    return made, m, pd.DataFrame(rows, columns=["in the rectangle", "error", "perceptual"])


def cka(a: Tensor, b: Tensor) -> float:
    """Linear CKA (Kornblith et al., ICML 2019) of two networks' vectors (N, C) and (N, D) at the same N places: 1 where they agree but for a
    rotation and a scale, about 0 where they have nothing in common.

    >>> x = torch.randn(99, 4, generator=torch.Generator().manual_seed(0))
    >>> round(cka(x, -3 * x[:, [2, 0, 1, 3]]), 4)
    1.0
    """
    a, b = ((v - v.mean(0)).double() for v in (a, b))
    return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))


@torch.no_grad()
def students(profile, scenes: Pairs) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """How much of EfficientNet-Lite0 the baselines' two small networks took over, and whether they see the defects of `scenes`.

    Returns:
        a table: network, map, alike (:func:`cka` with the teacher's map over the flawless photographs), untrained (the same network with random
        weights, as a control); and name -> (N, h, w): how far a scene's two photographs lie apart at each place, 1 - cosine.
    """
    import warnings

    import timm

    with warnings.catch_warnings():  # anomalib's own modules import each other's deprecated names
        warnings.simplefilter("ignore", FutureWarning)
        from ...baselines.efficientad import load_teacher
        from .train_students import MARGIN, SIDE, STRIDES, PdnStudent, load_network_teacher
    from ..backbones import Backbone, load_trunk

    torch.manual_seed(0)
    q, teacher = profile.distillation_backbone, load_network_teacher(STRIDES["resnet18"])
    trunk, blank = load_trunk(q.name, profile.path("distillation_backbone"), q.image_size), Backbone(timm.create_model(q.name), q.name, q.image_size)
    trunk.stages = blank.stages = (1, 2, 3)  # strides 4, 8, 16
    said, ours, none = ([network.features(x) for x in (scenes.good, scenes.bad)] for network in (teacher, trunk, blank))
    rows = [(q.name, f"stride {s}", *(cka(_vectors(maps[0][i]), _vectors(said[0][i])) for maps in (ours, none))) for i, s in enumerate(STRIDES["resnet18"])]

    joined = [(m - m.mean((0, 2, 3), keepdim=True)) / m.std((0, 2, 3), keepdim=True).clamp_min(1e-6) for m in said[0][1:]]
    random = PdnStudent([m.shape[1] for m in joined])
    large = [resize(x, SIDE) for x in (scenes.good, scenes.bad)]
    patch = [load_teacher(profile.path("efficientad_teacher"))(x) for x in large]
    target = _vectors(random.target(joined)[..., MARGIN:-MARGIN, MARGIN:-MARGIN])
    rows.append(("patch network", "strides 8 and 16", *(cka(_vectors(m), target) for m in (patch[0], random.network(large[0])))))

    apart = {"EfficientNet-Lite0": (said[0][1], said[1][1]), q.name: (ours[0][1], ours[1][1]), "patch network": patch}
    return pd.DataFrame(rows, columns=["network", "map", "alike", "untrained"]), {k: 1 - torch.cosine_similarity(a, b) for k, (a, b) in apart.items()}


def at_side(maps: Tensor, side: int) -> Tensor:
    """Maps (N, h, w) -> (N, side, side), bilinear."""
    return torch.nn.functional.interpolate(maps[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]


def _vectors(maps: Tensor) -> Tensor:
    """(N, C, h, w) -> (N h w, C)."""
    return maps.transpose(0, 1).flatten(1).T


# ------------------------------------------------------------------------------------------------------- training record
def read_logs(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The training logs in `folder`: "clip_patch16" (what "clip" grew from), "clip", "vae", "unet", "clip_more", "unet_more" (which
    went on from exported weights), "unet_inpainting", its "_more", the VAE's "vae_lpips", "vae_anchored" and "vae_colours", both U-Nets' "_new" on that, "vqgan",
    "resnet18" and "pdn" -> one row per report, in order of steps (a part repeated after an interruption counts once). Parts without a log are left out.

    Raises:
        FsadError: a line that is not JSON with a step.
    """
    logs = {}
    for part in SAMPLES_PER_STEP:
        path = Path(folder) / f"{part}.jsonl"
        if not path.is_file():
            continue
        try:
            rows = {row["step"]: row for row in map(json.loads, path.read_text().splitlines())}
        except (ValueError, KeyError, TypeError) as error:
            raise FsadError(f"{path} is not a training log ({error}); expected one JSON object with a step per line.") from error
        logs[part] = pd.DataFrame([rows[step] for step in sorted(rows)])
    return logs


def read_commands(card: str | Path) -> str:
    """The commands that made the miniatures: the first fenced block of their card (data/models/mini/README.md); "" without one."""
    path = Path(card)
    block = re.search(r"^```\w*\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S) if path.is_file() else None
    return block[1].rstrip() if block else ""


def training_table(logs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per part: steps, samples seen and hours, both from the log."""
    rows = {}
    for part, log in logs.items():
        steps = log["step"].diff().fillna(log["step"].iloc[0])
        samples = steps * log.get("batch", pd.Series(np.nan, log.index)).fillna(SAMPLES_PER_STEP[part])
        hours = (samples / log[RATE[part]]).sum() / 3600
        rows[part] = {"steps": int(log["step"].iloc[-1]), "samples": int(samples.sum()), "hours": round(hours, 2)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("part")


def around(x, mask, side: int = 56):
    """The ``side`` x ``side`` pixels of an image (3, H, W) around the defect of a (H, W) mask, moved inwards at the border.

    >>> import torch
    >>> mask = torch.zeros(64, 64, dtype=torch.bool); mask[60, 30] = True
    >>> x = torch.arange(64.0).expand(3, 64, 64)
    >>> around(x, mask, 16).shape, around(x, mask, 16)[0, 0, 0].item()
    (torch.Size([3, 16, 16]), 22.0)
    """
    corner = [min(max(int(at.float().mean()) - side // 2, 0), size - side) for at, size in zip(mask.nonzero(as_tuple=True), mask.shape, strict=True)]
    return x[:, corner[0] : corner[0] + side, corner[1] : corner[1] + side]


def training_curves(logs: dict[str, pd.DataFrame]):
    """Two panels per part: its losses, and what was measured on the way. Returns a closed figure."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    from ... import plots

    panels = [
        ("clip_patch16", "CLIP, patches of 16: losses", ["contrastive", "state", "joint", "cells"]),
        ("clip", "CLIP: losses", ["contrastive", "state", "joint", "cells"]),
        ("clip_more", "CLIP, with a teacher: losses", ["contrastive", "state", "joint", "cells", "teacher"]),
        ("clip_patch16", "patches of 16: image AUROC, dev", ["noun_seen", "object_seen", "noun_unseen", "object_unseen"]),
        ("clip", "CLIP: image AUROC, development", ["noun_seen", "object_seen", "noun_unseen", "object_unseen"]),
        ("clip_more", "with a teacher: image AUROC, dev", ["noun_seen", "object_seen", "noun_unseen", "object_unseen"]),
        ("unet", "U-Net: loss (v)", ["loss"]), ("unet_more", "U-Net, defects count more: loss (v)", ["loss"]), ("vae", "VAE: loss", ["loss"]),
        ("unet_inpainting", "inpainting U-Net: loss (v)", ["loss"]), ("unet_inpainting_more", "inpainting U-Net, further: loss (v)", ["loss"]),
        ("unet_inpainting_new", "on the new latents: loss, min-SNR", ["loss"]), ("unet_new", "U-Net, on the new latents: loss", ["loss"]), ("vae", "VAE: contrast kept (section 4)", ["contrast_projected"]), ("vae", "VAE: PSNR, dB", ["psnr"]),
        ("vae_lpips", "VAE, decoder with LPIPS: PSNR, dB", ["psnr"]), ("vae_anchored", "VAE, its encoder, too: PSNR, dB", ["psnr"]), ("vae_colours", "VAE, other colours: PSNR, dB", ["psnr"]), ("vqgan", "VQGAN: losses", ["absolute", "perceptual", "discriminator"]),
        ("vqgan", "VQGAN: PSNR, dB", ["psnr", "psnr_without_codes"]), ("vqgan", "VQGAN: perplexity of the codes", ["perplexity"]),
        ("resnet18", "ResNet-18, a student: loss", ["loss"]), ("pdn", "patch network, a student: loss", ["loss"]),
    ]  # fmt: skip
    panels = [(part, title, [c for c in columns if c in logs[part]]) for part, title, columns in panels if part in logs]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        raise FsadError("no training log to draw; expected data/models/mini/training/{clip,vae,unet,...}.jsonl.")
    with mpl.rc_context(plots.STYLE):
        rows = -(-len(panels) // 3)
        figure, axes = plt.subplots(rows, min(3, len(panels)), figsize=(3.4 * min(3, len(panels)), 2.5 * rows), squeeze=False, layout="constrained")
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        for ax, (part, title, columns) in zip(axes.flat, panels, strict=False):
            for column, colour in zip(columns, (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE, plots.GREY)):
                line = logs[part][["step", column]].dropna()
                ax.plot(line["step"], line[column], color=colour, label=column.replace("_", " "))
            ax.set_title(title)
            ax.set_xlabel("step")
            if len(columns) > 1:
                ax.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2 if len(columns) < 5 else 3)  # below the panel: curves cross every corner
            if "AUROC" in title:
                ax.axhline(0.5, color=plots.GREY, linewidth=0.9, linestyle=":")
            if "contrast" in title:
                ax.axhline(0.7, color=plots.GREY, linewidth=0.9, linestyle=":")  # the gate
    plt.close(figure)
    return figure

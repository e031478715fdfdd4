"""Simple measurements that tell what a word knows, before any test image is touched.

A probe compares words on images that differ in one thing alone: a shot and the same shot with a scratch, the same noise
taken out of the same latent, the same word with a part of it replaced by chance.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from fsad_lib.adp.concepts import p_clip
from fsad_lib.adp.prompts import TEMPLATES, check_words, state_embeddings
from fsad_lib.errors import FsadError
from fsad_lib.foundation.diffusion import generator

__all__ = [
    "apart", "change", "denoising_probe", "gradient_sweep", "judge", "ordered_pairs", "p_normal", "scratch", "spoil", "weights_digest",
]  # fmt: skip


def scratch(x: Tensor, seed: int | str = 0, width: float = 0.012, opacity: float = 0.8) -> Tensor:
    """Images with one thin, slightly bent scratch each, through the middle half: a damage that no model has drawn.

    Args:
        x: (B, 3, H, W) in [0, 1].
        seed: image i draws from ``generator(seed, "scratch", i)``.
        width: half width as a share of the image's side. opacity: in (0, 1].

    Returns:
        (B, 3, H, W) in [0, 1]; darker than a bright surface, brighter than a dark one.

    Raises:
        FsadError: a width or opacity out of range.

    Example:
        >>> x = torch.full((1, 3, 64, 64), 0.7)
        >>> changed = (scratch(x) != x).any(1).float().mean()
        >>> 0.005 < changed.item() < 0.05
        True
    """
    if not 0 < width < 0.5 or not 0 < opacity <= 1:
        raise FsadError(f"found width {width}, opacity {opacity}; expected 0 < width < 0.5 and 0 < opacity <= 1.")
    height, wide = x.shape[-2:]
    v, u = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(wide) + 0.5) / wide, indexing="ij"
    )
    places = torch.stack([u, v], -1).view(-1, 2)
    pixel, out = 1 / min(height, wide), []
    for i, image in enumerate(x):
        r = torch.rand(5, generator=generator(seed, "scratch", i))
        angle, middle = r[0] * torch.pi, 0.4 + 0.2 * r[1:3]
        along = torch.stack([angle.cos(), angle.sin()])
        across = torch.stack([-along[1], along[0]])
        s = torch.linspace(-1, 1, 96)[:, None]
        line = middle + (0.14 + 0.08 * r[3]) * s * along + 0.06 * (r[4] - 0.5) * s**2 * across
        near = torch.cdist(places, line).amin(1).view(height, wide)
        cover = ((width - near) / pixel + 0.5).clamp(0, 1).to(x) * opacity
        bright = (image.mean(0) * cover).sum() / cover.sum().clamp_min(1e-6) > 0.4
        target = image * 0.25 if bright else 0.55 + 0.45 * image
        out.append(image * (1 - cover) + target * cover)
    return torch.stack(out) if out else x


@torch.no_grad()
def denoising_probe(
    diffusion: Any,
    x: Tensor,
    words: Sequence[str],
    concepts: Mapping[str, Tensor] | None = None,
    *,
    template: str = "a photo of a {}",
    draws: int = 8,
    seed: int | str = 0,
    batch_size: int = 8,
) -> dict[str, float]:
    """Denoising loss of eq. 2 for several words at the same timesteps and noise, so that the words can be compared.

    The loss of a training step swings with its timestep and noise; here ``draws`` timesteps, evenly spread, are fixed.

    Args:
        diffusion: :class:`fsad_lib.foundation.diffusion.Diffusion`. x: (B, 3, H, W) in [0, 1].
        words: words and placeholders. concepts: placeholder -> vector (token_dim,). template: a sentence with one {}.
        draws: timesteps of each image. seed: of the noise. batch_size: latents at once.

    Returns:
        word -> mean loss over B images and ``draws`` timesteps.

    Raises:
        FsadError: no image, no draw, or one string in place of a list of words.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> from fsad_lib.foundation.diffusion import load_diffusion
        >>> from fsad_lib.foundation.miniatures.inspect import pairs
        >>> diffusion = load_diffusion("data/models/mini/diffusion", load_clip("data/models/mini/clip"))
        >>> losses = denoising_probe(diffusion, pairs(1, nouns=["gear"]).good, ["gear", "carpet"], draws=4)
        >>> losses["gear"] < losses["carpet"]  # the right word helps to find the noise
        True
    """
    if len(x) == 0 or draws < 1:
        raise FsadError(f"found {len(x)} images and draws = {draws}; each must be at least 1.")
    check_words(words)
    z, t, eps = _fixed_draws(diffusion, x, draws, seed)
    text = diffusion.encode_prompt([template.format(word) for word in words], concepts)
    losses = {}
    for word, states in zip(words, text, strict=True):
        parts = [
            diffusion.denoising_loss(z[i], states.expand(len(i), -1, -1), t[i], eps[i])
            for i in torch.arange(len(z), device=z.device).split(batch_size)
        ]
        losses[word] = torch.cat(parts).mean().item()
    return losses


def _fixed_draws(diffusion: Any, x: Tensor, draws: int, seed: int | str) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps and noise that do not change with the word: each of B images ``draws`` times, at evenly spread timesteps."""
    mean, _ = diffusion.posterior(x)
    z = mean.repeat_interleave(draws, 0)
    steps = (torch.arange(draws) + 0.5) / draws * diffusion.num_train_timesteps
    eps = torch.randn(z.shape, generator=generator(seed, "probe")).to(z)
    return z, steps.long().to(z.device).repeat(len(mean)), eps


def gradient_sweep(
    clip: Any,
    diffusion: Any,
    x: Tensor,
    c: Tensor,
    taus: Sequence[float] = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2),
    *,
    pseudo: Tensor | None = None,
    gamma: float | None = None,
    alpha: float = 1.0,
    templates: Sequence[str] = TEMPLATES,
    draws: int = 4,
    seed: int | str = 0,
) -> pd.DataFrame:
    """How hard each term of eq. 3 and, with pseudo-anomalies, of eq. 4 pulls on the word, for several temperatures.

    Args:
        x: (K, 3, H, W) shots of eq. 3's CLIP term; the first four are those of the denoising term, at ``draws`` fixed timesteps each.
        c: (token_dim,) the word.
        pseudo: (L, 3, H, W) pseudo-anomalies of eq. 4's hinge. gamma: its threshold; both or neither.
        alpha: weight of the CLIP terms. taus: temperatures, above 0. templates: sentences with one {}. seed: of the noise.

    Returns:
        One row per tau: tau; denoising_gradient (the same in every row); clip_gradient = |alpha d mean_i P(x_i) / dc| over the shots;
        with pseudo-anomalies hinge_gradient = |alpha d mean_j (P(pseudo_j) - gamma)^+ / dc|, 0 while none of them is above gamma.

    Raises:
        FsadError: ``pseudo`` without ``gamma``, or the reverse.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> from fsad_lib.foundation.diffusion import load_diffusion
        >>> clip = load_clip("data/models/mini/clip")
        >>> diffusion, x = load_diffusion("data/models/mini/diffusion", clip), torch.rand(2, 3, 128, 128)
        >>> pulls = gradient_sweep(clip, diffusion, x, clip.token_embedding("gear"), (0.01, 0.1), pseudo=x, gamma=1.0, draws=1)
        >>> pulls.denoising_gradient.nunique(), pulls.hinge_gradient.tolist()  # no probability is above 1: the hinge rests
        (1, [0.0, 0.0])
    """
    if (pseudo is None) != (gamma is None):
        raise FsadError("pseudo-anomalies and gamma belong together: give both (eq. 4) or neither (eq. 3).")
    c = c.detach().float().to(diffusion.device).requires_grad_(True)
    z, t, eps = _fixed_draws(diffusion, x[:4], draws, seed)
    pull = torch.zeros_like(c)
    for i in torch.arange(len(z), device=z.device).split(4):  # so that no more memory is needed than for a training step
        text = diffusion.encode_prompt(["a photo of a <c>"], {"<c>": c}).expand(len(i), -1, -1)
        pull += torch.autograd.grad(diffusion.denoising_loss(z[i], text, t[i], eps[i]).sum() / len(z), c)[0]

    g_n, g_a = (g.mean(0).to(c) for g in state_embeddings(clip, "<c>", {"<c>": c}, templates))

    def margins(images: Tensor) -> tuple[Tensor, Tensor]:
        """Difference of each image's two similarities, and its gradient with respect to c."""
        f = clip.encode_image(images).to(c)
        margin = torch.cosine_similarity(f, g_n[None]) - torch.cosine_similarity(f, g_a[None])
        slopes = torch.stack([torch.autograd.grad(m, c, retain_graph=True)[0] for m in margin])
        return margin.detach().double(), slopes.double()

    terms = {"clip_gradient": (*margins(x), 0.0)}
    if pseudo is not None:
        terms["hinge_gradient"] = (*margins(pseudo), gamma)
    rows = []
    for tau in taus:
        row = {"tau": tau, "denoising_gradient": pull.norm().item()}
        for name, (margin, slopes, threshold) in terms.items():  # dP/dc = P (1 - P) / tau * d margin / dc; 0 where the hinge rests
            p = torch.sigmoid(margin / tau)
            counts = p * (1 - p) / tau * (p > threshold)
            row[name] = alpha * counts[:, None].mul(slopes).mean(0).norm().item()
        rows.append(row)
    return pd.DataFrame(rows)


@torch.no_grad()
def p_normal(
    clip: Any,
    groups: Mapping[str, Tensor],
    words: Mapping[str, str] | Sequence[str],
    concepts: Mapping[str, Tensor] | None = None,
    *,
    tau: float,
    templates: Sequence[str] = TEMPLATES,
) -> pd.DataFrame:
    """P_CLIP(S_n(c) | x) of eq. 1 for groups of images and several words.

    Args:
        clip: :class:`fsad_lib.foundation.clip.CLIP`.
        groups: name -> images (B, 3, H, W) in [0, 1].
        words: name -> word or placeholder, or just the words. concepts: placeholder -> vector (token_dim,).
        tau: temperature, above 0. templates: sentences with one {}.

    Returns:
        One row for each word, group and image: word, group, image (its number in the group), p_normal.

    Raises:
        FsadError: one string in place of a list of words.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> from fsad_lib.foundation.miniatures.inspect import pairs
        >>> clip, scenes = load_clip("data/models/mini/clip"), pairs(1, nouns=["paper"])
        >>> table = p_normal(clip, {"flawless": scenes.good, "damaged": scenes.bad}, ["paper"], tau=0.1)
        >>> table[["word", "group", "image"]].values.tolist()
        [['paper', 'flawless', 0], ['paper', 'damaged', 0]]
        >>> bool(table.p_normal[0] > 0.5 > table.p_normal[1])
        True
    """
    check_words(words)
    words = words if isinstance(words, Mapping) else {word: word for word in words}
    states = {
        name: tuple(g.mean(0) for g in state_embeddings(clip, word, concepts, templates)) for name, word in words.items()
    }
    return judge(clip, groups, states, tau)


@torch.no_grad()
def judge(
    clip: Any, groups: Mapping[str, Tensor], states: Mapping[str, tuple[Tensor, Tensor]], tau: float
) -> pd.DataFrame:
    """The table of :func:`p_normal` for pairs of text embeddings, e.g. the prototypes of eq. 6.

    Args:
        groups: name -> images (B, 3, H, W) in [0, 1].
        states: name -> (normal (D,), anomalous (D,)). tau: temperature, above 0.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> clip = load_clip("data/models/mini/clip")
        >>> normal, anomalous = clip.encode_text(["a flawless nut", "a damaged nut"])
        >>> states = {"nut": (normal, anomalous), "turned round": (anomalous, normal)}
        >>> table = judge(clip, {"shots": torch.rand(2, 3, 96, 96)}, states, tau=0.1)
        >>> table.groupby("image").p_normal.sum().round(4).tolist()
        [1.0, 1.0]
    """
    rows = []
    f = {group: clip.encode_image(x) for group, x in groups.items()}
    for name, (normal, anomalous) in states.items():
        for group, features in f.items():
            p = p_clip(features, normal.to(features), anomalous.to(features), tau).tolist()
            rows += [{"word": name, "group": group, "image": i, "p_normal": v} for i, v in enumerate(p)]
    return pd.DataFrame(rows, columns=["word", "group", "image", "p_normal"])


def change(x: Tensor, edited: Tensor) -> tuple[Tensor, Tensor]:
    """How much an edit changes an image, and over how much of it.

    Args:
        x, edited: (B, 3, H, W) in [0, 1].

    Returns:
        amount (B,), the mean absolute difference; extent (B,), the share of pixels that carry half of the squared difference:
        small for a scratch, near 0.5 for a change of the whole image, 0 without any change.

    Raises:
        FsadError: images and edits of different shape.

    Example:
        >>> x, y = torch.zeros(1, 3, 10, 10), torch.zeros(1, 3, 10, 10)
        >>> y[..., 0, :2] = 1
        >>> [round(v.item(), 3) for v in change(x, y)]
        [0.02, 0.01]
    """
    if x.shape != edited.shape:
        raise FsadError(f"found images of shape {tuple(x.shape)} and edits of {tuple(edited.shape)}; expected the same.")
    energy = (edited - x).square().sum(1).flatten(1).sort(1, descending=True).values
    carried = energy.double().cumsum(1)
    extent = (carried < carried[:, -1:] / 2).sum(1).add(1).div(energy.shape[1])
    return (edited - x).abs().mean((1, 2, 3)), extent.where(carried[:, -1] > 0, torch.zeros(())).float()


def ordered_pairs(higher: Sequence[float], lower: Sequence[float]) -> float:
    """Share of pairs (one of each group) in the expected order, ties counted half: the AUROC, in words. FsadError for an empty group.

    Example:
        >>> ordered_pairs([0.9, 0.5], [0.5, 0.1])
        0.875
    """
    a, b = (torch.as_tensor([float(v) for v in values], dtype=torch.float64) for values in (higher, lower))
    if not len(a) or not len(b):
        raise FsadError(f"found {len(a)} and {len(b)} values; each group needs at least one.")
    difference = a[:, None] - b[None]
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()


def apart(table: pd.DataFrame, normal: str | None = None) -> pd.DataFrame:
    """How well each word keeps the normal images from every other group: :func:`ordered_pairs`, words x groups.

    Args:
        table: what :func:`p_normal` returns. normal: the group of normal images; the first by default.

    Raises:
        FsadError: a table without that group.

    Example:
        >>> rows = [("gear", "shots", 0, 0.9), ("gear", "edits", 0, 0.4), ("gear", "edits", 1, 0.95)]
        >>> apart(pd.DataFrame(rows, columns=["word", "group", "image", "p_normal"])).loc["gear", "edits"]
        np.float64(0.5)
    """
    groups = list(dict.fromkeys(table["group"]))
    normal = normal or groups[0]
    if normal not in groups:
        raise FsadError(f"no group {normal!r} in the table; found {', '.join(groups)}.")
    values = {key: block["p_normal"] for key, block in table.groupby(["word", "group"], sort=False)}
    words = list(dict.fromkeys(table["word"]))
    return pd.DataFrame(
        {g: [ordered_pairs(values[w, normal], values[w, g]) for w in words] for g in groups if g != normal}, words
    )


def weights_digest(*modules: torch.nn.Module) -> str:
    """SHA-256 over every weight and buffer of some models: the same before and after, nothing has moved.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> before = weights_digest(layer)
        >>> _ = layer.weight.data.add_(1)
        >>> weights_digest(layer) == before
        False
    """
    h = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            h.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def spoil(c: Tensor, share: float, seed: int | str = 0) -> Tensor:
    """A word with a share of it replaced by a random vector of the same length.

    Args:
        c: (token_dim,). share: in [0, 1]; 0 leaves the word alone, 1 leaves only chance. seed: of the random vector.

    Returns:
        (token_dim,).

    Raises:
        FsadError: a share outside [0, 1].

    Example:
        >>> c = torch.tensor([3.0, 4.0])
        >>> torch.equal(spoil(c, 0.0), c), round(spoil(c, 1.0).norm().item(), 3)
        (True, 5.0)
    """
    if not 0 <= share <= 1:
        raise FsadError(f"share is {share}, expected a number in [0, 1].")
    noise = torch.randn(c.shape, generator=generator(seed, "spoil")).to(c)
    return (1 - share) * c + share * noise * (c.norm() / noise.norm())

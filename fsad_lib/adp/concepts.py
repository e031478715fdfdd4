"""Learned words: textual inversion (eq. 2), the normal-aware c_n (eq. 3) and the anomaly-aware c_a (eq. 4).

One vector of the token-embedding space is trained; CLIP, U-Net, VAE and text encoder stay as they are. The same vector
enters the diffusion model's text encoder, where it must describe the shots, and CLIP's text tower, where "flawless [c]" must
win over "damaged [c]" on the shots and lose on the pseudo-anomalies.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fsad_lib.adp.prompts import TEMPLATES, check_templates, state_embeddings
from fsad_lib.checkpoints import digest
from fsad_lib.errors import FsadError
from fsad_lib.foundation.diffusion import generator
from fsad_lib.foundation.images import check_images
from fsad_lib.runs import replacing

__all__ = ["learn_concept", "load_concepts", "p_clip", "save_concepts", "tau_sweep"]

WORD = "<c>"
COLUMNS = ("denoising_loss", "p_normal", "hinge")
BETAS, ADAM_EPS = (0.9, 0.999), 1e-8


def p_clip(f: Tensor, g_n: Tensor, g_a: Tensor, tau: float) -> Tensor:
    """Probability of the normal state, eq. 1 with C(c) = {S_n(c), S_a(c)}.

    Args:
        f: (B, D) image embeddings. g_n, g_a: (D,) template means G(S_n(c)) and G(S_a(c)).
        tau: temperature, above 0.

    Returns:
        (B,) in [0, 1]; differentiable.

    Raises:
        FsadError: a tau that is not above 0; embeddings that are not means over the templates, or of another CLIP.

    ``sim`` is a cosine, hence the mean over templates needs no normalising of its own: dividing by its length is part of sim.

    Example:
        >>> f, g_n, g_a = torch.eye(2), torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])
        >>> [round(p, 4) for p in p_clip(f, g_n, g_a, tau=0.5).tolist()]
        [0.8808, 0.1192]
    """
    if tau is None or not tau > 0:
        raise FsadError(
            f"tau is {tau}, expected a number above 0 (CLIP's own is 1 / logit_scale, about 1/100 in published models, 1/23 in the miniature)."
        )
    if g_n.shape != f.shape[-1:] or g_a.shape != f.shape[-1:]:  # (|T|, D) would be set against the images one by one
        raise FsadError(
            f"image embeddings {tuple(f.shape)} and the states' {tuple(g_n.shape)} and {tuple(g_a.shape)} found; expected (B, D) and twice (D,): "
            "take the mean over the templates first, g.mean(0)."
        )
    # exp(sim_n / tau) / (exp(sim_n / tau) + exp(sim_a / tau)) = sigmoid((sim_n - sim_a) / tau)
    sim_n = torch.cosine_similarity(f, g_n[None], dim=-1)
    sim_a = torch.cosine_similarity(f, g_a[None], dim=-1)
    return torch.sigmoid((sim_n - sim_a) / tau)


def tau_sweep(
    f: Tensor, g_n: Tensor, g_a: Tensor, taus: Sequence[float] = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
) -> pd.DataFrame:
    """What the temperature does to eq. 1: a small tau turns small differences of the similarities into large ones of the probability.

    The slope P (1 - P) / tau is at most 1 / (4 tau), where both similarities are equal. So an image near that boundary pulls
    *harder* at a small tau, and one far from it (against tau) hardly pulls at all. Which of the two happens depends on the
    differences that a CLIP gives, not on tau alone.

    Args:
        f: (B, D) image embeddings. g_n, g_a: (D,) template means. taus: temperatures, each above 0.

    Returns:
        One row for each tau and image: tau, image, p_normal, and gradient = dP / d(sim_n - sim_a) = P (1 - P) / tau.

    Example:
        >>> sweep = tau_sweep(torch.eye(2)[:1], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), taus=[0.01, 0.5])
        >>> sweep.gradient.round(3).tolist()
        [0.0, 0.21]
    """
    rows = []
    for tau in taus:
        p = p_clip(f, g_n, g_a, tau).double()
        rows.append(
            pd.DataFrame(
                {
                    "tau": tau,
                    "image": range(len(p)),
                    "p_normal": p.cpu(),
                    "gradient": (p * (1 - p) / tau).cpu(),
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


def learn_concept(
    clip: Any,
    diffusion: Any,
    x: Tensor,
    init: str | Tensor = "object",
    *,
    alpha: float,
    tau: float | None = None,
    steps: int,
    lr: float,
    batch_size: int = 4,
    templates: Sequence[str] = TEMPLATES,
    pseudo: Tensor | None = None,
    gamma: float | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> tuple[Tensor, pd.DataFrame]:
    """Learn one word from a few normal images.

    ========================  ==================  ==========================================
    objective                 call                paper
    ========================  ==================  ==========================================
    plain textual inversion   ``alpha=0``         eq. 2; started from "object" like eq. 3 (own choice)
    normal-aware c_n          ``alpha>0``         eq. 3, initialised with "object"
    anomaly-aware c_a         and ``pseudo=``     eq. 4, initialised with c_n
    ========================  ==================  ==========================================

    Each step draws a batch of shots, latents, one template a sample, timesteps and noise from ``(seed, step)``; the CLIP terms use
    all shots, all pseudo-anomalies and the whole template ensemble. Adam, constant learning rate.

    Args:
        clip: :class:`fsad_lib.foundation.clip.CLIP`. diffusion: :class:`fsad_lib.foundation.diffusion.Diffusion`.
        x: (K, 3, H, W) normal images in [0, 1].
        init: a one-token word or a vector (token_dim,).
        alpha: weight of the CLIP terms, at least 0. tau: temperature of eq. 1; None: 1 / clip.logit_scale.
        steps, lr, batch_size: training steps, Adam's learning rate, and samples of the denoising term in each step.
        templates: sentences with one {} for the word.
        pseudo: (L, 3, H, W) pseudo-anomalies in [0, 1]; with them ``gamma`` in [0, 1] is the P(normal) below which they no longer count.
        seed: of everything random.
        checkpoint: a file to resume from and to write every ``checkpoint_every`` steps; one of other settings, images or model
            weights is started anew.
        progress: called with (step, steps, trace row) after each step.

    Returns:
        c (token_dim,) on the CPU; trace with one row a step: step, denoising_loss (batch mean), p_normal (mean over the shots),
        hinge (mean over the pseudo-anomalies, NaN without), each before the step's update.

    Raises:
        FsadError: no images, values out of range, ``pseudo`` without ``gamma`` or the reverse, a word of several tokens, models of
            different token width, or a loss that is not finite.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> from fsad_lib.foundation.diffusion import load_diffusion
        >>> from fsad_lib.foundation.miniatures.inspect import pairs
        >>> clip = load_clip("data/models/mini/clip")
        >>> diffusion, x = load_diffusion("data/models/mini/diffusion", clip), pairs(1, nouns=["gear"]).good
        >>> how = dict(steps=3, lr=0.005, batch_size=1)
        >>> plain, guided = (learn_concept(clip, diffusion, x, alpha=alpha, **how)[1].p_normal for alpha in (0.0, 1.0))
        >>> (guided - plain).round(3).gt(0).tolist()  # alike before the first step; then CLIP pulls
        [False, True, True]
    """
    _check(clip, diffusion, x, alpha, steps, lr, batch_size, templates, pseudo, gamma, checkpoint_every)
    tau = 1 / clip.logit_scale if tau is None else tau
    device = diffusion.device
    start = (clip.token_embedding(init) if isinstance(init, str) else init).detach().float().cpu()
    if start.shape != (diffusion.token_dim,):
        raise FsadError(
            f"init has shape {tuple(start.shape)}, expected ({diffusion.token_dim},), one vector of this text encoder."
        )

    c = start.clone().to(device).requires_grad_(True)
    adam = torch.optim.Adam([c], lr=lr, betas=BETAS, eps=ADAM_EPS)
    key = digest(
        start,
        x,
        *([] if pseudo is None else [pseudo]),
        alpha=alpha,
        tau=tau,
        gamma=gamma,
        lr=lr,
        batch=batch_size,
        templates=list(templates),
        seed=seed,
        models=_sampled_weights(clip.model, diffusion.unet, diffusion.vae, diffusion.text_encoder) if checkpoint else None,
    )
    rows = _resume(checkpoint, key, steps, c, adam)

    if len(rows) < steps:  # everything that does not change with c, once
        mean, std = diffusion.posterior(x)
        with torch.no_grad():
            f = clip.encode_image(x).to(device)
            f_pseudo = None if pseudo is None else clip.encode_image(pseudo).to(device)

    for step in range(len(rows), steps):
        z, t, eps, chosen = _draw(
            mean,
            std,
            diffusion.num_train_timesteps,
            templates,
            batch_size,
            generator(seed, "concept", step),
        )

        # eq. 2: sum_i sum_T log p_t2i(x_i | T(c)), by its denoising bound; mean over a batch of (i, T)
        unique = sorted(set(chosen))
        text = diffusion.encode_prompt([templates[T].format(WORD) for T in unique], {WORD: c})
        loss = diffusion.denoising_loss(z, text[[unique.index(T) for T in chosen]], t, eps).mean()

        with torch.set_grad_enabled(alpha > 0):
            g_n, g_a = (g.mean(0).to(device) for g in state_embeddings(clip, WORD, {WORD: c}, templates))
            # eq. 3: + alpha P_CLIP(S_n(c) | x_i), mean over the K shots
            p_normal = p_clip(f, g_n, g_a, tau).mean()
            # eq. 4: - alpha sum_j (P_CLIP(S_n(c) | pseudo_j) - gamma)^+, mean over the L pseudo-anomalies
            hinge = (
                torch.tensor(float("nan"))
                if pseudo is None
                else (p_clip(f_pseudo, g_n, g_a, tau) - gamma).relu().mean()
            )

        row = dict(zip(COLUMNS, (loss.item(), p_normal.item(), hinge.item()), strict=True))
        if alpha > 0:
            loss = loss - alpha * p_normal
            if pseudo is not None:
                loss = loss + alpha * hinge
        if not torch.isfinite(loss):
            raise FsadError(
                f"the loss is not finite ({loss.item()}) at step {step + 1}; a smaller lr (now {lr}) usually helps."
            )
        adam.zero_grad()
        loss.backward()
        adam.step()
        rows.append(row)
        if checkpoint and ((step + 1) % checkpoint_every == 0 or step + 1 == steps):
            _store(checkpoint, key, c, adam, rows)
        if progress:
            progress(step + 1, steps, row)

    trace = pd.DataFrame(rows, columns=list(COLUMNS), dtype=float)
    trace.insert(0, "step", range(1, len(rows) + 1))
    return c.detach().cpu(), trace


def _draw(
    mean: Tensor,
    std: Tensor,
    num_timesteps: int,
    templates: Sequence[str],
    batch_size: int,
    noise: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """One step's latents (B, 4, h, w), timesteps (B,), noise (B, 4, h, w) and template numbers.

    The shots are dealt like cards: each of K occurs either floor(B / K) or ceil(B / K) times.
    """
    k, shape = len(mean), (batch_size, *mean.shape[1:])
    rounds = -(-batch_size // k)
    shots = torch.cat([torch.randperm(k, generator=noise) for _ in range(rounds)])[:batch_size]
    chosen = torch.randint(len(templates), (batch_size,), generator=noise).tolist()
    t = torch.randint(num_timesteps, (batch_size,), generator=noise).to(mean.device)
    z = mean[shots] + std[shots] * torch.randn(shape, generator=noise).to(mean)
    eps = torch.randn(shape, generator=noise).to(mean)
    return z, t, eps, chosen


def _check(clip, diffusion, x, alpha, steps, lr, batch_size, templates, pseudo, gamma, checkpoint_every) -> None:  # noqa: ANN001
    check_images(x, empty=False)
    if (pseudo is None) != (gamma is None):
        raise FsadError(
            "pseudo-anomalies and gamma belong together: give both (eq. 4) or neither (eq. 2 and 3)."
        )
    if gamma is not None and not 0 <= gamma <= 1:
        raise FsadError(f"gamma is {gamma}, expected a probability in [0, 1].")
    if pseudo is not None:
        check_images(pseudo, empty=False)
    if not (alpha >= 0 and steps >= 0 and lr > 0 and batch_size >= 1 and checkpoint_every >= 1):
        raise FsadError(
            f"found alpha {alpha}, steps {steps}, lr {lr}, batch_size {batch_size}, checkpoint_every {checkpoint_every}; expected alpha and steps at "
            "least 0, lr above 0, batch_size and checkpoint_every at least 1."
        )
    check_templates(templates)
    if clip.token_dim != diffusion.token_dim:
        raise FsadError(
            f"CLIP's words have {clip.token_dim} numbers, the diffusion model's {diffusion.token_dim}: one learned word cannot serve both. "
            "Use the CLIP whose text tower the diffusion model was trained with (SD 2.1: ViT-H/14)."
        )


# -------------------------------------------------------------------- files
def _sampled_weights(*modules: torch.nn.Module) -> str:
    """SHA-256 over about a hundred evenly spaced values of each weight: milliseconds for billions of numbers.

    Weights of another training differ nearly everywhere, so a sample tells them apart; a hand that changes single numbers of a
    large weight may stay unseen (:func:`fsad_lib.adp.probes.weights_digest` reads them all).
    """
    h = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            some = value.detach().flatten()[:: max(1, value.numel() // 64)].cpu().contiguous()
            h.update(f"{name} {tuple(value.shape)} {value.dtype}".encode() + some.view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def _store(
    path: str | Path, key: str, c: Tensor, adam: torch.optim.Adam, rows: list[dict[str, float]]
) -> None:
    state = adam.state[c]
    tensors = {
        "c": c.detach(),
        "exp_avg": state["exp_avg"],
        "exp_avg_sq": state["exp_avg_sq"],
        "trace": torch.tensor([[row[name] for name in COLUMNS] for row in rows], dtype=torch.float64),
    }
    _save(path, tensors, {"key": key})


def _resume(
    path: str | Path | None, key: str, steps: int, c: Tensor, adam: torch.optim.Adam
) -> list[dict[str, float]]:
    """Put a checkpoint's state into c and adam; its trace rows, none if there is no checkpoint of these settings."""
    if path is None or not Path(path).is_file():
        return []
    try:
        with safe_open(str(path), "pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return []
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:
        raise FsadError(f"{path} is not a readable checkpoint ({error}). Delete it and run again.") from error
    done = len(saved["trace"])
    if done > steps:
        return []
    with torch.no_grad():
        c.copy_(saved["c"])
    adam.state[c] = {
        "step": torch.tensor(float(done)),
        "exp_avg": saved["exp_avg"].to(c),
        "exp_avg_sq": saved["exp_avg_sq"].to(c),
    }
    return [dict(zip(COLUMNS, row, strict=True)) for row in saved["trace"].tolist()]


def save_concepts(
    path: str | Path, concepts: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None
) -> Path:
    """Save learned words as a safetensors file of a few kilobytes, written whole or not at all.

    Args:
        concepts: name -> vector (token_dim,), e.g. ``{"<c_n>": c_n}``.
        meta: what is needed to use them again, JSON-able: backbone fingerprint, init word, hyper-parameters.

    Returns:
        the path.

    Raises:
        FsadError: no concept, one that is not a single vector, or a file that cannot be written.

    Example:
        >>> import tempfile, os
        >>> path = save_concepts(os.path.join(tempfile.mkdtemp(), "c.safetensors"), {"<c_n>": torch.ones(4)}, {"init": "object"})
        >>> words, meta = load_concepts(path)
        >>> words["<c_n>"].tolist(), meta["init"]
        ([1.0, 1.0, 1.0, 1.0], 'object')
    """
    wrong = {name: tuple(v.shape) for name, v in concepts.items() if v.ndim != 1}
    if wrong or not concepts:
        raise FsadError(
            f"expected at least one concept, each one vector (token_dim,); found {wrong or 'none'}."
        )
    tensors = {name: vector.detach().float().cpu().contiguous() for name, vector in concepts.items()}
    _save(path, tensors, {"fsad_concepts": json.dumps(dict(meta or {}), sort_keys=True)})
    return Path(path)


def load_concepts(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The concepts, name -> vector (token_dim,) float32 on the CPU, and the metadata of :func:`save_concepts`.

    Raises:
        FsadError: a file that is missing or that holds no concepts.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_concepts(f"{folder}/words.safetensors", {"<c_n>": torch.ones(4), "<c_a>": torch.zeros(4)}, {"init": "object"})
        ...     words, meta = load_concepts(path)
        >>> sorted(words), meta
        (['<c_a>', '<c_n>'], {'init': 'object'})
        >>> load_concepts("data/models/mini/lpips/lpips_alex.safetensors")
        Traceback (most recent call last):
        fsad_lib.errors.FsadError: data/models/mini/lpips/lpips_alex.safetensors is a safetensors file, but not one of learned words ...
    """
    try:
        with safe_open(str(path), "pt") as file:
            meta = file.metadata() or {}
            words = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:
        raise FsadError(
            f"cannot read the learned words in {path}: {error}. Expected a file of `save_concepts`."
        ) from error
    if "fsad_concepts" not in meta:
        raise FsadError(f"{path} is a safetensors file, but not one of learned words (`save_concepts`).")
    return words, json.loads(meta["fsad_concepts"])


def _save(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    with replacing(path) as temporary:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata,
        )

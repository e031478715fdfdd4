"""The text-guided knowledge integrator (section 4.2, eq. 4 to 7): generate, score by the prompt, update; the best set wins.

What the paper leaves open, and what is done here:

- n in eq. 6 is undefined: the squared difference is averaged over images, colours and pixels, as the loss's name says, of images in [0, 1]
  (in [-1, 1], as within L_vq, it would be four times as large). It is then far smaller than L_vq (a sum over colours and pixels would be far
  larger); `lam` is the place to change that;
- the N augmented images are the same in every iteration (made anew from their seed, to save memory); the samples are new;
- one update an iteration, on the very images that were scored;
- the discriminator goes on learning beside the generator, one step an iteration, as in the conventional VQGAN training (`update_discriminator`);
- z_v is the mean of unit vectors;
- several originals: the losses are averaged over originals, one original's graph in memory at a time;
- without a prompt there is nothing to choose by, and the last iteration's images are taken.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fsad_lib.checkpoints import digest
from fsad_lib.errors import FsadError
from fsad_lib.foundation.images import check_images
from fsad_lib.foundation.vqgan import TAMING_WEIGHTS, VQGAN, LossWeights
from fsad_lib.tgvig.generator import (
    GENTLE,
    VARIANCES,
    Augmentation,
    augment,
    images_each,
    latent_distribution,
    sample,
)

if TYPE_CHECKING:
    from fsad_lib.foundation.clip import CLIP

__all__ = ["Integration", "Settings", "integrate"]

CHECKPOINT = "integrator.pt"


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of one integration; the main text gives `images` (20) and Adam, nothing else; its appendix was not at hand.

    Attributes:
        iterations: L. images: M. augmented: N. lam: lambda of eq. 7. lr: of Adam, with its default betas for the generator (the paper says
            Adam and nothing else) and taming-transformers' 0.5 and 0.9 for the discriminator; much more throws
            the colours off in the first steps, which Adam makes as long as it may.
        variance: "estimated", "unit" or "none". quantized: mean and variance over codes (eq. 2) or over the encoder's output.
        gradient_checkpointing: compute the autoencoder's activations twice instead of keeping them for every image. The result is the same.
        weights: of the VQGAN loss's parts. seed: of everything random.

    Example:
        >>> from diffusers import VQModel
        >>> vqgan, x = VQGAN(VQModel(block_out_channels=(8,), norm_num_groups=4)), torch.rand(1, 3, 16, 16)
        >>> few = dict(iterations=1, images=2, augmented=3, lam=0.0)
        >>> for variance in ("none", "unit"):  # the mean latent alone; with noise of length 1
        ...     first, second = integrate(vqgan, x, settings=Settings(variance=variance, **few)).images
        ...     print(variance, torch.allclose(first, second, atol=1e-4))
        none True
        unit False
    """

    iterations: int = 20
    images: int = 20
    augmented: int = 16
    lam: float = 1.0
    lr: float = 3e-5
    variance: str = "estimated"
    quantized: bool = True
    update_discriminator: bool = True
    gradient_checkpointing: bool = False
    weights: LossWeights = TAMING_WEIGHTS
    augmentation: Augmentation = GENTLE
    seed: int = 0


DEFAULTS = Settings()


@dataclass(frozen=True)
class Integration:
    """What the integrator found.

    Attributes:
        images: (K * ceil(M / K), 3, H, W) in [0, 1], the chosen set. origin: (K * ceil(M / K),) number of each one's original.
        chosen: alpha, the iteration that they come from, counted from 1.
        similarity: cos(z_t, z_v^l) of every iteration, Figure 8; empty without a prompt.
        losses: for every iteration its parts: mse, vq, and those of the VQGAN loss.
        z_v: (L, D) of every iteration (eq. 4), by which any other prompt would choose among the same sets; (0, 0) without CLIP.
    """

    images: Tensor
    origin: Tensor
    chosen: int
    similarity: list[float]
    losses: list[dict[str, float]] = field(repr=False)
    z_v: Tensor = field(repr=False)


def integrate(
    vqgan: VQGAN, x: Tensor, clip: CLIP | None = None, prompt: str | None = None, settings: Settings = DEFAULTS,
    folder: str | Path | None = None, progress: Callable[[int, int], None] | None = None,
    keep: Callable[[int, Tensor], None] | None = None,
) -> Integration:  # fmt: skip
    """L iterations of generate, score and update; the images of the best iteration.

    Args:
        vqgan: with discriminator and perceptual distance; it is copied, not changed.
        x: (K, 3, H, W) original images in [0, 1]. clip, prompt: both, or neither ("without text").
        folder: where to keep the state after each iteration; a later call with the same arguments goes on from there and ends
            with the same images, and one with a greater L goes on to there.
        progress: called with (iterations done, L) after each.
        keep: called with an iteration, counted from 1, and its images on the CPU, before the state is saved: a resumed call may repeat
            the last one with the same images.

    Example:
        >>> from diffusers import VQModel
        >>> vqgan = VQGAN(VQModel(block_out_channels=(8,), norm_num_groups=4))
        >>> found = integrate(vqgan, torch.rand(1, 3, 16, 16), settings=Settings(iterations=2, images=3, augmented=2, lam=0.0))
        >>> found.images.shape, found.chosen, len(found.losses)
        (torch.Size([3, 3, 16, 16]), 2, 2)

    Raises:
        FsadError: values out of range, a prompt without CLIP, a state in `folder` that belongs to other arguments, or a loss that
            is not finite.
    """
    _check(x, clip, prompt, settings)
    s = settings
    work = VQGAN(copy.deepcopy(vqgan.model), copy.deepcopy(vqgan.discriminator), vqgan.perceptual)
    generator_parameters = [p.requires_grad_() for p in work.model.parameters()]  # encoder, decoder and codebook vectors: all of them
    if s.gradient_checkpointing:
        for part in (work.model.encoder, work.model.decoder):  # VQModel refuses enable_gradient_checkpointing(); its parts know it
            part.gradient_checkpointing, part._gradient_checkpointing_func = True, partial(checkpoint, use_reentrant=False)
    optimizers = {"model": torch.optim.Adam(generator_parameters, s.lr)}
    judged = []
    if s.lam and s.weights.adversarial and s.update_discriminator:
        judged = [p.requires_grad_() for p in work._part("discriminator").parameters()]
        optimizers["discriminator"] = torch.optim.Adam(judged, s.lr, betas=(0.5, 0.9))
    elif work.discriminator is not None:
        work.discriminator.eval().requires_grad_(False)
    x = x.to(work.device)
    each = images_each(s.images, len(x))
    with torch.no_grad():
        z_t = clip.encode_text([prompt])[0] if clip is not None else None  # z_t = G(P)

    fixed = {name: value for name, value in asdict(s).items() if name not in ("iterations", "gradient_checkpointing")}
    models = {"VQGAN": work.model, "discriminator": work.discriminator, "perceptual distance": work.perceptual, "CLIP": clip.model if clip is not None else None}
    key = {"settings": fixed, "prompt": prompt, "images": digest(x)}
    key |= {name: digest(*(values for _, values in sorted(model.state_dict().items()))) for name, model in models.items() if model is not None}
    state = _resume(folder, key, s.iterations, work, optimizers)
    similarity, losses, best, chosen, seen = state["similarity"], state["losses"], state["best"], state["chosen"], state["z_v"]
    for iteration in range(len(losses) + 1, s.iterations + 1):
        if "discriminator" in optimizers:
            work.discriminator.train()
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        made, parts = [], []
        for k, original in enumerate(x):
            augmented = augment(original, s.augmented, work.factor, f"{s.seed}/{k}", s.augmentation)  # I_1 .. I_N, the same each time
            z = work.encode(augmented)
            quantized = work.quantize(z)[:2]
            d = latent_distribution(quantized[0] if s.quantized else z, s.variance)
            images = work.decode(sample(d, each, s.seed, iteration, k))  # I+_1 .. I+_M (eq. 3)
            mse = (original - images).square().mean()  # L_mse (eq. 6)
            for p in judged:  # L_vq judges the generator; its gradient must not reach the judge
                p.requires_grad_(False)
            vq = work.loss(augmented, s.weights, quantized) if s.lam else None  # L_vq
            total = mse + s.lam * vq.total if vq else mse  # L = L_mse + lambda L_vq (eq. 7)
            if not torch.isfinite(total):
                raise FsadError(f"the loss is {float(total.detach())} in iteration {iteration}; lower lr (now {s.lr}) or lambda (now {s.lam}).")
            (total / len(x)).backward()
            made.append(images.detach().clamp(0, 1))
            parts.append({"mse": float(mse.detach())} | ({"vq": float(vq.total.detach())} | vq.parts if vq else {}))
            for p in judged:
                p.requires_grad_(True)
            if "discriminator" in optimizers:
                (work.discriminator_loss(augmented, vq.x_hat) / len(x)).backward()
        found = torch.cat(made)
        if "discriminator" in optimizers:
            optimizers["discriminator"].step()
        if z_t is None:
            better = True
        else:
            z_v = clip.encode_image(found).mean(0)  # z_v = E_m[f(I+_m)] (eq. 4)
            seen.append(z_v.cpu())
            similarity.append(float(F.cosine_similarity(z_t, z_v.to(z_t), dim=0)))
            better = similarity[-1] > max(similarity[:-1], default=-2.0)
        if better:  # alpha = argmax_l cos(z_t, z_v^l) (eq. 5)
            best, chosen = found.cpu(), iteration
        losses.append({name: sum(p[name] for p in parts) / len(parts) for name in parts[0]})
        optimizers["model"].step()
        if keep:
            keep(iteration, found.cpu())
        if folder is not None:
            state = {"key": key, "similarity": similarity, "losses": losses, "best": best, "chosen": chosen, "z_v": seen}
            _save(Path(folder), state, work, optimizers)
        if progress:
            progress(iteration, s.iterations)
    return Integration(best, torch.arange(len(x)).repeat_interleave(each), chosen, similarity, losses, torch.stack(seen) if seen else torch.empty(0, 0))


def _check(x: Tensor, clip: CLIP | None, prompt: str | None, s: Settings) -> None:
    check_images(x, empty=False)
    if not isinstance(s.weights, LossWeights):
        raise FsadError(f"weights {s.weights!r} found; expected LossWeights(perceptual, codebook, adversarial)")
    if (clip is None) != (prompt is None) or (prompt is not None and not prompt.strip()):
        raise FsadError("a prompt needs CLIP and CLIP a prompt; give both, or neither to take the last iteration's images")
    whole = {"iterations": s.iterations, "images": s.images, "augmented": s.augmented}
    if bad := [f"{name}={n!r}" for name, n in whole.items() if isinstance(n, bool) or not isinstance(n, int) or n < 1]:
        raise FsadError(f"{', '.join(bad)} found; expected whole numbers of at least 1")
    if not s.lam >= 0 or not s.lr > 0 or s.variance not in VARIANCES:
        raise FsadError(f"lam={s.lam}, lr={s.lr}, variance={s.variance!r} found; expected at least 0, above 0, one of {', '.join(VARIANCES)}")


# ---------------------------------------------------------------- state on disk
def _save(folder: Path, state: dict[str, Any], work: VQGAN, optimizers: dict[str, torch.optim.Optimizer]) -> None:
    from fsad_lib.runs import replacing

    state |= {"model": work.model.state_dict(), "optimizers": {name: o.state_dict() for name, o in optimizers.items()}}
    if "discriminator" in optimizers:
        state["discriminator"] = work.discriminator.state_dict()
    with replacing(folder / CHECKPOINT) as part:
        torch.save(state, part)


def _resume(folder: str | Path | None, key: dict, limit: int, work: VQGAN, optimizers: dict[str, torch.optim.Optimizer]) -> dict[str, Any]:
    path = Path(folder) / CHECKPOINT if folder is not None else None
    if path is None or not path.is_file():
        return {"similarity": [], "losses": [], "best": None, "chosen": 0, "z_v": []}
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # the modules and optimizers take it to their own device
        same = state["key"] == key
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, KeyError, TypeError) as error:
        raise FsadError(f"{path} cannot be read ({type(error).__name__}). Remove it to start again.") from error
    if not same:
        differ = sorted(name for name in key | state["key"] if state["key"].get(name) != key.get(name))
        raise FsadError(f"{path} was left by an integration with other {', '.join(differ)}. Remove it, or give another folder.")
    if len(state["losses"]) > limit:
        raise FsadError(f"{path} is {len(state['losses'])} iterations old, more than the {limit} asked for. Remove it, or give another folder.")
    work.model.load_state_dict(state["model"])
    if "discriminator" in optimizers:
        work.discriminator.load_state_dict(state["discriminator"])
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    return state

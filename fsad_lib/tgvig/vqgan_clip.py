"""VQGAN-CLIP (Crowson et al., ECCV 2022): a latent, optimised until CLIP sees the prompt in random cut-outs of its image.

The paper's rival in Table 1 and Figure 2, driven by "Hazelnut", "a photo of a hazelnut" or the image's caption. Whether it began there from
noise or from the original image is not said; both are possible here. Who drew Table 2's images is not said either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fsad_lib.errors import FsadError
from fsad_lib.foundation.diffusion import generator
from fsad_lib.foundation.vqgan import VQGAN

if TYPE_CHECKING:
    from fsad_lib.foundation.clip import CLIP

__all__ = ["Settings", "cutouts", "draw", "spherical_distance"]


@dataclass(frozen=True)
class Settings:
    """Adam's steps and rate (the method's own: 0.1), the number of cut-outs a step, and their least share of the image's side."""

    steps: int = 100
    lr: float = 0.1
    cutouts: int = 16
    least: float = 0.4
    seed: int = 0


DEFAULTS = Settings()


def spherical_distance(f: Tensor, g: Tensor) -> Tensor:
    """2 arcsin(|f - g| / 2)^2 of unit vectors (..., D): half the squared angle, 0 for equal ones.

    >>> f = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> (2 * spherical_distance(f, f[:1])).sqrt().tolist()
    [0.0, 1.570796...]
    """
    return 2 * ((f - g).norm(dim=-1) / 2).clamp(max=1).arcsin().square()


def cutouts(x: Tensor, n: int, side: int, least: float, draw: torch.Generator) -> Tensor:
    """n random squares of one image x (1, 3, H, W), resized to (n, 3, side, side); differentiable in x.

    Args:
        least: least share of the shorter side, in (0, 1]. draw: source of every random number.

    Example:
        >>> x = torch.rand(1, 3, 20, 30)
        >>> views = cutouts(x, 4, side=8, least=0.5, draw=generator(0))
        >>> views.shape, bool(views.min() >= x.min() and views.max() <= x.max())
        (torch.Size([4, 3, 8, 8]), True)
    """
    shorter = min(x.shape[-2:])
    parts = []
    for u in torch.rand(n, 3, generator=draw).tolist():
        size = max(1, round(shorter * (least + (1 - least) * u[0])))
        top, left = (int(v * (length - size + 1)) for v, length in zip(u[1:], x.shape[-2:]))
        part = x[..., top : top + size, left : left + size]
        parts.append(F.interpolate(part, (side, side), mode="bilinear", align_corners=False, antialias=True))
    return torch.cat(parts)


def draw(
    vqgan: VQGAN, clip: CLIP, prompt: str, size: int, start: Tensor | None = None, settings: Settings = DEFAULTS,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, list[float]]:  # fmt: skip
    """One image for one prompt.

    Args:
        vqgan, clip: both stay as they are. prompt: a sentence. size: side of the image in pixels, a multiple of the VQGAN's factor.
        start: an image (3, size, size) in [0, 1] to begin from; None: random codes. settings: :class:`Settings`.
        progress: called with (steps done, steps) after each.

    Returns:
        the image (3, size, size) in [0, 1], and the distance of each step.

    Raises:
        FsadError: values out of range, an empty prompt, a start of another size.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> from fsad_lib.foundation.vqgan import load_vqgan
        >>> vqgan = load_vqgan("data/models/mini/vqgan", "data/models/mini/lpips")
        >>> settings = Settings(steps=4, cutouts=1, least=1.0)  # the whole image at every step
        >>> image, distances = draw(vqgan, load_clip("data/models/mini/clip"), "a photo of a gear", 64, settings=settings)
        >>> image.shape, distances[-1] < distances[0]
        (torch.Size([3, 64, 64]), True)
    """
    s = settings
    if not prompt.strip() or size < vqgan.factor or size % vqgan.factor:
        raise FsadError(f"prompt {prompt!r} and size {size} found; expected words, and a multiple of {vqgan.factor} pixels")
    if s.steps < 1 or s.cutouts < 1 or not s.lr > 0 or not 0 < s.least <= 1:
        raise FsadError(f"{s} found; expected steps and cutouts of at least 1, lr above 0, least in (0, 1]")
    if start is not None and tuple(start.shape) != (3, size, size):
        raise FsadError(f"a start image {tuple(start.shape)} found; expected (3, {size}, {size})")
    book = vqgan.model.quantize.embedding.weight.detach()
    with torch.no_grad():
        if start is None:
            cells = size // vqgan.factor
            picked = torch.randint(vqgan.codes, (1, cells, cells), generator=generator(s.seed, "vqgan_clip"))
            z = book[picked.to(book.device)].permute(0, 3, 1, 2)
        else:
            z = vqgan.encode(start[None].to(vqgan.device))
        g = clip.encode_text([prompt])
    low, high = (edge.view(1, -1, 1, 1) for edge in (book.amin(0), book.amax(0)))
    z = z.detach().clone().requires_grad_()
    optimizer, distances = torch.optim.Adam([z], s.lr), []
    for step in range(s.steps):
        image = vqgan.decode(vqgan.quantize(z)[0])  # the nearest codes; the gradient passes straight to z
        image = image + (image.clamp(0, 1) - image).detach()
        views = cutouts(image, s.cutouts, clip.image_size, s.least, generator(s.seed, "cutouts", step))
        f = clip.encode_tokens(clip.embed_patches(views))[0]
        distance = spherical_distance(f, g).mean()
        (gradient,) = torch.autograd.grad(distance, z)
        z.grad = gradient  # the models' own weights get no gradient
        optimizer.step()
        with torch.no_grad():
            z.copy_(z.maximum(low).minimum(high))
        distances.append(float(distance.detach()))
        if progress:
            progress(step + 1, s.steps)
    with torch.no_grad():
        return vqgan.decode(vqgan.quantize(z)[0])[0].clamp(0, 1), distances

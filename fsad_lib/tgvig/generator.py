"""The variance-aware image generator (section 4.1.2, eq. 2 and 3): new normal images from one, varied as far as its latents vary.

An original is augmented N times; the mean and the variance of the N latents, cell by cell and channel by channel, are a normal
distribution from which new latents are drawn and decoded as they are, without a second look-up in the codebook.

What the paper leaves open, and what is done here:

- the augmentations: light, contrast, gamma, colour, and shifts by less than a latent cell. They keep every cell over the same
  part of the object, so that the mean of the latents is still a picture; flips and turns (``kind="flips"``, for the ablation) blur
  it. None of them draws a spot, an edge, a hole or a smear: nothing that a detector should call a defect becomes normal;
- the first of the N is the original itself;
- E(I) in eq. 2 is the row of code vectors, so mean and variance are taken over codes; ``quantized=False`` takes the encoder's output;
- "variance" divides by N - 1;
- several originals: each has a distribution of its own and gets ceil(M / K) images. A mean over different originals is a picture
  of none of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fsad_lib.errors import FsadError
from fsad_lib.foundation.diffusion import generator
from fsad_lib.foundation.images import check_images
from fsad_lib.foundation.vqgan import VQGAN

__all__ = ["Augmentation", "LatentDistribution", "augment", "images_each", "latent_distribution", "sample", "synthesize"]

KINDS = ("aligned", "flips")
VARIANCES = ("estimated", "unit", "none")
ROUNDING = 1e-12  # the variance of codes that agree but for rounding lies far below


@dataclass(frozen=True)
class Augmentation:
    """How far an image is changed; every number is the half width of a range around "unchanged".

    Attributes:
        brightness: added to all pixels. contrast: factor around the image's mean. colour: factor, each channel its own.
        gamma: exponent. shift: pixels, less than a latent cell; None: a quarter of a cell.
        kind: "aligned", or "flips": mirrored and turned by quarters besides.

    Example:
        >>> x, still = torch.rand(3, 16, 16), dict(brightness=0, contrast=0, colour=0, gamma=0, shift=0)
        >>> bool((augment(x, 3, factor=4, settings=Augmentation(**still)) == x).all())
        True
        >>> turned = augment(x, 3, factor=4, settings=Augmentation(**still, kind="flips"))
        >>> torch.equal(turned.flatten(2).sort().values, x.flatten(1).sort().values.expand(3, -1, -1))  # the same pixels elsewhere
        True
    """

    brightness: float = 0.03
    contrast: float = 0.08
    colour: float = 0.03
    gamma: float = 0.08
    shift: int | None = None
    kind: str = "aligned"


GENTLE = Augmentation()


@dataclass(frozen=True)
class LatentDistribution:
    """N(E_d, Sigma_d) for every latent cell d of one original.

    Attributes:
        mean, variance: (C, h, w). The variance is of each channel on its own, at least 0.

    Example:
        >>> d = LatentDistribution(torch.ones(2, 1, 2), torch.tensor([[[0.0, 4.0]]]).expand(2, 1, 2))
        >>> z = sample(d, 1000, 0)
        >>> z[..., 0].std().item(), round(z[..., 1].std().item())  # cells that never differed stay, the others vary as they did
        (0.0, 2)
    """

    mean: Tensor
    variance: Tensor


def augment(x: Tensor, n: int, factor: int, seed: int | str = 0, settings: Augmentation = GENTLE) -> Tensor:
    """I_1 .. I_N of one original, itself first; deterministic in (seed, i).

    Args:
        x: (3, H, W) in [0, 1]. n: N, at least 1. factor: pixels per latent cell. settings: how far an image is changed.

    Returns:
        (N, 3, H, W) in [0, 1]; what a shift uncovers is mirrored from inside.

    Example:
        >>> x = torch.rand(3, 16, 16)
        >>> parts = augment(x, 4, factor=4)
        >>> parts.shape, bool((parts[0] == x).all()), bool((parts[1] == x).all())
        (torch.Size([4, 3, 16, 16]), True, False)

    Raises:
        FsadError: another shape or range, n below 1, a negative range, a shift of a cell or more, an unknown kind.
    """
    s = settings
    if x.ndim != 3:
        raise FsadError(f"expected one float image (3, H, W) in [0, 1], found {x.dtype} {tuple(x.shape)}; read it with datasets.read_image.")
    x = check_images(x[None])[0]
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise FsadError(f"n is {n!r}; expected the number of augmented images, at least 1, the original among them")
    shift = max(factor // 4, min(1, factor - 1)) if s.shift is None else s.shift
    if not 0 <= shift < factor:
        raise FsadError(f"a shift of {shift} pixels found; expected less than a latent cell, {factor} pixels, or the cells no longer match")
    if min(s.brightness, s.contrast, s.colour, s.gamma) < 0 or max(s.contrast, s.colour, s.gamma) >= 1:
        raise FsadError(f"{s} found; expected ranges of at least 0, those of factors below 1")
    if s.kind not in KINDS or (s.kind == "flips" and x.shape[1] != x.shape[2]):
        raise FsadError(f"kind {s.kind!r} on an image {tuple(x.shape[1:])} found; expected one of {', '.join(KINDS)}; turning needs a square")
    out = [x]
    for i in range(1, n):
        draw = generator(seed, "augment", i)
        u = (2 * torch.rand(6, generator=draw) - 1).tolist()
        colour = 1 + s.colour * (2 * torch.rand(3, 1, 1, generator=draw) - 1).to(x)
        y = x.pow(1 + s.gamma * u[0])
        y = (y + s.contrast * u[1] * (y - y.mean()) + s.brightness * u[2]) * colour
        if shift:
            down, right = (round(shift * v) for v in u[3:5])
            padded = F.pad(y[None], (shift,) * 4, mode="reflect")[0]
            y = padded[:, shift - down : shift - down + x.shape[1], shift - right : shift - right + x.shape[2]]
        if s.kind == "flips":
            turn = int(torch.randint(8, (1,), generator=draw))
            y = torch.rot90(y, turn % 4, (1, 2))
            y = y.flip(2) if turn >= 4 else y
        out.append(y.clamp(0, 1))
    return torch.stack(out)


def latent_distribution(latents: Tensor, variance: str = "estimated") -> LatentDistribution:
    """E_i[E(I_i)] and Sigma_i(E(I_i)) of the augmented images' latents (eq. 3).

    Args:
        latents: (N, C, h, w), of ONE original.
        variance: "estimated"; "unit", the variance that the paper gives the plain VQGAN, here around the same mean; "none", the mean alone.

    Example:
        >>> d = latent_distribution(torch.tensor([[[[0.0, 1.0]]], [[[0.0, 3.0]]]]))
        >>> d.mean.tolist(), d.variance.tolist()
        ([[[0.0, 2.0]]], [[[0.0, 2.0]]])

    Raises:
        FsadError: another shape, an unknown choice, or a variance to be estimated from a single image.
    """
    if latents.ndim != 4 or not len(latents) or variance not in VARIANCES:
        raise FsadError(f"latents {tuple(latents.shape)}, variance {variance!r} found; expected (N, C, h, w), one of {', '.join(VARIANCES)}")
    mean = latents.mean(0)
    if variance == "estimated":
        if len(latents) < 2:
            raise FsadError("a variance cannot be estimated from one image; augment it at least once, or choose variance='unit' or 'none'")
        return LatentDistribution(mean, latents.var(0))
    return LatentDistribution(mean, torch.full_like(mean, 1.0 if variance == "unit" else 0.0))


def sample(distribution: LatentDistribution, m: int, *key: int | str) -> Tensor:
    """z_1 .. z_M (M, C, h, w) = E + sqrt(Sigma) * eps, differentiable in E and Sigma; image j draws from ``generator(*key, j)``.

    Where all codes agree, their variance is 0, or the square of the straight-through sum's rounding error; the gradient of its root is then
    taken as 0, not as infinite or as that rounding error made large.

    Args:
        distribution: of one original. m: M. key: what the noise depends on, besides j.

    Example:
        >>> sample(LatentDistribution(torch.zeros(2, 4, 4), torch.ones(2, 4, 4)), 3, 0).shape
        torch.Size([3, 2, 4, 4])
    """
    mean, variance = distribution.mean, distribution.variance
    eps = torch.stack([torch.randn(mean.shape, generator=generator(*key, "sample", j)) for j in range(m)]).to(mean)
    some = variance > ROUNDING
    safe = torch.where(some, variance, torch.ones_like(variance))
    return mean + torch.where(some, safe.sqrt(), torch.zeros_like(variance)) * eps


def images_each(m: int, originals: int) -> int:
    """ceil(M / K), how many images each of K originals gets; together at least M. FsadError unless both are at least 1.

    >>> images_each(20, 1), images_each(20, 3)
    (20, 7)
    """
    if m < 1 or originals < 1:
        raise FsadError(f"{m} images of {originals} originals found; expected at least one of each")
    return math.ceil(m / originals)


@torch.no_grad()
def synthesize(
    vqgan: VQGAN, x: Tensor, m: int, n: int = 16, variance: str = "estimated", seed: int | str = 0,
    augmentation: Augmentation = GENTLE, quantized: bool = True,
) -> Tensor:  # fmt: skip
    """I+_1 .. I+_M from a VQGAN as it is, without any update (eq. 3); the integrator is this within its loop.

    Args:
        x: (K, 3, H, W) originals in [0, 1]. m: M. n: N augmented images of each original.
        variance: see :func:`latent_distribution`. augmentation: see :func:`augment`. seed: of everything random.
        quantized: mean and variance over codes (eq. 2), else over the encoder's output.

    Returns:
        (K * ceil(M / K), 3, H, W) in [0, 1], the images of the first original first.

    Example:
        >>> from diffusers import VQModel
        >>> vqgan = VQGAN(VQModel(block_out_channels=(8,), norm_num_groups=4))
        >>> synthesize(vqgan, torch.rand(2, 3, 16, 16), m=5, n=3).shape
        torch.Size([6, 3, 16, 16])

    Raises:
        FsadError: images that are not as above, none, or values out of range; see :func:`augment` and :func:`latent_distribution`.
    """
    check_images(x, empty=False)
    out = []
    for k, original in enumerate(x):
        z = vqgan.encode(augment(original, n, vqgan.factor, f"{seed}/{k}", augmentation).to(vqgan.device))
        d = latent_distribution(vqgan.quantize(z)[0] if quantized else z, variance)
        out.append(vqgan.decode(sample(d, images_each(m, len(x)), seed, k)).clamp(0, 1))
    return torch.cat(out)

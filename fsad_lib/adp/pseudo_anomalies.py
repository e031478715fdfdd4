"""Pseudo-anomalies: normal images that the diffusion model damages (section 3.2), resized and cropped at random."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fsad_lib.errors import FsadError
from fsad_lib.foundation.diffusion import check_sentences, generator
from fsad_lib.foundation.images import check_images, resize

__all__ = ["deal", "pseudo_anomalies", "resize_and_crop"]


def deal(n: int, shots: int, prompts: int) -> tuple[Tensor, Tensor]:
    """Which shot each of n pseudo-anomalies edits, and towards which prompt: shot ``j % K``, prompt ``(j % K + j // K) % P``.

    Any K * P in a row are every pair once, and any P in a row within one round of the shots are every prompt once: few pseudo-anomalies
    of many shots still meet all prompts.

    Args:
        n: number of pseudo-anomalies. shots, prompts: K and P, each at least 1.

    Returns:
        two LongTensors (n,).

    Example:
        >>> [tuple(pair) for pair in torch.stack(deal(4, shots=2, prompts=2), 1).tolist()]
        [(0, 0), (1, 1), (0, 1), (1, 0)]
    """
    j = torch.arange(n)
    return j % shots, (j % shots + j // shots) % prompts


def resize_and_crop(
    x: Tensor, crop_scale: tuple[float, float], seed: int | str = 0, first_index: int = 0
) -> Tensor:
    """Random crop of each image in the image's own proportions, resized back to its size ("random resizing and cropping").

    Args:
        x: (n, 3, H, W) in [0, 1].
        crop_scale: least and greatest share of the image's area that is kept, in (0, 1]; (1, 1) leaves the images alone.
        seed, first_index: image j draws from ``generator(seed, "crop", first_index + j)``.

    Returns:
        (n, 3, H, W) in [0, 1]; proportions are kept.

    Raises:
        FsadError: images that are not as above, or shares that are not 0 < least <= greatest <= 1.

    Example:
        >>> resize_and_crop(torch.rand(2, 3, 16, 16), (0.25, 1.0), seed=1).shape
        torch.Size([2, 3, 16, 16])
    """
    low, high = crop_scale
    if not 0 < low <= high <= 1:
        raise FsadError(
            f"crop_scale is {tuple(crop_scale)}, expected two numbers with 0 < least <= greatest <= 1."
        )
    height, width = check_images(x).shape[-2:]
    out = []
    for j, image in enumerate(x):
        u = torch.rand(3, generator=generator(seed, "crop", first_index + j)).tolist()
        side = (low + (high - low) * u[0]) ** 0.5
        h, w = max(1, round(side * height)), max(1, round(side * width))
        top, left = round(u[1] * (height - h)), round(u[2] * (width - w))
        crop = image[None, :, top : top + h, left : left + w]
        out.append(resize(crop, (height, width)))
    return torch.cat(out) if out else x


def pseudo_anomalies(
    diffusion: Any,
    x: Tensor,
    prompts: Sequence[str],
    n: int,
    *,
    strength: float,
    guidance_scale: float,
    num_inference_steps: int,
    crop_scale: tuple[float, float] = (0.5, 1.0),
    seed: int | str = 0,
    concepts: Mapping[str, Tensor] | None = None,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Damage normal images by SDEdit, then resize and crop them at random.

    Shots and prompts are dealt by :func:`deal`. With n below K only the first n shots are edited, as in ``mini`` (n = 8) with 16 shots.

    Args:
        diffusion: :class:`fsad_lib.foundation.diffusion.Diffusion`.
        x: (K, 3, H, W) normal images in [0, 1].
        prompts: the profile's ``prompts_pseudo``, or ``prompts_tuning`` with ``concepts={"<c_a>": c_a}``.
        n: number of pseudo-anomalies (L of eq. 4, L' of eq. 5).
        strength, guidance_scale, num_inference_steps: see ``Diffusion.sdedit``.
        crop_scale: see :func:`resize_and_crop`.
        seed: image j depends on (seed, j) alone, not on n or batch_size.
        concepts: placeholder -> vector (token_dim,), for the learned words in the prompts.
        batch_size: images edited at once. progress: called with (images done, n) after each batch.

    Returns:
        (n, 3, H, W) in [0, 1], on the device of x.

    Raises:
        FsadError: no shots, no prompts, n below 1, or settings out of range.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> from fsad_lib.foundation.diffusion import load_diffusion
        >>> diffusion = load_diffusion("data/models/mini/diffusion", load_clip("data/models/mini/clip"))
        >>> x, how = torch.rand(2, 3, 128, 128), dict(strength=0.5, guidance_scale=4.0, num_inference_steps=2)
        >>> three, one = (pseudo_anomalies(diffusion, x, ["a photo with damage"], n, **how) for n in (3, 1))
        >>> three.shape, torch.allclose(three[:1], one, atol=1e-3)  # the first is the same, however many follow
        (torch.Size([3, 3, 128, 128]), True)
    """
    check_images(x)
    check_sentences(prompts)
    if len(x) == 0 or not prompts or n < 1:
        raise FsadError(f"found {len(x)} shots, {len(prompts)} prompts and n = {n}; each must be at least 1.")
    if not 0 < crop_scale[0] <= crop_scale[1] <= 1:  # before the diffusion model spends minutes on images that are then refused
        raise FsadError(
            f"crop_scale is {tuple(crop_scale)}, expected two numbers with 0 < least <= greatest <= 1."
        )
    size = x.shape[-2:]
    shot, prompt = deal(n, len(x), len(prompts))
    edited = diffusion.sdedit(
        resize(x, diffusion.image_size)[shot.to(x.device)],
        [prompts[i] for i in prompt.tolist()],
        strength=strength,
        guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps,
        seed=seed,
        concepts=concepts,
        batch_size=batch_size,
        progress=progress,
    ).to(x.device)
    return resize_and_crop(resize(edited, size), crop_scale, seed)

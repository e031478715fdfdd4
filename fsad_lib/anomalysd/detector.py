"""The detector: repaint every masked region of an image as normal, and measure what changed.

For every image: its passes (grid cells of each scale, and the prototype-guided mask) -> normal twins x_hat -> differences D(x, x_hat) ->
S^(k), S_ms, S_pg, S_map -> image score. The passes of an image are repainted together, ``batch_size`` at a time, never mixed with another
image's: matrix products round differently in different company, and a score must not depend on which images it is computed with.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fsad_lib.anomalysd.masks import Pass, grid_passes, prototype_mask
from fsad_lib.anomalysd.score import EPSILON, fuse, harmonic_mean, image_score, scale_map
from fsad_lib.errors import FsadError
from fsad_lib.foundation.diffusion import generator
from fsad_lib.foundation.images import check_images, resize
from fsad_lib.foundation.inpainting import Inpainting
from fsad_lib.foundation.perceptual import Lpips
from fsad_lib.patch_memory import PatchMemory

__all__ = ["AnomalySD", "Category", "Cost", "Scores", "Settings", "content_hash"]


@dataclass(frozen=True)
class Settings:
    """What inference needs and the sources at hand do not tell; see the profiles for the reasons of the values.

    strength lambda in [0, 1]: T~ = lambda * T. scales K: cells a side. alpha in [0, 1]: weight of S_pg. prototype_share,
    prototype_margin: :func:`fsad_lib.anomalysd.masks.prototype_mask`. packed: cells that do not touch share a pass. merged: the repainted
    latents of a scale's passes are put together and decoded once (see :meth:`AnomalySD.twins`). image_share: 0: the image score is the
    map's maximum, else the mean over this share. sigma: Gaussian smoothing of S_map, in pixels at 256 a side.
    perceptual_size: images are enlarged to this side for D; None: not at all. batch_size: passes repainted at once.

    Example:
        >>> Settings(strength=0.6, scales=(2, 4), alpha=0.5).scales
        (2, 4)
        >>> Settings(strength=6, scales=(2, 2), alpha=0.5)
        Traceback (most recent call last):
        fsad_lib.errors.FsadError: AnomalySD's settings: found strength = 6 (in [0, 1]); scales = (2, 2) (different whole numbers of cells, ...
    """

    strength: float
    scales: tuple[int, ...]
    alpha: float
    guidance_scale: float = 1.0
    num_inference_steps: int = 20
    prototype_share: float = 0.1
    prototype_margin: float = 0.02
    packed: bool = False
    merged: bool = False
    image_share: float = 0.0
    sigma: float = 4.0
    epsilon: float = EPSILON
    perceptual_size: int | None = None
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [
            f"{name} = {getattr(self, name)!r} ({expected})"
            for name, good, expected in (
                ("strength", 0 <= self.strength <= 1, "in [0, 1]"), ("alpha", 0 <= self.alpha <= 1, "in [0, 1]"),
                ("scales", _are_scales(self.scales), "different whole numbers of cells, each at least 1"),
                ("num_inference_steps", self.num_inference_steps >= 1, "at least 1"),
                ("prototype_share", 0 < self.prototype_share <= 1, "in (0, 1]"),
                ("prototype_margin", 0 <= self.prototype_margin < 0.5, "in [0, 0.5)"),
                ("image_share", 0 <= self.image_share <= 1, "in [0, 1]"), ("sigma", self.sigma >= 0, "at least 0"),
                ("batch_size", self.batch_size >= 1, "at least 1"),
                ("epsilon", self.epsilon > 0, "above 0"), ("guidance_scale", self.guidance_scale >= 0, "at least 0"),
                ("perceptual_size", self.perceptual_size is None or self.perceptual_size >= 31, "None or at least 31"),
            )
            if not good
        ]  # fmt: skip
        if wrong:
            raise FsadError(f"AnomalySD's settings: found {'; '.join(wrong)}. Correct them, in the profile's section anomalysd.")


def _are_scales(scales: object) -> bool:
    whole = isinstance(scales, tuple | list) and all(isinstance(k, int) and not isinstance(k, bool) and k >= 1 for k in scales)
    return whole and 0 < len(set(scales)) == len(scales)


class Category(NamedTuple):
    """What the detector knows of one category: its prompt (see ``prompts.inference_prompt``) and the memory of its normal patches."""

    prompt: str
    memory: PatchMemory | None = None


class Cost(NamedTuple):
    """Work for one image: repainted regions, U-Net evaluations (guidance counts twice), VAE encodings and decodings."""

    passes: int
    unet: int
    encodings: int
    decodings: int


@dataclass(frozen=True)
class Scores:
    """Scores of a batch, higher = more anomalous; all maps are (B, H, W) at the model's resolution.

    image (B,), map S_map, scales k -> S^(k), s_ms, s_pg (None where nothing is remembered), category: the name that
    each image was treated as. With controls: ``controls["roundtrip"]`` = D(x, VAE(x)), no inpainting at all,
    ``controls["guided_roundtrip"]`` = S_map with VAE(x) in place of every twin, inside its mask: all that the masks do by themselves, and
    ``controls["against_roundtrip"]`` = S_map with D(VAE(x), x_hat) in place of D(x, x_hat): both images have gone through the decoder.
    """

    image: Tensor
    map: Tensor
    scales: dict[int, Tensor]
    s_ms: Tensor
    s_pg: Tensor | None
    category: list[str]
    controls: dict[str, Tensor] = field(default_factory=dict)


def content_hash(x: Tensor) -> str:
    """Name of an image (3, H, W) in [0, 1] by its content, whatever its file is called: the grey levels of 4 x 4 cells at 8 bits.

    Processors resize an image with errors of 1e-7. At 8 bits that moves some pixel of nearly every image to the next level; the mean of a
    cell almost never.

    >>> content_hash(torch.zeros(3, 4, 4)) == content_hash(torch.full((3, 4, 4), 1e-4))
    True
    >>> content_hash(torch.zeros(3, 4, 4)) == content_hash(torch.eye(4).expand(3, 4, 4))
    False
    """
    cells = F.adaptive_avg_pool2d(x.detach().cpu().double().mean(0, keepdim=True), 4)
    return hashlib.sha256((cells * 255).round().clamp(0, 255).to(torch.uint8).numpy().tobytes()).hexdigest()


class AnomalySD:
    """One model for all categories; ``notebooks/41_evaluate_anomalysd.ipynb`` shows it at work.

    Args:
        model: the inpainting model, fine-tuned or not.
        lpips: the perceptual distance D.
        categories: name -> :class:`Category`. A single entry (say "object", with the memory of all shots) is the protocol "category
            unknown, shared prompt".
        settings: :class:`Settings`.

    Raises:
        FsadError: no category; a category without a memory where alpha is above 0 or another category has one; scales finer than the
            latents; a strength of less than one step.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> from fsad_lib.foundation.inpainting import load_inpainting
        >>> from fsad_lib.foundation.perceptual import load_lpips
        >>> model = load_inpainting("data/models/mini/inpainting", load_clip("data/models/mini/clip"), image_size=64)
        >>> settings = Settings(strength=0.5, scales=(1, 2), alpha=0.0, num_inference_steps=2)
        >>> detector = AnomalySD(model, load_lpips("data/models/mini/lpips"), {"gear": Category("A perfect gear.")}, settings)
        >>> x = torch.rand(2, 3, 64, 64)
        >>> both, first = detector(x, "gear"), detector(x[:1], "gear")
        >>> both.map.shape, torch.equal(both.image[:1], first.image)  # the other image makes no difference
        (torch.Size([2, 64, 64]), True)
    """

    def __init__(self, model: Inpainting, lpips: Lpips, categories: Mapping[str, Category], settings: Settings) -> None:
        if not categories:
            raise FsadError("no categories; give at least one, name -> Category(prompt, memory).")
        lacking = [name for name, c in categories.items() if c.memory is None]
        if lacking and (settings.alpha > 0 or len(lacking) < len(categories)):
            raise FsadError(
                f"no memory of normal patches for {', '.join(lacking)}, alpha is {settings.alpha}; the prototype-guided mask needs one for "
                "every category. Give memories, or none at all and alpha = 0."
            )
        if (most := model.image_size // model.factor) < max(settings.scales):
            raise FsadError(
                f"scales {settings.scales} found; the model has {most} latent cells a side, and a smaller region would not be repainted. "
                f"Expected numbers up to {most}."
            )
        model.steps(settings.strength, settings.num_inference_steps)  # refuses a strength of less than one step
        self.model, self.lpips, self.categories, self.settings = model, lpips, dict(categories), settings
        self.grid = grid_passes(settings.scales, model.image_size, settings.packed)
        # one prompt at a time: its states do not depend, to the last bit, on the others
        with torch.no_grad():
            self._text = {name: model.encode_prompt([c.prompt]) for name, c in self.categories.items()}

    # ---------------------------------------------------------------- parts, for a reader who wants to look inside
    @property
    def cost(self) -> Cost:
        """The work for one image."""
        passes = len(self.grid) + any(c.memory is not None for c in self.categories.values())
        steps = self.model.steps(self.settings.strength, self.settings.num_inference_steps)
        decodings = len(self.settings.scales) + passes - len(self.grid) if self.settings.merged else passes
        return Cost(passes, passes * steps * (2 if self.settings.guidance_scale > 1 else 1), passes + 1, decodings)

    def prototype_distance(self, x: Tensor, category: str) -> Tensor | None:
        """Cosine distance (B, H, W), in [0, 2], of every place of images (B, 3, H, W) in [0, 1] to the nearest normal patch of the category; None
        without a memory."""
        self._names(x, category)  # an unknown one is named
        x, memory = self._ready(x), self.categories[category].memory
        if memory is None:
            return None
        maps = torch.cat([memory.distances(memory.patches(image[None])) for image in x])
        return memory.upsample(maps, self.model.image_size)

    def choose_category(self, x: Tensor) -> list[str]:
        """For images (B, 3, H, W) of unknown category: the one whose normal patches lie nearest, on average over the image.

        Raises:
            FsadError: several categories and no memories.
        """
        names, x = list(self.categories), self._ready(x)
        if len(names) == 1:
            return names * len(x)
        first = self.categories[names[0]].memory
        if first is None:
            raise FsadError("an unknown category is chosen by its normal patches, and there is no memory of them. Add shots.")
        chosen = []
        for image in x:
            patches = first.patches(image[None])  # every memory shares the backbone
            distance = [self.categories[name].memory.distances(patches).mean() for name in names]
            chosen.append(names[int(torch.stack(distance).argmin())])
        return chosen

    def passes(self, x: Tensor, category: str) -> list[Pass]:
        """The passes of one image (1, 3, H, W) in [0, 1]: the grids', then, with a memory, the prototype-guided one.

        Raises:
            FsadError: more or fewer than one image, or an unknown category.
        """
        if len(x) != 1:
            raise FsadError(f"{len(x)} images found; passes are made for one, (1, 3, H, W).")
        distance = self.prototype_distance(x, category)
        if distance is None:
            return list(self.grid)
        m = prototype_mask(distance, self.settings.prototype_share, self.settings.prototype_margin)[0]
        return [*self.grid, Pass(m.cpu(), 0, "prototype")]

    def noise(self, image: str, p: Pass) -> Tensor:
        """The start noise (1, 4, h, w) of one pass: from (seed, image content, scale, cell) and nothing else; see :func:`content_hash`."""
        side = self.model.image_size // self.model.factor
        shape = (1, self.model.vae.config.latent_channels, side, side)
        return torch.randn(shape, generator=generator(self.settings.seed, "inpaint", image, p.k, p.cells))

    @torch.no_grad()
    def repaint(self, x: Tensor, passes: Sequence[Pass], category: str) -> Tensor:
        """The normal twins x_hat (P, 3, H, W) of one image x (1, 3, H, W), all in [0, 1]; outside its mask a twin is the image itself.

        Raises:
            FsadError: more or fewer than one image, no pass, or an unknown category.
        """
        return self._inpaint(*self._encoded(x), passes, category)

    @torch.no_grad()
    def twins(self, x: Tensor, passes: Sequence[Pass], category: str) -> tuple[list[Pass], Tensor]:
        """What D is taken of: passes with their twins x_hat (P, 3, H, W).

        As in :meth:`repaint`, or, where the settings say ``merged``, one twin a scale: every latent from the pass that masked it, then
        decoded once. The decoder is most of the work of a small model; what it costs in accuracy is that D, and the decoder, see the
        neighbouring cells repainted too.
        """
        if not self.settings.merged:
            return list(passes), self.repaint(x, passes, category)
        x, z = self._encoded(x)
        z_0 = self._inpaint(x, z, passes, category, decode=False)
        merged, latents = [], []
        for k in dict.fromkeys(p.k for p in passes):
            of = [n for n, p in enumerate(passes) if p.k == k]
            m = torch.stack([passes[n].m for n in of])
            m_z = F.interpolate(m[:, None].to(z), scale_factor=1 / self.model.factor)
            latents.append(torch.where(m_z.amax(0) > 0, (m_z * z_0[of]).sum(0), z_0[of[0]]))
            merged.append(Pass(m.any(0), k, ";".join(passes[n].cells for n in of)))
        x_hat = self.model.decode(torch.stack(latents), self.settings.batch_size)
        m = torch.stack([p.m for p in merged])[:, None].to(x_hat.device)
        return merged, torch.where(m, x_hat, x)

    def _encoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image (1, 3, H, W) at the model's size and its latent, encoded once for all passes."""
        if len(x) != 1:
            raise FsadError(f"{len(x)} images found; one is repainted at a time, (1, 3, H, W).")
        x = self._ready(x).to(self.model.device)
        return x, self.model.posterior(x)[0]

    def _ready(self, x: Tensor) -> Tensor:
        """Images as float32 at the model's size, and nothing else."""
        return resize(check_images(x).float(), self.model.image_size)

    def _inpaint(self, x: Tensor, z: Tensor, passes: Sequence[Pass], category: str, decode: bool = True) -> Tensor:
        s, n, name = self.settings, len(passes), content_hash(x[0])
        self._names(x, category)  # an unknown one is named
        if not n:
            raise FsadError("no passes found; give those of passes(x, category), or some of them.")
        return self.model.inpaint(
            x.expand(n, -1, -1, -1), torch.stack([p.m for p in passes])[:, None], self._text[category], strength=s.strength,
            noise=torch.cat([self.noise(name, p) for p in passes]), z=z.expand(n, -1, -1, -1), guidance_scale=s.guidance_scale,
            num_inference_steps=s.num_inference_steps, decode=decode, batch_size=s.batch_size,
        )  # fmt: skip

    @torch.no_grad()
    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """D(x, y) in AlexNet's feature space, (P, H, W), at least 0, of one image x (1, 3, H, W) and its twins y (P, 3, H, W), all in [0, 1]."""
        side = self.settings.perceptual_size or x.shape[-1]
        f = self.lpips.features(resize(x, side))  # once for all twins
        parts = y.split(self.settings.batch_size)
        return torch.cat([self.lpips.distance_map(f, resize(part, side), tuple(x.shape[-2:])) for part in parts])

    # ---------------------------------------------------------------- scores
    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        category: str | Sequence[str] | None = None,
        *,
        controls: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Scores:
        """Scores of images.

        Args:
            x: (B, 3, H, W) in [0, 1]; resized to the model's size. The scores of an image do not depend on the others, to the last bit.
            category: protocol "category given": the name, one for all or one for each; None: protocol "category unknown", chosen by
                :meth:`choose_category`.
            controls: also compute the autoencoder controls (see :class:`Scores`); three times as many distances.
            progress: called with (images done, images in all).

        Raises:
            FsadError: images that are not as above, none, or categories that are unknown or too few.
        """
        x = self._ready(check_images(x, empty=False))
        names, found = self._names(x, category), []
        for i, name in enumerate(names):
            found.append(self._one(x[i : i + 1], name, controls))
            if progress:
                progress(i + 1, len(x))
        stack = {key: torch.cat([one[key] for one in found]) if found[0][key] is not None else None for key in found[0]}
        scales = {k: stack.pop(f"S{k}") for k in self.settings.scales}
        s_ms, s_pg, s_map = (stack.pop(key) for key in ("s_ms", "s_pg", "map"))
        return Scores(image_score(s_map, self.settings.image_share), s_map, scales, s_ms, s_pg, names, stack)

    def _one(self, x: Tensor, category: str, controls: bool) -> dict[str, Tensor | None]:
        """All maps (1, H, W) of one image."""
        passes, x_hat = self.twins(x, self.passes(x, category), category)
        x = resize(x, self.model.image_size).to(x_hat)
        maps = self.maps(x, x_hat, passes)
        if controls:
            decoded = self.model.decode(self.model.posterior(x)[0])
            m = torch.stack([p.m for p in passes])[:, None].to(x.device)
            # the twin's surroundings have gone through the decoder too
            maps["against_roundtrip"] = self.maps(decoded, torch.where(m, x_hat, decoded), passes)["map"]
            maps["guided_roundtrip"] = self.maps(x, torch.where(m, decoded, x), passes)["map"]
            maps["roundtrip"] = self.smooth(self.difference(x, decoded))
        return maps

    @torch.no_grad()
    def maps(self, x: Tensor, x_hat: Tensor, passes: Sequence[Pass]) -> dict[str, Tensor | None]:
        """From twins to scores: "S<k>" of every scale, "s_ms", "s_pg" (None without its pass) and "map", each (1, H, W).

        Args:
            x: (1, 3, H, W) at the model's size; x_hat: (P, 3, H, W), its :meth:`twins`; passes: P, those that :meth:`twins` returned
                with them.

        Raises:
            FsadError: twins and passes of different number.
        """
        if len(x_hat) != len(passes):
            raise FsadError(f"{len(x_hat)} twins and {len(passes)} passes found; give the passes that twins(x, passes, category) returns.")
        s, d = self.settings, self.difference(x, x_hat)
        m = torch.stack([p.m for p in passes]).to(d.device)
        of = {k: [n for n, p in enumerate(passes) if p.k == k] for k in (*s.scales, 0)}
        # S^(k): every pixel from the pass that masked it
        scales = {k: scale_map(d[of[k]], m[of[k]])[None] for k in s.scales}
        s_ms = harmonic_mean(scales, s.epsilon)
        # S_pg = M^(p) * D(x, x_hat^(p))
        s_pg = torch.where(m[of[0]], d[of[0]], 0) if of[0] else None
        s_map = self.smooth(fuse(s_ms, s_pg, s.alpha))
        return {**{f"S{k}": v for k, v in scales.items()}, "s_ms": s_ms, "s_pg": s_pg, "map": s_map}

    def smooth(self, maps: Tensor) -> Tensor:
        """Maps (B, H, W) under the Gaussian that ``sigma`` asks for; S_map has gone through it, its parts in :class:`Scores` have not."""
        from torchvision.transforms.functional import gaussian_blur

        sigma = self.settings.sigma * maps.shape[-1] / 256
        radius = min(round(3 * sigma), maps.shape[-1] - 1)
        return gaussian_blur(maps[:, None], [2 * radius + 1] * 2, [sigma, sigma])[:, 0] if radius else maps

    def _names(self, x: Tensor, category: str | Sequence[str] | None) -> list[str]:
        if category is None:
            return self.choose_category(x)
        names = [category] * len(x) if isinstance(category, str) else list(category)
        unknown = sorted(set(names) - set(self.categories))
        if unknown or len(names) != len(x):
            raise FsadError(
                f"found {len(x)} images and {len(names)} categories{', unknown: ' + ', '.join(unknown) if unknown else ''}; expected one "
                f"name for each image, of: {', '.join(self.categories)}; or None where the category is not known."
            )
        return names

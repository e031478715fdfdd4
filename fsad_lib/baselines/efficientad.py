"""EfficientAD (Batzner et al., 2023) over anomalib's model: a student and an autoencoder learn a teacher's features of normal images.

Two things come from outside and are never fetched: the teacher (`load_teacher`), and images of anything else, on which the
student's answers are kept small (ImageNet in the paper). And one thing differs from anomalib on purpose: the maps' quantiles, which
put student and autoencoder on one scale, are fitted on normal images that the caller gives or on augmented training images. anomalib's
default takes good images of the test set, a leak.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from anomalib.models.image.efficient_ad.torch_model import (
    EfficientAdModel,
    EfficientAdModelSize,
    MediumPatchDescriptionNetwork,
    SmallPatchDescriptionNetwork,
    reduce_tensor_elems,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fsad_lib.baselines._common import (
    Progress,
    batches,
    check_training,
    fitted,
    infer,
    restore,
    seeded,
    train,
    trained_state,
)
from fsad_lib.errors import FsadError
from fsad_lib.foundation.images import resize

LEAST_SIDE = 256  # the autoencoder: five convolutions of stride 2, then an unpadded one of 8 x 8


def load_teacher(path: str | Path) -> nn.Module:
    """A teacher from its weights: anomalib's ``pretrained_teacher_small.pth`` or ``..._medium.pth``, or one of the same layers with
    fewer channels in the last; its size is read from them.

    Raises:
        FsadError: no such file, or other weights.

    Example:
        >>> teacher = load_teacher("data/models/mini/efficientad/teacher.safetensors")
        >>> teacher(torch.rand(1, 3, 256, 256)).shape, any(p.requires_grad for p in teacher.parameters())
        (torch.Size([1, 64, 56, 56]), False)
    """
    path = Path(path)
    if not path.is_file():
        raise FsadError(
            f"no EfficientAD teacher at {path}. Get efficientad_pretrained_weights.zip from anomalib's releases on GitHub and put "
            "pretrained_teacher_small.pth there; nothing is downloaded."
        )
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        network = MediumPatchDescriptionNetwork if "conv6.weight" in state else SmallPatchDescriptionNetwork
        teacher = network(len(state["conv6.weight" if "conv6.weight" in state else "conv4.weight"]))
        teacher.load_state_dict({name: value.float() for name, value in state.items()}, strict=True)
    except (RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError, OSError, KeyError, AttributeError, TypeError) as error:
        text = " ".join(str(error).split())[:300]
        raise FsadError(f"{path} does not hold an EfficientAD teacher ({type(error).__name__}: {text}).") from error
    return teacher.eval().requires_grad_(False)


class EfficientAD:
    """Anomalous is where the student, trained on normal images, differs from the teacher or from the autoencoder.

    Args:
        teacher: of :func:`load_teacher`; the student has its layers, with twice as many channels in the last.
        penalty: (P, 3, H, W) images of other things in [0, 1], one is drawn in each step; or a function that reads them when `fit` begins.
        image_size: pixels, at least 256.
        lr, weight_decay: of Adam; the rate falls to a tenth for the last 5 % of the steps. One image a step, as in the paper.

    Raises:
        FsadError: values out of range; `fit`: penalty images of another form.

    Example:
        >>> teacher = load_teacher("data/models/mini/efficientad/teacher.safetensors")
        >>> detector = EfficientAD(teacher, penalty=lambda: torch.rand(4, 3, 256, 256))  # called when fit begins
        >>> detector(torch.rand(1, 3, 256, 256))
        Traceback (most recent call last):
        fsad_lib.errors.FsadError: this detector has seen no normal image yet; call fit first
    """

    name = "efficientad"

    def __init__(self, teacher: nn.Module, penalty: Tensor | Callable[[], Tensor], image_size: int = 256, lr: float = 1e-4, weight_decay: float = 1e-5, device: str = "cpu") -> None:
        if image_size < LEAST_SIDE or not lr > 0 or weight_decay < 0:
            raise FsadError(f"image_size {image_size}, lr {lr}, weight_decay {weight_decay} found; expected at least {LEAST_SIDE}, above 0, at least 0")
        self.teacher, self.penalty, self.image_size = teacher, penalty, image_size
        self.lr, self.weight_decay, self.device = lr, weight_decay, torch.device(device)
        self.model: EfficientAdModel | None = None

    def _prepare(self, x: Tensor) -> Tensor:
        return resize(x.to(self.device, torch.float32), self.image_size)  # the networks normalise by themselves

    def fit(
        self, x: Tensor, steps: int, seed: int = 0, held_out: Tensor | None = None, progress: Progress | None = None,
        checkpoint: str | Path | None = None,
    ) -> list[float]:  # fmt: skip
        """Train student and autoencoder from scratch on normal images x (N, 3, H, W) in [0, 1].

        Args:
            held_out: normal images (never test images) for the maps' quantiles; None: x under EfficientAD's own augmentation
                (brightness, contrast or saturation times 0.8 to 1.2), at least 8 images.
            checkpoint: file of the unfinished state, from which a later call with the same arguments goes on.

        Returns:
            the loss of each step.
        """
        check_training(x, steps)
        penalty = self.penalty() if callable(self.penalty) else self.penalty
        check_training(penalty)
        with seeded(seed):
            model = self._network()
            self._standardise(model, x)
            trained = [*model.student.parameters(), *model.ae.parameters()]
            optimizer = torch.optim.Adam(trained, self.lr, weight_decay=self.weight_decay)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(1, int(0.95 * steps)), gamma=0.1)
            model.train()
            model.teacher.eval()

            def step(rows: Tensor) -> float:
                row, other = rows.split(1)
                loss = sum(model(self._prepare(x[row]), self._prepare(penalty[other])))  # student, autoencoder, student against autoencoder
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                return float(loss.detach())

            rows = map(torch.cat, zip(batches(len(x), 1, steps, seed), batches(len(penalty), 1, steps, seed + 1)))
            losses = train(
                model, optimizer, step, rows, [x, penalty], frozen="teacher.", derived=("mean_std.",), schedule=schedule, checkpoint=checkpoint,
                progress=progress,
            )  # fmt: skip
            self._calibrate(model, x, held_out)
        self.model = model
        return losses

    def _network(self) -> EfficientAdModel:
        medium = isinstance(self.teacher, MediumPatchDescriptionNetwork)
        channels = (self.teacher.conv6 if medium else self.teacher.conv4).out_channels
        model = EfficientAdModel(channels, EfficientAdModelSize.M if medium else EfficientAdModelSize.S)
        model.teacher.load_state_dict(self.teacher.state_dict())
        model.teacher.requires_grad_(False)
        return model.to(self.device, memory_format=torch.channels_last)  # a tenth faster on a CPU, the same numbers

    def state(self) -> dict[str, Tensor]:
        """What was trained, for :meth:`load`: student, autoencoder, the teacher's means and deviations, the maps' quantiles."""
        return trained_state(self.model, "teacher.")

    def load(self, state: dict[str, Tensor]) -> EfficientAD:
        """A trained detector from :meth:`state`, with the teacher that it was trained with."""
        self.model = restore(self._network(), state, "teacher.")
        return self

    @torch.no_grad()
    def _standardise(self, model: EfficientAdModel, x: Tensor) -> None:
        """Mean and standard deviation of each teacher channel over the training images."""

        def mean(of: Callable[[Tensor], Tensor]) -> Tensor:  # in two passes, since all images' features would fill the memory
            total, count = 0, 0
            for part in x.split(4):
                f = of(model.teacher(self._prepare(part)).double())
                total, count = total + f.sum((0, 2, 3), keepdim=True), count + f[:, 0].numel()
            return total / count

        centre = mean(lambda f: f)
        deviation = mean(lambda f: (f - centre).square()).sqrt()
        model.mean_std.update({"mean": centre.float(), "std": deviation.float().clamp_min(1e-6)})
        model.mean_std.requires_grad_(False)

    @torch.no_grad()
    def _calibrate(self, model: EfficientAdModel, x: Tensor, held_out: Tensor | None) -> None:
        """The 90 % and 99.5 % quantiles of both maps over normal images."""
        model.eval()
        if held_out is None:
            times = max(1, -(-8 // len(x)))
            images = [model.choose_random_aug_image(self._prepare(part)) for part in x.split(1) for _ in range(times)]
        else:
            check_training(held_out)
            images = [self._prepare(part) for part in held_out.split(1)]
        for name, maps in zip(("st", "ae"), zip(*(model.get_maps(image, normalize=False) for image in images))):
            flat = reduce_tensor_elems(torch.cat(maps))
            model.quantiles.update({f"qa_{name}": torch.quantile(flat, 0.9), f"qb_{name}": torch.quantile(flat, 0.995)})
        model.quantiles.requires_grad_(False)

    def __call__(self, x: Tensor, batch_size: int = 4) -> tuple[Tensor, Tensor]:
        """Scores (B,) and maps (B, size, size) of images (B, 3, H, W) in [0, 1]; higher = more anomalous."""
        return infer(fitted(self.model), self._prepare, x, batch_size)

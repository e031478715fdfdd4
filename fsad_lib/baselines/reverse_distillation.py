"""Reverse Distillation (Deng and Li, CVPR 2022) over anomalib's model: a decoder learns a frozen encoder's features of normal images."""

from __future__ import annotations

from pathlib import Path

import torch
from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss
from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel
from torch import Tensor

from fsad_lib.baselines._common import (
    Progress,
    batches,
    check_training,
    fitted,
    infer,
    restore,
    seeded,
    stages_of,
    train,
    trained_state,
    use_weights,
)
from fsad_lib.errors import FsadError
from fsad_lib.foundation.backbones import Backbone

NETWORKS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2")


class ReverseDistillation:
    """Where the decoder, trained on normal images, does not restore the encoder's features, the image is anomalous.

    Args:
        backbone: weights and image size, one of `NETWORKS`: anomalib builds bottleneck and decoder as mirrors of a network that
            it knows by NAME, so another cannot be used. The image size has to be a multiple of 32.
        lr: of Adam. batch_size: images a step. Both as anomalib's and the paper's; Adam's betas, 0.5 and 0.99, are anomalib's.

    Raises:
        FsadError: another network, an image size that does not fit, or values out of range.

    Example:
        >>> from fsad_lib.foundation.backbones import load_trunk
        >>> trunk = load_trunk("resnet18", "data/models/mini/backbones/resnet18.safetensors", image_size=64)
        >>> detector, x = ReverseDistillation(trunk, batch_size=2), torch.rand(2, 3, 64, 64)
        >>> losses = detector.fit(x, steps=3)
        >>> losses[-1] < losses[0]
        True
        >>> scores, maps = detector(x)
        >>> scores.shape, maps.shape
        (torch.Size([2]), torch.Size([2, 64, 64]))
    """

    name = "reverse_distillation"

    def __init__(self, backbone: Backbone, lr: float = 0.005, batch_size: int = 16) -> None:
        if backbone.name not in NETWORKS:
            raise FsadError(f"Reverse Distillation needs one of {', '.join(NETWORKS)}, found {backbone.name}: its decoder mirrors the network.")
        if backbone.image_size % 32 or not lr > 0 or batch_size < 1:
            raise FsadError(f"image size {backbone.image_size}, lr {lr}, batch_size {batch_size} found; expected a multiple of 32, above 0, at least 1")
        self.backbone, self.lr, self.batch_size = backbone, lr, batch_size
        self.layers = stages_of(backbone, (4, 8, 16))
        self.model: ReverseDistillationModel | None = None

    def fit(
        self, x: Tensor, steps: int, seed: int = 0, progress: Progress | None = None, checkpoint: str | Path | None = None
    ) -> list[float]:
        """Train bottleneck and decoder from scratch on normal images x (N, 3, H, W) in [0, 1]; returns the loss of each step.

        A batch repeats images where there are fewer of them; its size, and so the batch norms' statistics, are the same in every arm.
        A later call with the same arguments goes on from the unfinished state in the file `checkpoint`.
        """
        check_training(x, steps)
        with seeded(seed):
            model = self._network()
            trained = [*model.decoder.parameters(), *model.bottleneck.parameters()]
            optimizer, criterion = torch.optim.Adam(trained, self.lr, betas=(0.5, 0.99)), ReverseDistillationLoss()
            model.train()

            def step(rows: Tensor) -> float:
                loss = criterion(*model(self.backbone.preprocess(x[rows]).contiguous()))  # sum over layers of 1 - cos(encoder, decoder)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                return float(loss.detach())

            rows = batches(len(x), self.batch_size, steps, seed)
            losses = train(model, optimizer, step, rows, [x], frozen="encoder.", checkpoint=checkpoint, progress=progress)
        self.model = model
        return losses

    def _network(self) -> ReverseDistillationModel:
        side = self.backbone.image_size
        model = ReverseDistillationModel(
            self.backbone.name, (side, side), self.layers, AnomalyMapGenerationMode.ADD, pre_trained=False
        ).to(self.backbone.device)
        use_weights(model.encoder, self.backbone)
        return model

    def state(self) -> dict[str, Tensor]:
        """What was trained, for :meth:`load`: bottleneck and decoder."""
        return trained_state(self.model, "encoder.")

    def load(self, state: dict[str, Tensor]) -> ReverseDistillation:
        """A trained detector from :meth:`state`; its settings must be those that it was trained with."""
        self.model = restore(self._network(), state, "encoder.")
        return self

    def __call__(self, x: Tensor, batch_size: int = 8) -> tuple[Tensor, Tensor]:
        """Scores (B,) and maps (B, size, size) of images (B, 3, H, W) in [0, 1]; higher = more anomalous."""
        return infer(fitted(self.model), self.backbone.preprocess, x, batch_size)

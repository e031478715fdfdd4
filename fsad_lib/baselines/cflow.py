"""CFlow-AD (Gudovskiy et al., WACV 2022) over anomalib's model: normalizing flows of patch features, conditioned on their place."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from anomalib.models.image.cflow.torch_model import CflowModel
from anomalib.models.image.cflow.utils import get_logp, positional_encoding_2d
from torch import Tensor, nn

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


class LikelihoodMap(nn.Module):
    """Anomaly map of the layers' log-likelihoods: -log of the sum over layers of exp(log p - log p_max), each enlarged.

    anomalib's map is the batch's largest sum minus that sum; far pixels all get the same value, the batch's largest sum. The logarithm ranks the
    pixels of a batch as it does for the same log p_max, and goes on telling apart what lies so far out that every layer's exp is lost beside the largest sum.

    log p_max is the highest over the training images (`learning`), a fixed number for each layer. anomalib takes it, as the largest sum, from the
    batch at hand, so that an image's score would change with the images beside it, and scores of two batches could not be compared.

    Example:
        >>> likelihood = LikelihoodMap(layers=1)
        >>> _ = likelihood([torch.tensor([-1.0, -3.0])], [1], [2], (1, 2))  # log p of the two patches of a training image
        >>> likelihood.learning = False
        >>> likelihood([torch.tensor([-2.0, -9.0])], [1], [2], (1, 2)).round(decimals=3).tolist()  # set against -1, whatever the batch holds
        [[[1.0, 8.0]]]
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.register_buffer("highest", torch.full((layers,), -torch.inf))
        self.learning = True

    def forward(self, distribution: list[Tensor], height: list[int], width: list[int], image_size: tuple[int, int]) -> Tensor:
        """(B, H, W) of the layers' log p (B h w,), maps of ``height`` x ``width`` cells enlarged to ``image_size``; at least -log of the number of layers
        where no patch is likelier than any in training."""
        if self.learning:
            self.highest = torch.stack([torch.maximum(top, d.max()) for top, d in zip(self.highest, distribution)])
        maps = [torch.exp((d - top).double()).view(-1, 1, h, w) for d, top, h, w in zip(distribution, self.highest, height, width)]
        total = sum(F.interpolate(m, image_size, mode="bilinear", align_corners=True)[:, 0] for m in maps)
        return -total.clamp_min(torch.finfo(total.dtype).tiny).log()  # of float64: down to log p - log p_max of -708


class CFlow:
    """A normalizing flow for each feature map gives every patch a likelihood; unlikely is anomalous.

    Args:
        backbone: weights and image size; feature maps of stride 8, 16 and 32 are taken.
        coupling_blocks, condition: size of the flows; the paper's defaults.
        fibers: patches of one optimizer step within an image batch. lr: of Adam. batch_size: images a step of `fit`.

    Example:
        >>> import timm
        >>> detector = CFlow(Backbone(timm.create_model("resnet18"), "resnet18", 64), coupling_blocks=1, condition=8)
        >>> len(detector.fit(torch.rand(2, 3, 64, 64), steps=2)), detector(torch.rand(3, 3, 64, 64))[0].shape
        (2, torch.Size([3]))

    Raises:
        FsadError: values out of range, or a backbone without maps of these strides.
    """

    name = "cflow"

    def __init__(
        self, backbone: Backbone, coupling_blocks: int = 8, condition: int = 128, fibers: int = 64, lr: float = 1e-4, batch_size: int = 1
    ) -> None:
        if min(coupling_blocks, fibers, batch_size) < 1 or not lr > 0 or condition < 4 or condition % 4:
            raise FsadError(f"{coupling_blocks=}, {condition=}, {fibers=}, {lr=}, {batch_size=} found; expected above 0, condition a multiple of 4")
        self.backbone, self.lr, self.batch_size, self.fibers = backbone, lr, batch_size, fibers
        self.sizes = dict(coupling_blocks=coupling_blocks, condition_vector=condition, fiber_batch_size=fibers)
        self.layers = stages_of(backbone, (8, 16, 32))
        self.model: CflowModel | None = None

    def fit(
        self, x: Tensor, steps: int, seed: int = 0, progress: Progress | None = None, checkpoint: str | Path | None = None
    ) -> list[float]:
        """Train the flows from scratch on normal images x (N, 3, H, W) in [0, 1].

        Args:
            steps: image batches. Each holds a fixed number of optimizer steps, one for every `fibers` patches of every map.
            checkpoint: file of the unfinished state, from which a later call with the same arguments goes on.

        Returns:
            the mean loss of each image batch: -log sigmoid of the log-likelihood per channel.
        """
        check_training(x, steps)
        with seeded(seed):
            model = self._network()
            optimizer = torch.optim.Adam(model.decoders.parameters(), self.lr)
            model.decoders.train()

            def step(rows: Tensor) -> float:
                maps = model.encoder(self.backbone.preprocess(x[rows]))
                return self._step(model, list(maps.values()), optimizer)

            losses = train(
                model, optimizer, step, batches(len(x), self.batch_size, steps, seed), [x], frozen="encoder.", settings=f"{self.fibers} fibers",
                checkpoint=checkpoint, progress=progress,
            )  # fmt: skip
        model.anomaly_map_generator = LikelihoodMap(len(self.layers)).to(self.backbone.device)
        infer(model, self.backbone.preprocess, x, 8)
        model.anomaly_map_generator.learning = False
        self.model = model
        return losses

    def _network(self) -> CflowModel:
        model = CflowModel(self.backbone.name, self.layers, pre_trained=False, **self.sizes).to(self.backbone.device)
        use_weights(model.encoder, self.backbone)
        return model

    def state(self) -> dict[str, Tensor]:
        """What was trained, for :meth:`load`: the flows and the highest likelihoods."""
        return trained_state(self.model, "encoder.")

    def load(self, state: dict[str, Tensor]) -> CFlow:
        """A trained detector from :meth:`state`; its settings must be those that it was trained with."""
        model = self._network()
        model.anomaly_map_generator = LikelihoodMap(len(self.layers)).to(self.backbone.device)
        model.anomaly_map_generator.learning = False
        self.model = restore(model, state, "encoder.")
        return self

    def _step(self, model: CflowModel, maps: list[Tensor], optimizer: torch.optim.Optimizer) -> float:
        total = []
        for features, flow in zip(maps, model.decoders):
            count, channels, height, width = features.shape
            place = positional_encoding_2d(model.condition_vector, height, width).to(features).expand(count, -1, -1, -1)
            place, patches = (t.permute(0, 2, 3, 1).flatten(0, 2) for t in (place, features))
            for rows in torch.randperm(len(patches)).to(features.device).split(self.fibers):
                z, jacobian = flow(patches[rows], [place[rows]])
                likelihood = get_logp(channels, z, jacobian) / channels  # log p(patch | place), per channel
                loss = -F.logsigmoid(likelihood).mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total.append(float(loss.detach()))
        return sum(total) / len(total)

    def __call__(self, x: Tensor, batch_size: int = 8) -> tuple[Tensor, Tensor]:
        """Scores (B,) and maps (B, size, size) of images (B, 3, H, W) in [0, 1]; higher = more anomalous."""
        return infer(fitted(self.model), self.backbone.preprocess, x, batch_size)

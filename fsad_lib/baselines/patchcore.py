"""PatchCore (Roth et al., CVPR 2022) over anomalib's model: a coreset of normal patch features, nearest neighbours."""

from __future__ import annotations

import torch
from anomalib.models.components.sampling import KCenterGreedy
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from torch import Tensor

from fsad_lib.baselines._common import (
    Progress,
    check_training,
    fitted,
    infer,
    quiet,
    seeded,
    stages_of,
    use_weights,
)
from fsad_lib.errors import FsadError
from fsad_lib.foundation.backbones import Backbone


class _Coreset(KCenterGreedy):
    """anomalib's choice, without a copy of every patch at each step: glibc, told to keep its memory, never finds those holes again, and
    a thousand steps then hold gigabytes."""

    def update_distances(self, cluster_center: Tensor) -> None:
        distance = torch.cdist(self.features, self.features[cluster_center].reshape(1, -1), compute_mode="donot_use_mm_for_euclid_dist")
        self.min_distances = distance if self.min_distances is None else torch.minimum(self.min_distances, distance)


class PatchCore:
    """A memory of normal patches, thinned to a coreset.

    Args:
        backbone: weights and image size; feature maps of stride 8 and 16 are taken.
        coreset: share of the patches that is kept, in (0, 1]; the paper: 0.01 to 0.25, anomalib: 0.1.
        coreset_size: a number of patches instead, so that arms with different numbers of images get memories of one size (all are
            kept where there are fewer).
        neighbours: for the weight of the image score; 1: the largest patch distance.

    Attributes:
        memory_size: patches in the memory after `fit`; patches_seen: before the coreset was chosen.

    Example:
        >>> import timm
        >>> detector = PatchCore(Backbone(timm.create_model("resnet18"), "resnet18", 64), coreset_size=50)
        >>> detector.fit(torch.rand(2, 3, 64, 64)), detector.patches_seen, detector.memory_size
        ([], 128, 50)
        >>> scores, maps = detector(torch.rand(3, 3, 64, 64))
        >>> scores.shape, maps.shape
        (torch.Size([3]), torch.Size([3, 64, 64]))

    Raises:
        FsadError: values out of range, or a backbone without maps of these strides.
    """

    name = "patchcore"

    def __init__(self, backbone: Backbone, coreset: float = 0.1, coreset_size: int | None = None, neighbours: int = 9) -> None:
        if not 0 < coreset <= 1 or (coreset_size is not None and coreset_size < 1) or neighbours < 1:
            raise FsadError(f"coreset {coreset}, coreset_size {coreset_size}, neighbours {neighbours} found; expected (0, 1], and at least 1")
        self.backbone, self.coreset, self.coreset_size, self.neighbours = backbone, coreset, coreset_size, neighbours
        self.layers = stages_of(backbone, (8, 16))
        self.model: PatchcoreModel | None = None
        self.memory_size = self.patches_seen = 0

    def fit(self, x: Tensor, steps: int | None = None, seed: int = 0, batch_size: int = 8, progress: Progress | None = None) -> list[float]:
        """Remember normal images x (N, 3, H, W) in [0, 1]. There is nothing to train: `steps`, which the other
        detectors need, is not used, and the list of losses is empty."""
        check_training(x)
        model = self._network().train()
        for done, part in enumerate(parts := x.split(batch_size), start=1):
            model(self.backbone.preprocess(part))
            if progress:
                progress(done, len(parts))
        seen = torch.vstack(model.embedding_store)
        model.embedding_store.clear()
        keep = min(self.coreset_size or max(1, int(self.coreset * len(seen))), len(seen))
        with seeded(seed), quiet():
            sampler = _Coreset(seen, 1.0)
            sampler.coreset_size = keep
            model.memory_bank = seen if keep == len(seen) else sampler.sample_coreset()
        self.model, self.patches_seen, self.memory_size = _with_neighbours(model), len(seen), len(model.memory_bank)
        return []

    def _network(self) -> PatchcoreModel:
        model = PatchcoreModel(self.layers, self.backbone.name, pre_trained=False, num_neighbors=self.neighbours).to(self.backbone.device)
        use_weights(model.feature_extractor, self.backbone)
        return model

    def state(self) -> dict[str, Tensor]:
        """What was fitted, for :meth:`load`: the memory and the number of patches it was chosen from."""
        return {"memory_bank": fitted(self.model).memory_bank.cpu().contiguous(), "patches_seen": torch.tensor(self.patches_seen)}

    def load(self, state: dict[str, Tensor]) -> PatchCore:
        """A fitted detector from :meth:`state`; its settings must be those that it was fitted with.

        Raises:
            FsadError: a state that lacks the memory or the number of patches.
        """
        try:
            bank, seen = state["memory_bank"], int(state["patches_seen"])
        except KeyError as error:
            raise FsadError(f"a saved PatchCore without {error}; fit it again.") from None
        self.model = self._network().eval()
        self.model.memory_bank = bank.to(self.backbone.device)
        _with_neighbours(self.model)
        self.patches_seen, self.memory_size = seen, len(bank)
        return self

    def __call__(self, x: Tensor, batch_size: int = 8) -> tuple[Tensor, Tensor]:
        """Scores (B,) and maps (B, size, size) of images (B, 3, H, W) in [0, 1]; higher = more anomalous."""
        return infer(fitted(self.model), self.backbone.preprocess, x, batch_size)


def _with_neighbours(model: PatchcoreModel) -> PatchcoreModel:
    """A memory of one patch has no neighbours to weigh a score by; anomalib would weigh it by the batch's other images."""
    if len(model.memory_bank) == 1:
        model.num_neighbors = 1
    return model

"""What the four adapters share: our weights in anomalib's feature extractor, batches by step number, random numbers by seed, a training that resumes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsad_lib.checkpoints import digest, read_state
from fsad_lib.errors import FsadError
from fsad_lib.foundation.backbones import Backbone
from fsad_lib.foundation.images import check_images

Progress = Callable[[int, int], None]
CHECKPOINTS = 8  # of a training: with the optimizer's moments each is three times a detector


def batches(n: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """`steps` index tensors (size,): seeded permutations of n images, one after the other, cut into batches.

    The number of steps does not depend on n, so that an arm with more images does not train longer.

    Example:
        >>> [b.tolist() for b in batches(1, 2, 2, seed=0)]
        [[0, 0], [0, 0]]
        >>> sorted(torch.cat(list(batches(4, 2, 2, seed=0))).tolist())
        [0, 1, 2, 3]
    """
    draw, queue = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(queue) < size:
            queue = torch.cat([queue, torch.randperm(n, generator=draw)])
        yield queue[:size]
        queue = queue[size:]


def check_training(x: Tensor, steps: int | None = None) -> None:
    """Raise FsadError unless x is a batch of images in [0, 1], at least one, and steps a whole number of at least 1 (None: there are none)."""
    check_images(x, empty=False)
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise FsadError(f"steps {steps!r} found; expected a whole number of at least 1")


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's and numpy's global random numbers from a seed, and put back afterwards; anomalib draws from both."""
    state = np.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(state)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, step: Callable[[Tensor], float], rows: Iterable[Tensor], inputs: Sequence[Tensor], *,
    frozen: str, derived: tuple[str, ...] = (), settings: str = "", schedule: Any = None, checkpoint: str | Path | None = None, progress: Progress | None = None,
) -> list[float]:  # fmt: skip
    """The loss of each step, inside :func:`seeded`. An interrupted training goes on from its last checkpoint and ends with the very
    same weights (on a GPU up to rounding).

    Args:
        step: takes the numbers of a step's images, does the step, gives its loss.
        rows: those numbers, one tensor a step. inputs: the images that they count.
        frozen: beginning of the names of what is not trained, and so not kept.
        derived: beginnings of the names of what was computed from the rest, whose last bits depend on the device: it does not tell trainings apart.
        settings: what else decides the result, besides the optimizer's own settings and the model as it comes in.
        schedule: of the learning rate, or None. progress: called with (steps done, steps) after each step.
        checkpoint: file of the unfinished state; one of another training is not used.

    Raises:
        FsadError: a checkpoint that cannot be read.
    """
    rows = list(rows)
    given = [value for name, value in model.state_dict().items() if not name.startswith(derived)]
    key = digest(*inputs, *rows, *given, settings=settings, optimizer=optimizer.defaults) if checkpoint else ""
    losses = _resume(checkpoint, key, model, optimizer, schedule)
    every = max(1, len(rows) // CHECKPOINTS)
    for done, chosen in enumerate(rows[len(losses) :], start=len(losses) + 1):
        losses.append(step(chosen))
        if schedule:
            schedule.step()
        if checkpoint and (done % every == 0 or done == len(rows)):
            from fsad_lib.runs import replacing

            state = {"key": key, "losses": losses, "model": trained_state(model, frozen), "optimizer": optimizer.state_dict()}
            with replacing(checkpoint) as path:
                torch.save(state | {"schedule": schedule.state_dict() if schedule else {}, "random": _random_state()}, path)
        if progress:
            progress(done, len(rows))
    return losses


def _resume(checkpoint: str | Path | None, key: str, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Any) -> list[float]:
    """Put a checkpoint's state into everything that changes in a training; its losses, none if there is no checkpoint of this training."""
    state = read_state(checkpoint, key)
    if state is None:
        return []
    model.load_state_dict(state["model"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    if schedule:
        schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["random"]["cpu"])
    if state["random"]["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["random"]["cuda"])
    words, *rest = state["random"]["numpy"]
    np.random.set_state(("MT19937", words.numpy().astype(np.uint32), *rest))
    return state["losses"]


def _random_state() -> dict[str, Any]:
    """The state of the global random numbers, in what can be read back without unpickling."""
    _, words, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda, "numpy": [torch.from_numpy(words.astype(np.int64)), *rest]}


def quiet() -> contextlib.redirect_stderr:
    """Without the progress bar that anomalib's coreset draws on stderr."""
    return contextlib.redirect_stderr(io.StringIO())


def stages_of(backbone: Backbone, strides: tuple[int, ...]) -> list[int]:
    """timm's indices of the feature maps with these strides.

    Raises:
        FsadError: the backbone has no such maps.
    """
    import timm

    try:
        found = timm.create_model(backbone.name, pretrained=False, features_only=True).feature_info.reduction()
    except (RuntimeError, AttributeError) as error:
        raise FsadError(f"{backbone.name} gives no feature maps in timm ({error}); choose a convolutional backbone.") from error
    if missing := [s for s in strides if s not in found]:
        raise FsadError(f"{backbone.name} has feature maps of stride {found}, none of {missing}; choose another backbone.")
    return [found.index(s) for s in strides]


def use_weights(extractor: nn.Module, backbone: Backbone) -> None:
    """Put the backbone's weights into anomalib's feature extractor, which was made without any.

    Raises:
        FsadError: a weight that the extractor needs is not among the backbone's.
    """
    target, source = extractor.feature_extractor, backbone.model.state_dict()
    missing = [name for name, value in target.state_dict().items() if name not in source or source[name].shape != value.shape]
    if missing:
        raise FsadError(f"{backbone.name}: {len(missing)} weights of anomalib's feature extractor are not the backbone's, the first: {missing[0]}.")
    target.load_state_dict({name: source[name] for name in target.state_dict()}, strict=True)
    extractor.requires_grad_(False)


@torch.no_grad()
def infer(model: nn.Module, prepare: Callable[[Tensor], Tensor], x: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Scores (B,) and maps (B, size, size), on the CPU, of images (B, 3, H, W) in [0, 1] by an anomalib model in eval mode.

    Args:
        prepare: the images as the model wants them. batch_size: images at once.
    """
    check_training(x)
    model.eval()
    parts = [model(prepare(part)) for part in x.split(batch_size)]
    scores = torch.cat([p.pred_score.flatten() for p in parts]).float().cpu()
    return scores, torch.cat([p.anomaly_map.view(-1, *p.anomaly_map.shape[-2:]) for p in parts]).float().cpu()


def trained_state(model: nn.Module | None, frozen: str) -> dict[str, Tensor]:
    """What `fit` learned, on the CPU: the model's state without the frozen part whose names begin with `frozen`."""
    return {name: value.detach().cpu().contiguous() for name, value in fitted(model).state_dict().items() if not name.startswith(frozen)}


def restore(model: nn.Module, state: dict[str, Tensor], frozen: str) -> nn.Module:
    """The inverse of :func:`trained_state`, on an untrained model whose frozen part is in place.

    Raises:
        FsadError: names or shapes are not the model's.
    """
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(frozen)}
    odd = sorted(set(own) ^ set(state)) + [name for name in set(own) & set(state) if own[name].shape != state[name].shape]
    if odd:
        raise FsadError(f"a saved detector does not fit: {len(odd)} of its values differ in name or shape, the first: {odd[0]}. Train it again.")
    model.load_state_dict({name: value for name, value in state.items()}, strict=False)
    return model.eval()


def fitted(model: nn.Module | None) -> nn.Module:
    """The model itself; FsadError where `fit` and `load` have not made one yet."""
    if model is None:
        raise FsadError("this detector has seen no normal image yet; call fit first")
    return model

"""Distance to the nearest stored feature: the core of every memory-based detector."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fsad_lib.errors import FsadError

__all__ = ["nearest_cosine_distance"]

ENTRIES = 16_000_000  # similarities held at once: 64 MB in float32


def nearest_cosine_distance(queries: Tensor, memory: Tensor) -> Tensor:
    """Cosine distance of each query to the nearest stored feature.

    Args:
        queries: (..., D) features; they need not have unit norm.
        memory: (M, D) stored features, M >= 1, likewise.

    Returns:
        min_m (1 - cos(query, memory_m)), shape (...), in [0, 2].

    Raises:
        FsadError: an empty memory, or features of different lengths.

    Example:
        >>> queries = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> nearest_cosine_distance(queries, torch.tensor([[2.0, 0.0], [0.0, 1.0]])).tolist()
        [0.0, 1.0]
    """
    if not len(memory) or queries.shape[-1] != memory.shape[-1]:
        raise FsadError(
            f"the memory holds {len(memory)} features of length {memory.shape[-1]}, the queries have length "
            f"{queries.shape[-1]}; fill the memory with normal images, through the same model."
        )
    memory = F.normalize(memory.float(), dim=-1).T
    flat = F.normalize(queries.float(), dim=-1).reshape(-1, queries.shape[-1])
    chunk = max(1, ENTRIES // memory.shape[1])
    nearest = torch.cat([(part @ memory).amax(dim=-1) for part in flat.split(chunk)])
    return (1 - nearest).clamp_min(0).reshape(queries.shape[:-1])

"""Self-tuning: how much each word counts (eq. 5), and the two prototypes that the words are mixed into (eq. 6).

Any number of words can take part: c_n and c_a for ADP, the class label as a third for ADP_l (section 4.1).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fsad_lib.adp.concepts import p_clip
from fsad_lib.errors import FsadError

__all__ = ["prototypes", "weight"]


def weight(f: Tensor, f_pseudo: Tensor, g_n: Tensor, g_a: Tensor, tau: float) -> float:
    """Importance of a word: how well it tells the shots from new pseudo-anomalies, eq. 5.

    Args:
        f: (K, D) embeddings of the shots. f_pseudo: (L', D) embeddings of new pseudo-anomalies.
        g_n, g_a: (D,) template means of the word's two states. tau: temperature.

    Returns:
        A number in [0, 2]; 2 is a perfect word, 1 one that knows nothing.

    Raises:
        FsadError: no shot or no pseudo-anomaly; see also :func:`fsad_lib.adp.concepts.p_clip`.

    Example:
        >>> f = torch.eye(2)
        >>> round(weight(f[:1], f[1:], f[0], f[1], tau=0.1), 3)
        2.0
    """
    if len(f) == 0 or len(f_pseudo) == 0:
        raise FsadError(f"eq. 5 needs shots and pseudo-anomalies; found {len(f)} and {len(f_pseudo)}.")
    # w(c) = mean_i P(S_n(c) | x_i) + mean_j P(S_a(c) | pseudo_j);   P(S_a) = 1 - P(S_n)
    return float(p_clip(f, g_n, g_a, tau).mean() + (1 - p_clip(f_pseudo, g_n, g_a, tau)).mean())


def prototypes(
    embeddings: Mapping[str, tuple[Tensor, Tensor]], weights: Mapping[str, float] | None = None
) -> tuple[Tensor, Tensor]:
    """Normal and anomalous prototype p_n, p_a of several words, eq. 6.

    Args:
        embeddings: word -> (g_n (|T|, D), g_a (|T|, D)), as :func:`fsad_lib.adp.prompts.embed` returns them.
        weights: word -> w(c), at least 0; None: all alike (of a single word: its template means).

    Returns:
        p_n, p_a, each (D,). They are not normalised: the cosine of eq. 7 does that.

    Raises:
        FsadError: no words, a weight that is missing, negative or not finite, or weights that sum to 0.

    Example:
        >>> g = {"<c_n>": (torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)), "<c_a>": (torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2))}
        >>> prototypes(g, {"<c_n>": 3.0, "<c_a>": 1.0})[0].tolist()
        [0.75, 0.25]
    """
    if not embeddings:
        raise FsadError("a prototype needs at least one word.")
    weights = dict.fromkeys(embeddings, 1.0) if weights is None else weights
    missing = [c for c in embeddings if c not in weights]
    if missing:
        raise FsadError(
            f"no weight for {', '.join(missing)}; found weights of {', '.join(weights) or 'nothing'}."
        )
    w = torch.tensor([float(weights[c]) for c in embeddings])
    if not torch.isfinite(w).all() or (w < 0).any() or w.sum() == 0:
        raise FsadError(f"found the weights {w.tolist()}; expected numbers of at least 0 that are not all 0.")
    # p_s = mean_T [ sum_c w(c) g(T(S_s(c))) / sum_c w(c) ]
    share = (w / w.sum()).to(next(iter(embeddings.values()))[0])
    p_n, p_a = (
        torch.stack([g[s].mean(0) for g in embeddings.values()]).mul(share[:, None]).sum(0) for s in (0, 1)
    )
    return p_n, p_a

"""The sentences of ADP: state words and templates (section 3). The prompts that draw pseudo-anomalies stand in the profiles.

A concept is a word: an ordinary one ("object", "metal nut") or the placeholder of a learned one ("<c_n>").
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fsad_lib.errors import FsadError

__all__ = [
    "TEMPLATES",
    "S_a",
    "S_n",
    "check_words",
    "embed",
    "state_embeddings",
    "state_prompts",
    "templates",
]

# `imagenet_templates_small` of the textual inversion examples (Gal et al. 2022; huggingface/diffusers,
# examples/textual_inversion/textual_inversion.py). Its first two are the paper's two examples.
TEMPLATES: tuple[str, ...] = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)


def S_n(c: str) -> str:  # noqa: N802 - the paper's name
    """The normal state of a concept.

    >>> S_n("<c_n>")
    'flawless <c_n>'
    """
    return f"flawless {c}"


def S_a(c: str) -> str:  # noqa: N802 - the paper's name
    """The anomalous state of a concept.

    >>> S_a("object")
    'damaged object'
    """
    return f"damaged {c}"


def templates(n: int | None = None) -> tuple[str, ...]:
    """The first n of the 27 templates, all by default; FsadError for an n that is not from 1 to 27.

    >>> templates(2)
    ('a photo of a {}', 'a rendering of a {}')
    """
    if n is not None and not 1 <= n <= len(TEMPLATES):
        raise FsadError(f"found templates = {n}, expected 1 to {len(TEMPLATES)}.")
    return TEMPLATES[:n]


def state_prompts(c: str, templates: Sequence[str] = TEMPLATES) -> tuple[list[str], list[str]]:
    """The prompts T(S_n(c)) and T(S_a(c)) for every template T.

    >>> state_prompts("nut", ["a photo of a {}"])
    (['a photo of a flawless nut'], ['a photo of a damaged nut'])
    """
    check_templates(templates)
    return [T.format(S_n(c)) for T in templates], [T.format(S_a(c)) for T in templates]


def check_templates(templates: Sequence[str]) -> None:
    """Raise FsadError unless there are templates, each with {} once."""
    if isinstance(templates, str) or not templates or any(T.count("{}") != 1 for T in templates):
        raise FsadError("each template must hold {} once, where the word goes, e.g. ['a photo of a {}'].")


def state_embeddings(
    clip: Any, c: str, concepts: Mapping[str, Tensor] | None = None, templates: Sequence[str] = TEMPLATES
) -> tuple[Tensor, Tensor]:
    """CLIP text embeddings g(T(S_n(c))) and g(T(S_a(c))), encoded in one batch.

    Args:
        clip: object with ``encode_text`` (:class:`fsad_lib.foundation.clip.CLIP`).
        c: the word or placeholder.
        concepts: placeholder -> vector (token_dim,).
        templates: sentences T with one {}.

    Returns:
        Two tensors (|T|, D), rows of unit length, differentiable in the vectors.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> clip = load_clip("data/models/mini/clip")
        >>> g_n, g_a = state_embeddings(clip, "gear")
        >>> len(g_n) == len(g_a) == len(TEMPLATES)
        True
        >>> same, _ = state_embeddings(clip, "<c>", {"<c>": clip.token_embedding("gear")})  # a learned word with a known word's vector
        >>> torch.allclose(g_n, same, atol=1e-4)
        True
    """
    normal, anomalous = state_prompts(c, templates)
    g_n, g_a = clip.encode_text([*normal, *anomalous], concepts).split(len(normal))
    return g_n, g_a


@torch.no_grad()
def embed(
    clip: Any,
    words: Sequence[str],
    concepts: Mapping[str, Tensor] | None = None,
    templates: Sequence[str] = TEMPLATES,
) -> dict[str, tuple[Tensor, Tensor]]:
    """:func:`state_embeddings` of several words, without gradients: word -> (g_n (|T|, D), g_a (|T|, D)).

    Raises:
        FsadError: one string in place of a list of words.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> clip = load_clip("data/models/mini/clip")
        >>> c = clip.token_embedding("object").requires_grad_()
        >>> g = embed(clip, ["gear", "<c>"], {"<c>": c}, templates(3))
        >>> list(g), len(g["<c>"][0]), g["<c>"][0].requires_grad
        (['gear', '<c>'], 3, False)
    """
    check_words(words)
    return {c: state_embeddings(clip, c, concepts, templates) for c in words}


def check_words(words: Any) -> None:
    """Raise FsadError for a string where a list of words is meant: it would be read letter by letter."""
    if isinstance(words, str):
        raise FsadError(f"one string found, {words[:60]!r}; expected a list of words.")

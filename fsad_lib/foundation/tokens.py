"""Learned words in prompts: where a placeholder's token sits, and how its vector gets there.

A learned concept (textual inversion; ADP eq. 2-4) is a vector in the token-embedding space that the
tokenizer does not know. A prompt names it by a placeholder such as ``"<c_n>"``. The placeholder is tokenized
as the one-token word ``"object"``, its position is noted, and the text encoder's embedding at that position
is replaced by the vector. The ids therefore stay those of an ordinary sentence: padding, causal mask and the
position of the end-of-text token are what an added token would give, and there is no id above the vocabulary
that ``argmax`` pooling could mistake for the end.

The same functions serve the CLIP text tower and the diffusion model's text encoder.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fsad_lib.errors import FsadError

__all__ = ["PLACEHOLDER", "end_positions", "find_placeholders", "inject", "insert_concepts"]

PLACEHOLDER = re.compile(r"<[A-Za-z0-9_*\-]+>")
STAND_IN = "object"
_OTHER = "photo"  # a second one-token word: the two tokenizations differ exactly at the placeholders

Tokenize = Callable[[list[str]], Tensor]


def find_placeholders(prompt: str) -> list[str]:
    """Placeholders of one prompt, in reading order.

    Example:
        >>> find_placeholders("a photo of a damaged <c_a> beside a <c_n>")
        ['<c_a>', '<c_n>']
    """
    return PLACEHOLDER.findall(prompt)


def insert_concepts(
    prompts: Sequence[str], tokenize: Tokenize, concepts: Mapping[str, Tensor] | Iterable[str] | None = None
) -> tuple[Tensor, list[tuple[int, int, str]]]:
    """Tokenize prompts that may hold placeholders, and say where the learned vectors belong.

    Args:
        prompts: B sentences; a placeholder is written ``<name>`` and may occur any number of times.
        tokenize: maps a list of B strings to ids, LongTensor (B, L), with start and end tokens, as the
            tokenizer of the text encoder does.
        concepts: the placeholders that have a vector: a mapping from the names, angle brackets included, or
            just the names.

    Returns:
        ids, LongTensor (B, L), in which every placeholder is the word "object"; and positions, a list of
        ``(row, column, name)``, one for each placeholder of each prompt, to hand to :func:`inject`.

    Raises:
        FsadError: a placeholder without a vector; a concept whose name is not of the form ``<name>`` or is a
            token of the vocabulary; a placeholder that fell off the end of a too long prompt.

    Example:
        >>> import open_clip
        >>> ids, positions = insert_concepts(["a damaged <c_n>."], open_clip.SimpleTokenizer(), ["<c_n>"])
        >>> ids[0, :6].tolist(), positions
        ([49406, 320, 13568, 14115, 269, 49407], [(0, 3, '<c_n>')])
    """
    if isinstance(prompts, str):
        raise FsadError(f"prompts must be a list of strings, found {prompts!r}. Write [{prompts!r}].")
    prompts, known = list(prompts), list(concepts or ())
    _check_names(known, tokenize)
    found = [find_placeholders(prompt) for prompt in prompts]
    unknown = sorted({name for names in found for name in names} - set(known))
    if unknown:
        raise FsadError(
            f"no vector for the placeholder {', '.join(unknown)}; known concepts: "
            f"{', '.join(known) or 'none'}. "
            "Pass concepts={name: vector}, or take the placeholder out of the prompt."
        )
    ids = tokenize([PLACEHOLDER.sub(f" {STAND_IN} ", prompt) for prompt in prompts])
    positions = []
    rows = [row for row, names in enumerate(found) if names]
    if rows:
        differs = ids[rows] != tokenize([PLACEHOLDER.sub(f" {_OTHER} ", prompts[row]) for row in rows])
        for row, mask in zip(rows, differs, strict=True):
            columns = mask.nonzero().flatten().tolist()
            if len(columns) != len(found[row]):
                raise FsadError(
                    f"found {len(columns)} of {len(found[row])} placeholders within the {ids.shape[1]} tokens "
                    f"that the text encoder reads, in the prompt {prompts[row]!r}. Shorten the prompt."
                )
            positions += [(row, column, name) for column, name in zip(columns, found[row], strict=True)]
    return ids, positions


def inject(
    embeddings: Tensor, positions: Sequence[tuple[int, int, str]], concepts: Mapping[str, Tensor] | None
) -> Tensor:
    """Token embeddings with the learned vectors put in place.

    Args:
        embeddings: (B, L, d) embeddings of the ids of :func:`insert_concepts`, before positions are added.
        positions: as returned by :func:`insert_concepts`.
        concepts: name -> vector (d,).

    Returns:
        (B, L, d); differentiable in every vector. ``embeddings`` itself is not changed.

    Raises:
        FsadError: a vector of another shape than (d,).

    Example:
        >>> inject(torch.zeros(1, 3, 2), [(0, 1, "<c>")], {"<c>": torch.ones(2)}).sum(-1).tolist()
        [[0.0, 2.0, 0.0]]
    """
    if not positions:
        return embeddings
    for name in {name for _, _, name in positions}:
        if tuple(concepts[name].shape) != embeddings.shape[-1:]:
            raise FsadError(
                f"the concept {name} has shape {tuple(concepts[name].shape)}, the text encoder's tokens have "
                f"({embeddings.shape[-1]},). It was learned with another model: learn it again with this one."
            )
    rows, columns, names = zip(*positions, strict=True)
    vectors = torch.stack([concepts[name].to(embeddings) for name in names])
    index = (torch.tensor(rows, device=embeddings.device), torch.tensor(columns, device=embeddings.device))
    return embeddings.index_put(index, vectors)


def end_positions(ids: Tensor, end_id: int) -> Tensor:
    """Column of the first end-of-text token in each row of ids (B, L), LongTensor (B,).

    CLIP's text embedding is read there. ``ids.argmax`` finds the same column only while no id exceeds
    ``end_id``, which an added token breaks; searching the id itself is always right.

    Raises:
        FsadError: a row without an end token.

    Example:
        >>> end_positions(torch.tensor([[9, 1, 8, 0], [9, 1, 1, 8]]), end_id=8).tolist()
        [2, 3]
    """
    hit = ids == end_id
    if not bool(hit.any(dim=1).all()):
        raise FsadError(
            f"a row of token ids holds no end-of-text token (id {end_id}); use the text encoder's tokenizer."
        )
    return hit.int().argmax(dim=1)


def _check_names(names: Sequence[str], tokenize: Tokenize) -> None:
    for name in names:
        one_token = _length(name, tokenize) <= 1
        if one_token or not PLACEHOLDER.fullmatch(name):
            reason = "is a token of the vocabulary" if one_token else "is not of the form <name>"
            raise FsadError(
                f"the concept name {name!r} {reason}; name it like '<c_n>': letters, digits, _, - or * in <>."
            )


def _length(text: str, tokenize: Tokenize) -> int:
    """Number of tokens of a text, without start, end and padding."""
    empty, ids = tokenize(["", text])
    end = empty[1]
    return int((ids == end).int().argmax()) - 1

"""The keyword-to-prompt generator (section 4.1.1, eq. 1): which "a {object} with {word}" is closest to the images.

The words W_1 .. W_T come from WordNet (:mod:`fsad_lib.tgvig.wordnet`); CLIP measures how far each sentence lies from the images.

What the paper leaves open, and what is done here:

- how deep the relations are followed: `depth`, 2 by default;
- the senses of a word: all of them, so that "nut" brings cranks along with filberts; CLIP has to choose;
- names that WordNet does not hold: see :func:`candidate_words`;
- several original images: the distance and the cosine are taken to the unit vector of their mean embedding;
- the worst prompt: the lowest cosine of all candidates, before the filter.

Of the ten words in the paper's Table 4, WordNet 3.0 holds four (cobnut, Echinops, perceptible, parazoan), and only cobnut is
related to its object. The authors' words must come from another list besides, which they do not name; what is done here is what
they describe.

The filter that the paper prints, "keep S_j with d(S_j, I) > 0.5", cannot be what removes outliers. On unit vectors
d^2 = 2 - 2 cos, so the cosines of the paper's Figure 7, 0.17 to 0.33, are distances of 1.29 to 1.16: all are kept. Turned round
(d < 0.5) it keeps none. It is run as printed by default, which changes nothing, and `Selection.note` says so; ``filter="farthest"``
drops the farthest share instead. That too cannot change the best prompt, since distance and cosine order the prompts alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fsad_lib.errors import FsadError
from fsad_lib.tgvig.wordnet import RELATIONS, Related, related

if TYPE_CHECKING:
    from fsad_lib.foundation.clip import CLIP

__all__ = ["ALIASES", "Candidates", "Selection", "best_prompt", "candidate_words", "prompt", "select"]

ALIASES = {"pcb": "printed circuit", "chewinggum": "chewing gum", "fryum": "snack food"}
"""Names of data sets that no dictionary holds, and the noun that we put in their place."""
LAST_RESORT = "object"
THRESHOLD = 0.5  # as printed
FILTERS = ("printed", "reversed", "farthest")


@dataclass(frozen=True)
class Candidates:
    """The words for one object.

    Attributes:
        object_name: as it stands in the prompts.
        words: the T different words, in order: synonyms first as WordNet lists them, near before far.
        origin: for each word, how it is related: "nut: hyponym, 1 step".
        looked_up: the WordNet entries that were used, the object's own noun first.
        source: where the relations come from.
        note: empty, or what had to be put in place of a name that WordNet does not hold.
    """

    object_name: str
    words: tuple[str, ...]
    origin: tuple[str, ...]
    looked_up: tuple[str, ...]
    source: str
    note: str


@dataclass(frozen=True)
class Selection:
    """What eq. 1 chose.

    Attributes:
        best, worst: prompts. prompts: all T of them.
        cosine, distance: (T,) to the images' embedding. kept: (T,) bool, S^p.
        note: what the filter did.
    """

    best: str
    worst: str
    prompts: tuple[str, ...]
    cosine: Tensor
    distance: Tensor
    kept: Tensor
    note: str


def prompt(object_name: str, word: str) -> str:
    """S_t, with the article as printed.

    >>> prompt("hazelnut", "cobnut")
    'a hazelnut with cobnut'
    """
    return f"a {object_name} with {word}"


def candidate_words(
    object_name: str, depth: int = 2, relations: Sequence[str] = RELATIONS, source: str = "auto", limit: int | None = None
) -> Candidates:
    """The words W_1 .. W_T for an object's name.

    The name is looked up as it is, then in the singular. A name of several words that WordNet does not hold is split: all its
    words are looked up, the last, its head noun, first. Names of data sets that are no words at all have a stand-in
    (:data:`ALIASES`). If nothing is known the words of "object" are taken. Each of these is said in `note`.

    Args:
        object_name: e.g. ``"hazelnut"`` or ``"metal_nut"``; underscores and running numbers are dropped. No word of the name is a candidate.
        depth: steps along each relation, at least 1.
        relations: which of :data:`fsad_lib.tgvig.wordnet.RELATIONS`.
        source: "auto", "nltk" or "shipped", see :func:`fsad_lib.tgvig.wordnet.lookup`.
        limit: at most so many words; None: all.

    Example:
        >>> found = candidate_words("metal_nut", source="shipped")
        >>> found.looked_up, found.note
        (('nut', 'metal'), "the shipped part of WordNet holds no 'metal nut'; its words are used instead: nut, metal")
        >>> candidate_words("zorbulator", source="shipped").note
        "the shipped part of WordNet holds no 'zorbulator'; the words of 'object' are used instead"
        >>> candidate_words("hazelnut", relations=["synonym"], source="shipped").words
        ('hazel', 'hazelnut tree', 'filbert', 'cobnut', 'cob')

    Raises:
        FsadError: an empty name, an unknown relation, a depth below 1 or out of reach, a source that is not there.
    """
    name = re.sub(r"[\s_\-]+", " ", str(object_name)).strip()
    name = re.sub(r"(?<=[^\W\d]) ?\d+$", "", name)
    if not name:
        raise FsadError(f"object name {object_name!r} found; expected a word or several, such as 'metal nut'")
    if isinstance(relations, str):
        raise FsadError(f"relations {relations!r} found; expected a list of some of {', '.join(RELATIONS)}")
    if unknown := [r for r in relations if r not in RELATIONS] or not relations:
        raise FsadError(f"relations {unknown if relations else '(none)'} found; expected some of {', '.join(RELATIONS)}")
    if limit is not None and limit < 1:
        raise FsadError(f"limit {limit} found; expected at least one word, or None for all")

    entries, note, where = _entries(name.lower(), depth, source)
    words: dict[str, tuple[str, str]] = {}  # in lower case, as CLIP reads them -> lemma, where from
    own = {name.lower(), *name.lower().split(), *(entry for entry, _ in entries)}  # "a metal nut with nut" says nothing
    for entry, found in entries:
        order = sorted((r for r in found if r.relation in relations), key=lambda r: (r.depth, RELATIONS.index(r.relation), r.sense))
        for r in order:
            steps = "" if not r.depth else ", 1 step" if r.depth == 1 else f", {r.depth} steps"
            if r.lemma.lower() not in own:
                words.setdefault(r.lemma.lower(), (r.lemma, f"{entry}: {r.relation}{steps}"))
    if not words:
        raise FsadError(f"WordNet relates no word to {name!r} by {', '.join(relations)}; allow more relations or a greater depth.")
    lemmas, origins = zip(*list(words.values())[:limit], strict=True)
    looked_up = tuple(entry for entry, _ in entries)
    return Candidates(name, lemmas, origins, looked_up, where, note)


def _entries(name: str, depth: int, source: str) -> tuple[list[tuple[str, list[Related]]], str, str]:
    """The WordNet entries that stand for a name, what had to be replaced, and the source."""
    entry, found, where = related([name], depth, source)
    if entry:
        return [(entry, found)], "", where
    parts, entries, replaced = name.split()[::-1], [], False
    for part in [name, *parts] if name in ALIASES else parts:
        alias = ALIASES.get(part)
        entry, found, where = related([part, alias] if alias else [part], depth, source)
        replaced |= entry is not None and entry == alias
        if entry and entry not in [e for e, _ in entries]:
            entries.append((entry, found))
    missing = f"{'WordNet' if 'nltk' in where else 'the shipped part of WordNet'} holds no {name!r}; "  # the whole one may
    if not entries:
        entry, found, where = related([LAST_RESORT], depth, source)
        return [(LAST_RESORT, found)], f"{missing}the words of {LAST_RESORT!r} are used instead", where
    used = ", ".join(e for e, _ in entries)
    if len(parts) == 1:
        return entries, f"{missing}{used!r} stands for it, our own choice", where
    return entries, f"{missing}its words are used instead: {used}" + " (with a stand-in of our own)" * replaced, where


def select(f: Tensor, g: Tensor, prompts: Sequence[str], filter: str = "printed", farthest: float = 0.0) -> Selection:
    """Eq. 1: the prompt of highest cosine among those that the distance filter keeps.

    Args:
        f: (K, D) embeddings of the original images. g: (T, D) embeddings of the prompts. Both of unit norm.
        prompts: T sentences.
        filter: "printed" keeps d > 0.5; "reversed" keeps d < 0.5; "farthest" drops the share `farthest` of largest distance.
        farthest: share in [0, 1), for filter "farthest" only.

    Example:
        >>> g = F.normalize(torch.tensor([[1.0, 2.0], [1.0, 5.0], [1.0, -1.0]]), dim=1)
        >>> chosen = select(torch.tensor([[1.0, 0.0]]), g, ["a", "b", "c"])
        >>> chosen.best, chosen.worst, chosen.kept.tolist()
        ('c', 'b', [True, True, True])

    Raises:
        FsadError: shapes that do not fit, vectors that are not of unit norm, an unknown filter, or a filter that keeps nothing.
    """
    if f.ndim != 2 or g.ndim != 2 or f.shape[1] != g.shape[1] or len(g) != len(prompts) or not len(f) or not len(g):
        raise FsadError(f"images {tuple(f.shape)}, texts {tuple(g.shape)} and {len(prompts)} prompts found; expected (K, D), (T, D), T")
    off = max(float((v.norm(dim=1) - 1).abs().max()) for v in (f, g))
    if not off < 1e-3:
        raise FsadError(f"embeddings whose norm differs from 1 by {off:.2g} found; expected unit vectors, as CLIP's encoders give them")
    if filter not in FILTERS:
        raise FsadError(f"filter {filter!r} found; expected one of {', '.join(FILTERS)}")
    if not 0 <= farthest < 1 or (farthest and filter != "farthest"):
        raise FsadError(f"farthest {farthest} with filter {filter!r} found; expected a share in [0, 1), with filter 'farthest' only")
    image = F.normalize(f.mean(0), dim=0)
    cosine = g @ image  # cos(f(I^o), G(S_j))
    distance = (g - image).norm(dim=1)  # d(S_j, I^o) = || f(I^o) - G(S_j) ||_2
    if filter == "farthest":
        keep = len(g) - math.floor(farthest * len(g))
        kept = torch.zeros(len(g), dtype=torch.bool, device=g.device)
        kept[distance.argsort(stable=True)[:keep]] = True
        rule = f"the farthest {farthest:.0%} are dropped"
    else:
        kept = distance > THRESHOLD if filter == "printed" else distance < THRESHOLD  # S^p = {S_j | d(S_j, I^o) > 0.5}
        rule = f"d {'>' if filter == 'printed' else '<'} {THRESHOLD} {'as printed' if filter == 'printed' else 'turned round'}"
    low, high, count = float(distance.min()), float(distance.max()), int(kept.sum())
    note = f"{rule}: {count} of {len(g)} prompts kept; distances {low:.2f} to {high:.2f}"
    if not count:
        raise FsadError(f"the filter keeps no prompt ({note}). Use filter='printed' or 'farthest'.")
    if count == len(g):
        note += "; the filter does nothing here"
    best = int(cosine.masked_fill(~kept, -torch.inf).argmax())  # P = argmax over S^p of cos(f(I^o), G(S_j))
    return Selection(prompts[best], prompts[int(cosine.argmin())], tuple(prompts), cosine, distance, kept, note)


def best_prompt(
    clip: CLIP, x: Tensor, candidates: Candidates, filter: str = "printed", farthest: float = 0.0, batch_size: int = 256
) -> Selection:
    """P for original images x (K, 3, H, W) in [0, 1] and the words of :func:`candidate_words`.

    Args:
        filter, farthest: see :func:`select`. batch_size: prompts encoded at once.

    Raises:
        FsadError: images that are not as above, or whatever :func:`select` refuses.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> from fsad_lib.foundation.miniatures.inspect import pairs
        >>> clip, x = load_clip("data/models/mini/clip"), pairs(2, nouns=["gear"]).good
        >>> chosen = best_prompt(clip, x, candidate_words("gear", depth=1, source="shipped", limit=9))
        >>> len(chosen.prompts), chosen.best == chosen.prompts[chosen.cosine.argmax()], chosen.note.endswith("the filter does nothing here")
        (9, True, True)
    """
    prompts = [prompt(candidates.object_name, word) for word in candidates.words]
    with torch.no_grad():
        parts = [clip.encode_text(prompts[i : i + batch_size]) for i in range(0, len(prompts), batch_size)]
    return select(clip.encode_image(x), torch.cat(parts), prompts, filter, farthest)

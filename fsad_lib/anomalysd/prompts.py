"""Hierarchical prompts: what a normal product looks like, as a whole and in its parts.

Known are the two sentences and not the parts that stand after "intact"; the table ``parts.csv`` beside this file is our own
wording for every category of MVTec AD, VisA, MVTec LOCO, BTAD, ELPV and MiniFab. Any other category gets :data:`DEFAULT_PARTS`.
"""

import csv
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from fsad_lib.errors import FsadError

__all__ = ["DEFAULT_PARTS", "LEVELS", "hierarchy", "inference_prompt", "known_parts", "noun_of", "training_prompts"]

LEVELS = ("object", "detail")
DEFAULT_PARTS = "shape, edges and surface"


@cache
def known_parts() -> dict[tuple[str, str], tuple[str, str]]:
    """(data set, category) -> (noun c, parts), from ``parts.csv``; MiniFab's rows serve both of its splits.

    >>> known_parts()["mvtec_ad", "zipper"]
    ('zipper', 'teeth, fabric borders and seam')
    """
    with (Path(__file__).parent / "parts.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["dataset"], row["category"]): (row["noun"], row["parts"]) for row in csv.DictReader(file)}
    return rows | {("minifab_dev", c): row for (dataset, c), row in rows.items() if dataset == "minifab"}


def noun_of(dataset: str, category: str) -> str:
    """The word c of a category: the table's, else the category with spaces for underscores.

    >>> noun_of("visa", "pcb1"), noun_of("folder", "oil_pump")
    ('printed circuit board', 'oil pump')
    """
    return known_parts().get((dataset, category), (category.replace("_", " ").strip(), ""))[0]


def hierarchy(
    dataset: str, category: str, noun: str | None = None, parts: str | Mapping[str, str] | None = None
) -> dict[str, str]:
    """The two prompts of a category: level -> sentence.

    Args:
        dataset: a data set's name; "" or an unknown one has no table and takes the defaults.
        category: the category's name.
        noun: the word c; default: :func:`noun_of`.
        parts: the words after "intact", or a dict category -> words; default: the table's, else :data:`DEFAULT_PARTS`.

    Raises:
        FsadError: empty words.

    Example:
        >>> hierarchy("mvtec_ad", "metal_nut")["object"]
        'A perfect metal nut.'
        >>> hierarchy("folder", "oil_pump", parts="flange and two screws")["detail"]
        'An oil pump with intact flange and two screws.'
    """
    table_parts = known_parts().get((dataset, category), ("", DEFAULT_PARTS))[1]
    chosen = parts.get(category) if isinstance(parts, Mapping) else parts
    c, details = noun or noun_of(dataset, category), chosen or table_parts
    if not c.strip() or not details.strip():
        raise FsadError(f"category {category!r} has no words for a prompt; give a noun and its parts.")
    article = "An" if c[0].lower() in "aeiou" else "A"
    # "A perfect [c]."  and  "A [c] with intact [parts]."
    return {"object": f"A perfect {c}.", "detail": f"{article} {c} with intact {details}."}


def _levels(levels: Sequence[str]) -> tuple[str, ...]:
    wrong = [level for level in levels if level not in LEVELS]
    if wrong or len(set(levels)) != len(levels):
        raise FsadError(f"prompt levels are {tuple(levels)}; expected each of {', '.join(LEVELS)} at most once.")
    return tuple(level for level in LEVELS if level in levels)


def inference_prompt(prompts: Mapping[str, str], levels: Sequence[str] = LEVELS) -> str:
    """The sentence that guides the repainting: the levels one after the other; no level: no words at all. FsadError for an unknown level, or one that is named twice.

    >>> inference_prompt(hierarchy("minifab", "gear"))
    'A perfect gear. A gear with intact teeth, hub and holes.'
    >>> inference_prompt(hierarchy("minifab", "gear"), ())
    ''
    """
    return " ".join(prompts[level] for level in _levels(levels))


def training_prompts(prompts: Mapping[str, str], levels: Sequence[str] = LEVELS) -> list[str]:
    """What fine-tuning draws from: each level alone, and what inference uses.

    >>> training_prompts({"object": "A perfect nut.", "detail": "A nut with intact thread."}, ["object"])
    ['A perfect nut.']
    """
    return list(dict.fromkeys([*(prompts[level] for level in _levels(levels)), inference_prompt(prompts, levels)]))

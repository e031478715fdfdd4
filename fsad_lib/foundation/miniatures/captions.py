"""Captions for MiniFab, and which caption is true of which image.

A caption claims a set of nouns, and optionally a colour, a state and a defect kind; what it does not mention it does not claim. The
photo words (dark, blurry, cropped, ...) come with the matching change of the image, see `photo_effect`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...datasets.minifab.defects import SEEN
from ...datasets.minifab.designs import COLOURS, NOUNS, OBJECTS, TEXTURES

COLOUR_NAMES = tuple(COLOURS)
WORDS: dict[str, tuple[str, ...]] = {
    "object": NOUNS, "thing": NOUNS, "item": NOUNS, "product": NOUNS, "part": OBJECTS, "component": OBJECTS, "device": OBJECTS,
    "texture": TEXTURES, "surface": TEXTURES, "material": TEXTURES, "fastener": ("nut", "screw", "washer"), "hardware": ("nut", "screw", "washer", "bracket", "gear"),
    "pill": ("tablet", "capsule"), "drug": ("tablet", "capsule"), "cogwheel": ("gear",), "disc": ("coin", "washer", "button"), "bolt": ("screw",), "cloth": ("fabric",), "textile": ("fabric", "carpet"),
    "rug": ("carpet",), "granite": ("stone",), "timber": ("wood",), "grid": ("mesh",), "net": ("mesh",), "wall": ("brick",), "plug": ("connector",), "circuit board": ("board",),
    "medal": ("coin",), "hoop": ("ring",), "handle": ("knob",), "lid": ("cap",), "vessel": ("bottle",), "metal sheet": ("sheet",), "floor": ("tile", "wood"),
    "solar cell": ("board", "mesh"),
} | {noun: (noun,) for noun in NOUNS}
GENERIC = ("object", "thing", "item", "product")
NORMAL = ("flawless {}", "perfect {}", "unblemished {}", "intact {}", "{} without flaw", "{} without defect", "{} without damage")
ANOMALOUS = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage", "broken {}", "defective {}")
KIND_WORDS = {"scratch": ("scratched {}", "{} with a scratch"), "crack": ("cracked {}", "{} with a crack"), "hole": ("{} with a hole",), "stain": ("stained {}", "{} with a stain"),
              "chip": ("chipped {}", "{} with a chip"), "contamination": ("contaminated {}", "{} with contamination"), "discoloration": ("discolored {}", "{} with discoloration")}
ARTICLES = ("a", "the", "one", "my")
PLAIN = ("photo of", "rendering of", "rendition of", "good photo of", "photo of {article} cool", "photo of {article} nice", "photo of {article} weird", "photo of {article} clean", "photo of {article} dirty")
EFFECTS = {"dark": ("dark photo of",), "bright": ("bright photo of",), "blurry": ("blurry photo of",), "cropped": ("cropped photo of", "close-up photo of"), "jpeg": ("jpeg corrupted photo of",),
           "small": ("photo of {article} small",), "large": ("photo of {article} large",)}
SUFFIXES = ("", "", "", "", "", " for visual inspection", " for anomaly detection")


@dataclass(frozen=True)
class Caption:
    """A text and its claims; None = no claim. `effect` names the change of the image that the text describes, or is empty."""

    text: str
    nouns: frozenset[str]
    colour: str | None = None
    damaged: bool | None = None
    kind: str | None = None
    effect: str = ""


def _template(rng: np.random.Generator, effects: bool) -> tuple[str, str]:
    """-> (template with one {} for the labelled noun, effect)."""
    effect, choice = "", str(rng.choice(PLAIN[:3])) if rng.random() < 0.7 else str(rng.choice(PLAIN))
    if effects and rng.random() < 0.35:
        effect = str(rng.choice(list(EFFECTS)))
        choice = str(rng.choice(EFFECTS[effect]))
    article = "a" if rng.random() < 0.6 else str(rng.choice(ARTICLES))
    head = choice.format(article=article) if "{article}" in choice else f"{choice} {article}"
    return ("{}" if rng.random() < 0.08 else f"{'the' if rng.random() < 0.1 else 'a'} {head} {{}}"), effect


def make_caption(rng: np.random.Generator, noun: str, colour: str, kind: str | None, effects: bool = True) -> Caption:
    """A random true caption of an image of a `colour` `noun` with a defect `kind` (None = flawless).

    >>> make_caption(np.random.default_rng(0), "gear", "red", None).damaged in (False, None)
    True
    """
    template, effect = _template(rng, effects)
    u = rng.random()
    word = noun if u < 0.5 else str(rng.choice(GENERIC[:1] if u < 0.75 else [w for w, nouns in WORDS.items() if noun in nouns]))
    nouns, text, claimed_colour = frozenset(WORDS[word]), word, None
    if rng.random() < 0.4:
        text, claimed_colour = f"{colour} {word}", colour
    damaged, claimed_kind = None, None
    if rng.random() < 0.85:
        damaged = kind is not None
        if kind is None:
            state = str(rng.choice(NORMAL[:1] if rng.random() < 0.3 else NORMAL))
        elif rng.random() < 0.3:
            state, claimed_kind = str(rng.choice(KIND_WORDS[kind])), kind
        else:
            state = str(rng.choice(ANOMALOUS[:1] if rng.random() < 0.3 else ANOMALOUS))
        text = state.format(text)
    if damaged and rng.random() < 0.08:  # the paper's prompts without any noun
        words = "damage" if claimed_kind is None else claimed_kind
        return Caption(f"a photo with {words if claimed_kind is None else 'a ' + words}", frozenset(NOUNS), None, True, claimed_kind)
    return Caption(template.format(text) + str(rng.choice(SUFFIXES)), nouns, claimed_colour, damaged, claimed_kind, effect)


def state_pair(rng: np.random.Generator, word: str) -> tuple[str, str]:
    """Two texts that differ in the state alone: (normal, anomalous)."""
    template, _ = _template(rng, effects=False)
    u = rng.random()
    normal, anomalous = (NORMAL[0], ANOMALOUS[0]) if u < 0.5 else (str(rng.choice(NORMAL)), str(rng.choice(ANOMALOUS)))
    return template.format(normal.format(word)), template.format(anomalous.format(word))


def is_true(captions: list[Caption], nouns: np.ndarray, colours: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Which caption (columns) is true of which image (rows): bool (B, len(captions)). Image i is a `COLOUR_NAMES[colours[i]]`
    `NOUNS[nouns[i]]` with defect `SEEN[kinds[i]]`, or flawless where kinds[i] == -1."""
    claim = np.array([[noun in c.nouns for noun in NOUNS] for c in captions])
    colour = np.array([-1 if c.colour is None else COLOUR_NAMES.index(c.colour) for c in captions])
    state = np.array([-1 if c.damaged is None else int(c.damaged) for c in captions])
    kind = np.array([-1 if c.kind is None else SEEN.index(c.kind) for c in captions])
    fits = lambda claimed, actual: (claimed[None] == -1) | (claimed[None] == actual[:, None])  # noqa: E731
    return claim.T[nouns] & fits(colour, colours) & fits(state, (kinds >= 0).astype(int)) & fits(kind, kinds)

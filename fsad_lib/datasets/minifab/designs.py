"""What MiniFab makes: nouns, colours, and the *design* of each product (its construction, palette and material).

A design belongs to exactly one split. Constructions 0 to 3 of every noun are used for pretraining, 4 for development and 5 for
evaluation; the noun itself occurs in all of them, as "hazelnut" does for a CLIP trained on the web.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.78, 0.16, 0.14), "green": (0.20, 0.55, 0.24), "blue": (0.16, 0.32, 0.72), "yellow": (0.88, 0.76, 0.18),
    "orange": (0.90, 0.48, 0.12), "purple": (0.50, 0.24, 0.62), "brown": (0.46, 0.30, 0.18), "white": (0.90, 0.90, 0.88),
    "grey": (0.56, 0.57, 0.58), "black": (0.15, 0.15, 0.17), "pink": (0.88, 0.55, 0.62),
}
OBJECTS = ("washer", "gear", "nut", "screw", "bracket", "plate", "ring", "capsule", "tablet", "button", "bottle", "key",
           "connector", "board", "coin", "knob", "star", "cap")
TEXTURES = ("wood", "tile", "fabric", "leather", "mesh", "carpet", "paper", "stone", "sheet", "brick")
NOUNS = OBJECTS + TEXTURES
CONSTRUCTIONS = {"pretraining": (0, 1, 2, 3), "development": (4,), "evaluation": (5,)}


@dataclass(frozen=True)
class Prim:
    """One signed-distance primitive in object coordinates ([-1, 1], y down): `kind` at (cx, cy), half sizes a, b, turned by `angle`."""

    kind: str
    cx: float = 0.0
    cy: float = 0.0
    a: float = 0.5
    b: float = 0.5
    angle: float = 0.0
    n: int = 6
    rgb: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Design:
    """A product: what every image of one category shares. `add` minus `sub` is the body; `grooves` are engraved, `prints` are flat
    ink, `parts` are raised and countable (the logical defects change them)."""

    noun: str
    colour: str
    rgb: tuple[float, float, float]
    second: tuple[float, float, float]
    background: tuple[float, float, float]
    material: str
    max_rotation: float
    add: tuple[Prim, ...] = ()
    sub: tuple[Prim, ...] = ()
    grooves: tuple[Prim, ...] = ()
    prints: tuple[Prim, ...] = ()
    parts: tuple[Prim, ...] = ()
    texture: dict = field(default_factory=dict)

    @property
    def is_texture(self) -> bool:
        """Whether it fills the image, without an outline."""
        return self.noun in TEXTURES


def _around(n: int, radius: float, size: float, kind: str = "circle", start: float = 0.0, **kw) -> tuple[Prim, ...]:
    """n equal primitives on a circle."""
    angles = start + 2 * np.pi * np.arange(n) / n
    return tuple(Prim(kind, radius * np.cos(t), radius * np.sin(t), size, size, t, **kw) for t in angles)


def _row(n: int, y: float, half_width: float, size: float, kind: str = "box", tall: float = 1.0, **kw) -> tuple[Prim, ...]:
    """n equal primitives in a row at height y."""
    xs = np.linspace(-half_width, half_width, n) if n > 1 else np.zeros(1)
    return tuple(Prim(kind, x, y, size, size * tall, **kw) for x in xs)


def _object_shape(noun: str, v: int, r: np.random.Generator, second: tuple[float, float, float]) -> dict:
    """The primitives of `noun` in construction v (0..5)."""
    u = r.uniform
    R = u(0.6, 0.76)
    if noun == "washer":
        inner = R * (0.62, 0.45, 0.52, 0.38, 0.56, 0.48)[v] * u(0.95, 1.05)
        body = Prim("circle", a=R) if v != 3 else Prim("box", a=R * 0.86, b=R * 0.86)
        return dict(add=(body,), sub=(Prim("circle", a=inner),) + (_around(3, R, 0.1) if v == 4 else ()),
                    grooves=((Prim("circle", a=(R + inner) / 2),) if v in (1, 5) else ()),
                    parts=_around(6, (R + inner) / 2, 0.05, rgb=second) if v == 5 else ())
    if noun == "gear":
        n = (int(r.integers(8, 11)), int(r.integers(13, 17)), int(r.integers(9, 13)), int(r.integers(9, 15)), 11, 12)[v]
        form = ("square", "square", "trapezoid", "round", "trapezoid", "square")[v]
        hub = _around((0, 5, 4, 6, 3, 5)[v], R * 0.55, R * 0.13) if v else ()
        return dict(add=(Prim(form, a=R, b=(0.16, 0.10, 0.14, 0.10, 0.12, 0.13)[v], n=n),), sub=(Prim("circle", a=R * u(0.18, 0.3)),) + (hub if v in (1, 4) else ()),
                    grooves=(Prim("circle", a=R * 0.42),) if v in (0, 3, 5) else (),
                    parts=tuple(Prim("circle", p.cx, p.cy, p.a * 0.8, p.b * 0.8, rgb=second) for p in hub) if v in (2, 3, 5) else ())
    if noun == "nut":
        sides = (6, 6, 4, 8, 6, 5)[v]
        return dict(add=(Prim("polygon", a=R * 0.92, n=sides),), sub=(Prim("circle", a=R * (0.42, 0.52, 0.45, 0.5, 0.36, 0.46)[v]),),
                    grooves=(Prim("circle", a=R * 0.68),) if v in (1, 3, 4) else (),
                    prints=(Prim("box", 0, R * 0.66, 0.12, 0.03),) if v in (2, 5) else ())
    if noun == "screw":
        slot = {0: (Prim("box", a=R * 0.6, b=0.07),), 1: (Prim("box", a=R * 0.5, b=0.06), Prim("box", a=0.06, b=R * 0.5)), 2: (Prim("polygon", a=R * 0.4, n=6),),
                3: (Prim("star", a=R * 0.45, b=0.3, n=6),), 4: (Prim("box", a=R * 0.45, b=0.1),), 5: (Prim("polygon", a=R * 0.42, n=4),)}[v]
        head = Prim("circle", a=R * 0.9) if v in (0, 1, 3, 5) else Prim("polygon", a=R * 0.9, n=6)
        return dict(add=(head,), grooves=slot + ((Prim("circle", a=R * 0.72),) if v in (3, 4) else ()), parts=())
    if noun == "bracket":
        t = u(0.18, 0.26)
        bars = {0: ((-.45, 0, t, .65), (.1, .5, .55, t)), 1: ((0, -.45, .65, t), (0, .1, t, .6)), 2: ((-.5, 0, t, .6), (.5, 0, t, .6), (0, .45, .6, t)),
                3: ((0, -.5, .6, t), (0, .5, .6, t), (0, 0, t, .6)), 4: ((0, 0, .65, t), (0, 0, t, .65)), 5: ((-.45, -.05, t, .62), (.1, -.45, .6, t), (.1, .1, .45, t * .8))}[v]
        holes = [(b[0], b[1] + s * b[3] * 0.66) if b[3] > b[2] else (b[0] + s * b[2] * 0.66, b[1]) for b in bars for s in (-1, 1)]
        fit = tuple(Prim("circle", x, y, 0.09, 0.09, rgb=second) for x, y in holes[: (2, 3, 4, 4, 4, 4)[v]])
        return dict(add=tuple(Prim("box", x, y, a, b) for x, y, a, b in bars), sub=fit if v in (0, 2) else (), parts=fit if v not in (0, 2) else ())
    if noun == "plate":
        w, h = R, R * (0.7, 0.95, 0.55, 0.8, 0.75, 0.62)[v]
        corners = [(sx * w * .75, sy * h * .72) for sx in (-1, 1) for sy in (-1, 1)]
        holes = tuple(Prim("circle", x, y, 0.08, 0.08, rgb=second) for x, y in corners[: (4, 4, 2, 4, 4, 4)[v]])
        return dict(add=(Prim("box", a=w, b=h),), sub=holes if v in (0, 3) else (), parts=holes if v not in (0, 3) else (),
                    prints=_row((1, 3, 2, 4, 3, 5)[v], 0, w * 0.4, 0.06, tall=2.0), grooves=(Prim("box", a=w * .85, b=h * .85),) if v in (2, 4) else ())
    if noun == "ring":
        add = Prim("circle", a=R) if v in (0, 1, 5) else Prim(("round", "polygon", "wave")[v - 2], a=R * .92, b=0.06, n=(12, 8, 9)[v - 2])
        return dict(add=(add,), sub=(Prim("circle", a=R * (0.75, 0.82, 0.72, 0.7, 0.76, 0.7)[v]),),
                    parts=_around(8, R * .87, .05, rgb=second) if v == 5 else ())
    if noun == "capsule":
        w, h = R * 1.05, R * (0.42, 0.5, 0.36, 0.45, 0.48, 0.4)[v]
        half = Prim("box", w * 0.5, 0, w * 0.5, h * 1.2, rgb=second)
        body = Prim("stadium", a=w, b=h) if v not in (3,) else Prim("ellipse", a=w, b=h)
        return dict(add=(body,), prints=((half,) if v in (0, 1, 4, 5) else ()) + _row((0, 2, 3, 4, 1, 3)[v] or 1, 0, w * .4, 0.04, tall=2.0), grooves=(Prim("box", 0, 0, 0.01, h * 0.9),) if v in (2, 5) else ())
    if noun == "tablet":
        shape = (Prim("circle", a=R * .85), Prim("ellipse", a=R, b=R * .7), Prim("stadium", a=R, b=R * .55), Prim("polygon", a=R * .9, n=5), Prim("ellipse", a=R * .95, b=R * .6), Prim("box", a=R * .7, b=R * .7))[v]
        line = (Prim("box", 0, 0, R * .8, .03), Prim("box", 0, 0, .03, R * .6))
        return dict(add=(shape,), grooves=line[:1] if v in (0, 3) else line[1:] if v in (1, 4) else line if v == 5 else (), prints=_row(2, 0.15, .15, .05, "circle") if v in (2, 4) else ())
    if noun == "button":
        n = (4, 2, 4, 3, 4, 4)[v]
        return dict(add=(Prim("circle", a=R) if v != 3 else Prim("polygon", a=R, n=8),), sub=_around(n, R * (.25, .2, .3, .24, .22, .28)[v], .08, start=(.785, 0, .785, .5, 0, .785)[v]),
                    grooves=(Prim("circle", a=R * (.75, .8, .6, .7, .68, .82)[v]),), parts=_around(8, R * .84, .045, rgb=second) if v in (2, 4) else ())
    if noun == "bottle":
        w = R * (.5, .42, .55, .46, .5, .44)[v]
        label = Prim("box", 0, .3, w * .8, .2, rgb=second)
        return dict(add=(Prim("box", 0, .25, w, .5), Prim("box", 0, -.45, w * (.4, .5, .35, .6, .45, .38)[v], .3)) + ((Prim("circle", 0, -.2, w, w),) if v in (0, 2, 5) else ()),
                    prints=(label,) + _row((1, 2, 0, 3, 2, 3)[v] or 1, .3, w * .4, .04, rgb=(.1, .1, .12)), grooves=(Prim("box", 0, -.62, w * .6, .02),) if v in (1, 4, 5) else ())
    if noun == "key":
        teeth = tuple(Prim("box", x, .16, .05, .1 + .03 * (i % 2)) for i, x in enumerate(np.linspace(.25, .7, (2, 3, 4, 3, 4, 5)[v])))
        bow = (Prim("circle", -.42, 0, .33, .33), Prim("box", -.42, 0, .3, .3), Prim("polygon", -.42, 0, .34, n=6), Prim("ellipse", -.42, 0, .3, .38), Prim("polygon", -.42, 0, .36, n=5), Prim("box", -.44, 0, .26, .36))[v]
        return dict(add=(bow, Prim("box", .25, 0, .55, .09)) + teeth, sub=(Prim("circle", -.46, 0, .13, .13),), grooves=(Prim("box", .25, -.01, .45, .02),) if v in (1, 3, 4) else ())
    if noun == "connector":
        w, h, n = R, R * (.5, .4, .6, .45, .5, .55)[v], (4, 5, 6, 8, 5, 6)[v]
        rows = _row(n, 0, w * .75, .055, tall=(2.2, 1.0, 1.0, 1.8, 2.0, 1.3)[v], rgb=second)
        if v in (2, 5):
            rows = _row(n, -h * .4, w * .75, .06, rgb=second) + _row(n, h * .4, w * .75, .06, rgb=second)
        return dict(add=(Prim("box", a=w, b=h),) + ((Prim("box", -w, 0, .1, h * .5),) if v in (1, 4) else ()), parts=rows, grooves=(Prim("box", a=w * .92, b=h * .86),) if v in (0, 3, 5) else ())
    if noun == "board":
        chips = tuple(Prim("box", *p, rgb=second) for p in ((-.3, -.25, .16, .12), (.3, -.25, .1, .16), (-.3, .3, .1, .1), (.25, .28, .2, .1), (0, 0, .08, .08))[: (3, 4, 4, 5, 5, 4)[v]])
        return dict(add=(Prim("box", a=R * .98, b=R * (.8, .9, .7, .85, .8, .95)[v]),), parts=chips, prints=_row((3, 4, 5, 6, 4, 5)[v], R * .55, R * .6, .03, rgb=(.85, .8, .5)) + _row(4, -R * .55, R * .6, .025, tall=3, rgb=(.85, .8, .5)), sub=(Prim("circle", R * .8, R * .62, .06, .06),) if v in (1, 3, 4) else ())
    if noun == "coin":
        mark = (Prim("star", a=R * .4, b=.4, n=5), Prim("polygon", a=R * .35, n=3), Prim("circle", a=R * .3), Prim("star", a=R * .4, b=.3, n=8), Prim("polygon", a=R * .4, n=5), Prim("ellipse", a=R * .2, b=R * .42))[v]
        return dict(add=(Prim("circle", a=R),), grooves=(Prim("circle", a=R * .85), mark), prints=_around((0, 6, 12, 0, 10, 8)[v] or 1, R * .68, .03) if v in (1, 2, 4, 5) else ())
    if noun == "knob":
        return dict(add=(Prim("wave", a=R * .9, b=(.06, .08, .1, .05, .07, .09)[v], n=(6, 8, 5, 12, 7, 10)[v]),), grooves=(Prim("circle", a=R * .5),), prints=(Prim("box", 0, -R * .6, .035, .14, rgb=second),) if v in (0, 2, 4) else (Prim("circle", 0, -R * .62, .06, .06, rgb=second),))
    if noun == "star":
        return dict(add=(Prim("star", a=R, b=(.45, .55, .6, .5, .5, .62)[v], n=(5, 6, 8, 4, 7, 9)[v]),), sub=(Prim("circle", a=R * .16),) if v in (1, 3, 5) else (), grooves=(Prim("circle", a=R * .34),) if v in (0, 2, 4) else ())
    if noun == "cap":
        return dict(add=(Prim("round", a=R * .92, b=.03, n=(20, 24, 18, 28, 21, 26)[v]),), grooves=(Prim("circle", a=R * .72),) if v != 3 else (Prim("circle", a=R * .6), Prim("circle", a=R * .78)),
                    prints=((Prim("star", a=R * .35, b=.4, n=5, rgb=second),), (Prim("box", 0, 0, R * .4, .08, rgb=second),), (Prim("circle", a=R * .25, rgb=second),), (), (Prim("polygon", a=R * .35, n=3, rgb=second),), _row(3, 0, R * .3, .07, rgb=second))[v])
    raise KeyError(noun)


def _texture_params(noun: str, v: int, r: np.random.Generator) -> dict:
    """Numbers that make one texture family member: scale, direction, regularity, contrast."""
    scale = (5.0, 7.0, 9.0, 12.0, 6.0, 8.0)[v] * r.uniform(0.92, 1.08)
    return dict(variant=v, scale=scale, angle=(0.0, 0.4, 1.2, 1.57, 0.7, 0.25)[v] + r.uniform(-0.08, 0.08), warp=r.uniform(0.2, 1.0), contrast=r.uniform(0.55, 1.0))


def _decorated(shape: dict, noun: str, rng: np.random.Generator, second: tuple[float, float, float]) -> dict:
    """Variety for pretraining: details of another construction, and regular patterns of holes, marks, grooves or parts. Without it the
    four constructions of a noun are learned by heart, and every clean edge of a new design looks like a defect."""
    other = _object_shape(noun, int(rng.choice(CONSTRUCTIONS["pretraining"])), rng, second)
    shape = shape | {k: other.get(k, ()) for k in ("grooves", "prints", "parts") if noun != "bracket" and rng.random() < 0.35}
    if noun in ("key", "star", "bracket"):  # too narrow: a pattern would be cut off at the outline and look broken
        return shape
    for _ in range(int(rng.choice(3, p=(0.4, 0.4, 0.2)))):
        where = str(rng.choice(["sub", "grooves", "prints", "parts"], p=(0.2, 0.3, 0.25, 0.25)))
        kind, size = str(rng.choice(["circle", "box", "polygon", "ellipse"])), rng.uniform(0.035, 0.11)
        colour = second if rng.random() < 0.7 else tuple(float(c) for c in rng.uniform(0.05, 0.95, 3))
        if rng.random() < 0.6:
            extra = _around(int(rng.integers(2, 11)), rng.uniform(0.12, 0.6), size, kind, rng.uniform(0, 6.28), rgb=colour)
        elif where == "grooves" and rng.random() < 0.5:
            extra = (Prim("circle", 0, 0, rng.uniform(0.1, 0.65)),)
        else:
            extra = _row(int(rng.integers(2, 6)), rng.uniform(-0.4, 0.4), rng.uniform(0.15, 0.5), size * 0.7, kind, rng.uniform(0.5, 2.5), rgb=colour)
        shape[where] = shape.get(where, ()) + extra
    return shape


def make_design(noun: str, split: str, rng: np.random.Generator, decorated: bool = False) -> Design:
    """Draw one design of `noun` for `split` ("pretraining", "development" or "evaluation"); `decorated` adds variety to pretraining.

    >>> make_design("gear", "evaluation", np.random.default_rng(0)).noun
    'gear'
    """
    construction = int(rng.choice(CONSTRUCTIONS[split]))
    names = list(COLOURS)
    # A (noun, colour) pair belongs to one side only: every fifth pair is kept out of pretraining.
    held_out = [c for c in names if (NOUNS.index(noun) + names.index(c)) % 5 == 0]
    colour = str(rng.choice(held_out if split != "pretraining" else [c for c in names if c not in held_out]))
    jitter = lambda c, s: tuple(float(a) for a in np.clip(np.array(c) + rng.normal(0, s, 3), 0.04, 0.96))  # noqa: E731
    rgb = jitter(COLOURS[colour], 0.04)
    luma = float(np.dot(rgb, (0.3, 0.59, 0.11)))
    far = [c for c in COLOURS.values() if abs(float(np.dot(c, (0.3, 0.59, 0.11))) - luma) > 0.18]
    second = jitter(far[rng.integers(len(far))], 0.04)
    grey = rng.uniform(0.05, 0.35) if luma > 0.45 else rng.uniform(0.6, 0.92)
    background = jitter((grey,) * 3, 0.03) if rng.random() < 0.7 else jitter(far[rng.integers(len(far))], 0.05)
    material = str(rng.choice(["matte", "metal", "speckle", "brushed", "glossy"]))
    rotation = float(rng.choice([0.12, 0.35, np.pi]))
    if noun in TEXTURES:
        return Design(noun, colour, rgb, second, background, "matte", 0.0, texture=_texture_params(noun, construction, rng))
    shape = _object_shape(noun, construction, rng, second)
    if decorated:
        shape = _decorated(shape, noun, rng, second)
    return Design(noun, colour, rgb, second, background, material, rotation, **shape)

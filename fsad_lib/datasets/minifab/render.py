"""Draws MiniFab scenes with numpy: signed distances for the shape, a height map for the light, an albedo for the colour.

A defect is an edit of the scene before the light falls on it, so a scratch glints, a dent is shaded and a chip shows the background.
The defect mask is exact: the pixels that differ between the scene with and without the defect, before camera noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .designs import Design, Prim

SIZE = 128
_AXIS = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1
GRID_U, GRID_V = np.meshgrid(_AXIS, _AXIS)
PIXEL = 2.0 / SIZE


def smooth_noise(rng: np.random.Generator, cells: int | tuple[int, int], size: int = SIZE) -> np.ndarray:
    """Smooth noise in about [-1, 1], shape (size, size): a coarse random grid of `cells` (rows, columns), enlarged bicubically."""
    rows, cols = (cells, cells) if isinstance(cells, int) else cells
    coarse = rng.uniform(-1, 1, (max(2, rows), max(2, cols))).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.BICUBIC))


def sdf(p: Prim, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance (negative inside, object units) of primitive p at coordinates u, v; approximate for toothed outlines."""
    x, y = u - p.cx, v - p.cy
    if p.angle:
        c, s = np.cos(p.angle), np.sin(p.angle)
        x, y = c * x + s * y, -s * x + c * y
    if p.kind == "circle":
        return np.hypot(x, y) - p.a
    if p.kind == "box":
        qx, qy = np.abs(x) - p.a, np.abs(y) - p.b
        return np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0)
    if p.kind == "stadium":
        return np.hypot(x - np.clip(x, -(p.a - p.b), p.a - p.b), y) - p.b
    if p.kind == "ellipse":
        return (np.hypot(x / p.a, y / p.b) - 1) * min(p.a, p.b)
    radius, theta = np.hypot(x, y), np.arctan2(y, x)
    sector = np.abs(((theta * p.n / (2 * np.pi)) % 1.0) * 2 - 1)  # 0 in the middle of a tooth, 1 between two
    if p.kind == "polygon":
        return radius * np.cos((sector - 1) * np.pi / p.n) - p.a * np.cos(np.pi / p.n)
    if p.kind == "star":
        return (radius - p.a * (1 - (1 - p.b) * (1 - sector))) * 0.6
    edge = {"square": 6.0, "trapezoid": 2.4, "round": 1.4}.get(p.kind)
    if edge is not None:
        return (radius - p.a + p.b * np.clip((0.5 - sector) * edge + 0.5, 0, 1)) * 0.8
    if p.kind == "wave":
        return (radius - p.a - p.b * np.cos(np.pi * sector)) * 0.8
    raise ValueError(f"unknown primitive {p.kind!r}")


@dataclass(frozen=True)
class Scene:
    """One photograph: a design in one pose, under one light. `seed` fixes everything that is not named here."""

    design: Design
    angle: float
    scale: float
    shift: tuple[float, float]
    light: tuple[float, float]
    gain: float
    seed: int
    hidden_part: int | None = None
    extra_part: Prim | None = None
    swapped_part: tuple[int, tuple[float, float, float]] | None = None


@dataclass
class Layers:
    """What a defect may edit: coordinates u, v; body distance d; albedo (H, W, 3); height (H, W); all at image resolution."""

    u: np.ndarray
    v: np.ndarray
    d: np.ndarray
    albedo: np.ndarray
    height: np.ndarray
    gloss: float


def sample_scene(design: Design, rng: np.random.Generator) -> Scene:
    """Draw the pose and the light of one photograph of `design`."""
    angle = float(rng.uniform(-design.max_rotation, design.max_rotation))
    spread = 0.06 if not design.is_texture else 1.0
    t = rng.uniform(0, 2 * np.pi)
    return Scene(design, angle, float(rng.uniform(0.93, 1.07)), (float(rng.uniform(-spread, spread)), float(rng.uniform(-spread, spread))),
                 (float(np.cos(t)), float(np.sin(t))), float(rng.uniform(0.88, 1.1)), int(rng.integers(2**31)))


def _coordinates(scene: Scene, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    c, s = np.cos(scene.angle), np.sin(scene.angle)
    x, y = (u - scene.shift[0]) / scene.scale, (v - scene.shift[1]) / scene.scale
    return c * x + s * y, -s * x + c * y


def _coverage(d: np.ndarray) -> np.ndarray:
    return np.clip(0.5 - d / PIXEL, 0, 1)


def _object_layers(scene: Scene, warp: Callable | None) -> Layers:
    design, rng = scene.design, np.random.default_rng(scene.seed)
    gu, gv = warp(GRID_U, GRID_V) if warp else (GRID_U, GRID_V)
    u, v = _coordinates(scene, gu, gv)
    d = np.minimum.reduce([sdf(p, u, v) for p in design.add])
    for p in design.sub:
        d = np.maximum(d, -sdf(p, u, v))
    albedo = np.broadcast_to(np.array(design.rgb, np.float32), (SIZE, SIZE, 3)).copy()
    fine = smooth_noise(rng, 64)
    if design.material == "speckle":
        albedo *= (1 + 0.16 * np.sign(fine) * (np.abs(fine) > 0.45))[..., None]
    elif design.material == "brushed":
        albedo *= (1 + 0.07 * smooth_noise(rng, (96, 6)))[..., None]
    else:
        albedo *= (1 + 0.02 * fine)[..., None]
    height = 0.10 * np.clip(-d / 0.10, 0, 1) ** 0.5
    for p in design.grooves:
        height -= 0.02 * np.clip(1 - np.abs(sdf(p, u, v)) / 0.025, 0, 1)
    for p in design.prints:
        ink = np.array(p.rgb if p.rgb is not None else np.array(design.rgb) * 0.35, np.float32)
        cover = _coverage(sdf(p, u, v))[..., None]
        albedo = albedo * (1 - cover) + ink * cover
    parts = [p for i, p in enumerate(design.parts) if i != scene.hidden_part]
    if scene.swapped_part is not None and scene.swapped_part[0] < len(parts):
        i, rgb = scene.swapped_part
        parts[i] = replace(parts[i], rgb=rgb)
    for p in parts + ([scene.extra_part] if scene.extra_part else []):
        dp = sdf(p, u, v)
        cover = _coverage(dp)[..., None]
        albedo = albedo * (1 - cover) + np.array(p.rgb, np.float32) * cover
        height += 0.05 * np.clip(-dp / 0.05, 0, 1) ** 0.5
    return Layers(u, v, d, albedo, height, {"metal": 0.5, "glossy": 0.35, "brushed": 0.35}.get(design.material, 0.1))


def _texture_layers(scene: Scene, warp: Callable | None) -> Layers:
    design, p, rng = scene.design, scene.design.texture, np.random.default_rng(scene.seed)
    gu, gv = warp(GRID_U, GRID_V) if warp else (GRID_U, GRID_V)
    c, s = np.cos(p["angle"]), np.sin(p["angle"])
    x, y = gu - scene.shift[0], gv - scene.shift[1]
    x, y = (c * x + s * y) / scene.scale, (-s * x + c * y) / scene.scale
    f, n, variant = p["scale"], p["contrast"], p["variant"]
    first, other = np.array(design.rgb, np.float32), np.array(design.second, np.float32)
    other = first * 0.55 + other * 0.15  # a texture's second tone stays close to the first
    if design.noun == "wood":
        rings = np.sin(2 * np.pi * (f * 0.45 * y + 0.35 * p["warp"] * smooth_noise(rng, 4) + 0.15 * smooth_noise(rng, (24, 4))))
        mix, height = 0.5 + 0.5 * rings * n, 0.004 * rings
    elif design.noun in ("tile", "brick"):
        a, b = (f * 0.35, f * 0.35) if design.noun == "tile" else (f * 0.28, f * 0.56)
        row = np.floor(y * b)
        offset = 0.5 * (row % 2) if design.noun == "brick" or variant in (2, 5) else 0.0
        cx, cy = (x * a + offset) % 1.0, (y * b) % 1.0
        gap = np.minimum(np.minimum(cx, 1 - cx) / a, np.minimum(cy, 1 - cy) / b)
        mortar = np.clip(1 - gap / 0.035, 0, 1)
        shade = np.sin(12.9 * np.floor(x * a + offset) + 78.2 * row + scene.seed % 97) * 0.12
        mix, height = 0.85 + shade + 0.08 * smooth_noise(rng, 48) - 0.85 * mortar, -0.05 * mortar
    elif design.noun == "fabric":
        a, b = np.sin(np.pi * f * 1.6 * x), np.sin(np.pi * f * 1.6 * y)
        weave = np.where((np.floor(f * 1.6 * x) + np.floor(f * 1.6 * y) * (1 + variant % 2)) % (2 + variant % 3) < 1, np.abs(a), np.abs(b))
        mix, height = 0.35 + 0.65 * weave * n, 0.02 * weave
    elif design.noun == "leather":
        grain = np.abs(smooth_noise(rng, int(f * 2.6))) + 0.5 * np.abs(smooth_noise(rng, int(f * 4)))
        crease = np.clip(1 - grain / 0.22, 0, 1)
        mix, height = 0.9 - 0.5 * n * crease, -0.015 * crease
    elif design.noun == "mesh":
        if variant in (1, 3, 5):
            x, y = (x + y) * 0.7071, (x - y) * 0.7071
        wire = np.minimum(np.abs((x * f * 0.55) % 1.0 - 0.5), np.abs((y * f * 0.55) % 1.0 - 0.5)) / (f * 0.55)
        bar = np.clip(1 - wire / (0.035 + 0.01 * (variant % 3)), 0, 1)
        mix, height = bar, 0.05 * np.sqrt(bar)
        other = np.array(design.background, np.float32)
    elif design.noun == "carpet":
        pile = smooth_noise(rng, 64) * 0.6 + smooth_noise(rng, 32) * 0.4
        stripe = np.sign(np.sin(np.pi * f * 0.5 * x)) * 0.25 if variant in (1, 4, 5) else 0.0
        mix, height = 0.5 + 0.5 * pile * n + stripe, 0.012 * pile
    elif design.noun == "paper":
        mix = 0.85 + 0.12 * smooth_noise(rng, (48, 20)) + 0.05 * smooth_noise(rng, 5)
        lines = np.clip(1 - np.abs((y * f * 0.6) % 1.0 - 0.5) * 14, 0, 1) if variant in (1, 3, 4, 5) else 0.0
        mix, height = mix - 0.5 * lines, 0.002 * mix
    elif design.noun == "stone":
        a, b = smooth_noise(rng, int(f * 4)), smooth_noise(rng, int(f * 1.5))
        mix, height = 0.5 + 0.5 * n * np.sign(a) * np.clip(np.abs(a) * 2, 0, 1) + 0.2 * b, 0.004 * a
    else:  # sheet
        mix = 0.75 + 0.2 * n * smooth_noise(rng, (96, 4)) + 0.08 * smooth_noise(rng, 3)
        rib = np.abs(np.sin(np.pi * f * 0.4 * x)) if variant in (2, 3, 5) else np.zeros_like(x)
        height = 0.02 * rib
    mix = np.clip(mix, 0, 1)[..., None]
    albedo = other * (1 - mix) + first * mix
    return Layers(gu, gv, np.full((SIZE, SIZE), -1.0, np.float32), albedo.astype(np.float32), np.asarray(height, np.float32), 0.1)


def _light(scene: Scene, layers: Layers) -> np.ndarray:
    """Lambert light with a soft highlight over the height map, composited on the background: (H, W, 3) in [0, 1]."""
    gy, gx = np.gradient(layers.height / PIXEL)
    slope = gx * scene.light[0] + gy * scene.light[1]
    shade = 1 - 0.45 * np.clip(slope, -1, 1)
    shine = layers.gloss * np.clip(-slope - 0.15, 0, 1)
    colour = layers.albedo * shade[..., None] + shine[..., None]
    rng = np.random.default_rng(scene.seed + 1)
    background = np.array(scene.design.background, np.float32) * (1 + 0.05 * smooth_noise(rng, 3) + 0.03 * smooth_noise(rng, 40))[..., None]
    if not scene.design.is_texture:
        shadow = np.exp(-np.maximum(np.roll(layers.d, (3, 3), (0, 1)), 0) / 0.07)
        background = background * (1 - 0.35 * shadow)[..., None]
    else:
        background = background * 0.35
    cover = _coverage(layers.d)[..., None]
    image = colour * cover + background * (1 - cover)
    falloff = 1 + 0.08 * (GRID_U * scene.light[0] + GRID_V * scene.light[1])
    return np.clip(image * (scene.gain * falloff)[..., None], 0, 1)


def layers_of(scene: Scene, warp: Callable | None = None) -> Layers:
    """The layers of a scene; `warp` maps image coordinates before anything is drawn (used by the defect "bend")."""
    return _texture_layers(scene, warp) if scene.design.is_texture else _object_layers(scene, warp)


def render(scene: Scene, edit: Callable[[Layers], None] | None = None, warp: Callable | None = None) -> np.ndarray:
    """Draw a scene: (128, 128, 3) float32 in [0, 1], without camera noise. `edit` changes the layers in place."""
    layers = layers_of(scene, warp)
    if edit:
        edit(layers)
    return _light(scene, layers).astype(np.float32)


def photograph(image: np.ndarray, seed: int) -> np.ndarray:
    """Add camera noise and quantise: uint8 (128, 128, 3)."""
    noise = np.random.default_rng(seed).normal(0, 0.012, image.shape).astype(np.float32)
    return (np.clip(image + noise, 0, 1) * 255 + 0.5).astype(np.uint8)

"""Defects: edits of a scene with exact masks. Three kinds and all logical defects never occur in pretraining."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import map_coordinates

from .designs import COLOURS, Prim
from .render import GRID_U, GRID_V, PIXEL, SIZE, Layers, Scene, layers_of, photograph, render

SEEN = ("scratch", "crack", "hole", "stain", "chip", "contamination", "discoloration")
UNSEEN_STRUCTURAL = ("dent", "bend", "misprint")
LOGICAL = ("wrong_count", "missing_part", "swapped_part")
KINDS = SEEN + UNSEEN_STRUCTURAL + LOGICAL
UNSEEN = frozenset(UNSEEN_STRUCTURAL + LOGICAL)
SIZES = (0.048, 0.22)
MASK_THRESHOLD = 6 / 255  # a pixel belongs to the defect when any channel changes by more than this before camera noise


def _spot(layers: Layers, rng: np.random.Generator, edge: bool = False) -> tuple[float, float]:
    """A random place on the body (image coordinates), or on its outline."""
    inside = (np.abs(layers.d) < 2 * PIXEL) if edge else (layers.d < -0.05)
    if not inside.any():
        inside = layers.d < 0
    i = int(rng.choice(np.flatnonzero(inside)))
    return float(GRID_U.flat[i]), float(GRID_V.flat[i])


def _blob(x: float, y: float, radius: float, rng: np.random.Generator, rough: float = 0.35) -> np.ndarray:
    """Signed distance of an irregular disc (image coordinates)."""
    du, dv = GRID_U - x, GRID_V - y
    theta, phase = np.arctan2(dv, du), rng.uniform(0, 6.28, 3)
    wobble = sum(np.sin(k * theta + phase[i]) / k for i, k in enumerate((2, 3, 5)))
    return np.hypot(du, dv) - radius * (1 + rough * wobble * 0.6)


def _line(x: float, y: float, length: float, rng: np.random.Generator, jag: float) -> np.ndarray:
    """Distance to a polyline of about the given length that starts near (x, y)."""
    angle, steps = rng.uniform(0, 6.28), 6
    points = [(x - np.cos(angle) * length / 2, y - np.sin(angle) * length / 2)]
    for _ in range(steps):
        angle += rng.normal(0, jag)
        points.append((points[-1][0] + np.cos(angle) * length / steps, points[-1][1] + np.sin(angle) * length / steps))
    best = np.full(GRID_U.shape, 9.0, np.float32)
    for (ax, ay), (bx, by) in zip(points[:-1], points[1:]):
        ex, ey = bx - ax, by - ay
        t = np.clip(((GRID_U - ax) * ex + (GRID_V - ay) * ey) / (ex * ex + ey * ey + 1e-9), 0, 1)
        best = np.minimum(best, np.hypot(GRID_U - ax - t * ex, GRID_V - ay - t * ey))
    return best


def _soft(distance: np.ndarray, width: float) -> np.ndarray:
    return np.clip(0.5 - distance / width, 0, 1)


def _paint(layers: Layers, cover: np.ndarray, colour: np.ndarray) -> None:
    layers.albedo = layers.albedo * (1 - cover[..., None]) + colour * cover[..., None]


def _structural(kind: str, scene: Scene, rng: np.random.Generator, sizes: tuple[float, float]):
    """-> (edit, warp) for `render`."""
    base = layers_of(scene)
    x, y = _spot(base, rng, edge=kind == "chip" and not scene.design.is_texture)
    size = float(np.exp(rng.uniform(*np.log(sizes))))
    strength = float(rng.uniform(0.35, 0.9))
    rgb = np.array(scene.design.rgb, np.float32)
    dark_or_light = np.float32(0.08) if rgb.mean() > 0.35 and rng.random() < 0.75 else np.float32(0.95)

    def edit(layers: Layers) -> None:
        if kind == "scratch":
            near = _line(x, y, size * rng.uniform(3, 6), rng, 0.06)
            cover = _soft(near - 0.011, PIXEL)
            layers.height -= 0.025 * strength * cover
            _paint(layers, cover * strength * 0.8, np.clip(rgb * (1.6 if dark_or_light > 0.5 else 0.45) + 0.1, 0, 1))
        elif kind == "crack":
            near = _line(x, y, size * rng.uniform(3, 5), rng, 0.7)
            cover = _soft(near - 0.009, PIXEL)
            layers.height -= 0.05 * cover
            _paint(layers, cover * (0.5 + 0.5 * strength), rgb * 0.12)
        elif kind == "hole":
            layers.d = np.maximum(layers.d, -_blob(x, y, size * 0.85, rng, 0.1))
        elif kind == "chip":
            layers.d = np.maximum(layers.d, -_blob(x, y, size * 1.2, rng, 0.6))
        elif kind == "stain":
            cover = _soft(_blob(x, y, size, rng, 0.7), 0.05)
            hue = np.array(list(COLOURS.values())[int(rng.integers(len(COLOURS)))], np.float32)
            _paint(layers, cover * strength, hue * 0.6 + dark_or_light * 0.2)
        elif kind == "contamination":
            hue = np.array(list(COLOURS.values())[int(rng.integers(len(COLOURS)))], np.float32)
            for _ in range(int(rng.integers(2, 6))):
                px, py = x + rng.normal(0, size), y + rng.normal(0, size)
                fibre = rng.random() < 0.35
                near = _line(px, py, size * 1.5, rng, 0.4) - 0.012 if fibre else _blob(px, py, size * rng.uniform(0.15, 0.4), rng)
                cover = _soft(near, PIXEL * 1.5)
                layers.height += 0.03 * cover
                layers.d = np.where(cover > 0.5, np.minimum(layers.d, -0.02), layers.d)
                _paint(layers, cover * min(1.0, strength + 0.3), hue)
        elif kind == "discoloration":
            cover = _soft(_blob(x, y, size * 1.35, rng, 0.5), 0.12)
            tint = np.roll(rgb, int(rng.integers(1, 3))) * rng.uniform(0.7, 1.2) if np.ptp(rgb) > 0.2 else rgb * np.array([1.25, 1.0, 0.6], np.float32)
            _paint(layers, cover * strength * 0.75, np.clip(tint, 0, 1).astype(np.float32))
        elif kind == "dent":
            bowl = np.clip(1 - (np.hypot(GRID_U - x, GRID_V - y) / (size * 1.4)) ** 2, 0, 1)
            layers.height -= size * (0.5 + strength) * bowl**1.5
        elif kind == "misprint":
            near = np.minimum(_line(x, y, size * 2.2, rng, 1.1), _line(x + size * 0.6, y, size * 1.6, rng, 1.1))
            _paint(layers, _soft(near - 0.022, PIXEL * 1.5) * strength, np.array([0.1, 0.1, 0.35], np.float32) if rgb.mean() > 0.3 else np.array([0.9, 0.9, 0.8], np.float32))

    angle, reach = rng.uniform(0, 6.28), size * 2.0

    def warp(u: np.ndarray, v: np.ndarray):
        fall = np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * (reach * 0.6) ** 2)) * reach * 0.45 * (0.6 + 0.6 * strength)
        return u + np.cos(angle) * fall, v + np.sin(angle) * fall

    def drag(layers: Layers) -> None:
        """A texture's grain is not a function of the coordinates, so its layers are moved instead."""
        columns, rows = ((w + 1) * (SIZE / 2) - 0.5 for w in warp(GRID_U, GRID_V))
        for name in ("albedo", "height"):
            layer = getattr(layers, name)
            planes = layer[..., None] if layer.ndim == 2 else layer
            moved = [map_coordinates(planes[..., i], (rows, columns), order=1, mode="nearest") for i in range(planes.shape[-1])]
            setattr(layers, name, np.stack(moved, -1).reshape(layer.shape))

    if kind == "bend":
        return (drag, None) if scene.design.is_texture else (None, warp)
    return edit, None


def possible(scene: Scene, kind: str) -> bool:
    """Whether the scene's design can have this kind of defect (logical defects need two parts or more)."""
    return kind not in LOGICAL or len(scene.design.parts) > 1


def _logical(kind: str, scene: Scene, rng: np.random.Generator) -> Scene:
    parts = scene.design.parts
    i = int(rng.integers(len(parts)))
    if kind == "missing_part":
        return replace(scene, hidden_part=i)
    if kind == "swapped_part":
        other = [c for c in COLOURS.values() if np.abs(np.array(c) - np.array(parts[i].rgb)).max() > 0.35]
        return replace(scene, swapped_part=(i, other[int(rng.integers(len(other)))]))
    j = (i + 1) % len(parts)
    middle = Prim(parts[i].kind, (parts[i].cx + parts[j].cx) / 2, (parts[i].cy + parts[j].cy) / 2, parts[i].a, parts[i].b, parts[i].angle, parts[i].n, parts[i].rgb)
    return replace(scene, extra_part=middle)


def apply(scene: Scene, kind: str, rng: np.random.Generator, sizes: tuple[float, float] = SIZES) -> tuple[np.ndarray, np.ndarray]:
    """Photograph `scene` with a defect of `kind`: (image uint8 (128, 128, 3), mask bool (128, 128)).

    Draws again while the defect is invisible or larger than 6 % of the image; after 20 draws the most visible one is taken. `sizes` is
    the range of the defect's half width, where the image spans [-1, 1].
    """
    clean, best = render(scene), None
    for _ in range(20):
        if kind in LOGICAL:
            image = render(_logical(kind, scene, rng))
        else:
            edit, warp = _structural(kind, scene, rng, sizes)
            image = render(scene, edit, warp)
        change = np.abs(image - clean).max(2)
        mask = change > MASK_THRESHOLD
        contrast = float(change[mask].mean()) if mask.any() else 0.0
        fits = 12 <= mask.sum() <= 0.06 * mask.size and contrast > 0.06
        if best is None or fits or contrast > best[0]:
            best = (contrast, image, mask)
        if fits:
            break
    return photograph(best[1], scene.seed + 2), best[2]

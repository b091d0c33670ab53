"""The geometry of objects on the pixel grid: where they are, how they are patterned and which way they face."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from featinv_fast.demo.world.patterns import PERIODS, SECOND_TONE, SHORTEST_PERIOD
from featinv_fast.demo.world.scenes import Scenes
from featinv_fast.demo.world.shapes import DISTANCES
from featinv_fast.demo.world.vocabulary import PATTERNS, SHAPES

_PERIODS = np.array([PERIODS[name] for name in PATTERNS])
# Width of the bevel in radii: a disc is a ball, a square a pillow.
_BEVELS = np.array([{"disc": 1.0, "square": 0.5, "triangle": 0.5, "star": 0.4, "heart": 0.6}[name] for name in SHAPES])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surface:
    """The objects of one slot in n scenes that have one there.

    Attributes:
        rows: int64 [n], the scenes.
        radius: float32 [n, 1, 1] in pixels.
        distance: float32 [n, H, W], signed distance to the outline in pixels, negative inside.
        u: float32 [n, H, W], coordinate along the object's own right, in radii.
        v: float32 [n, H, W], coordinate along the object's own up, in radii.
    """

    rows: np.ndarray
    radius: np.ndarray
    distance: np.ndarray
    u: np.ndarray
    v: np.ndarray

    @property
    def coverage(self) -> np.ndarray:
        """Share of each pixel that the object covers, float32 [n, H, W]."""
        return np.clip(0.5 - self.distance, 0.0, 1.0)


def surface(scenes: Scenes, slot: int, size: int) -> Surface:
    """The objects of one slot."""
    rows = np.flatnonzero(scenes.present[:, slot])
    u, v = own_coordinates(scenes, rows, slot, size, offset=(0.0, 0.0))
    radius = plane(scenes.radius[rows, slot] * size)
    return Surface(rows=rows, radius=radius, distance=outline_distance(scenes, rows, slot, u, v) * radius, u=u, v=v)


def own_coordinates(
    scenes: Scenes, rows: np.ndarray, slot: int, size: int, *, offset: tuple[np.ndarray | float, np.ndarray | float]
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates u and v [n, H, W] of each pixel in the frame of the object moved by `offset` (in edges, each [n])."""
    pixels = (np.arange(size) + 0.5) / size
    position, (cosine, sine) = scenes.position[rows, slot], scenes.rotation[rows, slot].T
    scale = 1.0 / scenes.radius[rows, slot]
    dx = pixels - (position[:, 0] + offset[0])[:, None]  # [n, W]
    dy = pixels - (position[:, 1] + offset[1])[:, None]  # [n, H]
    along, across = (cosine * scale)[:, None], (sine * scale)[:, None]
    # Sums of a row and a column: the only full-size work is the addition.
    u = _outer_sum(-dy * across, dx * along)
    v = _outer_sum(-dy * along, -dx * across)
    return u, v


def outline_distance(scenes: Scenes, rows: np.ndarray, slot: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to each object's outline in radii, [n, H, W]."""
    return by_kind(scenes.shape[rows, slot], [DISTANCES[name] for name in SHAPES], u, v)


def second_tone_share(scenes: Scenes, slot: int, objects: Surface) -> np.ndarray:
    """Share of the pattern's second tone in each pixel, [n, H, W]."""
    rows, pattern = objects.rows, scenes.pattern[objects.rows, slot]
    period = np.maximum(_PERIODS[pattern], SHORTEST_PERIOD / scenes.radius[rows, slot])  # in radii
    phase = scenes.phase[rows, slot]
    a = objects.u * plane(1.0 / period) + plane(phase[:, 0])
    b = objects.v * plane(1.0 / period) + plane(phase[:, 1])
    return by_kind(pattern, [SECOND_TONE[name] for name in PATTERNS], a, b, plane(period) * objects.radius)


def normals(scenes: Scenes, slot: int, objects: Surface) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The unit normal's x (right), y (down) and z (towards the viewer), each [n, H, W], with round bevels.

    On a bevel with a circular profile the normal leans outwards by its share of the way from the inner edge to the
    outline, and outwards is where the distance grows.
    """
    bevel = plane(_BEVELS[scenes.shape[objects.rows, slot]]) * objects.radius  # in pixels
    lean = np.clip(1.0 + objects.distance / bevel, 0.0, 0.94)
    x, y = np.zeros_like(lean), np.zeros_like(lean)
    distance = objects.distance
    x[:, :, 1:-1] = (distance[:, :, 2:] - distance[:, :, :-2]) * 0.5
    y[:, 1:-1] = (distance[:, 2:] - distance[:, :-2]) * 0.5
    x *= lean
    y *= lean
    return x, y, np.sqrt(np.maximum(1.0 - x * x - y * y, 0.0))


def by_kind(kinds: np.ndarray, functions: Sequence[Callable[..., np.ndarray]], *arrays: np.ndarray) -> np.ndarray:
    """Row i of the result is `functions[kinds[i]]` of row i of the arrays; each function runs once, on its rows."""
    result = np.empty_like(arrays[0])
    for kind, function in enumerate(functions):
        rows = np.flatnonzero(kinds == kind)
        if len(rows):
            result[rows] = function(*(array[rows] for array in arrays))
    return result


def plane(values: np.ndarray) -> np.ndarray:
    """[n] -> float32 [n, 1, 1], to meet [n, H, W]."""
    return values.astype(np.float32)[:, None, None]


def _outer_sum(column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """[n, H] and [n, W] -> float32 [n, H, W]."""
    return column.astype(np.float32)[:, :, None] + row.astype(np.float32)[:, None, :]

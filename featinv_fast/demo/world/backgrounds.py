"""Backgrounds: how far each pixel lies between the scene's two ground colours."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from featinv_fast.demo.world.random_numbers import Draws

# Cells of the noise lattices across the image, coarse to fine, and their amplitudes.
_OCTAVES = ((4, 0.56), (9, 0.29), (19, 0.15))


def value_noise(keys: np.ndarray, size: int) -> np.ndarray:
    """Cloudy noise, float32 [n, size, size] in [-1, 1]: random lattices, smoothly interpolated and added."""
    draws = Draws(keys)
    total = np.zeros((len(keys), size, size), dtype=np.float32)
    for cells, amplitude in _OCTAVES:
        lattice = draws.uniform(-amplitude, amplitude, cells + 1, cells + 1).astype(np.float32)
        left, weight = _lattice_places(cells, size)
        lines = lattice[:, :, left]  # [n, cells + 1, size]
        lines += (lattice[:, :, left + 1] - lines) * weight
        upper = lines[:, left]  # [n, size, size]
        upper += (lines[:, left + 1] - upper) * weight[:, None]
        total += upper
    return total


@functools.cache
def _lattice_places(cells: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel the lattice point before it, and how far it is on the way to the next (smoothstep)."""
    places = (np.arange(size) + 0.5) * (cells / size)
    left = np.floor(places)
    share = places - left
    return left.astype(np.int64), (share * share * (3.0 - 2.0 * share)).astype(np.float32)


# Each kind takes x, y [n, H, W], coordinates about the image's middle (in edges) turned into the background's own axes;
# the noise [n, H, W]; the layout's parameters [n, 3, 1, 1]; and the image's edge in pixels [n, 1, 1].


def gradient(x: np.ndarray, y: np.ndarray, noise: np.ndarray, layout: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Light that falls off to one side."""
    del x, pixels
    return 0.5 + y * (0.7 + 0.5 * layout[:, 0]) + noise * 0.12


def clouds(x: np.ndarray, y: np.ndarray, noise: np.ndarray, layout: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Soft blotches."""
    del x, y, pixels
    return 0.35 + 0.3 * layout[:, 0] + noise * 1.1


def waves(x: np.ndarray, y: np.ndarray, noise: np.ndarray, layout: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Wavy bands like grain in wood."""
    del x, pixels
    phase = y * (3.5 + 2.5 * layout[:, 0]) + noise * 0.45 + layout[:, 1]
    ramp = np.abs(phase - np.floor(phase) - 0.5) * 2.0
    return ramp * ramp * (3.0 - 2.0 * ramp) * 0.8 + 0.1


def horizon(x: np.ndarray, y: np.ndarray, noise: np.ndarray, layout: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """A wall and a floor that grows lighter towards the viewer."""
    del x
    below = y + 0.12 - 0.36 * layout[:, 0]
    floor = np.clip(below * pixels * 0.7 + 0.5, 0.0, 1.0)
    return 0.12 + 0.25 * (0.5 - y) * (1.0 - floor) + floor * (0.45 + below * 0.6) + noise * 0.14


def tiles(x: np.ndarray, y: np.ndarray, noise: np.ndarray, layout: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Square tiles with joints."""
    frequency = 2.6 + 1.6 * layout[:, 0]
    a, b = x * frequency + layout[:, 1], y * frequency + layout[:, 2]
    edge = np.maximum(np.abs(a - np.floor(a) - 0.5), np.abs(b - np.floor(b) - 0.5))
    joint = np.clip((edge - 0.5) * (pixels / frequency) + pixels * 0.0172 + 0.5, 0.0, 1.0)
    return 0.72 + noise * 0.25 - joint * 0.6


def glow(x: np.ndarray, y: np.ndarray, noise: np.ndarray, layout: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """A pool of light on a dark ground."""
    del pixels
    dx, dy = x - (layout[:, 1] - 0.5) * 0.6, y - (layout[:, 2] - 0.5) * 0.6
    near = np.maximum(1.0 - (dx * dx + dy * dy) * (2.0 + 1.5 * layout[:, 0]), 0.0)
    return near * near * 1.15 + noise * 0.10


KINDS: Mapping[str, Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "gradient": gradient,
    "clouds": clouds,
    "waves": waves,
    "horizon": horizon,
    "tiles": tiles,
    "glow": glow,
}

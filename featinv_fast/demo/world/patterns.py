"""Surface patterns: how much of each pixel shows the second tone.

Each takes float32 pattern coordinates a and b [n, H, W] in periods and `sharpness` [n, 1, 1], the pixels in a period.
It returns the share of the second tone [n, H, W] in [0, 1], anti-aliased over one pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np


def plain(a: np.ndarray, b: np.ndarray, sharpness: np.ndarray) -> np.ndarray:
    """One tone."""
    del b, sharpness
    return np.zeros_like(a)


def striped(a: np.ndarray, b: np.ndarray, sharpness: np.ndarray) -> np.ndarray:
    """Bands across the object, 42% of them in the second tone."""
    del a
    return _covered((0.21 - np.abs(_centred(b))) * sharpness)


def dotted(a: np.ndarray, b: np.ndarray, sharpness: np.ndarray) -> np.ndarray:
    """Round dots on a square grid, 25% of the surface."""
    a, b = _centred(a), _centred(b)
    return _covered((0.285 - np.sqrt(a * a + b * b)) * sharpness)


def checkered(a: np.ndarray, b: np.ndarray, sharpness: np.ndarray) -> np.ndarray:
    """A chessboard whose fields are half a period wide."""
    column = _covered((0.25 - np.abs(_centred(a))) * sharpness)
    row = _covered((0.25 - np.abs(_centred(b))) * sharpness)
    return column + row - 2.0 * column * row


def _centred(periods: np.ndarray) -> np.ndarray:
    """Distance to the middle of the own cell, in [-0.5, 0.5)."""
    return periods - np.floor(periods) - 0.5


def _covered(pixels_inside: np.ndarray) -> np.ndarray:
    return np.clip(pixels_inside + 0.5, 0.0, 1.0)


SECOND_TONE: Mapping[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": plain,
    "striped": striped,
    "dotted": dotted,
    "checkered": checkered,
}

# Periods in radii, and the shortest one in fractions of the image's edge so that small objects stay legible.
PERIODS = {"plain": 1.0, "striped": 0.56, "dotted": 0.62, "checkered": 0.86}
SHORTEST_PERIOD = 0.085

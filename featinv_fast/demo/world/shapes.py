"""Signed distances to the outlines of the shapes, in radii: negative inside, zero on the outline.

Each takes float32 coordinates u (right) and v (up) of any equal shape and returns that shape. Distances are exact
inside, where shading needs them, and close outside, where only soft shadows do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

_HALF_SQRT3 = 0.8660254037844386
_SQRT_HALF = 0.7071067811865476
_COS36, _SIN36 = 0.8090169943749475, 0.5877852522924731

_LOBE = 0.64
_STAR_TIP, _STAR_NOTCH = 1.3, 0.7
# The edge from a tip (0, 1.3) to the notch beside it, and its outward normal.
_EDGE_U, _EDGE_V = _STAR_NOTCH * _SIN36, _STAR_NOTCH * _COS36 - _STAR_TIP
_EDGE = math.sqrt(_EDGE_U * _EDGE_U + _EDGE_V * _EDGE_V)
_STAR_NORMAL = (-_EDGE_V / _EDGE, _EDGE_U / _EDGE)


def disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Radius 1."""
    return np.sqrt(u * u + v * v) - 1.0


def square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Half edge 0.88, rounded corners."""
    return _rounded_maximum(np.abs(u), np.abs(v), 0.24) - 0.88


def triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Equilateral, one corner up, inscribed circle 0.72, rounded corners."""
    u, half = u * _HALF_SQRT3, v * 0.5
    return _rounded_maximum(_rounded_maximum(half + u, half - u, 0.2), -v, 0.2) - 0.72


def star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points, the tips at 1.3, the notches at 0.7."""
    # Mirror the plane into the tenth between a tip (straight up) and the notch beside it.
    u = np.abs(u)
    across = np.maximum(u * _COS36 - v * _SIN36, 0.0) * 2.0
    u, v = u - across * _COS36, v + across * _SIN36
    across = np.maximum(-u * _COS36 - v * _SIN36, 0.0) * 2.0
    u, v = np.abs(u + across * _COS36), v + across * _SIN36
    return u * _STAR_NORMAL[0] + (v - _STAR_TIP) * _STAR_NORMAL[1]


def heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A square on its corner with half a disc on each of its upper sides, all of radius 0.64."""
    u, v = np.abs(u), v + (0.2 - _LOBE * _SQRT_HALF)  # from the middle of an upper side, but for its own u
    du = u - _LOBE * _SQRT_HALF
    lobe = np.sqrt(du * du + v * v)
    notch_v = v - _LOBE * _SQRT_HALF
    square_part = np.maximum((du - v) * _SQRT_HALF, _LOBE - np.sqrt(u * u + notch_v * notch_v))
    return np.where(du + v > 0.0, lobe, square_part) - _LOBE


def _rounded_maximum(a: np.ndarray, b: np.ndarray, rounding: float) -> np.ndarray:
    """max(a, b) with the crease replaced by a parabola `rounding` wide."""
    near = np.maximum(rounding - np.abs(a - b), 0.0)
    return np.maximum(a, b) + near * near * (0.25 / rounding)


# No shape reaches further from its centre than this, in radii.
REACH: Mapping[str, float] = {"disc": 1.0, "square": 1.17, "triangle": 1.35, "star": 1.3, "heart": 1.17}

DISTANCES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": disc,
    "square": square,
    "triangle": triangle,
    "star": star,
    "heart": heart,
}

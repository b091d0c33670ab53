"""Colours: the named palette, HSV to RGB and the second tone of a pattern."""

from __future__ import annotations

import numpy as np

from featinv_fast.demo.world.vocabulary import COLOURS

# Hue, saturation, value of each name, in [0, 1].
PALETTE = {
    "red": (0.990, 0.84, 0.84),
    "orange": (0.070, 0.90, 0.95),
    "yellow": (0.140, 0.82, 0.96),
    "green": (0.345, 0.70, 0.66),
    "teal": (0.490, 0.72, 0.74),
    "blue": (0.610, 0.78, 0.84),
    "purple": (0.755, 0.62, 0.74),
    "pink": (0.905, 0.50, 0.97),
}
PALETTE_HSV = np.array([PALETTE[name] for name in COLOURS])  # [8, 3]

_CREAM = np.array([0.98, 0.95, 0.88])
_INK = np.array([0.16, 0.14, 0.24])
_LUMA = (0.30, 0.59, 0.11)


def hsv_to_rgb(hsv: np.ndarray) -> np.ndarray:
    """[..., 3] hue (in turns, any real number), saturation and value in [0, 1] -> RGB in [0, 1]."""
    hue, saturation, value = hsv[..., 0:1], hsv[..., 1:2], hsv[..., 2:3]
    sextant = (hue + np.array([0.0, 2.0 / 3.0, 1.0 / 3.0])) * 6.0
    sextant = sextant - 6.0 * np.floor(sextant / 6.0)
    pure = np.clip(np.abs(sextant - 3.0) - 1.0, 0.0, 1.0)
    return value * (1.0 - saturation * (1.0 - pure))


def second_tone(rgb: np.ndarray) -> np.ndarray:
    """The tone of a pattern's stripes, dots or squares [..., 3]: cream on a dark colour, ink on a light one."""
    luma = rgb[..., 0:1] * _LUMA[0] + rgb[..., 1:2] * _LUMA[1] + rgb[..., 2:3] * _LUMA[2]
    target = np.where(luma < 0.56, _CREAM, _INK)
    return rgb + (target - rgb) * 0.78

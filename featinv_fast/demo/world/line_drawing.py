"""The same scenes as ink drawings: outlines and the edges of patterns on paper, no colour, no light."""

from __future__ import annotations

import numpy as np

from featinv_fast.demo.world.painting import background_share
from featinv_fast.demo.world.random_numbers import pixel_bytes
from featinv_fast.demo.world.scenes import Scenes
from featinv_fast.demo.world.surfaces import plane, second_tone_share, surface
from featinv_fast.demo.world.vocabulary import MAX_OBJECTS

_PAPER = (0.97, 0.96, 0.92)
_INK = (0.10, 0.11, 0.20)
_STROKE = 1 / 64  # half width of an outline in edges


def draw_lines(scenes: Scenes, size: int) -> np.ndarray:
    """Float32 [3, n, H, W], about [0, 1]."""
    ink = _background_lines(scenes, size)
    for slot in reversed(range(MAX_OBJECTS)):
        objects = surface(scenes, slot, size)
        coverage = objects.coverage
        share = second_tone_share(scenes, slot, objects)
        # Where an anti-aliased edge passes, the share lies between 0 and 1.
        inside = 4.0 * share * (1.0 - share) * coverage
        outline = np.clip(_STROKE * size + 0.5 - np.abs(objects.distance), 0.0, 1.0)
        ink[objects.rows] = np.maximum(np.maximum(ink[objects.rows] * (1.0 - coverage), inside), outline)
    grain = pixel_bytes(scenes.key, size * size)[..., 0].reshape(len(scenes), size, size)
    paper = grain * plane(scenes.grain / 255.0)
    return np.stack([_PAPER[c] - paper - (_PAPER[c] - _INK[c]) * ink for c in range(3)])


def _background_lines(scenes: Scenes, size: int) -> np.ndarray:
    """Thin ink where the background changes fast: a horizon, the joints of tiles, the crests of waves."""
    share = background_share(scenes, size)
    slope = np.zeros_like(share)
    slope[:, :, 1:] = np.abs(share[:, :, 1:] - share[:, :, :-1])
    slope[:, 1:] += np.abs(share[:, 1:] - share[:, :-1])
    return np.clip(slope * 3.0 - 0.3, 0.0, 0.55)

"""Scenes to pixels: images in every style, and the mask of each object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from featinv_fast.checks import choice, count
from featinv_fast.demo.world.line_drawing import draw_lines
from featinv_fast.demo.world.painting import paint
from featinv_fast.demo.world.scenes import Scenes
from featinv_fast.demo.world.surfaces import surface
from featinv_fast.demo.world.vocabulary import MAX_OBJECTS, Style

SMALLEST_SIZE = 16

# Scenes are rendered a few at a time so that the planes at work stay in a core's cache.
_CHUNK_PIXELS = 16 * 64 * 64


def render(scenes: Scenes, *, size: int = 64, style: Style | str = Style.NATURAL) -> np.ndarray:
    """Images of scenes, uint8 [B, size, size, 3], RGB.

    Only sums, products, quotients, square roots, comparisons and integer arithmetic are used, element by element, and
    IEEE 754 fixes each of them to the last bit: the pixels are the same on every platform whose numpy keeps to it, and
    do not depend on the other scenes of the batch.

    Args:
        scenes: B scenes.
        size: edge of the image in pixels, at least 16.
        style: how to draw them.

    Raises:
        ArgumentError: a size below 16, or an unknown style.
        ArgumentTypeError: a size that is no integer.
    """
    edge, painter = _checked_size(size), _STYLES[_checked_style(style)]
    images = np.empty((len(scenes), edge, edge, 3), dtype=np.uint8)
    for rows in _chunks(len(scenes), edge):
        canvas = painter(scenes[rows], edge)  # [3, n, H, W]
        canvas *= 255.0
        canvas += 0.5
        np.clip(canvas, 0.0, 255.0, out=canvas)
        for channel in range(3):
            images[rows, :, :, channel] = canvas[channel]
    return images


def object_masks(scenes: Scenes, *, size: int = 64) -> np.ndarray:
    """The pixels that show each object, bool [B, 3, size, size]: at least half covered by it and by none before it.

    Raises:
        ArgumentError: a size below 16.
        ArgumentTypeError: a size that is no integer.
    """
    edge = _checked_size(size)
    masks = np.zeros((len(scenes), MAX_OBJECTS, edge, edge), dtype=bool)
    for rows in _chunks(len(scenes), edge):
        hidden = np.zeros_like(masks[rows, 0])
        for slot in range(MAX_OBJECTS):
            objects = surface(scenes[rows], slot, edge)
            covered = objects.distance <= 0.0
            masks[rows, slot][objects.rows] = covered & ~hidden[objects.rows]
            hidden[objects.rows] |= covered
    return masks


def _paint_negative(scenes: Scenes, size: int) -> np.ndarray:
    return 1.0 - paint(scenes, size)


_STYLES: Mapping[Style, Callable[[Scenes, int], np.ndarray]] = {
    Style.NATURAL: paint,
    Style.LINE_DRAWING: draw_lines,
    Style.NEGATIVE: _paint_negative,
}


def _chunks(count: int, size: int) -> Iterator[slice]:
    step = max(1, _CHUNK_PIXELS // (size * size))
    return (slice(start, start + step) for start in range(0, count, step))


def _checked_size(size: int) -> int:
    return count("the images' size in pixels", size, SMALLEST_SIZE)


def _checked_style(style: Style | str) -> Style:
    return choice("the style", style, Style)

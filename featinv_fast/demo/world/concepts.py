"""What can be said about a scene: concept codes as arrays, their names, and a sentence."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from featinv_fast.demo.world.scenes import Scenes
from featinv_fast.demo.world.vocabulary import (
    ABSENT,
    BACKGROUNDS,
    CELLS,
    COLOURS,
    MAX_OBJECTS,
    PATTERNS,
    SHAPES,
    SIZES,
)

# The names behind the codes, concept by concept.
CONCEPTS: Mapping[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "pattern": PATTERNS,
    "colour": COLOURS,
    "cell": CELLS,
    "size": SIZES,
    "background": BACKGROUNDS,
}

# Where the middle column and row begin and end, in edges: narrow, since large objects cannot be far from the centre.
_CELL_BOUNDS = np.array([0.42, 0.58])
# Radii, in edges, at which the next size begins.
_SIZE_BOUNDS = np.array([0.11, 0.17, 0.255])


def annotate(scenes: Scenes) -> dict[str, np.ndarray]:
    """The concepts of every object, int64 codes into `CONCEPTS`; `ABSENT` where there is no object.

    Returns:
        "shape", "pattern", "colour", "cell" (where in the image the centre lies) and "size", each [B, 3] with the
        dominant object first; "background" [B].
    """
    column, row = (np.searchsorted(_CELL_BOUNDS, scenes.position[..., axis], side="right") for axis in range(2))
    return {
        "shape": scenes.shape,
        "pattern": scenes.pattern,
        "colour": scenes.colour,
        "cell": np.where(scenes.present, row * 3 + column, ABSENT),
        "size": np.where(scenes.present, np.searchsorted(_SIZE_BOUNDS, scenes.radius, side="right"), ABSENT),
        "background": scenes.background,
    }


def describe(scenes: Scenes) -> list[str]:
    """One line for each scene: "a huge striped red heart (centre), a tiny plain blue disc (top left); tiles"."""
    codes = annotate(scenes)

    def name(concept: str, row: int, slot: int) -> str:
        return CONCEPTS[concept][codes[concept][row, slot]]

    def phrase(row: int, slot: int) -> str:
        words = (name(concept, row, slot) for concept in ("size", "pattern", "colour", "shape"))
        return f"a {' '.join(words)} ({name('cell', row, slot)})"

    return [
        ", ".join(phrase(row, slot) for slot in range(MAX_OBJECTS) if scenes.present[row, slot])
        + f"; {BACKGROUNDS[scenes.background[row]]}"
        for row in range(len(scenes))
    ]

"""The words of the world: shapes, colours, patterns, backgrounds, places and sizes, in the order of their codes."""

from __future__ import annotations

import enum

SHAPES = ("disc", "square", "triangle", "star", "heart")
PATTERNS = ("plain", "striped", "dotted", "checkered")
COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
BACKGROUNDS = ("gradient", "clouds", "waves", "horizon", "tiles", "glow")
SIZES = ("tiny", "small", "large", "huge")
CELLS = (
    "top left",
    "top",
    "top right",
    "left",
    "centre",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)

# The class of an image is the shape and the pattern of its dominant object: label = shape * len(PATTERNS) + pattern.
CLASS_NAMES = tuple(f"{pattern} {shape}" for shape in SHAPES for pattern in PATTERNS)

# The code of every concept of an object that is not there.
ABSENT = -1
MAX_OBJECTS = 3


class Split(enum.StrEnum):
    """Which scenes: no scene belongs to two splits."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Style(enum.StrEnum):
    """How scenes are drawn; training sees `NATURAL` alone."""

    NATURAL = "natural"
    LINE_DRAWING = "line_drawing"
    NEGATIVE = "negative"

"""The files that a recipe reads beside its images. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featinv_fast.checks import require_input
from featinv_fast.train.settings import Recipe

# Keys that name files, by which every recipe that has them means the content.
FILES = (
    "autoencoder",
    "base",
    "start",
    "teacher",
    "tokenizer",
    "backbone.weights",
    "perceptual.weights",
    "features.file",
)
RANDOM = "random:"


def input_files(recipe: Recipe, root: Path) -> dict[str, Path]:
    """The files and folders that a recipe reads, by the keys that name them; its images aside.

    Raises:
        InputNotFoundError: one of them is not there.
    """
    found = {}
    for key in FILES:
        value: Any = recipe
        for name in key.split("."):
            value = getattr(value, name, None)
        if isinstance(value, str) and not value.startswith(RANDOM):
            found[key] = require_input(root / value)
    return found

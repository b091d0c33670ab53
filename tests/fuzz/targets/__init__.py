"""The targets: a file each, and a line here."""

from __future__ import annotations

import importlib
from pathlib import Path

from target import Target

# Name (that of the file): its share of the inputs, smaller where one input takes longer.
SHARES = {
    "checkpoints": 10,
    "pickles": 10,
    "loras": 8,
    "manifests": 4,
    "features": 10,
    "images": 10,
    "recipes": 8,
}


def open_target(name: str, folder: Path) -> Target:
    """The target in the file of this name: the subclass of `Target` that it calls TARGET."""
    made: type[Target] = importlib.import_module(f"targets.{name}").TARGET
    return made(folder)


def corpus(name: str) -> list[Path]:
    """Inputs of a target that are kept: what once went wrong, or no mutation comes upon."""
    folder = Path(__file__).parents[1] / "corpus" / name
    return sorted(folder.iterdir()) if folder.exists() else []


def shared_out(count: int) -> dict[str, int]:
    """How many of `count` inputs each target gets."""
    total = sum(SHARES.values())
    return {name: max(1, round(count * share / total)) for name, share in SHARES.items()}

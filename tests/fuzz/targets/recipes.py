"""Recipes of trainings, and the changes that a command line makes to them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from random import Random
from typing import Any

from mutate import plain, toml, values
from target import Target

import featinv_fast.demo.recipes
from featinv_fast.train import read_recipe

CHANGES = (
    "training.steps=0", "training.steps=1e3", "training=1", "a", "=", "=1", "a.b.c.d=1", ".=1", "training..x=2",
    "data.source=[", "recipe=base", "out=x", "out=", "training.steps='x", "data={}", "training.betas=[0.9]",
    "x" * 5000, "data.size=nan", "training.seed=99999999999999999999999", "training.device=\x00",
    "data.source=" + "[" * 5000, "backbone.name.x=1",
)  # fmt: skip


class Recipes(Target):
    """The recipes of the built-in engine."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (shipped,) = featinv_fast.demo.recipes.__path__
        self.recipes: list[dict[str, Any]] = [
            tomllib.loads(path.read_text()) for path in sorted(Path(shipped).glob("*.toml"))
        ]
        self.names = {recipe["recipe"] for recipe in self.recipes}

    def mutant(self, random: Random, folder: Path) -> Path:
        """A recipe, and beside it the changes, a line each."""
        recipe = random.choice(self.recipes)
        if random.random() < 0.1:
            content = plain.mutated(random, toml.text_of(random, recipe).encode())
        else:
            content = toml.text_of(random, values.mutated(random, recipe)).encode("utf-8", "replace")
        path = folder / "recipe.toml"
        path.write_bytes(content)
        if random.random() < 0.15:
            _changes(path).write_text(random.choice(CHANGES))
        return path

    def declared(self, path: Path) -> int | None:
        """The file's size, where it is TOML that names a recipe."""
        content = path.read_bytes()
        try:
            recipe: Any = tomllib.loads(content.decode()).get("recipe")
        except (ValueError, RecursionError):
            return None
        return len(content) if isinstance(recipe, str) and recipe in self.names else None

    def run(self, path: Path) -> None:
        """Read it with its changes."""
        changes = [_changes(path).read_text()] if _changes(path).exists() else []
        read_recipe(path, changes)


def _changes(path: Path) -> Path:
    return path.with_suffix(".changes")


TARGET = Recipes

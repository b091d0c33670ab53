"""From a TOML file to a recipe. Unknown keys are errors, and so are keys that have no effect."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featinv_fast.checks import did_you_mean
from featinv_fast.config import from_dict
from featinv_fast.errors import ConfigError
from featinv_fast.train.effects import named_in, refuse_idle
from featinv_fast.train.settings import (
    AutoencoderRecipe,
    BackboneRecipe,
    BaseRecipe,
    ControlNetRecipe,
    DistillRecipe,
    Recipe,
)

RECIPES: Mapping[str, type[Recipe]] = {
    "autoencoder": AutoencoderRecipe,
    "backbone": BackboneRecipe,
    "base": BaseRecipe,
    "controlnet": ControlNetRecipe,
    "distill": DistillRecipe,
}


def read_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a TOML file.

    Args:
        path: the file; its key `recipe` says which of `RECIPES` it is.
        changes: values that replace the file's, as in "training.steps=100".

    Raises:
        ConfigError: no such file, no TOML, an unknown recipe or key, a value of the wrong kind, or a key that has no
            effect.
    """
    path = Path(path)
    try:
        data = _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            "the recipe cannot be read",
            given=f"{path}: {error.strerror}",
            expected="a file",
            remedy="check the path and its permissions",
        ) from None
    except ValueError as error:
        raise ConfigError(
            "the recipe is no TOML file",
            given=f"{path}: {error}",
            expected="TOML, as the recipes in featinv_fast/demo/recipes/",
            remedy="correct it there",
        ) from None
    for change in changes:
        _apply(data, change)
    name = data.get("recipe")
    if not isinstance(name, str) or name not in RECIPES:
        near = did_you_mean(name, RECIPES)
        raise ConfigError(
            "unknown recipe",
            given=name,
            expected=f"recipe = one of {', '.join(RECIPES)}",
            remedy=f"name one of these{f'; did you mean {near!r}?' if near else ''}",
        )
    recipe = from_dict(RECIPES[name], data, where=path.name)
    refuse_idle(recipe, named_in(data))
    if not recipe.out.endswith(".safetensors"):
        raise ConfigError(
            "the result has another kind of name",
            given=f"out = '{recipe.out}'",
            expected="a name that ends in .safetensors",
            remedy=f"name it '{recipe.out}.safetensors'",
        )
    return recipe


def _parsed(text: str) -> dict[str, Any]:
    """The values of TOML.

    Raises:
        ValueError: it is none, or holds what Python's parser gives up on: thousands of digits, or of tables in tables.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None


def _apply(data: dict[str, Any], change: str) -> None:
    """Set one value. Text that is no TOML value is taken as a string: `data.source=images` needs no quotes."""
    keys, separator, text = change.partition("=")
    if not separator:
        raise ConfigError(
            "a change without a value",
            given=change,
            expected="KEY=VALUE, as in training.steps=100",
            remedy="write it so",
        )
    try:
        value = _parsed(f"value = {text}")["value"]
    except ValueError:
        value = text
    *parents, last = keys.strip().split(".")
    for key in parents:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise ConfigError(
                "a change inside of a value",
                given=change,
                expected=f"{key} to be a table",
                remedy=f"change {key} as a whole",
            )
    data[last] = value

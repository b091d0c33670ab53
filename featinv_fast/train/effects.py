"""Which keys of a recipe have no effect in it. Recipes that name one are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from featinv_fast.config import FeatureLayout
from featinv_fast.errors import ConfigError
from featinv_fast.train.settings import (
    SCENES,
    AutoencoderRecipe,
    BackboneRecipe,
    BaseRecipe,
    Cache,
    ControlNetRecipe,
    Crop,
    DistillRecipe,
    Learns,
    Method,
    Recipe,
)


@dataclasses.dataclass(frozen=True)
class Idle:
    """Keys that have no effect in some recipes.

    Attributes:
        recipes: of which kinds.
        keys: their paths; that of a table stands for all keys in it.
        where: in which recipes of these kinds.
        reason: why.
    """

    recipes: tuple[type[Recipe], ...]
    keys: tuple[str, ...]
    where: Callable[[Any], bool]
    reason: str


ALL = (Recipe,)


def _always(_: Any) -> bool:
    return True


def _scenes(recipe: Recipe) -> bool:
    return recipe.data.source == SCENES


def _same_pixels(recipe: Recipe) -> bool:
    return not _scenes(recipe) and recipe.data.crop is Crop.CENTER


def _nothing_is_drawn(recipe: Recipe) -> bool:
    return _same_pixels(recipe) and recipe.data.split is None and recipe.data.count is None


def _all_on_own_path(recipe: Any) -> bool:
    return recipe.own_path is not None and recipe.own_path.share == 1


RULES: tuple[Idle, ...] = (
    Idle(ALL, ("data.crop", "data.flips", "data.holdout", "data.on_unreadable"), _scenes, "scenes are drawn, not read"),
    Idle(ALL, ("data.flips",), _same_pixels, "the crop is the centre, as it is"),
    Idle(ALL, ("data.seed",), _nothing_is_drawn, "nothing is drawn at random: no crop, split or sample"),
    Idle(ALL, ("data.holdout",), lambda recipe: recipe.data.split is None, "no split is taken"),
    Idle(
        (AutoencoderRecipe, BackboneRecipe), ("data.cache",), _always, "this recipe learns from the images themselves"
    ),
    Idle(
        (BaseRecipe, ControlNetRecipe, DistillRecipe),
        ("data.cache",),
        lambda recipe: recipe.data.cache is not Cache.NONE and not (_scenes(recipe) or _same_pixels(recipe)),
        "every pass shows other crops, which leaves nothing to keep",
    ),
    Idle((AutoencoderRecipe,), ("model.latent_scale",), _always, "it is measured at the end"),
    Idle(
        (AutoencoderRecipe,),
        ("perceptual_layers", "perceptual_weight"),
        lambda recipe: recipe.perceptual is None,
        "there is no backbone to compare by: no [perceptual]",
    ),
    Idle(
        (AutoencoderRecipe,),
        ("perceptual", "perceptual_layers"),
        lambda recipe: recipe.perceptual_weight == 0,
        "the weight of this comparison is 0",
    ),
    Idle(
        (AutoencoderRecipe,),
        ("perceptual.layer", "perceptual.layout", "perceptual.pooled"),
        _always,
        "the maps that are compared are those of perceptual_layers",
    ),
    Idle((BackboneRecipe,), ("concept_weight",), lambda recipe: not recipe.concepts, "there are no concepts"),
    Idle((BackboneRecipe,), ("concepts",), lambda recipe: recipe.concept_weight == 0, "their weight is 0"),
    Idle(
        (BackboneRecipe,),
        ("training.image_every",),
        lambda recipe: recipe.training.image_every > 0,
        "a classifier makes no images",
    ),
    Idle((BaseRecipe,), ("model.autoencoder",), _always, "the trained autoencoder's own description counts"),
    Idle(
        (BaseRecipe,),
        ("model.feature_channels", "model.condition_hidden_channels"),
        _always,
        "a base has no condition encoder",
    ),
    Idle(
        (BackboneRecipe, BaseRecipe),
        ("validation.shown",),
        _always,
        "nothing is reconstructed: a validation of this recipe is its losses",
    ),
    Idle((BaseRecipe,), ("drop_caption",), lambda recipe: not recipe.concepts, "there are no concepts to say"),
    Idle(
        (BaseRecipe,),
        ("concepts",),
        lambda recipe: 1 in (recipe.drop_caption, recipe.drop_prompt),
        "what there is to say is always dropped",
    ),
    Idle(
        (ControlNetRecipe, DistillRecipe),
        ("features.layout", "features.prefix_tokens"),
        lambda recipe: recipe.features is not None and recipe.backbone is not None,
        "the backbone says it",
    ),
    Idle(
        (ControlNetRecipe, DistillRecipe),
        ("features.prefix_tokens",),
        lambda recipe: recipe.features is not None and recipe.features.layout is not FeatureLayout.TOKENS,
        "the file holds no tokens",
    ),
    Idle(
        (ControlNetRecipe, DistillRecipe),
        ("perceptual",),
        lambda recipe: recipe.perceptual is not None and recipe.perceptual.weight == 0,
        "the weight of this loss is 0",
    ),
    Idle(
        (ControlNetRecipe,),
        ("times", "weighting", "drop_features"),
        _all_on_own_path,
        "the whole batch stands on the model's own path: own_path.share = 1",
    ),
    Idle((DistillRecipe,), ("lora_rank",), lambda recipe: recipe.learns is not Learns.LORA, "nothing low-rank learns"),
    Idle(
        (DistillRecipe,),
        ("teacher_steps",),
        lambda recipe: recipe.method is not Method.TRAJECTORY,
        "the teacher's grid has 50 steps, those of latent consistency",
    ),
    Idle(
        (DistillRecipe,),
        ("huber", "perceptual", "own_path"),
        lambda recipe: recipe.method is Method.TRAJECTORY,
        "the teacher's path is all that is learned",
    ),
    Idle(
        (DistillRecipe,),
        ("unconditional_strength",),
        lambda recipe: recipe.guidance_scale == (1.0, 1.0),
        "the teacher is not guided: guidance_scale = [1, 1]",
    ),
    Idle(
        (DistillRecipe,),
        ("unconditional_strength", "guidance_scale"),
        lambda recipe: _all_on_own_path(recipe) and not recipe.guidance_channels,
        "the whole batch stands on the student's own path, and nothing is learned from the teacher",
    ),
)


def refuse_idle(recipe: Recipe, named: Iterable[str]) -> None:
    """Refuse a recipe that names keys without effect.

    Args:
        recipe: what was asked for.
        named: paths of the keys that somebody chose: see `named_in` and `changed_in`.

    Raises:
        ConfigError: with each of these keys and why it has no effect.
    """
    named = tuple(named)
    idle: dict[str, str] = {}
    for rule in RULES:
        if isinstance(recipe, rule.recipes) and rule.where(recipe):
            found = (name for name in named for key in rule.keys if name == key or name.startswith(f"{key}."))
            idle |= {name: rule.reason for name in found if name not in idle}
    if idle:
        raise ConfigError(
            "keys of the recipe have no effect in it",
            given="; ".join(f"{name}: {reason}" for name, reason in idle.items()),
            expected="keys that change what is trained",
            remedy="leave them out, or change what makes them idle",
        )


def named_in(data: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The paths of all values in nested tables, and of tables that are empty."""
    paths = []
    for name, value in data.items():
        path = f"{prefix}{name}"
        paths += named_in(value, f"{path}.") if isinstance(value, Mapping) and value else [path]
    return paths


def changed_in(config: Any, default: Any = None, prefix: str = "") -> list[str]:
    """The paths of all fields of a dataclass that are not what they are when nobody names them.

    Args:
        config: the dataclass.
        default: what it is when nobody names it, where there is such a thing.
        prefix: of the paths.
    """
    paths = []
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{prefix}{field.name}"
        usual = _usual(field) if default is None else getattr(default, field.name)
        if value == usual:
            continue
        if dataclasses.is_dataclass(value):
            paths += changed_in(value, usual, f"{path}.") or [path]
        else:
            paths += named_in(value, f"{path}.") if isinstance(value, Mapping) and value else [path]
    return paths


def _usual(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default

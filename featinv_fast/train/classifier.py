"""The classifier that a backbone's recipe trains, and whether the data suit it."""

from __future__ import annotations

from typing import Any

from featinv_fast.errors import ConfigError
from featinv_fast.features.sources.timm_ import new_model
from featinv_fast.train.data import Data, ImageFolder
from featinv_fast.train.settings import BackboneRecipe


def make_classifier(recipe: BackboneRecipe, size: int) -> Any:
    """The timm model that learns, for images of `size` pixels."""
    # Some models know no drop_path_rate, and some skip branches unless they are told not to.
    options: list[dict[str, float]] = [{"drop_path_rate": recipe.drop_path}, *([] if recipe.drop_path else [{}])]
    for option in options:
        try:
            model = new_model(recipe.name, size, num_classes=recipe.classes, **option)
            break
        except (RuntimeError, TypeError) as error:
            if option is options[-1]:
                raise ConfigError(
                    "timm cannot make this model",
                    given=f"{recipe.name}: {error}",
                    expected="a model of timm with a classifier",
                    remedy="name another",
                ) from error
    if recipe.drop_path and not any(getattr(module, "drop_prob", None) for module in model.modules()):
        raise ConfigError(
            "drop_path has no effect",
            given=f"drop_path = {recipe.drop_path} for {recipe.name}, which has no residual branches to skip",
            expected="drop_path = 0",
            remedy="leave it out",
        )
    return model


def require_classes(recipe: BackboneRecipe, data: Data) -> None:
    """A folder must have classes to tell apart, and no more than the classifier."""
    if not isinstance(data, ImageFolder):
        return
    classes = len(data.selection.class_names)
    if not 2 <= classes <= recipe.classes:
        raise ConfigError(
            "the folder's classes do not suit the classifier",
            given=f"{classes} sub-folders that hold all images, classes = {recipe.classes}",
            expected="two or more, and no more than `classes`",
            remedy="sort the images into one folder for each class, and set `classes` to their number",
        )

"""What the recipes' runs have in common: their inputs, and the training itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featinv_fast.config import ModelConfig
from featinv_fast.errors import ArgumentError
from featinv_fast.models import Autoencoder
from featinv_fast.train.accelerator import training_device
from featinv_fast.train.data import Data, batch_of
from featinv_fast.train.extractor import Extractor
from featinv_fast.train.inputs import Inputs
from featinv_fast.train.objective import Objective
from featinv_fast.train.perceptual import LatentPerceptual, Perceptual
from featinv_fast.train.place import Place
from featinv_fast.train.settings import ControlNetRecipe, DistillRecipe, Recipe
from featinv_fast.train.trainer import train


def fit(objective: Objective, recipe: Recipe, place: Place, seen: Mapping[str, Any] | None = None) -> None:
    """Train; `seen` is what else the run depends on and only its networks know."""
    identity = {**place.identity, **({"seen": seen} if seen else {})}
    train(objective, recipe.training, place.folder, identity=identity, progress=place.progress)


def open_inputs(
    recipe: Recipe,
    place: Place,
    autoencoder: Autoencoder,
    config: ModelConfig,
    extractor: Extractor | None,
    concepts: Sequence[str] = (),
) -> Inputs:
    """Latents and features of the run's images, see `Inputs`."""
    return Inputs(
        place.data,
        recipe.data,
        autoencoder.to(training_device(recipe.training)),
        image_size=config.image_size,
        extractor=extractor,
        folder=place.cache,
        progress=place.progress,
        concepts=concepts,
    )


def open_perceptual(
    recipe: ControlNetRecipe | DistillRecipe, place: Place, autoencoder: Autoencoder
) -> LatentPerceptual | None:
    """The loss on what the backbone sees, where the recipe has one."""
    if recipe.perceptual is None:
        return None
    size, device = image_size(place.data), training_device(recipe.training)
    images = Perceptual(recipe.backbone, recipe.perceptual.layers, size=size, root=place.root, device=device)
    return LatentPerceptual(images, autoencoder.to(device), recipe.perceptual)


def open_extractor(recipe: ControlNetRecipe | DistillRecipe, place: Place) -> Extractor:
    """The backbone whose features are inverted."""
    size, device = image_size(place.data), training_device(recipe.training)
    return Extractor(recipe.backbone, size=size, root=place.root, device=device)


def image_size(data: Data) -> int:
    """Edge of the training images in pixels."""
    _, height, width, _ = batch_of(data, _FIRST)["images"].shape
    if height != width:
        raise ArgumentError(
            "the images are not square", given=f"{height}x{width}", expected="squares", remedy="crop them"
        )
    return int(height)


_FIRST = np.zeros(1, dtype=np.int64)

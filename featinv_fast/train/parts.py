"""What the recipes' runs have in common: their inputs, and the training itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featinv_fast.config import FeatureSpec, ModelConfig, to_dict
from featinv_fast.errors import ArgumentError
from featinv_fast.models import Autoencoder
from featinv_fast.train.accelerator import training_device
from featinv_fast.train.data import Data, batch_of
from featinv_fast.train.extractor import Extractor
from featinv_fast.train.inputs import Inputs
from featinv_fast.train.objective import Objective
from featinv_fast.train.pairs import Pairs
from featinv_fast.train.perceptual import LatentPerceptual, Perceptual
from featinv_fast.train.place import REMARKS_NOTE, Place
from featinv_fast.train.settings import FeatureRecipe, Recipe
from featinv_fast.train.trainer import train
from featinv_fast.train.validation import Validation


def fit(
    objective: Objective,
    recipe: Recipe,
    place: Place,
    seen: Mapping[str, Any] | None = None,
    remarks: Sequence[str] = (),
) -> dict[str, str]:
    """Train.

    Args:
        objective: what learns.
        recipe: what was asked for.
        place: its inputs and outputs.
        seen: what else the run depends on and only its networks know.
        remarks: what there is to say of its start.

    Returns:
        Metadata that say how the result was made.
    """
    identity = {**place.identity, **({"seen": seen} if seen else {})}
    validation = None
    if recipe.validation is not None and place.held_out is not None:
        config = recipe.training
        validation = Validation(recipe.validation, place.held_out, batch_size=config.batch_size, seed=config.seed)
    remarks = [
        *remarks,
        *train(objective, recipe.training, place.folder, validation, identity=identity, progress=place.progress),
    ]
    return {**place.notes, **({REMARKS_NOTE: json.dumps(remarks)} if remarks else {})}


def open_inputs(
    recipe: Recipe,
    place: Place,
    autoencoder: Autoencoder,
    config: ModelConfig,
    features: Features | None,
    concepts: Sequence[str] = (),
) -> Inputs:
    """Latents and features of the run's images, see `Inputs`."""
    return Inputs(
        place.data,
        recipe.data,
        autoencoder.to(training_device(recipe.training)),
        image_size=config.image_size,
        extractor=None if features is None else features.extractor,
        pairs=None if features is None else features.pairs,
        folder=place.cache,
        progress=place.progress,
        concepts=concepts,
    )


def open_perceptual(recipe: FeatureRecipe, place: Place, autoencoder: Autoencoder) -> LatentPerceptual | None:
    """The loss on what the backbone sees, where the recipe has one."""
    if recipe.perceptual is None:
        return None
    size, device = image_size(place.data), training_device(recipe.training)
    assert recipe.backbone is not None, "the recipe is checked"
    images = Perceptual(recipe.backbone, recipe.perceptual.layers, size=size, root=place.root, device=device)
    return LatentPerceptual(images, autoencoder.to(device), recipe.perceptual)


@dataclasses.dataclass(frozen=True)
class Features:
    """Where a run's feature maps come from: a backbone, a file, or a file that a backbone is held against."""

    extractor: Extractor | None
    pairs: Pairs | None

    @property
    def spec(self) -> FeatureSpec:
        """Of the maps; `absolute_max` is still unknown."""
        source = self.extractor or self.pairs
        assert source is not None, "the recipe is checked"
        return source.spec

    def identity(self) -> dict[str, Any]:
        """What the features depend on beside the file, which is one of the run's inputs."""
        return {"features": to_dict(self.spec)} if self.extractor is None else self.extractor.identity()


def open_features(recipe: FeatureRecipe, place: Place) -> Features:
    """The features that are inverted."""
    size, device = image_size(place.data), training_device(recipe.training)
    extractor = pairs = None
    if recipe.backbone is not None:
        extractor = Extractor(recipe.backbone, size=size, root=place.root, device=device)
    if recipe.features is not None:
        pairs = Pairs(recipe.features, place.data, place.root, extractor)
    return Features(extractor, pairs)


def image_size(data: Data) -> int:
    """Edge of the training images in pixels."""
    _, height, width, _ = batch_of(data, _FIRST)["images"].shape
    if height != width:
        raise ArgumentError(
            "the images are not square", given=f"{height}x{width}", expected="squares", remedy="crop them"
        )
    return int(height)


_FIRST = np.zeros(1, dtype=np.int64)

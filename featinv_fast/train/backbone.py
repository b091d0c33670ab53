"""Training a classifier whose features are then inverted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featinv_fast.errors import ArgumentError
from featinv_fast.features.normalisation import constants
from featinv_fast.features.sources.weight_files import CONCEPT_HEADS, CONCEPTS_NOTE
from featinv_fast.train.concepts import ABSENT, concept_slots
from featinv_fast.train.data import Data, batch_of
from featinv_fast.train.images import to_pixels
from featinv_fast.train.objective import Objective
from featinv_fast.train.settings import BackboneRecipe


class BackboneObjective(Objective):
    """Cross entropy with smoothed labels, and of the recipe's concepts from linear heads of their own.

    Args:
        model: a timm classifier; it learns.
        recipe: smoothing and normalisation.
        data: images with labels.
        image_size: edge in pixels of what the model sees.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, recipe: BackboneRecipe, data: Data, image_size: int) -> None:
        super().__init__()
        self.classifier = model
        self._recipe = recipe
        self._data = data
        self._image_size = image_size
        self._slots = {name: slots or 1 for name, slots in concept_slots(data, recipe.concepts).items()}
        self.heads = nn.ModuleDict(
            {name: nn.Linear(model.num_features, self._slots[name] * n) for name, n in recipe.concepts.items()}
        )
        own = (tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"]))
        for name, values in zip(("mean", "std"), constants(recipe.name, own, recipe.mean, recipe.std), strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def tensors(self) -> dict[str, Tensor]:
        """What was trained: the classifier, and the heads of concepts under names of their own."""
        heads = {f"{CONCEPT_HEADS}{name}": tensor for name, tensor in self.heads.state_dict().items()}
        return {**self.classifier.state_dict(), **heads}

    def about(self) -> dict[str, str]:
        """What the heads tell, as metadata of a file: name of a concept -> how many codes, of how many values."""
        sizes = {name: [self._slots[name], values] for name, values in self._recipe.concepts.items()}
        return {CONCEPTS_NOTE: json.dumps(sizes)} if sizes else {}

    @property
    def length(self) -> int:
        """Number of different images."""
        return len(self._data)

    def load(self, draws: np.ndarray) -> dict[str, Tensor]:
        """Images and labels, see `load_from`."""
        return self.load_from(self._data, draws)

    def load_from(self, data: Data, draws: np.ndarray) -> dict[str, Tensor]:
        """Images of any data and their labels.

        Raises:
            ArgumentError: the data have no labels, or more classes than the model.
        """
        batch = batch_of(data, draws)
        labels = batch.get("labels")
        if labels is None or labels.min() < 0 or labels.max() >= self._recipe.classes:
            raise ArgumentError(
                "a classifier needs labels",
                given="none" if labels is None else f"labels from {labels.min()} to {labels.max()}",
                expected=f"labels from 0 to {self._recipe.classes - 1}",
                remedy="sort the images into one folder for each class, and set `classes` to their number",
            )
        concepts = {name: torch.from_numpy(batch[name]) for name in self.heads}  # [B] or [B, slots]
        return {"images": torch.from_numpy(batch["images"]), "labels": torch.from_numpy(labels), **concepts}

    def reasons_against_shares(self, batch_size: int, processes: int) -> list[str]:
        """See `Objective`: concepts' losses are means over the objects that are there, as many as there are."""
        del batch_size, processes
        return [f"concepts: {', '.join(self.heads)}"] if self.heads else []

    def forward(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, average: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """The loss, and how many of the labels and of each concept are the largest logit."""
        del generator, average
        pixels = (to_pixels(batch["images"], self._image_size) - self.mean) / self.std
        maps = self.classifier.forward_features(pixels)
        logits = self.classifier.forward_head(maps).float()
        loss = F.cross_entropy(logits, batch["labels"], label_smoothing=self._recipe.label_smoothing)
        losses = {"accuracy": (logits.detach().argmax(dim=1) == batch["labels"]).float().mean()}
        pooled = self.classifier.forward_head(maps, pre_logits=True) if self.heads else None
        for name, head in self.heads.items():
            guesses = head(pooled).float().unflatten(1, (self._slots[name], -1)).flatten(0, 1)  # [B * slots, values]
            codes = batch[name].flatten()
            count = (codes != ABSENT).sum().clamp_min(1)
            surprise = F.cross_entropy(guesses, codes, ignore_index=ABSENT, reduction="sum") / count
            loss = loss + self._recipe.concept_weight * surprise
            losses[name] = (guesses.detach().argmax(dim=1) == codes).sum() / count
        return {"loss": loss, **losses}

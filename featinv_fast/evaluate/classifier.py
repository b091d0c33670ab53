"""What evaluation asks of a backbone: feature maps and class logits of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from PIL import Image
from torch import Tensor

from featinv_fast.config import FeatureLayout, FeatureSpec
from featinv_fast.features import normalise
from featinv_kernels.packed_maps import by_location, unpack


class Classifier(Protocol):
    """A backbone with its preprocessing. `featinv_fast.features.Backbone` is one."""

    @property
    def spec(self) -> FeatureSpec:
        """What `features_and_logits` gives: layout, channels, and where known the backbone's name and layer."""
        ...

    @property
    def input_size(self) -> int:
        """Edge in pixels of the square crop that the backbone sees."""
        ...

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Images of any size as the network's input [B, 3, S, S]: resized, cropped, normalised."""
        ...

    def features_and_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """The features in `spec.layout`, and the class logits [B, K], None for a backbone without classes."""
        ...


class Pooled:
    """A backbone whose map is averaged over its locations: the input of an engine trained on pooled features.

    Judge such an engine by the backbone itself, as the map's locations are what the pooling loses.
    """

    def __init__(self, backbone: Classifier) -> None:
        self._backbone = backbone
        self.spec = dataclasses.replace(backbone.spec, layout=FeatureLayout.POOLED, height=1, width=1)
        self.input_size = backbone.input_size

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """As the backbone does."""
        return self._backbone.preprocess(images)

    def features_and_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """The averages [B, C], and the logits."""
        features, logits = self._backbone.features_and_logits(pixels)
        return comparable_maps(features, self._backbone.spec).mean(dim=(2, 3)), logits


def layer_maps(features: Tensor, spec: FeatureSpec) -> list[Tensor]:
    """Features in the layout of `spec` as a map [B, C, H, W] for each of its layers."""
    return unpack(_maps(features, spec), spec.packed_shapes)


def comparable_maps(features: Tensor, spec: FeatureSpec) -> Tensor:
    """Features in the layout of `spec` as [B, C, H, W]: a pooled vector has one location, several layers have all."""
    return by_location(_maps(features, spec), spec.packed_shapes)


def _maps(features: Tensor, spec: FeatureSpec) -> Tensor:
    if spec.layout is FeatureLayout.POOLED:
        return features[:, :, None, None]
    return normalise(features, spec, layout=spec.layout)

"""Originals and reconstructions as they are compared: pixels in one size, and what the judging backbone sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featinv_fast.config import FeatureLayout
from featinv_fast.errors import ArgumentError
from featinv_fast.evaluate.classifier import Classifier, comparable_maps
from featinv_fast.evaluate.inputs import Example
from featinv_fast.evaluate.measures import Seen
from featinv_fast.features import center_crop


@dataclasses.dataclass(frozen=True, kw_only=True)
class Originals:
    """A batch of originals.

    Attributes:
        features: what the engine is given.
        layout: of these.
        seen: what is seen in the originals.
        crops: the originals, as large as the engine's images; None where only maps are known.
    """

    features: Tensor
    layout: FeatureLayout | None
    seen: Seen
    crops: Sequence[Image.Image | None]


class Viewer:
    """Looks at images.

    Args:
        backbone: makes the maps that the engine takes.
        judge: whose features and classes are compared.
        second: a second judge.
        image_size: of the engine's images, in pixels.
    """

    def __init__(self, backbone: Classifier, judge: Classifier, second: Classifier | None, image_size: int) -> None:
        self.backbone = backbone
        self.judge = judge
        self.second = second
        self._image_size = image_size

    def originals(self, examples: Sequence[Example]) -> Originals:
        """What is known of originals.

        Raises:
            ArgumentError: images and maps alone are mixed, or maps of several sizes.
        """
        images = [example.image for example in examples if isinstance(example.image, Image.Image)]
        targets = _targets([example.target for example in examples])
        if not images and (given := _maps(examples)) is not None:
            # Without pixels there are no classes either: they come from the network, not from the map.
            maps = given[0].to(getattr(self.backbone, "device", "cpu"))
            maps = maps[:, :, None, None] if maps.ndim == 2 else maps
            seen = Seen(images=None, maps=maps, logits=None, targets=targets)
            return Originals(features=given[0], layout=given[1], seen=seen, crops=[None] * len(examples))
        if len(images) < len(examples):
            raise ArgumentError(
                "images and maps alone are mixed",
                given=f"{len(images)} images of {len(examples)} examples",
                expected="an image with each, or with none",
                remedy="evaluate the maps by themselves",
            )
        features, logits = self.backbone.features_and_logits(self.backbone.preprocess(images))
        size = (self._image_size, self._image_size)
        crops = [
            center_crop(image, self.backbone.input_size).resize(size, Image.Resampling.BILINEAR) for image in images
        ]
        pixels = torch.from_numpy(np.stack([np.asarray(crop) for crop in crops]))
        if self.judge is self.backbone and self.second is None:
            seen = Seen(images=pixels, maps=comparable_maps(features, self.backbone.spec), logits=logits)
        else:
            seen = self._seen(images, pixels)
        if seen.judged is not None:
            second = _targets([example.second_target for example in examples])
            seen = dataclasses.replace(seen, judged=dataclasses.replace(seen.judged, targets=second))
        layout = self.backbone.spec.layout
        if (given := _maps(examples)) is not None:
            features, layout = given
        return Originals(features=features, layout=layout, seen=dataclasses.replace(seen, targets=targets), crops=crops)

    def reconstructions(self, pixels: Tensor) -> Seen:
        """What is seen in images uint8 [B, s, s, 3]."""
        return self._seen([Image.fromarray(image) for image in pixels.numpy()], pixels)

    def _seen(self, images: Sequence[Image.Image], pixels: Tensor) -> Seen:
        second = None if self.second is None else _looked(self.second, images, None)
        return dataclasses.replace(_looked(self.judge, images, pixels), judged=second)


def _looked(judge: Classifier, images: Sequence[Image.Image], pixels: Tensor | None) -> Seen:
    features, logits = judge.features_and_logits(judge.preprocess(images))
    return Seen(images=pixels, maps=comparable_maps(features, judge.spec), logits=logits)


def _maps(examples: Sequence[Example]) -> tuple[Tensor, FeatureLayout] | None:
    """Maps that were made elsewhere, and how they are laid out."""
    maps = [example.features for example in examples if example.features is not None]
    if len(maps) < len(examples):
        return None
    sizes = {tuple(one.shape) for one in maps}
    if len(sizes) > 1:
        raise ArgumentError(
            "these maps differ in size", given=sorted(sizes), expected="one size", remedy="evaluate each by itself"
        )
    features = torch.stack(maps)
    return features, FeatureLayout.POOLED if features.ndim == 2 else FeatureLayout.NCHW


def _targets(numbers: Sequence[int | None]) -> Tensor | None:
    if all(number is None for number in numbers):
        return None
    return torch.tensor([-1 if number is None else number for number in numbers])

"""Originals and reconstructions as they are compared: pixels in one size, and what the judging backbone sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featinv_fast.evaluate.classifier import Classifier, comparable_maps
from featinv_fast.evaluate.inputs import Example
from featinv_fast.evaluate.measures import Seen
from featinv_fast.features import center_crop


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

    def originals(self, examples: Sequence[Example]) -> tuple[Tensor, Seen, list[Image.Image]]:
        """What the engine is given, in the backbone's layout; what is seen; the crops, as large as its images."""
        images = [example.image for example in examples if isinstance(example.image, Image.Image)]
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
            targets = _targets([example.second_target for example in examples])
            seen = dataclasses.replace(seen, judged=dataclasses.replace(seen.judged, targets=targets))
        targets = _targets([example.target for example in examples])
        return features, dataclasses.replace(seen, targets=targets), crops

    def reconstructions(self, pixels: Tensor) -> Seen:
        """What is seen in images uint8 [B, s, s, 3]."""
        return self._seen([Image.fromarray(image) for image in pixels.numpy()], pixels)

    def _seen(self, images: Sequence[Image.Image], pixels: Tensor) -> Seen:
        second = None if self.second is None else _looked(self.second, images, None)
        return dataclasses.replace(_looked(self.judge, images, pixels), judged=second)


def _looked(judge: Classifier, images: Sequence[Image.Image], pixels: Tensor | None) -> Seen:
    features, logits = judge.features_and_logits(judge.preprocess(images))
    return Seen(images=pixels, maps=comparable_maps(features, judge.spec), logits=logits)


def _targets(numbers: Sequence[int | None]) -> Tensor | None:
    if all(number is None for number in numbers):
        return None
    return torch.tensor([-1 if number is None else number for number in numbers])

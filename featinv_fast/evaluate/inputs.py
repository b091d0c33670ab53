"""What goes into an evaluation: an engine, ways to sample from it, and images."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from featinv_fast.config import FeatureLayout
from featinv_fast.errors import ArgumentTypeError
from featinv_fast.runtime import Inversion


class Inverter(Protocol):
    """What is evaluated. `featinv_fast.Runtime` is one."""

    @property
    def info(self) -> Mapping[str, Any]:
        """At least "name" and "image_size"."""
        ...

    def invert(
        self,
        features: Any,
        *,
        steps: int | None,
        sampler: str | None,
        guidance_scale: float | None,
        seed: Sequence[int],
        samples: int,
        layout: FeatureLayout | str | None,
        errors: str,
    ) -> Inversion:
        """Images of feature maps; see `Runtime.invert`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """An image to evaluate on, or the map of one.

    Attributes:
        image: as a PIL image, or uint8 [H, W, 3]; None where only its map is known.
        features: a map [C, H, W] or pooled vector [C] that was made elsewhere, for the engine in place of the image.
        name: of the image in records and pictures; its number where empty.
        label: the class of what it shows, where that is known.
        target: the number of that class among the judge's logits, where that is known.
        second_target: likewise among those of the second judge.
        group: name for tables, such as "drawing" or "noise/3"; the images of one group make a row.
    """

    image: Image.Image | np.ndarray | None = None
    features: Tensor | None = None
    name: str = ""
    label: str | None = None
    target: int | None = None
    second_target: int | None = None
    group: str = ""


def batches(images: Iterable[Example | Image.Image | np.ndarray], size: int) -> Iterator[list[Example]]:
    """Images as numbered examples of PIL images, `size` at a time.

    Raises:
        ArgumentTypeError: something that is no image.
    """
    remaining = enumerate(images)
    while batch := list(itertools.islice(remaining, size)):
        yield [_as_example(image, number) for number, image in batch]


def _as_example(given: Any, number: int) -> Example:
    example = given if isinstance(given, Example) else Example(image=given)
    image = example.image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image) and not (image is None and example.features is not None):
        raise ArgumentTypeError(
            f"images[{number}] is no image",
            given=f"{type(image).__name__} {getattr(image, 'dtype', '')} {list(getattr(image, 'shape', []))}",
            expected="a PIL image, a uint8 array [H, W, 3], or an Example with one of these",
            remedy="convert it, for example by PIL.Image.fromarray",
        )
    return dataclasses.replace(example, image=image, name=example.name or f"{number:06d}")

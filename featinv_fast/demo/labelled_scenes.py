"""Scenes with all that is known about them, to try things on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from featinv_fast.demo import builtin
from featinv_fast.demo.world.concepts import annotate, describe
from featinv_fast.demo.world.render import render
from featinv_fast.demo.world.scenes import draw_scenes
from featinv_fast.demo.world.vocabulary import CLASS_NAMES, Split, Style

# Feature maps are computed so many at a time.
_CHUNK = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledScenes:
    """B scenes: images, labels and annotations as arrays.

    Attributes:
        images: uint8 [B, 64, 64, 3].
        labels: int64 [B], codes into `class_names`.
        concepts: name -> int64 [B, 3] (an entry for each object, the dominant one first) or [B], codes into
            `demo.CONCEPTS[name]`, `demo.ABSENT` where there is no object.
        descriptions: a sentence for each scene.
    """

    images: np.ndarray
    labels: np.ndarray
    concepts: Mapping[str, np.ndarray]
    descriptions: tuple[str, ...]
    class_names: tuple[str, ...] = CLASS_NAMES

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def features(self) -> np.ndarray:
        """The built-in backbone's final maps, float32 [B, 256, 4, 4]: what `Runtime().invert` takes.

        Computed when they are first asked for; the rest needs neither torch nor timm.

        Raises:
            MissingPackageError: timm is not installed.
            EngineNotFoundError: the package was installed without the backbone's weights.
        """
        from PIL import Image

        maps = builtin.backbone().extract([Image.fromarray(image) for image in self.images], batch_size=_CHUNK)
        spec = builtin.backbone_spec()
        empty = np.zeros((0, spec.channels, spec.height or 0, spec.width or 0), np.float32)
        return np.concatenate([empty, *(batch.numpy() for batch in maps)])


def load_scenes(
    count: int = 64, *, first: int = 0, split: Split | str = Split.TEST, style: Style | str = Style.NATURAL
) -> LabelledScenes:
    """Scenes number `first` to `first + count - 1` of a split; by default of the one that no training has seen.

    Args:
        count: number of scenes.
        first: number of the first one.
        split: "train", "validation" or "test".
        style: "natural", or "line_drawing" and "negative", which no training has seen either.

    Raises:
        ArgumentError: a value outside its range.
    """
    scenes = draw_scenes(range(first, first + count), split=split)
    return LabelledScenes(
        images=render(scenes, style=style),
        labels=scenes.labels,
        concepts=annotate(scenes),
        descriptions=tuple(describe(scenes)),
    )

"""Pairs: images, and a file of their feature maps that was made elsewhere."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featinv_fast.config import FeatureLayout, FeatureSpec
from featinv_fast.errors import ConfigError
from featinv_fast.features import StoredFeatures, normalise, require_same_features
from featinv_fast.train.data import Data, ImageFolder, batch_of
from featinv_fast.train.extractor import Extractor
from featinv_fast.train.settings import FeaturesConfig

PROBED = 8  # images whose own maps tell whether the rows are theirs
# How much nearer than to its own image a row may be to another one: alike images, and other ways to resize them.
TOLERANCE = 0.05


class Pairs:
    """The maps of a run's images, read from a file when they are needed.

    Args:
        config: the file, and how it is laid out.
        data: the images.
        root: what relative paths start from.
        extractor: the backbone that made the maps, where the recipe names it.

    Attributes:
        spec: of the maps; `absolute_max` is still unknown.

    Raises:
        ConfigError: the file has other images than the data, their maps in another order, or maps of another shape.
        FeatInvError: the file cannot be read, see `StoredFeatures`.
    """

    def __init__(self, config: FeaturesConfig, data: Data, root: Path, extractor: Extractor | None) -> None:
        self._stored = StoredFeatures(root / config.file)
        self._names = data.selection.listed if isinstance(data, ImageFolder) else tuple(map(str, range(len(data))))
        self._require_same_items()
        self.spec = _described(self._stored, config) if extractor is None else extractor.spec
        if extractor is not None and self._stored.spec is not None:
            require_same_features(
                self._stored.spec, extractor.spec, owner=str(self._stored.path), taker="the recipe's backbone"
            )
        self.maps(data, np.zeros(1, dtype=np.int64))  # says what is wrong with the shape
        if extractor is not None:
            self._require_own_maps(data, extractor)

    def maps(self, data: Data, items: np.ndarray) -> Tensor:
        """The maps of these items of the data, or of another part of the same folder: [B, C, h, w] on the CPU."""
        return normalise(self._stored.rows(_places(data, items)), self.spec, layout=self.spec.layout)

    def _require_same_items(self) -> None:
        """A row for each image and, where there are ids, those of the images in their order."""
        given, expected = self._stored.ids, self._names
        if self._stored.shape[0] != len(expected):
            raise ConfigError(
                "the feature file has another number of rows than there are images",
                given=f"{self._stored.shape[0]} rows in {self._stored.path}",
                expected=f"{len(expected)} rows, one for each image of data.source, whatever part of it is taken",
                remedy="make the features of these images, or point data.source at the images of the features",
            )
        if given is None or given == expected:
            return
        row = next(row for row, (one, other) in enumerate(zip(given, expected, strict=True)) if one != other)
        order = sorted(given) == sorted(expected)
        raise ConfigError(
            "the feature file has its images in another order" if order else "the feature file is of other images",
            given=f"row {row} of {self._stored.path} is {given[row]!r}",
            expected=f"{expected[row]!r}, image {row} of data.source",
            remedy="write the rows in the order of the images: natural order of their paths, as "
            "featinv_fast.features.list_images gives it",
        )

    def _require_own_maps(self, data: Data, extractor: Extractor) -> None:
        """The rows of some images must be nearer to what the backbone makes of them than to the other ones'."""
        items = np.unique(np.linspace(0, len(data) - 1, PROBED).astype(np.int64))
        made = extractor(torch.from_numpy(batch_of(data, items)["images"])).cpu().flatten(1).double()  # [B, C * h * w]
        stored = self.maps(data, items).flatten(1).double()
        common = made.mean(dim=0)
        near = torch.cosine_similarity((stored - common)[:, None], (made - common)[None], dim=2)  # [row, image]
        places = _places(data, items)
        names = [self._names[place] for place in places]
        for row, nearest in enumerate(near.argmax(dim=1).tolist()):
            if near[row, nearest] > near[row, row] + TOLERANCE:
                raise ConfigError(
                    "the feature file's maps are not those of their images",
                    given=f"row {places[row]} of {self._stored.path} is nearest to {names[nearest]} "
                    f"(cosine {near[row, nearest]:.2f} without what all have in common)",
                    expected=f"{names[row]} (cosine {near[row, row]:.2f}), as the backbone sees it",
                    remedy="write the rows in the order of the images, made by the recipe's backbone and layer of "
                    "their centre crops",
                )


def _places(data: Data, items: np.ndarray) -> np.ndarray:
    """Which rows of the file are those of these items."""
    return np.array([data.selection.places[i] for i in items]) if isinstance(data, ImageFolder) else items


def _described(stored: StoredFeatures, config: FeaturesConfig) -> FeatureSpec:
    """What the file says of its maps, or its shape."""
    if stored.spec is not None:
        if config.layout not in (None, stored.spec.layout) or config.prefix_tokens not in (
            None,
            stored.spec.prefix_tokens,
        ):
            raise ConfigError(
                "the feature file says that it is laid out otherwise",
                given=f"features.layout = '{config.layout}', prefix_tokens = {config.prefix_tokens}",
                expected=f"{stored.path}: '{stored.spec.layout}', prefix_tokens = {stored.spec.prefix_tokens}",
                remedy="leave features.layout and prefix_tokens out",
            )
        return stored.spec
    prefix = None
    match config.layout, stored.shape[1:]:
        case None, _:
            raise ConfigError(
                "nothing says how the feature file is laid out",
                given=f"{stored.path} without a backbone",
                expected=f"features.layout = one of {', '.join(FeatureLayout)}",
                remedy="state features.layout, or name the backbone",
            )
        case FeatureLayout.NCHW, (channels, height, width):
            pass
        case FeatureLayout.NHWC, (height, width, channels):
            pass
        case FeatureLayout.TOKENS, (tokens, channels):
            prefix = 1 if config.prefix_tokens is None else config.prefix_tokens
            height = width = math.isqrt(max(0, tokens - prefix))
        case FeatureLayout.POOLED, (channels,):
            height = width = 1
        case _:
            raise ConfigError(
                "the feature file has another shape than its layout",
                given=f"{stored.path}: {list(stored.shape)}, features.layout = '{config.layout}'",
                expected="nchw [N, C, H, W], nhwc [N, H, W, C], tokens [N, P + H * W, C] or pooled [N, C]",
                remedy="correct features.layout",
            )
    return FeatureSpec(channels=channels, height=height, width=width, layout=config.layout, prefix_tokens=prefix)

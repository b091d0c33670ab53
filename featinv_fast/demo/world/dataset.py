"""Scenes as a data set: any item or batch at once, drawn when it is asked for."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from featinv_fast.checks import count
from featinv_fast.demo.world.concepts import annotate
from featinv_fast.demo.world.render import object_masks, render
from featinv_fast.demo.world.scenes import Scenes, draw_scenes
from featinv_fast.demo.world.vocabulary import Split, Style

# How many scenes a split has unless told otherwise; there is no end to them but 2**40.
LENGTHS = {Split.TRAIN: 100_000, Split.VALIDATION: 2_000, Split.TEST: 2_000}


class SceneDataset:
    """A map-style data set of scenes; item i is the same at every time, in every batch and in every process.

    It needs no torch, but torch's loader takes it: an integer gives one item and a list of integers one batch, so
    `DataLoader(dataset, sampler=BatchSampler(RandomSampler(dataset), 128, False), batch_size=None)` renders whole
    batches at once, in as many workers as wanted.

    Args:
        split: which part of the world.
        length: number of scenes; `None` takes `LENGTHS`. A longer data set starts with the same scenes.
        size: edge of the images in pixels.
        seed: another seed is another world.
        style: how the scenes are drawn.
        masks: whether batches carry the objects' masks.

    Raises:
        ArgumentError: a value outside its range.
        ArgumentTypeError: a seed or size that is no integer.
    """

    def __init__(
        self,
        split: Split | str = Split.TRAIN,
        *,
        length: int | None = None,
        size: int = 64,
        seed: int = 0,
        style: Style | str = Style.NATURAL,
        masks: bool = False,
    ) -> None:
        # An empty batch checks every argument now and not in a worker's first one.
        render(draw_scenes([], split=split, seed=seed), size=size, style=style)
        self.split, self.size, self.seed, self.style, self.masks = Split(split), size, seed, Style(style), masks
        self._length = LENGTHS[self.split] if length is None else count("the length", length, least=0)

    def __len__(self) -> int:
        return self._length

    def scenes(self, indices: Sequence[int] | np.ndarray) -> Scenes:
        """The descriptions of some items.

        Raises:
            IndexError: an index outside the data set.
        """
        array = np.asarray(indices)
        if array.size and (array.min() < 0 or array.max() >= self._length):
            raise IndexError(f"scenes {array.min()} to {array.max()} of a data set of {self._length}")
        return draw_scenes(array, split=self.split, seed=self.seed)

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Some items, in this order.

        Returns:
            "images" uint8 [B, size, size, 3], "labels" int64 [B], the concepts of `annotate` under their own names, and
            with `masks` "masks" bool [B, 3, size, size].

        Raises:
            IndexError: an index outside the data set.
        """
        scenes = self.scenes(indices)
        batch = {"images": render(scenes, size=self.size, style=self.style), "labels": scenes.labels}
        if self.masks:
            batch["masks"] = object_masks(scenes, size=self.size)
        return batch | annotate(scenes)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """One item, without the batch dimension, for an integer; a batch for a row of integers."""
        if isinstance(index, Sequence) or np.ndim(index) > 0:
            return self.batch(index)
        return {name: array[0] for name, array in self.batch([operator.index(index)]).items()}

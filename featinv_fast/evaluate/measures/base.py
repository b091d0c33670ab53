"""What a measure is: one number for each pair of an original and its reconstruction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """A batch of images, and what the judging backbone sees in them.

    Attributes:
        images: uint8 [B, s, s, 3]; None where they do not count.
        maps: [B, C, H, W].
        logits: [B, K], or None for a backbone without classes.
        targets: true classes int64 [B] of originals, -1 where nobody knows; None without any.
        judged: what a second judge sees in them, where there is one.
    """

    images: Tensor | None
    maps: Tensor
    logits: Tensor | None
    targets: Tensor | None = None
    judged: Seen | None = None

    def __getitem__(self, rows: Sequence[int] | slice) -> Seen:
        return Seen.made([self], lambda values: values[0][rows])

    def kept(self, row: int) -> Seen:
        """One row on the CPU, in memory of its own."""
        return Seen.made([self], lambda values: values[0][row : row + 1].to("cpu", copy=True))

    @staticmethod
    def joined(parts: Sequence[Seen]) -> Seen:
        """The rows of all; without what some do not have."""
        return Seen.made(parts, torch.cat)

    @staticmethod
    def made(parts: Sequence[Seen], function: Callable[[list[Tensor]], Tensor]) -> Seen:
        """From the tensors of several by a function, without what some do not have."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(Seen):
            values = [getattr(part, field.name) for part in parts]
            if any(value is None for value in values):
                found[field.name] = None
            else:
                found[field.name] = Seen.made(values, function) if field.name == "judged" else function(values)
        return Seen(**found)

    @property
    def nbytes(self) -> int:
        """Of images and maps."""
        images = 0 if self.images is None else self.images.nbytes
        return images + self.maps.nbytes + (0 if self.judged is None else self.judged.nbytes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure by its name in reports.

    Attributes:
        name: key in rows and items, such as "ssim".
        title: in tables.
        form: how its values are written there, as for `format`.
        compute: the values [B] of originals and their reconstructions, NaN where a pair has none; None where nothing
            of the kind is known.
    """

    name: str
    title: str
    form: str
    compute: Callable[[Seen, Seen], Tensor | None]


def of_images(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Seen, Seen], Tensor | None]:
    """A function of two batches of images uint8 [B, s, s, 3] as that of a measure; no value without images."""

    def compute(originals: Seen, reconstructions: Seen) -> Tensor | None:
        if originals.images is None or reconstructions.images is None:
            return None
        return function(originals.images, reconstructions.images)

    return compute


def of_maps(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Seen, Seen], Tensor | None]:
    """A function of two batches of maps [B, C, H, W] as that of a measure."""
    return lambda originals, reconstructions: function(originals.maps, reconstructions.maps)


def of_logits(function: Callable[[Tensor, Tensor], Tensor | None]) -> Callable[[Seen, Seen], Tensor | None]:
    """A function of two batches of logits [B, K] as that of a measure, which has no value without classes."""

    def compute(originals: Seen, reconstructions: Seen) -> Tensor | None:
        if originals.logits is None or reconstructions.logits is None:
            return None
        return function(originals.logits, reconstructions.logits)

    return compute


def by_judge(measure: Measure) -> Measure:
    """The same measure of what a second judge sees."""

    def compute(originals: Seen, reconstructions: Seen) -> Tensor | None:
        if originals.judged is None or reconstructions.judged is None:
            return None
        return measure.compute(originals.judged, reconstructions.judged)

    return Measure(name=f"judge_{measure.name}", title=f"judge: {measure.title}", form=measure.form, compute=compute)

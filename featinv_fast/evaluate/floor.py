"""The floor, what an image scores that has nothing to do with the original: each one meets one of another class."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from torch import Tensor

from featinv_fast.evaluate.inputs import Example
from featinv_fast.evaluate.measures import MEASURES, Measure, Seen
from featinv_fast.evaluate.report import Kind
from featinv_fast.evaluate.series import Series

# Originals that are kept until the end to be compared with each other: at most so many, and so many bytes of them.
KEPT = 2048
KEPT_BYTES = 2**28

_COMPARED = 64  # pairs at once


@dataclasses.dataclass(frozen=True)
class _Original:
    """A kept original: its place in the circle of partners, what is known of its class, and what is seen (one row)."""

    key: bytes
    name: str
    label: str | None
    seen: Seen

    @property
    def order(self) -> tuple[bytes, str]:
        return self.key, self.name


class Floor:
    """Pairs of originals of different classes.

    Each original has a key, a hash of the seed and its pixels. In the circle of keys an original's partner is the next
    one of another class. Of many originals those with the smallest keys are kept, so neither the pairs nor the choice
    depends on the order of the images or on their batches.

    Args:
        seed: of the keys.
        measures: of a pair.
    """

    def __init__(self, seed: int, measures: Sequence[Measure] = MEASURES) -> None:
        self._seed = seed
        self._measures = measures
        self._kept: list[_Original] = []
        self._count = 0

    def add(self, examples: Sequence[Example], seen: Seen) -> None:
        """Take note of a batch of originals."""
        known = seen.maps.cpu() if seen.images is None else seen.images
        self._count += len(examples)
        self._kept += [
            _Original(self._key(known[row]), example.name, example.label, seen.kept(row))
            for row, example in enumerate(examples)
        ]
        self._kept.sort(key=lambda original: original.order)
        del self._kept[max(2, min(KEPT, KEPT_BYTES // max(1, self._kept[0].seen.nbytes))) :]

    def compare(self) -> tuple[Series, str]:
        """The scores of the pairs, none where there are no pairs, and how they were chosen or why there are none."""
        series = Series(Kind.UNRELATED, self._measures)
        classes, source = self._classes()
        chosen = partners(classes)
        if not chosen:
            why = {0: "nothing tells their classes", 1: f"all are of one class by {source}"}[len(set(classes))]
            return series, f"left out, as no original has one of another class to meet: {why}"
        pairs = list(zip(self._kept, (self._kept[place] for place in chosen), strict=True))
        for start in range(0, len(pairs), _COMPARED):
            originals, others = zip(*pairs[start : start + _COMPARED], strict=True)
            seen, by = (Seen.joined([one.seen for one in part]) for part in (originals, others))
            series.add([""] * len(originals), range(start, start + len(originals)), seen, by)
        return series, (
            f"each original compared with another one of another class by {source}, chosen by seed {self._seed}; "
            f"{len(pairs)} of {self._count} originals"
        )

    def _key(self, pixels: Tensor) -> bytes:
        return hashlib.sha256(f"{self._seed}/".encode() + pixels.contiguous().numpy().tobytes()).digest()

    def _classes(self) -> tuple[list[str | int], str]:
        """The class of each kept original, and who says so; no classes where nobody does."""
        labels = [original.label for original in self._kept if original.label is not None]
        if labels and len(labels) == len(self._kept):
            return [*labels], "their labels"
        logits = [original.seen.logits for original in self._kept if original.seen.logits is not None]
        return [int(one.argmax()) for one in logits], "the judging backbone"


def partners(classes: Sequence[str | int]) -> list[int]:
    """For each place the next one, in a circle, of another class; nothing where all are of one class."""
    count = len(classes)
    if len(set(classes)) < 2:
        return []
    found = [0] * count
    partner = 0
    # Backwards, and twice: the first round starts without knowing what follows.
    for place in reversed(range(2 * count)):
        here, following = place % count, (place + 1) % count
        if classes[here] != classes[following]:
            partner = following
        found[here] = partner
    return found

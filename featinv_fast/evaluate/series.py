"""The scores of one series of reconstructions, in all and by group."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Sequence

from torch import Tensor

from featinv_fast.evaluate.metrics import FeatureCosine, TopKMatch
from featinv_fast.evaluate.report import Kind
from featinv_fast.runtime import RunFlags


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the judging backbone sees in images.

    Attributes:
        maps: [B, C, H, W].
        logits: [B, K], or None for a backbone without classes.
    """

    maps: Tensor
    logits: Tensor | None

    def __getitem__(self, rows: Sequence[int] | slice) -> Seen:
        return Seen(self.maps[rows], None if self.logits is None else self.logits[rows])


class Scores:
    """Metrics of some images of a series, and how many could not be inverted."""

    def __init__(self) -> None:
        self.cosine = FeatureCosine()
        self.match = TopKMatch()
        self.failed = 0

    def merge(self, other: Scores) -> None:
        """Add everything that `other` has seen."""
        self.cosine.merge(other.cosine)
        self.match.merge(other.match)
        self.failed += other.failed


class Series:
    """Reconstructions of one kind: by one setting of the engine, by the autoencoder, or unrelated images."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.flags: RunFlags | None = None  # what ran, for an engine's series
        self.seconds: list[float] = []  # per image, one entry for each batch
        self.groups: defaultdict[str, Scores] = defaultdict(Scores)

    @property
    def label(self) -> str:
        """Such as "DDIM-50 g=1.75", "LCM-4" or "autoencoder"."""
        if self.flags is None:
            return str(self.kind)
        guidance = f" g={self.flags.guidance_scale:g}" if self.flags.guidance_scale != 1.0 else ""
        return f"{self.flags.sampler.upper()}-{self.flags.steps}{guidance}"

    def add(self, groups: Sequence[str], originals: Seen, reconstructions: Seen) -> list[tuple[float, int | None]]:
        """Add pairs; `groups` has the label of each.

        Returns:
            Each pair's cosine, and the place of the original's class among the reconstruction's (see `TopKMatch`).
        """
        outcomes: list[tuple[float, int | None]] = [(0.0, None)] * len(groups)
        for group in dict.fromkeys(groups):
            rows = [row for row, other in enumerate(groups) if other == group]
            of, by, scores = originals[rows], reconstructions[rows], self.groups[group]
            cosines = scores.cosine.update(of.maps, by.maps)
            places: Sequence[int | None] = [None] * len(rows)
            if of.logits is not None and by.logits is not None:
                places = scores.match.update(of.logits, by.logits)
            for row, cosine, place in zip(rows, cosines, places, strict=True):
                outcomes[row] = (cosine, place)
        return outcomes

    @property
    def total(self) -> Scores:
        """The scores of all groups."""
        total = Scores()
        for scores in self.groups.values():
            total.merge(scores)
        return total

    @property
    def seconds_per_image(self) -> float | None:
        """The median over batches, which the first one, with all that is loaded late, does not spoil."""
        return statistics.median(self.seconds) if self.seconds else None

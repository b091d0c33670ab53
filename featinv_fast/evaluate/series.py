"""The scores of one series of reconstructions, in all and by group."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence

from featinv_fast.evaluate.measures import MEASURES, SPREADS, Measure, Seen
from featinv_fast.evaluate.metrics import FeatureCosine, TopKMatch
from featinv_fast.evaluate.report import Kind
from featinv_fast.runtime import RunFlags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was measured of one reconstruction.

    Attributes:
        cosine: mean over locations; None for a failure.
        place: of the original's class among the reconstruction's, see `TopKMatch`.
        figures: name of a measure -> its value.
    """

    cosine: float | None = None
    place: int | None = None
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


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
    """Reconstructions of one kind: by one setting of the engine, by the autoencoder, or unrelated images.

    Args:
        kind: which.
        measures: of single reconstructions.
    """

    def __init__(self, kind: Kind, measures: Sequence[Measure] = MEASURES) -> None:
        self.kind = kind
        self._measures = measures
        self.flags: RunFlags | None = None  # what ran, for an engine's series
        self.seconds: list[float] = []  # per image, one entry for each batch
        self.groups: defaultdict[str, Scores] = defaultdict(Scores)
        self.figures: list[tuple[str, int, dict[str, float]]] = []  # of each reconstruction: group, original, values

    @property
    def label(self) -> str:
        """Such as "DDIM-50 g=1.75", "LCM-4" or "autoencoder"."""
        if self.flags is None:
            return str(self.kind)
        guidance = f" g={self.flags.guidance_scale:g}" if self.flags.guidance_scale != 1.0 else ""
        return f"{self.flags.sampler.upper()}-{self.flags.steps}{guidance}"

    def add(
        self, groups: Sequence[str], numbers: Sequence[int], originals: Seen, reconstructions: Seen
    ) -> list[Outcome]:
        """Add pairs, all of an original at once; `groups` has the label of each, `numbers` that of its original."""
        cosines: list[float | None] = [None] * len(groups)
        places: list[int | None] = [None] * len(groups)
        for group in dict.fromkeys(groups):
            rows = [row for row, other in enumerate(groups) if other == group]
            of, by, scores = originals[rows], reconstructions[rows], self.groups[group]
            for row, cosine in zip(rows, scores.cosine.update(of.maps, by.maps), strict=True):
                cosines[row] = cosine
            if of.logits is not None and by.logits is not None:
                for row, place in zip(rows, scores.match.update(of.logits, by.logits), strict=True):
                    places[row] = place
        figures = measured(self._measures, originals, reconstructions)
        for number in dict.fromkeys(numbers):
            rows = [row for row, other in enumerate(numbers) if other == number]
            if len(rows) > 1:
                (spread,) = measured(SPREADS, originals[rows[:1]], reconstructions[rows])
                for row in rows:
                    figures[row] |= spread
        self.figures += zip(groups, numbers, figures, strict=True)
        triples = zip(cosines, places, figures, strict=True)
        return [Outcome(cosine=cosine, place=place, figures=values) for cosine, place, values in triples]

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


def measured(measures: Sequence[Measure], originals: Seen, reconstructions: Seen) -> list[dict[str, float]]:
    """Of each original, the values of those measures that have one."""
    found: list[dict[str, float]] = [{} for _ in range(len(originals.maps))]
    for measure in measures:
        values = measure.compute(originals, reconstructions)
        for row, value in enumerate([] if values is None else values.tolist()):
            if math.isfinite(value):
                found[row][measure.name] = value
    return found

"""How close a reconstruction is to its original in the backbone's eyes: feature cosine and class match.

Accumulators take batches of any size in any order and can be merged; sums are kept in float64 or as counts.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from featinv_fast.errors import ArgumentError
from featinv_fast.evaluate.measures.class_match import places
from featinv_fast.evaluate.measures.cosine import location_cosines

# Cosines of all locations are counted in cells of this many to a unit: quantiles are exact to half a cell, and a
# million maps of 72 x 72 locations need no more memory than one.
CELLS_PER_UNIT = 2**15
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineSummary:
    """Cosine similarities of many images.

    Attributes:
        mean: over the locations of an image, then over images (arXiv 2505.21032).
        median: over the locations of all images.
        median_of_images: over the images' means.
        quantiles: over the locations of all images, "0.05" to "0.95".
    """

    mean: float
    median: float
    median_of_images: float
    quantiles: dict[str, float]


class FeatureCosine:
    """Cosine similarity of the feature vectors at each location of two maps.

    A location where either vector is zero counts as 0.
    """

    def __init__(self) -> None:
        self._images: list[float] = []
        self._cells = torch.zeros(2 * CELLS_PER_UNIT + 1, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._images)

    def update(self, originals: Tensor, reconstructions: Tensor) -> list[float]:
        """Add pairs of maps [B, C, H, W].

        Returns:
            Each image's mean over its locations.

        Raises:
            ArgumentError: the shapes differ, or a value is not finite.
        """
        if originals.shape != reconstructions.shape or originals.ndim != 4 or not originals[0:1].numel():
            raise ArgumentError(
                "these feature maps cannot be compared",
                given=f"{list(originals.shape)} and {list(reconstructions.shape)}",
                expected="two batches [B, C, H, W] of one shape, B at least 1",
                remedy="compute both with the same backbone and layer",
            )
        cosines = location_cosines(originals, reconstructions).cpu()  # [B, H*W]
        if not bool(torch.isfinite(cosines).all()):
            raise ArgumentError(
                "a feature map to compare holds NaN or infinite values",
                given=f"{int((~torch.isfinite(cosines).all(dim=1)).sum())} of {len(cosines)} pairs",
                expected="finite features",
                remedy="leave these out",
            )
        means: list[float] = cosines.mean(dim=1).tolist()
        cells = ((cosines.clamp(-1.0, 1.0) + 1.0) * CELLS_PER_UNIT).round().long()
        self._images += means
        self._cells += torch.bincount(cells.flatten(), minlength=len(self._cells))
        return means

    def merge(self, other: FeatureCosine) -> None:
        """Add everything that `other` has seen."""
        self._images += other._images
        self._cells += other._cells

    def summary(self) -> CosineSummary:
        """The figures so far.

        Raises:
            ArgumentError: there were no images.
        """
        if not self._images:
            raise ArgumentError(
                "there is nothing to summarise", given="no image", expected="at least one", remedy="call update first"
            )
        quantiles = {str(q): self._quantile(q) for q in QUANTILES}
        return CosineSummary(
            mean=math.fsum(self._images) / len(self._images),
            median=quantiles["0.5"],
            median_of_images=statistics.median(self._images),
            quantiles=quantiles,
        )

    def _quantile(self, share: float) -> float:
        """The smallest cosine that at least `share` of the locations do not exceed."""
        counts = self._cells.cumsum(0)
        rank = math.ceil(share * int(counts[-1]))
        return int(torch.searchsorted(counts, rank)) / CELLS_PER_UNIT - 1.0


class TopKMatch:
    """Whether the original's top class is among the reconstruction's top k.

    Args:
        ks: the k that are counted.
    """

    def __init__(self, ks: Sequence[int] = (1, 5)) -> None:
        self._hits = dict.fromkeys(ks, 0)
        self._images = 0
        self._classes: int | None = None

    def update(self, originals: Tensor, reconstructions: Tensor) -> list[int]:
        """Add pairs of logits [B, K].

        Returns:
            The place of each original's top class among the reconstruction's logits, 0 for the first. Of equal logits
            the class of the lower number comes first.

        Raises:
            ArgumentError: the shapes differ, or a value is not finite.
        """
        if originals.shape != reconstructions.shape or originals.ndim != 2:
            raise ArgumentError(
                "these logits cannot be compared",
                given=f"{list(originals.shape)} and {list(reconstructions.shape)}",
                expected="two batches [B, K] of one shape",
                remedy="compute both with the same classifier",
            )
        if not bool(torch.isfinite(originals).all() and torch.isfinite(reconstructions).all()):
            finite = torch.isfinite(originals).all(dim=1) & torch.isfinite(reconstructions).all(dim=1)
            raise ArgumentError(
                "the logits hold NaN or infinite values",
                given=f"{int((~finite).sum())} of {len(finite)} rows",
                expected="finite logits",
                remedy="leave these rows out",
            )
        self._same_classes(originals.shape[1])
        found: list[int] = places(reconstructions, originals.argmax(dim=1)).tolist()
        self._images += len(found)
        for k in self._hits:
            self._hits[k] += sum(place < k for place in found)
        return found

    def merge(self, other: TopKMatch) -> None:
        """Add everything that `other` has seen."""
        if other._classes is not None:
            self._same_classes(other._classes)
        self._images += other._images
        for k, hits in other._hits.items():
            self._hits[k] += hits

    def summary(self) -> dict[int, float | None]:
        """The share of matches for each k; None where nothing was compared, or with no more than k classes."""
        return {
            k: hits / self._images if self._classes is not None and self._classes > k and self._images else None
            for k, hits in self._hits.items()
        }

    def _same_classes(self, classes: int) -> None:
        if self._classes not in (None, classes):
            raise ArgumentError(
                "the number of classes changed",
                given=classes,
                expected=self._classes,
                remedy="compute all logits with the same classifier",
            )
        self._classes = classes

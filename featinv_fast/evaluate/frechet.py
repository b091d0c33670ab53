"""The Frechet distance between two sets of images in a feature space (arXiv 1706.08500, eq. 6)."""

from __future__ import annotations

import warnings
from typing import Protocol

import torch
from torch import Tensor

from featinv_fast.errors import ArgumentError


class FewSamplesWarning(UserWarning):
    """A covariance was estimated from no more samples than it has dimensions: the distance is biased upwards."""


class FeatureSpace(Protocol):
    """Maps images to vectors. Only the distance in Inception's space is called "fid"."""

    @property
    def name(self) -> str:
        """What the distance is called."""
        ...

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Images uint8 [B, H, W, 3] -> vectors [B, dimension]."""
        ...


class GaussianMoments:
    """Mean and covariance of vectors that arrive in batches, in float64.

    Batches are joined by their means and centred sums (Chan, Golub and LeVeque 1983): sums of squares would lose the
    covariance's digits where the mean is large.
    """

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64)
        self._centred = torch.zeros(dimension, dimension, dtype=torch.float64)

    def update(self, vectors: Tensor) -> None:
        """Add vectors [B, D].

        Raises:
            ArgumentError: another dimension, or a value that is not finite.
        """
        if vectors.ndim != 2 or vectors.shape[1] != len(self.mean):
            raise ArgumentError(
                "these vectors have the wrong shape",
                given=list(vectors.shape),
                expected=["B", len(self.mean)],
                remedy="pass a row for each image, all of the network that the first ones are of",
            )
        if not len(vectors):
            return
        vectors = vectors.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(vectors).all()):
            raise ArgumentError(
                "the vectors hold NaN or infinite values",
                given=f"{int((~torch.isfinite(vectors).all(dim=1)).sum())} of {len(vectors)} rows",
                expected="finite vectors",
                remedy="leave these rows out",
            )
        mean = vectors.mean(dim=0)
        centred = vectors - mean
        shift = mean - self.mean
        total = self.count + len(vectors)
        self._centred += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(vectors) / total)
        self.mean += shift * (len(vectors) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """The unbiased estimate [D, D], as FID's own code takes it.

        Raises:
            ArgumentError: fewer than two vectors.
        """
        if self.count < 2:
            raise ArgumentError(
                "a covariance needs more samples",
                given=f"{self.count} vectors of {len(self.mean)} dimensions",
                expected=f"at least 2, and more than {len(self.mean)} for a sound estimate",
                remedy="evaluate more images",
            )
        return self._centred / (self.count - 1)


def frechet_distance(first: GaussianMoments, second: GaussianMoments) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)): the squared distance that FID reports.

    The trace of the root is that of the symmetric (S1^(1/2) S2 S1^(1/2))^(1/2), which has the same eigenvalues as
    (S1 S2)^(1/2). Both roots are taken from symmetric eigenvalue problems, so singular covariances give no complex
    numbers and need no offset.

    Raises:
        ArgumentError: fewer than two vectors in a set, or sets of different dimensions.
    """
    if len(first.mean) != len(second.mean):
        raise ArgumentError(
            "the two sets have different dimensions",
            given=[len(first.mean), len(second.mean)],
            expected="one",
            remedy="compute both with the same network",
        )
    a, b = first.covariance, second.covariance
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
    inner = root @ b @ root
    trace_of_root = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0.0).sqrt().sum()
    squared = (first.mean - second.mean).square().sum() + a.trace() + b.trace() - 2.0 * trace_of_root
    return max(0.0, squared.item())  # below zero only by rounding


class FrechetDistance:
    """Frechet distances between named sets of images in one feature space.

    Args:
        space: the feature extractor.
    """

    def __init__(self, space: FeatureSpace) -> None:
        self.space = space
        self._sets: dict[str, GaussianMoments] = {}
        self._warned = False

    def update(self, name: str, images: Tensor) -> None:
        """Add images, uint8 [B, H, W, 3], to the set called `name`."""
        self.moments(name).update(self.space(images))

    def moments(self, name: str) -> GaussianMoments:
        """The moments of the set called `name`; an empty set's where nothing was added."""
        return self._sets.setdefault(name, GaussianMoments(self.space.dimension))

    def between(self, first: str, second: str) -> float:
        """The distance between two sets.

        Warns:
            FewSamplesWarning: once, where a set has no more images than the space has dimensions.

        Raises:
            ArgumentError: a set has fewer than two images.
        """
        count, name = min((self.moments(name).count, name) for name in (first, second))
        if count <= self.space.dimension and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.space.name}: the set {name!r} has {count} images for {self.space.dimension} dimensions, so "
                "distances are too large. Evaluate more images, and compare only distances of equally many.",
                FewSamplesWarning,
                stacklevel=2,
            )
        return frechet_distance(self.moments(first), self.moments(second))

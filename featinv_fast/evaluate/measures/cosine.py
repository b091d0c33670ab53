"""Cosine similarity of feature maps (arXiv 2505.21032)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from featinv_fast.evaluate.measures.base import Measure, of_maps


def location_cosines(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Cosines [B, H*W] of the feature vectors at each location of maps [B, C, H, W], in float64.

    0 where either vector is zero.
    """
    return F.cosine_similarity(originals.double(), reconstructions.double(), dim=1).flatten(1)


def feature_cosine(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """The mean over the locations of each pair of maps."""
    return location_cosines(originals, reconstructions).mean(dim=1)


COSINE = Measure(name="cosine", title="feature cosine", form=".4f", compute=of_maps(feature_cosine))

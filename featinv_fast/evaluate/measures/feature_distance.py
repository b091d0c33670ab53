"""Distance of feature maps that, unlike the cosine, also sees their lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from featinv_fast.evaluate.measures.base import Measure, of_maps


def feature_distance(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """|F(x) - F(y)| / |F(x)| of each pair of maps [B, C, H, W]; NaN where the original's map is zero."""
    x, y = originals.double().flatten(1), reconstructions.double().flatten(1)
    length = x.norm(dim=1)
    return torch.where(length > 0, (x - y).norm(dim=1) / length, torch.nan)


FEATURE_DISTANCE = Measure(
    name="feature_distance", title="relative feature distance", form=".4f", compute=of_maps(feature_distance)
)

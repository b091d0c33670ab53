"""What the features leave open: how far apart several images of one map are.

These measures take an original (one row) and its images (K >= 2 rows), and give one value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featinv_fast.evaluate.measures.base import Measure
from featinv_fast.evaluate.measures.ssim import ssim


def pixel_deviation(images: Tensor) -> Tensor:
    """The standard deviation [H, W, 3] of images uint8 [K, H, W, 3], in levels of 255."""
    return images.double().std(dim=0)


def feature_spread(original: Tensor, maps: Tensor) -> Tensor:
    """(sum_j |F(y_j) - mean|^2 / (K - 1))^(1/2) / |F(x)| of maps [1, C, H, W] and [K, C, H, W]; [1].

    In the units of the relative feature distance, and NaN where that is.
    """
    x, y = original.double().flatten(1), maps.double().flatten(1)
    length = x.norm(dim=1)
    return torch.where(length > 0, y.var(dim=0).sum().sqrt() / length, torch.nan)


def pairwise_ssim(images: Tensor) -> Tensor:
    """The mean SSIM [1] of all pairs of images uint8 [K, H, W, 3]."""
    pairs = [ssim(one.expand(len(images) - j, -1, -1, -1), images[j:]) for j, one in enumerate(images[:-1], start=1)]
    return torch.cat(pairs).mean(dim=0, keepdim=True)


PIXEL_SPREAD = Measure(
    name="pixel_spread",
    title="spread in pixels (of 255)",
    form=".2f",
    compute=lambda _, by: None if by.images is None else pixel_deviation(by.images).mean().reshape(1),
)
FEATURE_SPREAD = Measure(
    name="feature_spread",
    title="spread in features",
    form=".4f",
    compute=lambda of, by: feature_spread(of.maps, by.maps),
)
PAIRWISE_SSIM = Measure(
    name="pairwise_ssim",
    title="SSIM among images of a map",
    form=".4f",
    compute=lambda _, by: None if by.images is None else pairwise_ssim(by.images),
)

"""Structural similarity (Wang, Bovik, Sheikh and Simoncelli 2004), with the paper's Gaussian window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from featinv_fast.evaluate.measures.base import Measure, of_images

WINDOW, SIGMA = 11, 1.5
K1, K2, RANGE = 0.01, 0.03, 255


def ssim(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """The mean over colours and over the places of the whole window, of each pair of images uint8 [B, H, W, 3].

    NaN for images smaller than the window of 11 pixels.
    """
    x, y = (images.permute(0, 3, 1, 2).double() for images in (originals, reconstructions))
    if min(x.shape[2:]) < WINDOW:
        return x.new_full((len(x),), torch.nan)
    mean_x, mean_y, xx, yy, xy = (_blurred(values) for values in (x, y, x * x, y * y, x * y))
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    return (luminance * structure).flatten(1).mean(dim=1)


def _blurred(images: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 3, H - 10, W - 10]."""
    down, across = (_band(edge).to(images) for edge in images.shape[2:])
    return down @ images @ across.mT  # on a CPU four times as fast as convolutions in float64


def _band(edge: int) -> Tensor:
    """The window at each of its places: float64 [edge - 10, edge]."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    places = edge - WINDOW + 1
    rows = [F.pad(weights / weights.sum(), (place, places - 1 - place)) for place in range(places)]
    return torch.stack(rows)


SSIM = Measure(name="ssim", title="SSIM", form=".4f", compute=of_images(ssim))

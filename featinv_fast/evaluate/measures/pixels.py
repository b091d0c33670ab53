"""Peak signal-to-noise ratio of uint8 images."""

from __future__ import annotations

import torch
from torch import Tensor

from featinv_fast.evaluate.measures.base import Measure, of_images


def psnr(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """10 log10(255^2 / mean squared error) of each pair of images uint8 [B, H, W, 3], in dB.

    Equal images count as if one value were one level off: infinity has no mean.
    """
    squares = (originals.double() - reconstructions.double()).square().flatten(1)  # [B, H*W*3]
    return 10 * torch.log10(255**2 / squares.mean(dim=1).clamp(min=1 / squares.shape[1]))


PSNR = Measure(name="psnr", title="PSNR (dB)", form=".2f", compute=of_images(psnr))

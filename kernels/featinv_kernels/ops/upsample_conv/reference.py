"""The doubled map's convolution: the maths in plain torch with fp32 inside, and torch's own convolutions."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from featinv_kernels.arguments import compute_dtype


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Four products for each of the four phases; `op.upsample_conv` says the rest."""
    dtype = compute_dtype(x.dtype)
    _, height, width, _ = x.shape
    padded = F.pad(x.to(dtype), (0, 0, 1, 1, 1, 1))  # [B, H + 2, W + 2, C]
    phases = []
    for a, b in itertools.product(range(2), range(2)):
        total = bias.to(dtype)
        for u, v in itertools.product(range(2), range(2)):
            shifted = padded[:, a + u : a + u + height, b + v : b + v + width]
            total = total + shifted @ weight[a, b, u, v].to(dtype)
        phases.append(total)
    return _interleave(phases).to(x.dtype)


def upsample_conv_of_torch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same with `F.conv2d`, channels last."""
    _, height, width, _ = x.shape
    padded = F.pad(x, (0, 0, 1, 1, 1, 1)).permute(0, 3, 1, 2)  # [B, C, H + 2, W + 2]
    phases = []
    for a, b in itertools.product(range(2), range(2)):
        kernel = weight[a, b].permute(3, 2, 0, 1)  # [C', C, 2, 2]
        y = F.conv2d(padded[:, :, a : a + height + 1, b : b + width + 1], kernel, bias.to(x.dtype))
        phases.append(y.permute(0, 2, 3, 1))
    return _interleave(phases)


def _interleave(phases: list[Tensor]) -> Tensor:
    """Four [B, H, W, C], even row and even column first -> [B, 2H, 2W, C]."""
    batch, height, width, channels = phases[0].shape
    rows = [torch.stack(phases[i : i + 2], dim=3) for i in (0, 2)]  # [B, H, W, 2, C] each
    return torch.stack(rows, dim=2).view(batch, 2 * height, 2 * width, channels)

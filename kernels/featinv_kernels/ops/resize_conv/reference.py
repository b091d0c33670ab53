"""The enlarged map's convolution: the maths in plain torch with fp32 inside, and torch's own ops in the given dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from featinv_kernels.arguments import compute_dtype


def resize_conv(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, silu: bool) -> Tensor:
    """Nine products of the small map, each enlarged, shifted and added; `op.resize_conv` says the rest."""
    dtype = compute_dtype(x.dtype)
    taps = torch.einsum("bhwc,ijco->bhwijo", x.to(dtype), weight.to(dtype))
    rows, columns = (_shifted_resize(n, m, taps) for n, m in ((x.shape[1], height), (x.shape[2], width)))
    y = torch.einsum("iyh,bhwijo->bywjo", rows, taps)
    y = torch.einsum("jxw,bywjo->byxo", columns, y) + bias.to(dtype)
    y = F.silu(y) if silu else y
    return y.to(x.dtype).flatten().view(y.shape)


def _shifted_resize(size: int, new_size: int, like: Tensor) -> Tensor:
    """The matrices that resize `size` values to `new_size` and shift them by a tap: [3, new_size, size]."""
    place = (torch.arange(new_size, dtype=like.dtype, device=like.device) + 0.5) * (size / new_size) - 0.5
    place = place.clamp(min=0.0)
    lower = place.floor().long()
    fraction = (place - lower)[:, None]
    identity = torch.eye(size, dtype=like.dtype, device=like.device)
    resize = identity[lower] * (1.0 - fraction) + identity[(lower + 1).clamp(max=size - 1)] * fraction
    padded = F.pad(resize, (0, 0, 1, 1))  # beyond the border the convolution sees zeros
    return torch.stack([padded[i : i + new_size] for i in range(3)])


def resize_conv_of_torch(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, silu: bool) -> Tensor:
    """The same in the order in which it is written down, channels last."""
    y = F.interpolate(x.permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=False)
    y = F.conv2d(y, weight.permute(3, 2, 0, 1), bias.to(x.dtype), padding=1)
    y = F.silu(y) if silu else y
    y = y.permute(0, 2, 3, 1)
    return y.flatten().view(y.shape)

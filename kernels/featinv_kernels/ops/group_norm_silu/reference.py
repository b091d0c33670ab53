"""GroupNorm + SiLU: the maths in plain torch with fp32 inside, and torch's own ops in the arguments' dtype."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from featinv_kernels.arguments import compute_dtype


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, channel_bias: Tensor | None, groups: int, eps: float, silu: bool
) -> Tensor:
    """Two passes: the mean, then the differences from it and their squares; `op.group_norm_silu` says the rest."""
    dtype = compute_dtype(x.dtype)
    batch, channels = x.shape[0], x.shape[-1]
    values = x.to(dtype).reshape(batch, x.shape[1:-1].numel(), groups, channels // groups)  # [B, N, G, C / G]
    if channel_bias is not None:
        values = values + channel_bias.to(dtype).reshape(-1, 1, *values.shape[2:])
    centred = values - values.mean(dim=(1, 3), keepdim=True)
    # The mean's own rounding, which matters where the mean is large beside the deviation.
    centred = centred - centred.mean(dim=(1, 3), keepdim=True)
    variance = centred.square().mean(dim=(1, 3), keepdim=True)
    y = (centred * (variance + eps).rsqrt()).flatten(2) * weight.to(dtype) + bias.to(dtype)  # [B, N, C]
    y = F.silu(y) if silu else y
    return y.to(x.dtype).reshape(x.shape)


def group_norm_silu_of_torch(
    x: Tensor, weight: Tensor, bias: Tensor, channel_bias: Tensor | None, groups: int, eps: float, silu: bool
) -> Tensor:
    """The same with `F.group_norm`, which wants the channels second."""
    y = x.flatten(1, -2)  # [B, N, C]
    if channel_bias is not None:
        y = y + channel_bias.to(x.dtype).reshape(-1, 1, x.shape[-1])
    y = F.group_norm(y.transpose(1, 2), groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    y = F.silu(y) if silu else y
    return y.transpose(1, 2).reshape(x.shape).contiguous()

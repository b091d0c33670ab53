"""The conversion in plain torch. All maths in fp32, one rounding per operation."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(image: Tensor) -> Tensor:
    """[N, 3, H, W] in [-1, 1] to bytes [N, H, W, 3]; `op.to_uint8` says how."""
    scaled = image.to(torch.float32) * 127.5 + 127.5
    # NaN compares as not positive, so it becomes 0 here; converting it to an integer would be undefined.
    clipped = torch.where(scaled > 0.0, scaled, 0.0).clamp(max=255.0)
    return clipped.permute(0, 2, 3, 1).to(torch.uint8, memory_format=torch.contiguous_format)  # [N, H, W, 3]

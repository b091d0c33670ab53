"""Images between the forms that data, backbones and autoencoders have them in."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def to_pixels(images: Tensor, size: int) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, size, size] in [0, 1]; resized bilinearly and with antialiasing if need be."""
    pixels = images.permute(0, 3, 1, 2).float() / 255  # [B, 3, H, W]
    if pixels.shape[-2:] == (size, size):
        return pixels.contiguous()
    return F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


def to_bytes(images: Tensor) -> Tensor:
    """[..., 3, H, W] in [-1, 1] -> uint8 [..., H, W, 3]."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().movedim(-3, -1)


def to_signed(images: Tensor, size: int) -> Tensor:
    """The same in [-1, 1], as autoencoders take them."""
    return to_pixels(images, size) * 2 - 1

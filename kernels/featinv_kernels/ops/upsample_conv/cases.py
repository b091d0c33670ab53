"""Where the doubled map's convolution is tested, timed and listed.

The shape is [B, H, W, C, C'], the dtype that of x.
"""

from __future__ import annotations

from typing import Any

import torch

from featinv_kernels.arguments import RandomTensors
from featinv_kernels.ops.upsample_conv.weights import phase_weights
from featinv_kernels.spec import Case

_HALF, _BFLOAT = torch.float16, torch.bfloat16

CASES = (
    # The three upsamplings of Stable Diffusion's U-Net at a 32x32 latent, a guided pair, ...
    Case(label="unet_4x4", shape=(2, 4, 4, 1280, 1280), dtype=_HALF, full_size=True),
    Case(label="unet_8x8", shape=(2, 8, 8, 1280, 1280), dtype=_HALF, full_size=True),
    Case(label="unet_16x16", shape=(2, 16, 16, 640, 640), dtype=_HALF, full_size=True),
    # ... and of its autoencoder's decoder.
    Case(label="decoder_32x32", shape=(1, 32, 32, 512, 512), dtype=_HALF, full_size=True),
    Case(label="decoder_64x64", shape=(1, 64, 64, 512, 512), dtype=_HALF, full_size=True),
    Case(label="decoder_128x128", shape=(1, 128, 128, 256, 256), dtype=_HALF, full_size=True),
    Case(label="unet_batch_64", shape=(64, 16, 16, 640, 640), dtype=_BFLOAT, full_size=True),
    Case(label="small", shape=(2, 4, 4, 32, 16)),
    Case(label="small_half", shape=(2, 4, 4, 32, 16), dtype=_HALF),
    Case(label="small_bfloat16", shape=(2, 4, 4, 32, 16), dtype=_BFLOAT),
    Case(label="odd_3x5", shape=(2, 3, 5, 7, 9)),
    Case(label="odd_half", shape=(1, 7, 3, 67, 35), dtype=_HALF),
    Case(label="many_positions", shape=(1, 9, 15, 20, 70)),
    Case(label="one_pixel", shape=(2, 1, 1, 16, 8)),
    Case(label="one_channel", shape=(1, 5, 4, 1, 1)),
    Case(label="no_items", shape=(0, 4, 4, 16, 16)),
    Case(label="double", shape=(2, 3, 5, 7, 9), dtype=torch.float64),
)


def make_inputs(case: Case, device: torch.device) -> dict[str, Any]:
    """The arguments of `upsample_conv` for a case; the same values on every device."""
    batch, height, width, channels, out_channels = case.shape
    random = RandomTensors(device)
    x = random((batch, height, width, channels), case.dtype)
    if device.type == "meta":
        weight = random((2, 2, 2, 2, channels, out_channels), case.dtype)
    else:
        plain = random((out_channels, channels, 3, 3), scale=(9 * channels) ** -0.5)
        weight = phase_weights(plain).to(case.dtype)
    return {"x": x, "weight": weight, "bias": random((out_channels,), case.dtype)}

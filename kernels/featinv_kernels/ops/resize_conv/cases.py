"""Where the enlarged map's convolution is tested, timed and listed.

The shape is [B, h, w, C, H, W, C'], the dtype that of x. Options: `silu` (False for the convolution alone).
"""

from __future__ import annotations

from typing import Any

import torch

from featinv_kernels.arguments import RandomTensors
from featinv_kernels.spec import Case

_HALF, _BFLOAT = torch.float16, torch.bfloat16

CASES = (
    # The first convolution of the condition encoder of the models with ConvNeXt, SwinV2 and ResNet50 features, ...
    Case(label="convnext_9x9", shape=(1, 9, 9, 1024, 32, 32, 512), dtype=_HALF, full_size=True),
    Case(label="swin_12x12", shape=(1, 12, 12, 1024, 32, 32, 512), dtype=_HALF, full_size=True),
    Case(label="resnet_9x9", shape=(1, 9, 9, 2048, 32, 32, 512), dtype=_HALF, full_size=True),
    # ... and of an earlier stage; a larger batch.
    Case(label="convnext_18x18", shape=(1, 18, 18, 512, 32, 32, 512), dtype=_HALF, full_size=True),
    Case(label="convnext_batch_64", shape=(64, 9, 9, 1024, 32, 32, 512), dtype=_BFLOAT, full_size=True),
    Case(label="small", shape=(2, 3, 3, 32, 8, 8, 16)),
    Case(label="small_half", shape=(2, 3, 3, 32, 8, 8, 16), dtype=_HALF),
    Case(label="small_bfloat16", shape=(2, 3, 3, 32, 8, 8, 16), dtype=_BFLOAT),
    Case(label="odd_sizes", shape=(1, 3, 5, 7, 11, 6, 9)),
    Case(label="odd_half", shape=(2, 5, 2, 19, 7, 9, 35), dtype=_HALF, options={"silu": False}),
    Case(label="same_size", shape=(1, 5, 4, 6, 5, 4, 8)),
    Case(label="smaller", shape=(1, 9, 7, 6, 4, 3, 8)),
    Case(label="one_pixel", shape=(2, 1, 1, 16, 4, 4, 8)),
    Case(label="to_one_pixel", shape=(1, 3, 3, 4, 1, 1, 5)),
    Case(label="no_items", shape=(0, 3, 3, 16, 8, 8, 16)),
    Case(label="double", shape=(2, 3, 5, 7, 11, 6, 9), dtype=torch.float64),
)


def make_inputs(case: Case, device: torch.device) -> dict[str, Any]:
    """The arguments of `resize_conv` for a case; the same values on every device."""
    batch, small_height, small_width, channels, height, width, out_channels = case.shape
    random = RandomTensors(device)
    return {
        "x": random((batch, small_height, small_width, channels), case.dtype),
        "weight": random((3, 3, channels, out_channels), case.dtype, scale=(9 * channels) ** -0.5),
        "bias": random((out_channels,), case.dtype),
        "height": height,
        "width": width,
        "silu": case.options.get("silu", True),
    }

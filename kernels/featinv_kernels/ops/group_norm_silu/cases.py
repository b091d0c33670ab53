"""Where GroupNorm + SiLU is tested, timed and listed. The shape is [B, ..., C, groups], the dtype that of x.

Options: `channel_bias` ("row" for one bias per channel, "items" for one per item and channel), `silu` (False for the
norm alone), `offset` (a mean that is large beside the deviation), `weight_dtype`.
"""

from __future__ import annotations

from typing import Any

import torch

from featinv_kernels.arguments import RandomTensors
from featinv_kernels.spec import Case

_HALF, _BFLOAT = torch.float16, torch.bfloat16

# (size of the map, channels): every GroupNorm of the U-Net and the ControlNet of Stable Diffusion 1.x at a 32x32 latent
_UNET = (
    *((32, channels) for channels in (320, 640, 960)),
    *((16, channels) for channels in (320, 640, 960, 1280, 1920)),
    *((8, channels) for channels in (640, 1280, 1920, 2560)),
    *((4, channels) for channels in (1280, 2560)),
)
# ... and of the autoencoder's decoder to 256x256
_DECODER = ((32, 512), (64, 512), (128, 512), (128, 256), (256, 256), (256, 128))

CASES = (
    *(
        Case(
            label=f"unet_{size}x{size}x{channels}",
            shape=(2, size, size, channels, 32),
            dtype=_HALF,
            full_size=True,
            options={"channel_bias": "row"},
        )
        for size, channels in _UNET
    ),
    *(
        Case(
            label=f"decoder_{size}x{size}x{channels}", shape=(1, size, size, channels, 32), dtype=_HALF, full_size=True
        )
        for size, channels in _DECODER
    ),
    Case(label="transformer", shape=(2, 32, 32, 320, 32), dtype=_BFLOAT, full_size=True, options={"silu": False}),
    Case(label="unet_batch_64", shape=(64, 32, 32, 320, 32), dtype=_HALF, full_size=True),
    Case(label="decoder_bfloat16", shape=(1, 256, 256, 128, 32), dtype=_BFLOAT, full_size=True),
    Case(label="one_tile", shape=(2, 4, 4, 320, 32), options={"channel_bias": "row"}),
    Case(label="one_tile_half", shape=(2, 5, 3, 960, 32), dtype=_HALF, options={"channel_bias": "items"}),
    Case(label="one_tile_bfloat16", shape=(2, 4, 4, 64, 32), dtype=_BFLOAT),
    Case(label="tokens", shape=(3, 17, 96, 32), options={"silu": False}),
    Case(label="large_mean", shape=(2, 8, 8, 64, 32), options={"offset": 300.0}),
    Case(label="large_mean_half", shape=(2, 8, 8, 64, 32), dtype=_HALF, options={"offset": 30.0}),
    Case(label="many_tiles", shape=(2, 50, 33, 96, 2), options={"channel_bias": "row"}),
    Case(label="many_tiles_half", shape=(1, 40, 40, 72, 3), dtype=_HALF, options={"channel_bias": "items"}),
    Case(label="many_tiles_bfloat16", shape=(1, 33, 31, 130, 2), dtype=_BFLOAT, options={"silu": False}),
    Case(label="many_tiles_large_mean", shape=(1, 1100, 64, 2), options={"offset": 300.0}),
    Case(label="one_position", shape=(2, 1, 1, 64, 32), options={"channel_bias": "items"}),
    Case(label="one_group", shape=(2, 3, 5, 7, 1)),
    Case(label="one_channel_a_group", shape=(2, 9, 5, 5)),
    Case(label="fp32_weights", shape=(2, 4, 4, 64, 32), dtype=_HALF, options={"weight_dtype": torch.float32}),
    Case(label="no_items", shape=(0, 4, 4, 64, 32)),
    Case(label="double", shape=(2, 4, 4, 64, 32), dtype=torch.float64, options={"channel_bias": "row"}),
)


def make_inputs(case: Case, device: torch.device) -> dict[str, Any]:
    """The arguments of `group_norm_silu` for a case; the same values on every device."""
    *shape, groups = case.shape
    channels = shape[-1]
    random = RandomTensors(device)
    weight_dtype = case.options.get("weight_dtype", case.dtype)
    rows = {"row": (channels,), "items": (shape[0], channels)}.get(case.options.get("channel_bias", ""))
    x = random(shape, torch.float32) + case.options.get("offset", 0.0)
    return {
        "x": x.to(case.dtype),
        "weight": random((channels,), weight_dtype),
        "bias": random((channels,), weight_dtype),
        "channel_bias": None if rows is None else random(rows, case.dtype),
        "groups": groups,
        "eps": 1e-5,
        "silu": case.options.get("silu", True),
    }

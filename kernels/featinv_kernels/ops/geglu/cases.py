"""Where GEGLU is tested, timed and listed. The shape is that of the output, [..., D], the dtype that of x.

Options: `scale` (of the values; large ones reach the ends of the error function).
"""

from __future__ import annotations

from typing import Any

import torch

from featinv_kernels.arguments import RandomTensors
from featinv_kernels.spec import Case

_HALF, _BFLOAT = torch.float16, torch.bfloat16

CASES = (
    # The feed-forward layers of Stable Diffusion 1.x at a 32x32 latent, a guided pair.
    Case(label="unet_32x32", shape=(2, 1024, 1280), dtype=_HALF, full_size=True),
    Case(label="unet_16x16", shape=(2, 256, 2560), dtype=_HALF, full_size=True),
    Case(label="unet_8x8", shape=(2, 64, 5120), dtype=_HALF, full_size=True),
    Case(label="unet_4x4", shape=(2, 16, 5120), dtype=_HALF, full_size=True),
    Case(label="unet_batch_64", shape=(64, 1024, 1280), dtype=_BFLOAT, full_size=True),
    Case(label="small", shape=(2, 16, 256)),
    Case(label="small_half", shape=(2, 16, 256), dtype=_HALF),
    Case(label="small_bfloat16", shape=(2, 16, 256), dtype=_BFLOAT),
    Case(label="odd_3x5x7", shape=(3, 5, 7)),
    Case(label="odd_half", shape=(3, 515), dtype=_HALF),
    Case(label="odd_bfloat16", shape=(5, 1, 257), dtype=_BFLOAT),
    Case(label="vector", shape=(33,)),
    Case(label="one_value", shape=(1, 1)),
    Case(label="wide_range", shape=(4, 300), options={"scale": 8.0}),
    Case(label="no_rows", shape=(0, 64)),
    Case(label="double", shape=(3, 64), dtype=torch.float64),
)


def make_inputs(case: Case, device: torch.device) -> dict[str, Any]:
    """The argument of `geglu` for a case; the same values on every device."""
    *rows, width = case.shape
    return {"x": RandomTensors(device)((*rows, 2 * width), case.dtype, scale=case.options.get("scale", 1.0))}

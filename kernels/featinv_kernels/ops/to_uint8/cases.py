"""Where the conversion to bytes is tested, timed and listed. Shape and dtype are those of the image.

Options: `layout` ("channels_last", or "sliced": rows with gaps between them), `non_finite` (NaN and infinite values).
"""

from __future__ import annotations

from typing import Any

import torch

from featinv_kernels.arguments import RandomTensors
from featinv_kernels.spec import Case

CASES = (
    Case(label="batch_1", shape=(1, 3, 256, 256), full_size=True),
    Case(label="half_batch_8", shape=(8, 3, 256, 256), dtype=torch.float16, full_size=True),
    Case(label="small", shape=(1, 3, 64, 64)),
    Case(
        label="bfloat16_channels_last",
        shape=(2, 3, 64, 64),
        dtype=torch.bfloat16,
        options={"layout": "channels_last"},
    ),
    Case(label="double", shape=(1, 3, 32, 32), dtype=torch.float64),
    Case(label="one_pixel", shape=(1, 3, 1, 1)),
    Case(label="odd_3x5", shape=(2, 3, 3, 5), dtype=torch.float16),
    Case(label="odd_1023", shape=(3, 3, 1, 1023)),
    Case(label="odd_channels_last", shape=(2, 3, 17, 31), options={"layout": "channels_last"}),
    Case(label="sliced", shape=(2, 3, 9, 7), options={"layout": "sliced"}),
    Case(label="no_images", shape=(0, 3, 256, 256)),
    Case(label="no_rows", shape=(2, 3, 0, 5)),
    Case(label="non_finite", shape=(1, 3, 4, 4), options={"non_finite": True}),
)


def make_inputs(case: Case, device: torch.device) -> dict[str, Any]:
    """The argument of `to_uint8` for a case, about a sixth of it out of range; the same values on every device."""
    n, channels, height, width = case.shape
    image = RandomTensors(device)((n, channels, height, width + 2), scale=0.7)
    if case.options.get("non_finite"):
        image[:, :, 0, :3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    layout = case.options.get("layout")
    image = image[..., :width].to(case.dtype)
    if layout == "channels_last":
        image = image.contiguous(memory_format=torch.channels_last)
    elif layout is None:
        image = image.contiguous()
    return {"image": image}

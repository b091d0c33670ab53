"""Where attention is tested, timed and listed. The shape is [B, N, H, d, G, M], the dtype that of all tensors.

Options: `packed` (queries, keys and values are views of one tensor [B, N, 3, H, d], as one projection leaves them),
`scale` (of the queries; large ones make the softmax sharp).
"""

from __future__ import annotations

from typing import Any

import torch

from featinv_kernels.arguments import RandomTensors
from featinv_kernels.spec import Case

_HALF, _BFLOAT = torch.float16, torch.bfloat16
_PACKED = {"packed": True}

# (size of the map, head size): the transformers of Stable Diffusion 1.x at a 32x32 latent, 8 heads
_UNET = ((32, 40), (16, 80), (8, 160), (4, 160))

CASES = (
    *(
        Case(
            label=f"self_{size}x{size}_head_{head}",
            shape=(2, size * size, 8, head, 2, size * size),
            dtype=_HALF,
            full_size=True,
            options=_PACKED,
        )
        for size, head in _UNET
    ),
    # A guided batch: half of it attends to the prompt, half to the empty one.
    *(
        Case(
            label=f"cross_{size}x{size}_head_{head}",
            shape=(2, size * size, 8, head, 2, 77),
            dtype=_HALF,
            full_size=True,
        )
        for size, head in _UNET
    ),
    Case(label="cross_batch_64", shape=(64, 1024, 8, 40, 2, 77), dtype=_BFLOAT, full_size=True),
    Case(label="self_bfloat16", shape=(2, 1024, 8, 40, 2, 1024), dtype=_BFLOAT, full_size=True, options=_PACKED),
    Case(label="small_self_40", shape=(2, 64, 2, 40, 2, 64)),
    Case(label="small_self_40_half", shape=(2, 64, 2, 40, 2, 64), dtype=_HALF, options=_PACKED),
    Case(label="small_self_80_bfloat16", shape=(1, 32, 2, 80, 1, 32), dtype=_BFLOAT, options=_PACKED),
    Case(label="small_self_160", shape=(1, 16, 2, 160, 1, 16), options=_PACKED),
    Case(label="small_cross_40_bfloat16", shape=(4, 16, 2, 40, 2, 77), dtype=_BFLOAT),
    Case(label="small_cross_80_half", shape=(2, 16, 2, 80, 2, 77), dtype=_HALF),
    Case(label="small_cross_160", shape=(4, 16, 2, 160, 2, 77)),
    Case(label="one_prompt", shape=(3, 5, 2, 40, 1, 77)),
    Case(label="odd_7_queries_33_keys", shape=(2, 7, 3, 40, 2, 33), dtype=_HALF),
    Case(label="odd_130_tokens", shape=(1, 130, 1, 40, 1, 130), options=_PACKED),
    Case(label="one_key", shape=(2, 3, 1, 80, 1, 1)),
    Case(label="power_of_two_head", shape=(1, 9, 2, 64, 1, 9)),
    Case(label="odd_head_size", shape=(1, 9, 2, 23, 1, 9)),
    Case(label="sharp_softmax", shape=(1, 20, 2, 40, 1, 77), options={"scale": 30.0}),
    Case(label="no_items", shape=(0, 16, 2, 40, 2, 77)),
    Case(label="double", shape=(2, 9, 2, 40, 1, 77), dtype=torch.float64),
)


def make_inputs(case: Case, device: torch.device) -> dict[str, Any]:
    """The arguments of `attention` for a case; the same values on every device."""
    batch, queries, heads, head_size, groups, keys = case.shape
    random = RandomTensors(device)
    if case.options.get("packed"):
        q, k, v = random((batch, queries, 3, heads, head_size), case.dtype).unbind(2)
    else:
        q = random((batch, queries, heads, head_size), case.dtype, scale=case.options.get("scale", 1.0))
        k, v = (random((groups, keys, heads, head_size), case.dtype) for _ in range(2))
    return {"q": q, "k": k, "v": v, "scale": head_size**-0.5}

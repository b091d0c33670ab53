"""Where the sampler step is tested, timed and listed. The shape is that of the latents, the dtype that of eps.

Options: `noise` and `history` (present or not), `strided` (inputs that are not contiguous), `non_finite` (NaN and
infinite values among the inputs).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from featinv_kernels.arguments import RandomTensors
from featinv_kernels.spec import Case

_ALL_TERMS = {"noise": True, "history": True}

CASES = (
    Case(label="ddim_batch_1", shape=(1, 4, 32, 32)),
    Case(label="lcm_batch_2", shape=(2, 4, 32, 32), options={"noise": True}),
    Case(label="dpm_solver_batch_2", shape=(2, 4, 32, 32), options={"history": True}),
    Case(label="all_terms_batch_32", shape=(32, 4, 32, 32), full_size=True, options=_ALL_TERMS),
    Case(label="half_eps", shape=(2, 4, 32, 32), dtype=torch.float16, options=_ALL_TERMS),
    Case(label="bfloat16_eps", shape=(2, 4, 32, 32), dtype=torch.bfloat16, options=_ALL_TERMS),
    Case(label="double_eps", shape=(1, 4, 32, 32), dtype=torch.float64, options=_ALL_TERMS),
    Case(label="one_element", shape=(1,), options=_ALL_TERMS),
    Case(label="odd_3x5", shape=(3, 5), options=_ALL_TERMS),
    Case(label="odd_1023", shape=(1, 1023), dtype=torch.float16, options=_ALL_TERMS),
    Case(label="one_more_than_a_block", shape=(513,)),
    Case(label="empty", shape=(0, 4, 32, 32), options=_ALL_TERMS),
    Case(label="strided", shape=(2, 4, 8, 6), options={**_ALL_TERMS, "strided": True}),
    Case(label="non_finite", shape=(2, 4, 8, 8), options={**_ALL_TERMS, "non_finite": True}),
)


def make_inputs(case: Case, device: torch.device) -> dict[str, Any]:
    """The arguments of `sampler_step` for a case; the same values on every device."""
    random = RandomTensors(device)

    def tensor(dtype: torch.dtype, special_position: int) -> Tensor:
        shape = case.shape[::-1] if case.options.get("strided") else case.shape
        values = random(shape)
        values = values.permute(*reversed(range(values.ndim))) if case.options.get("strided") else values
        if case.options.get("non_finite"):
            specials = torch.tensor([float("nan"), float("inf"), float("-inf")])
            values.view(-1)[special_position : special_position + 3] = specials
        return values.to(dtype)  # keeps the strides

    # The positions overlap, so that NaN and infinities of both signs meet each other as well as finite values.
    return {
        "latents": tensor(torch.float32, 0),
        "eps": tensor(case.dtype, 1),
        "coefficients": random((6,)),
        "noise": tensor(torch.float32, 2) if case.options.get("noise") else None,
        "history": tensor(torch.float32, 3) if case.options.get("history") else None,
    }

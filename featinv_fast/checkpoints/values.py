"""Checks of the values in a checkpoint. They read every weight once, and allocate next to nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from featinv_fast.checkpoints.listing import listed
from featinv_fast.errors import CheckpointCorruptError


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        CheckpointCorruptError: there are such weights; the message names their tensors.
    """
    names = [name for name, tensor in tensors.items() if not math.isfinite(_largest(tensor))]
    if names:
        raise CheckpointCorruptError(
            "the checkpoint holds weights that are not finite",
            given=f"{len(names)} tensors: {listed(names)}",
            expected="finite weights",
            remedy="use a checkpoint from before the training diverged",
        )


def half_precision_exceptions(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> list[str]:
    """Names of the tensors whose values do not fit `dtype` and should stay in fp32.

    A tensor does not fit if a value overflows, or if all its values lie below the smallest normal number, where a half
    has few digits left or none.
    """
    limits = torch.finfo(dtype)
    magnitudes = {name: _largest(tensor) for name, tensor in tensors.items()}
    return sorted(name for name, m in magnitudes.items() if m > limits.max or 0.0 < m < limits.smallest_normal)


def _largest(tensor: Tensor) -> float:
    """The largest magnitude; NaN if there is a NaN, 0 for an empty tensor."""
    if not tensor.numel():
        return 0.0
    low, high = tensor.aminmax()
    return math.nan if low.isnan() else max(-low.item(), high.item())

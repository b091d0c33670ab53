"""Arrays of numpy and torch as plain float32 tensors; everything else is refused by type."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from featinv_fast.errors import ArgumentTypeError

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_EXPECTED = "a numpy array or torch tensor of float16, bfloat16, float32 or float64"


def to_float_tensor(value: Any, name: str) -> torch.Tensor:
    """`value` as a detached float32 tensor of the same shape, on its own device (numpy: the CPU).

    A float32 array that torch can use as it is shares its memory with the result.

    Args:
        value: a numpy array (any byte order, read-only or not) or a torch tensor.
        name: how messages call the value.

    Raises:
        ArgumentTypeError: no array, or one of integers, booleans, complex numbers or objects; a sparse, quantised,
            nested or meta tensor; a masked numpy array.
    """
    if isinstance(value, torch.Tensor):
        return _from_torch(value, name)
    if isinstance(value, np.ndarray):
        return _from_numpy(value, name)
    raise ArgumentTypeError(
        f"{name} is no array",
        given=type(value).__name__,
        expected=_EXPECTED,
        remedy="convert it with numpy.asarray or torch.as_tensor",
    )


def _from_torch(tensor: torch.Tensor, name: str) -> torch.Tensor:
    if tensor.is_nested:
        raise _refusal(name, "a nested tensor", "pad or split it into maps of one size")
    if tensor.layout is not torch.strided:
        raise _refusal(name, f"a tensor of layout {tensor.layout}", "call .to_dense()")
    if tensor.is_quantized:
        raise _refusal(name, f"a quantised tensor ({tensor.dtype})", "call .dequantize()")
    if tensor.is_meta:
        raise _refusal(name, "a tensor on the meta device, which has no values", "compute the features on a device")
    if tensor.dtype not in FLOAT_DTYPES:
        raise _refusal(name, f"a tensor of {tensor.dtype}", "pass the backbone's floating-point features")
    return tensor.detach().to(torch.float32)


def _from_numpy(array: np.ndarray, name: str) -> torch.Tensor:
    if isinstance(array, np.ma.MaskedArray):
        raise _refusal(name, "a masked numpy array", "call .filled(value)")
    # bfloat16 is no numpy type of its own; the ml_dtypes package registers it under this name.
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise _refusal(name, f"a numpy array of {array.dtype}", "pass the backbone's floating-point features")
    # A float64 beyond float32 becomes infinite, a signalling NaN a quiet one; both are reported as such later.
    with np.errstate(over="ignore", invalid="ignore"):
        plain = np.asarray(array, dtype=np.float32, order="C")
    if not plain.flags.writeable:
        plain = plain.copy()  # torch cannot express read-only memory
    return torch.from_numpy(plain)


def _refusal(name: str, given: str, remedy: str) -> ArgumentTypeError:
    return ArgumentTypeError(f"{name} cannot be read as feature maps", given=given, expected=_EXPECTED, remedy=remedy)

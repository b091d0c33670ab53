"""Checks of arguments that several ops share, and the tensors of their cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from featinv_kernels.errors import KernelArgumentError

CONVERT = "convert it with .to()"


def check_shape(name: str, tensor: Tensor, expected: Sequence[int]) -> None:
    """Raise a KernelArgumentError unless `tensor` has exactly the expected shape."""
    if tuple(tensor.shape) != tuple(expected):
        raise KernelArgumentError(
            f"{name} has the wrong shape",
            given=list(tensor.shape),
            expected=list(expected),
            remedy="pass a tensor of this shape",
        )


def check_tensors(first: str, tensors: Mapping[str, Tensor | None], *, same_dtype: Sequence[str] = ()) -> None:
    """Raise a KernelArgumentError unless all tensors are floating-point and on the device of `tensors[first]`.

    Args:
        first: the tensor the others are compared with.
        tensors: by the names that messages use; absent ones are None.
        same_dtype: those that must also have its dtype.
    """
    leader = tensors[first]
    assert leader is not None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not tensor.dtype.is_floating_point:
            raise KernelArgumentError(
                f"{name} is not floating-point", given=tensor.dtype, expected="floating-point", remedy=CONVERT
            )
        if tensor.device != leader.device:
            raise KernelArgumentError(
                f"{name} and {first} are on different devices",
                given=tensor.device,
                expected=leader.device,
                remedy=CONVERT,
            )
        if name in same_dtype and tensor.dtype != leader.dtype:
            raise KernelArgumentError(
                f"{name} and {first} differ in dtype", given=tensor.dtype, expected=leader.dtype, remedy=CONVERT
            )


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which dtype a reference computes: fp32, and float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


class RandomTensors:
    """Normally distributed tensors of a case, the same on every device; empty ones on the meta device."""

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self.device = device
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, shape: Sequence[int], dtype: torch.dtype = torch.float32, *, scale: float = 1.0) -> Tensor:
        """A tensor of `shape`, rounded to `dtype`."""
        if self.device.type == "meta":
            return torch.empty(tuple(shape), dtype=dtype, device=self.device)
        return (torch.randn(tuple(shape), generator=self.generator) * scale).to(self.device, dtype)

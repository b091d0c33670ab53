"""The one place where kernels are launched, so that launches can be recorded, or go elsewhere, instead.

A recording on meta tensors says what a GPU would be asked to compile for a case, without a GPU: `ahead_of_time.py`
compiles it, and the support table lists it. `native.py` sends launches to the native library.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """A kernel with everything it was launched with.

    Attributes:
        kernel: the jitted function.
        grid: the number of programs along up to three axes.
        arguments: by name, in the kernel's order: tensors, integers, floats, None and compile-time values.
        options: Triton's own: `num_warps`, `num_stages`, `enable_fp_fusion`.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]


_receiver: contextvars.ContextVar[Callable[[Launch], None] | None] = contextvars.ContextVar(
    "featinv_receiver", default=None
)


def launch(kernel: Any, grid: tuple[int, ...], *tensors: Tensor | None, options: dict[str, Any], **values: Any) -> None:
    """Run `kernel` on the device of its first tensor.

    Args:
        kernel: a jitted function whose first parameters are `tensors`, the others `values`.
        grid: the number of programs along up to three axes; nothing runs where one of them is 0.
        tensors: None for an absent one.
        options: of the launch, as in `Launch`.
        values: integers, floats and compile-time values by name.
    """
    if 0 in grid:
        return
    receiver = _receiver.get()
    if receiver is not None:
        arguments = dict(zip(kernel.arg_names, tensors, strict=False)) | values
        receiver(
            Launch(
                kernel=kernel, grid=grid, arguments={n: arguments[n] for n in kernel.arg_names}, options=dict(options)
            )
        )
        return
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(tensors[0]):  # type: ignore[no-untyped-call]
        kernel[grid](*tensors, **values, **options)


@contextlib.contextmanager
def sent_to(receiver: Callable[[Launch], None]) -> Iterator[None]:
    """Inside, kernels are not run; `receiver` gets each launch when it is made."""
    token = _receiver.set(receiver)
    try:
        yield
    finally:
        _receiver.reset(token)


@contextlib.contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Inside, kernels are not run; the list that is returned gathers what would have been."""
    launches: list[Launch] = []
    with sent_to(launches.append):
        yield launches

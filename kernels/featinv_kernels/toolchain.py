"""Triton for the kernel files; where it is not installed, the little of it that their launchers use.

A launcher picks blocks and counts programs. For that it needs a kernel's name and parameters, not its code: kernel
files can be imported without Triton, and the native library runs what they launch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["UncompiledKernel", "tl", "triton"]


class UncompiledKernel:
    """What `triton.jit` leaves of a kernel where there is nothing to compile it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.arg_names = list(inspect.signature(function).parameters)


class _Launching:
    """The functions of Triton that are plain arithmetic."""

    jit = UncompiledKernel

    @staticmethod
    def cdiv(x: int, y: int) -> int:
        return -(-x // y)

    @staticmethod
    def next_power_of_2(n: int) -> int:
        return 1 << max(0, n - 1).bit_length()


try:
    import triton
    import triton.language as tl
except ImportError:
    triton: Any = _Launching  # type: ignore[no-redef]
    tl: Any = None  # type: ignore[no-redef]

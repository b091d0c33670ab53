"""The native library through ctypes: what kernels/csrc/featinv_kernels.h declares.

The library is optional: a wheel that was built without a compiler does not have it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featinv_kernels.errors import KernelError
from featinv_kernels.launches import Launch

# FEATINV_INTERFACE of the header that this file was written for.
INTERFACE = 1
# Members of featinv_status and featinv_type.
OK = 0
_NONE, _INTEGER, _REAL, _UNKNOWN = 0, 1, 2, -1
_POINTERS = {torch.float32: 3, torch.float16: 4, torch.bfloat16: 5, torch.uint8: 6}
PTX = 0

logger = logging.getLogger(__name__)


class NativeLibraryError(KernelError, RuntimeError):
    """The native library refuses a call; the problem is its own message.

    `status` is a featinv_status.
    """

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message, remedy='use another provider, e.g. provider="auto"')


class _Content(ctypes.Union):
    _fields_ = (("pointer", ctypes.c_void_p), ("integer", ctypes.c_int64), ("real", ctypes.c_double))


class _Value(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("content", _Content))


class NativeLibrary:
    """An open library.

    Args:
        path: of the shared library.

    Raises:
        KernelError: it cannot be opened, or is of another version.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise KernelError(
                "the native library cannot be opened", given=path, expected=error, remedy="build it on this machine"
            ) from error
        given = self._library.featinv_interface()
        if given != INTERFACE:
            raise KernelError(
                "the native library is of another version than this package",
                given=f"interface {given} in {path}",
                expected=f"interface {INTERFACE}",
                remedy="build it again",
            )
        size, status, values = ctypes.c_size_t, ctypes.c_int, ctypes.POINTER(_Value)
        self._declare("message", ctypes.c_char_p)
        self._declare("kernel_count", size)
        self._declare("kernel_description", ctypes.c_char_p, size)
        self._declare("start_driver", status)
        self._declare("find", status, ctypes.c_char_p, values, size, ctypes.POINTER(size))
        self._declare("prepare", status, size, ctypes.c_int, ctypes.POINTER(ctypes.c_int))
        grid = ctypes.POINTER(ctypes.c_uint32)
        self._declare("launch", status, size, ctypes.c_int, ctypes.c_void_p, grid, values, size)
        self._prepared: set[tuple[int, int]] = set()

    def _declare(self, name: str, result: Any, *arguments: Any) -> None:
        function = getattr(self._library, f"featinv_{name}")
        function.restype, function.argtypes = result, arguments

    def kernels(self) -> list[dict[str, Any]]:
        """Every compiled kernel, by its number: `kernel`, `op`, `parameters` and `images`, as the header says."""
        describe = self._library.featinv_kernel_description
        return [json.loads(describe(number)) for number in range(self._library.featinv_kernel_count())]

    def driver_problem(self) -> str | None:
        """Why no GPU can be used; None if the driver was started."""
        return None if self._library.featinv_start_driver() == OK else self._message()

    def find(self, launch: Launch) -> int:
        """The number of the compiled kernel that serves a launch best; this needs no GPU.

        Raises:
            NativeLibraryError: there is none; the message names the argument for which it was not compiled.
        """
        values = _values(launch)
        number = ctypes.c_size_t()
        name = launch.kernel.__name__.encode()
        self._check(self._library.featinv_find(name, values, len(values), ctypes.byref(number)))
        return number.value

    def launch(self, launch: Launch, *, device: int, stream: int) -> None:
        """Put a launch into a CUDA stream.

        Args:
            launch: its tensors are on the device and stay alive until the kernel has run.
            device: ordinal.
            stream: a cudaStream_t.

        Raises:
            NativeLibraryError: there is no such compiled kernel, no driver, or the driver refuses.
        """
        number = self.find(launch)
        if (number, device) not in self._prepared:
            self._prepare(number, device)
        values = _values(launch)
        grid = (ctypes.c_uint32 * 3)(*launch.grid, *(1,) * (3 - len(launch.grid)))
        self._check(self._library.featinv_launch(number, device, stream, grid, values, len(values)))

    def _prepare(self, number: int, device: int) -> None:
        target = ctypes.c_int()
        self._check(self._library.featinv_prepare(number, device, ctypes.byref(target)))
        source = "PTX, compiled by the driver" if target.value == PTX else f"machine code for sm_{target.value}"
        logger.info("kernel %d runs on cuda:%d from %s", number, device, source)
        self._prepared.add((number, device))

    def _message(self) -> str:
        return self._library.featinv_message().decode(errors="replace")

    def _check(self, status: int) -> None:
        if status != OK:
            raise NativeLibraryError(self._message(), status)


@functools.cache
def installed_library() -> NativeLibrary | None:
    """The library that was installed with this package, None if there is none.

    Raises:
        KernelError: there is one, but it cannot be used.
    """
    suffix = {"win32": "featinv_kernels.dll", "darwin": "libfeatinv_kernels.dylib"}
    name = suffix.get(sys.platform, "libfeatinv_kernels.so")
    path = importlib.resources.files("featinv_kernels") / "lib" / name
    # A package inside a zip file has no library that could be opened.
    return NativeLibrary(path) if isinstance(path, Path) and path.is_file() else None


def _values(launch: Launch) -> ctypes.Array[_Value]:
    return (_Value * len(launch.arguments))(*map(_value, launch.arguments.values()))


def _value(argument: Any) -> _Value:
    if argument is None:
        return _Value(_NONE)
    if isinstance(argument, Tensor):
        return _Value(_POINTERS.get(argument.dtype, _UNKNOWN), _Content(pointer=argument.data_ptr()))
    if isinstance(argument, int):
        return _Value(_INTEGER, _Content(integer=argument))
    return _Value(_REAL, _Content(real=argument))

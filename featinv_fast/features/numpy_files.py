"""Arrays of `.npy` and `.npz` files, whose headers are held against the files' real sizes before anything is allocated.

numpy's own readers believe a header: 1.6 MB of archive may fill gigabytes, and damage shows itself in a dozen kinds of
exception. Here a file is one plain array of numbers, and its header accounts for every byte of it.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Literal

import numpy as np

MAGIC = b"\x93NUMPY"
LARGEST_HEADER = 10_000  # numpy's own limit
MOST_DIMENSIONS = 8
# A compressed array of more than 64 MiB may be 100 times as large as what stands in the file. Feature maps are far
# below that: zeros after a ReLU compress ten times.
FREELY_EXPANDED = 64 * 2**20
MOST_EXPANSION = 100
_NUMBERS = re.compile(r"[<>=|]?[biufc][0-9]{1,2}")


class DamagedArrayError(Exception):
    """Why a file cannot be read; its reader names the file."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What a `.npy` header declares, and where the values begin."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def map_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file, mapped into memory, read-only.

    Raises:
        DamagedArrayError: it is no such file, truncated, longer than its header says, or holds objects or records.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        header = read_header(file, path.stat().st_size)
    if not header.nbytes:  # nothing can be mapped
        return np.empty(header.shape, header.dtype)
    order: Literal["F", "C"] = "F" if header.fortran_order else "C"
    return np.memmap(path, header.dtype, mode="r", offset=header.offset, shape=header.shape, order=order)


def read_npz(path: Path, choose: Callable[[list[str]], str]) -> np.ndarray:
    """An array of a `.npz` archive.

    Args:
        path: the archive.
        choose: which of these names to read.

    Raises:
        DamagedArrayError: it is no such file, or the array's sizes contradict one another.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            members = {info.filename.removesuffix(".npy"): info for info in arrays}
            if len(members) < len(arrays):
                raise DamagedArrayError("it holds two arrays of one name")
            member = members[choose(list(members))]
            _check_member(member, path.stat().st_size)
            with archive.open(member) as file:
                header = read_header(file, member.file_size)
                return _filled(file, header)
    except zipfile.BadZipFile as error:
        raise DamagedArrayError(str(error)) from error


def read_header(file: IO[bytes], size: int) -> Header:
    """The header of an array that takes up `size` bytes, of which `file` gives the first next.

    Raises:
        DamagedArrayError: it is not sound, or does not account for `size` bytes.
    """
    start = file.read(len(MAGIC) + 2)
    if len(start) < len(MAGIC) + 2 or not start.startswith(MAGIC):
        raise DamagedArrayError("it does not begin as numpy.save begins files")
    version = start[len(MAGIC)]
    if version not in (1, 2, 3):
        raise DamagedArrayError(f"its format has the version {version}, not 1, 2 or 3")
    width = 2 if version == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > LARGEST_HEADER:
        raise DamagedArrayError(f"its header claims {length} bytes, more than {LARGEST_HEADER}")
    dtype, shape, fortran_order = _parsed(file.read(length))
    header = Header(dtype, shape, fortran_order, len(start) + width + length)
    if header.offset + header.nbytes != size:
        raise DamagedArrayError(
            f"its header declares {dtype} {list(shape)}, {header.offset + header.nbytes} bytes in all, "
            f"where there are {size}"
        )
    return header


def _parsed(text: bytes) -> tuple[np.dtype, tuple[int, ...], bool]:
    try:
        entries = ast.literal_eval(text.decode("latin1").strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # all that its documentation names
        raise DamagedArrayError("its header is no description of an array") from None
    if not isinstance(entries, dict) or set(entries) != {"descr", "fortran_order", "shape"}:
        raise DamagedArrayError("its header has not exactly descr, fortran_order and shape")
    code, shape, fortran_order = entries["descr"], entries["shape"], entries["fortran_order"]
    if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
        raise DamagedArrayError(f"its values are {str(code)[:60]!r}, not plain numbers")
    try:
        dtype = np.dtype(code)
    except TypeError:
        raise DamagedArrayError(f"its values are {code!r}, which numpy does not know") from None
    if not isinstance(shape, tuple) or not all(type(edge) is int and edge >= 0 for edge in shape):
        raise DamagedArrayError(f"its shape is {str(shape)[:60]}")
    if len(shape) > MOST_DIMENSIONS or math.prod(edge for edge in shape if edge) * dtype.itemsize >= 2**62:
        raise DamagedArrayError(f"its shape {str(shape)[:60]} is beyond every array of features")
    if type(fortran_order) is not bool:
        raise DamagedArrayError(f"its fortran_order is {str(fortran_order)[:60]}")
    return dtype, shape, fortran_order


def _check_member(member: zipfile.ZipInfo, size: int) -> None:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
        raise DamagedArrayError("it is encrypted, or compressed in a way that numpy does not write")
    stored = min(member.compress_size, size)
    if member.file_size > max(FREELY_EXPANDED, MOST_EXPANSION * stored):
        raise DamagedArrayError(
            f"{stored} bytes of it claim to hold {member.file_size}, more than {MOST_EXPANSION} times as much; "
            "if they do, save the array uncompressed (numpy.savez)"
        )


def _filled(file: IO[bytes], header: Header) -> np.ndarray:
    """The values that `file` gives next, to its end."""
    import zlib

    array = np.empty(header.shape[::-1] if header.fortran_order else header.shape, header.dtype)
    target = array.reshape(-1).view(np.uint8).data
    position = 0
    try:
        while position < len(target):
            part = file.read(min(2**20, len(target) - position))
            if not part:
                raise DamagedArrayError(f"it ends after {position} of {len(target)} bytes")
            target[position : position + len(part)] = part
            position += len(part)
        if file.read(1):  # the end, where zipfile compares the checksum
            raise DamagedArrayError("it holds more than its header declares")
    except (zlib.error, EOFError) as error:
        raise DamagedArrayError(str(error) or "it ends too early") from error
    return array.T if header.fortran_order else array

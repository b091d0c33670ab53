"""The engine's one weight file, and where each tensor lies in it."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import onnx_ir as ir
from safetensors.torch import save_file
from torch import Tensor

WEIGHT_FILE = "weights.safetensors"

_DTYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor's place in the weight file: byte offset from the start of the file, length in bytes, type, shape."""

    offset: int
    length: int
    dtype: ir.DataType
    shape: tuple[int, ...]


def write_weights(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write `tensors` to the weight file of an engine folder."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHT_FILE)


def weight_index(folder: Path) -> dict[str, StoredTensor]:
    """Read the safetensors header (its length as a little-endian u64, then JSON) of an engine's weight file."""
    with (folder / WEIGHT_FILE).open("rb") as file:
        (header_length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_length))
    start = 8 + header_length
    return {
        name: StoredTensor(
            start + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
            _DTYPES[entry["dtype"]],
            tuple(entry["shape"]),
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }

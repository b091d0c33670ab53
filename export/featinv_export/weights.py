"""The engine's one weight file, and where each tensor lies in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from featinv_fast.backends.torch_ import WEIGHT_FILE
from featinv_fast.checkpoints import half_precision_exceptions
from featinv_fast.checkpoints.writer import write_safetensors


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor's place in the weight file.

    Attributes:
        offset: of its first byte, from the start of the file.
        length: in bytes.
        dtype: as safetensors spells it: "F32", "F16" or "BF16".
        shape: of the tensor.
    """

    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]


def write_weights(tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype], folder: Path) -> None:
    """Write `tensors` in `dtypes` to the weight file of an engine folder. What has its dtype already is not copied."""
    write_safetensors(folder / WEIGHT_FILE, {name: t.to(dtypes[name]) for name, t in tensors.items()}, {})


def weight_index(folder: Path) -> dict[str, StoredTensor]:
    """Read the safetensors header (its length as a little-endian u64, then JSON) of an engine's weight file."""
    with (folder / WEIGHT_FILE).open("rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_length))
    start = 8 + header_length
    return {
        name: StoredTensor(
            offset=start + entry["data_offsets"][0],
            length=entry["data_offsets"][1] - entry["data_offsets"][0],
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
        )
        for name, entry in header.items()
    }


def exceptions_in_fp32(tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> tuple[str, ...]:
    """Names of the tensors that must stay in fp32 because they, or others of their layer, do not fit `dtypes`.

    A layer computes in one dtype, so its weight and its bias stay together.
    """
    layers: set[str] = set()
    for dtype in set(dtypes.values()) - {torch.float32}:
        halves = {name: tensor for name, tensor in tensors.items() if dtypes[name] is dtype}
        layers |= {_layer(name) for name in half_precision_exceptions(halves, dtype)}
    return tuple(name for name in tensors if _layer(name) in layers)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]

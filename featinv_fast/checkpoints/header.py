"""A check of a safetensors file's header, made before any library maps the file.

The library accepts headers with duplicate keys and reports damage in its own words; what passes here is sound:
every byte of the data belongs to exactly one tensor.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn

from featinv_fast.checkpoints.listing import short
from featinv_fast.checkpoints.strict_json import parse_json
from featinv_fast.errors import CheckpointCorruptError, CheckpointUnsafeError

LENGTH_BYTES = 8
LARGEST_HEADER = 20_000_000  # a fifth of the format's own limit; a model of 10,000 tensors needs 2,000,000
MOST_DIMENSIONS = 8
LARGEST_TENSOR = 2**62  # bytes, counted without dimensions of 0: what 64 bits of the readers can count
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


def check_header(path: Path) -> None:
    """Check that `path` is a whole, unambiguous safetensors file.

    Raises:
        CheckpointCorruptError: the file is empty, truncated, too long, or its header is not sound.
        CheckpointUnsafeError: the file is a pickle under another name.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES)
        length = int.from_bytes(start, "little")
        first = file.read(1)
        if size < LENGTH_BYTES + 2 or length > min(LARGEST_HEADER, size - LENGTH_BYTES) or first != b"{":
            _refuse_start(path, start + first, size, length)
        header = first + file.read(length - 1)
    entries = _parse(path, header)
    _check_metadata(path, entries.pop("__metadata__", {}))
    _check_entries(path, entries, size - LENGTH_BYTES - length)


def is_pickle(start: bytes) -> bool:
    """Whether a file that starts so is a zip archive (PyTorch's format) or a bare pickle."""
    return start.startswith(b"PK\x03\x04") or (
        start[:1] == b"\x80" and start[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}
    )


def _refuse_start(path: Path, start: bytes, size: int, length: int) -> NoReturn:
    if is_pickle(start):
        raise CheckpointUnsafeError(
            f"{path.name} is a pickle under the name of a safetensors file",
            given=path,
            expected="a safetensors file: a pickle can run code when it is read",
            remedy="if you trust its source, rename it to .ckpt: it is then read with weights_only=True",
        )
    if size < LENGTH_BYTES + 2:
        _refuse(path, "the file is empty" if size == 0 else f"the file is truncated: it has {size} bytes")
    if length > LARGEST_HEADER:
        _refuse(path, f"the header claims an absurd length of {length} bytes")
    if length > size - LENGTH_BYTES:
        _refuse(path, f"the file is truncated: its header needs {length} bytes, {size - LENGTH_BYTES} are there")
    _refuse(path, "the header is not JSON")


def _parse(path: Path, header: bytes) -> dict[str, Any]:
    try:
        entries: dict[str, Any] = parse_json(header)
    except ValueError as error:
        _refuse(path, f"the header is not JSON that can be read: {short(error)}")
    return entries


def _check_metadata(path: Path, metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(path, "the metadata are not a mapping of strings")


def _check_entries(path: Path, entries: dict[str, Any], data_bytes: int) -> None:
    spans = sorted(_span(path, name, entry) for name, entry in entries.items())
    position = 0
    for begin, end, name in spans:
        if begin != position:
            what = "overlaps the tensor before it" if begin < position else f"leaves {begin - position} bytes unused"
            _refuse(path, f"'{name}' at offset {begin} {what}")
        position = end
    if position > data_bytes:
        _refuse(path, f"the file is truncated: its tensors need {position} bytes, {data_bytes} are there")
    if position < data_bytes:
        _refuse(path, f"{data_bytes - position} bytes trail behind the last tensor")


def _span(path: Path, name: str, entry: object) -> tuple[int, int, str]:
    """Begin and end of a tensor's data, and its name as it is shown."""
    name = short(name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"the entry of '{name}' has not exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        _refuse(path, f"'{name}' has the unknown dtype {short(repr(dtype))}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        _refuse(path, f"'{name}' has the shape {short(shape)} and the offsets {short(offsets)}")
    begin, end = offsets
    if len(shape) > MOST_DIMENSIONS or math.prod(max(size, 1) for size in shape) * ITEM_BYTES[dtype] > LARGEST_TENSOR:
        _refuse(path, f"'{name}' has the shape {short(shape)}, which no tensor has")
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        _refuse(
            path, f"'{name}' spans {end - begin} bytes, its shape {short(shape)} and dtype {dtype} need another number"
        )
    return begin, end, name


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _refuse(path: Path, reason: str) -> NoReturn:
    raise CheckpointCorruptError(
        f"{path.name} is damaged: {reason}",
        given=path,
        expected="a whole safetensors file",
        remedy="copy or download the file again and compare its checksum",
    )

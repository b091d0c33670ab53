"""Mutations of safetensors files. The data are zeros that take no room on the disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

from mutate import plain, values

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip
# Mutants whose header declares more than this are written without the data they declare.
LARGEST_DATA = 64 * 2**20


def read_header(path: Path) -> dict[str, Any]:
    """The header of a sound file."""
    content = path.read_bytes()
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header


def header_of(shapes: dict[str, tuple[int, ...]], dtype: str = "F32", metadata: dict[str, str] | None = None) -> Any:
    """The header of a file with tensors of these shapes."""
    entries = {name: {"dtype": dtype, "shape": list(shape), "data_offsets": [0, 0]} for name, shape in shapes.items()}
    return laid_out(({"__metadata__": metadata} if metadata else {}) | entries)


def laid_out(header: Any) -> Any:
    """`header` with offsets that fit its shapes and dtypes, as far as these make sense."""
    position = 0
    for name, entry in header.items() if isinstance(header, dict) else ():
        if name == "__metadata__" or not isinstance(entry, dict):
            continue
        shape, dtype = entry.get("shape"), entry.get("dtype")
        if isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape) and isinstance(dtype, str):
            size = math.prod(shape) * ITEM_BYTES.get(dtype, 1)
            entry["data_offsets"] = [position, position + size]
            position += size
    return header


def write(path: Path, header: bytes, data_bytes: int, *, length: int | None = None) -> Path:
    """A file with this header, and as many zeros."""
    with path.open("wb") as file:
        file.write((len(header) if length is None else length).to_bytes(8, "little"))
        file.write(header)
        file.truncate(8 + len(header) + data_bytes)
    return path


def data_bytes(header: Any) -> int:
    """Where the last tensor ends; 0 where that cannot be told, or is beyond what is written."""
    ends = [
        entry["data_offsets"][1]
        for name, entry in (header.items() if isinstance(header, dict) else ())
        if name != "__metadata__"
        and isinstance(entry, dict)
        and isinstance(entry.get("data_offsets"), list)
        and len(entry["data_offsets"]) == 2
        and type(entry["data_offsets"][1]) is int
    ]
    return ends_at if (ends_at := max(ends, default=0)) <= LARGEST_DATA and ends_at >= 0 else 0


def write_mutant(random: Random, path: Path, header: dict[str, Any]) -> Path:
    """A mutant of the file that `header` describes: mostly of the header's values, with lengths that are right."""
    kind = random.random()
    size = data_bytes(header)
    if kind < 0.1:  # of the bytes
        return write(path, plain.mutated(random, json.dumps(header).encode()), size)
    if kind < 0.15:  # of the lengths
        text = json.dumps(header).encode()
        length = random.choice((0, 1, len(text) - 1, len(text) + 1, 2**31, 2**63, 2**64 - 1, 100_000_000))
        return write(path, text, max(0, size + random.choice((-1, 0, 1, 1000))), length=length)
    if kind < 0.45 and "__metadata__" in header:  # of what the file says of itself
        return write(path, _text(random, header | {"__metadata__": mutated_metadata(random, header)}), size)
    names = [name for name in header if name != "__metadata__"]
    changed = values.mutated(random, {name: header[name] for name in random.sample(names, min(3, len(names)))})
    changed = changed if isinstance(changed, dict) else {"x": changed}
    kept = {name: entry for name, entry in header.items() if name in changed or random.random() < 0.999}
    mutant = json.loads(json.dumps(kept | changed))
    if kind < 0.9:
        mutant = laid_out(mutant)
        size = data_bytes(mutant)
    return write(path, _text(random, mutant), size)


def mutated_metadata(random: Random, header: dict[str, Any]) -> Any:
    """The metadata, mutated: the texts, or the JSON that stands in one of them."""
    metadata = header["__metadata__"]
    readable = []
    for key, text in metadata.items():
        try:
            readable.append((key, json.loads(text)))
        except ValueError:
            continue
    if readable and random.random() < 0.7:
        key, value = random.choice(readable)
        return metadata | {key: values.text_of(random, values.mutated(random, value))}
    mutant = values.mutated(random, metadata)
    if isinstance(mutant, dict) and random.random() < 0.8:  # texts only, as the format asks
        mutant = {key: value if isinstance(value, str) else json.dumps(value) for key, value in mutant.items()}
    return mutant


def declared(path: Path) -> int | None:
    """See `Target.declared`: the bytes that the tensors take, where the header is JSON of the length it says."""
    content = path.read_bytes()[: 2**22]
    length = int.from_bytes(content[:8], "little")
    if length > len(content) - 8:
        return None
    try:
        header = json.loads(content[8 : 8 + length])
    except (ValueError, RecursionError):
        return None
    return data_bytes(header) if isinstance(header, dict) else None


def _text(random: Random, header: Any) -> bytes:
    return values.text_of(random, header).encode("utf-8", "surrogatepass")

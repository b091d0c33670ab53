"""Writing safetensors files, and putting files and folders in place so that a crash leaves the old ones or nothing."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featinv_fast.checkpoints.header import ITEM_BYTES
from featinv_fast.errors import CheckpointError, CheckpointExistsError, FeatInvError

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",  # batch norms of backbones count in it
}


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, one after the other: no second copy of the weights is made.

    The library's own writer orders metadata at random; here the same content gives the same bytes, so that a hash of
    the file says whether a checkpoint changed.
    """
    # Wider items first keeps every tensor aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    shapes = {name: (tensors[name].dtype, tensors[name].shape) for name in names}
    stream_safetensors(path, shapes, (tensors[name] for name in names), metadata)


def stream_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    parts: Iterable[Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write tensors of these types and shapes, of which `parts` are the values in order, in pieces of any size."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for name, (dtype, shape) in shapes.items():
        end = position + math.prod(shape) * ITEM_BYTES[DTYPES[dtype]]
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for part in parts:
            position -= file.write(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        assert position == 0, "the parts fill the shapes"
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object for people to read."""
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path, *, force: bool, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """A place beside `path` to write a file or folder to, which is renamed to `path` at the end of the block.

    Args:
        path: the destination; missing parents are made.
        force: replace what is there, if it is `replaceable`.
        replaceable: whether the existing path is something that this caller may delete.

    Raises:
        CheckpointError: the destination exists and may not be replaced, or cannot be written.
    """
    refuse_existing(path, force=force, replaceable=replaceable)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        refuse_existing(path, force=force, replaceable=replaceable)
        _move(temporary, path)
    except FeatInvError:  # some of ours are OSErrors, too
        raise
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint cannot be written: {error.strerror or error}",
            given=path,
            expected="a place with permission and room to write",
            remedy="choose another destination or make room; what was there before is untouched",
        ) from error
    finally:
        _remove(temporary)


def _move(temporary: Path, path: Path) -> None:
    if not path.is_dir():
        temporary.replace(path)
        return
    # A folder cannot be renamed over another one: the old one is set aside and deleted last.
    previous = path.with_name(f".{path.name}.{os.getpid()}.previous")
    path.rename(previous)
    try:
        temporary.rename(path)
    except OSError:
        previous.rename(path)
        raise
    _remove(previous)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def refuse_existing(path: Path, *, force: bool, replaceable: Callable[[Path], bool]) -> None:
    """Refuse a destination that exists.

    Raises:
        CheckpointError: it exists, and it was not asked to be replaced or is something else than a checkpoint.
    """
    if os.path.lexists(path) and not (force and replaceable(path)):
        raise CheckpointExistsError(
            "the destination exists" + (" and is not a checkpoint that this would replace" if force else ""),
            given=path,
            expected="a path at which there is nothing",
            remedy="choose another destination" + ("" if force else ", or pass force=True"),
            command_remedy="choose another destination" + ("" if force else ", or pass --force"),
        )

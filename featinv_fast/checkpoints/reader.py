"""Reading files of tensors: memory-mapped, and without running anything that is stored in them."""

from __future__ import annotations

import dataclasses
import json
import pickle  # for its exception; nothing is unpickled with it
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from featinv_fast.checkpoints.header import check_header, is_pickle
from featinv_fast.errors import CheckpointCorruptError, CheckpointError, CheckpointMismatchError, CheckpointUnsafeError

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
INDEX_SUFFIX = ".safetensors.index.json"
LARGEST_JSON = 20_000_000


@dataclasses.dataclass(frozen=True)
class Raw:
    """What stands in a checkpoint, under the names it has there.

    Attributes:
        tensors: views of memory-mapped files where the format allows it.
        metadata: of the safetensors file.
        configs: of a folder, its components' `config.json`.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    configs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def read_file(path: Path) -> Raw:
    """Read a `.safetensors` file, the index of a sharded one, or a `.ckpt .pt .pth .bin` pickle of tensors.

    A pickle's tensors may lie under `state_dict` (Lightning), beside optimizer states that are not read.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or its name says nothing about its format.
        CheckpointCorruptError: it is damaged.
        CheckpointUnsafeError: it holds pickled objects other than tensors and plain data.
        CheckpointMismatchError: it holds no tensors, or other things between them.
    """
    try:
        if path.name.endswith(INDEX_SUFFIX):
            return _read_shards(path)
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if path.suffix in PICKLE_SUFFIXES:
            return _read_pickle(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    raise CheckpointError(
        "the file's name does not say how it is to be read",
        given=path,
        expected=f"a name that ends in .safetensors, {INDEX_SUFFIX}, {', '.join(PICKLE_SUFFIXES)}, or a folder",
        remedy="rename the file by its format",
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Names of classes in it stay strings.

    Raises:
        CheckpointError: the file cannot be read.
        CheckpointCorruptError: it is no JSON object, or absurdly large.
    """
    reason = f"more than {LARGEST_JSON} bytes"
    try:
        if path.stat().st_size <= LARGEST_JSON:
            content = json.loads(path.read_bytes())
            if isinstance(content, dict):
                return content
            reason = "not an object"
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise CheckpointCorruptError(
        f"{path.name} is damaged: {reason}", given=path, expected="a JSON object", remedy="copy the file again"
    )


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint file cannot be read: {error.strerror or error}",
        given=path,
        expected="a readable file",
        remedy="check the path and its permissions",
    )


def _read_safetensors(path: Path) -> Raw:
    check_header(path)
    try:
        # The tensors are views of the mapped file: nothing is read until it is used.
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return Raw({name: file.get_tensor(name) for name in names}, file.metadata() or {})
    except SafetensorError as error:
        raise CheckpointCorruptError(f"{path.name} is damaged: {error}", given=path) from error


def _read_shards(path: Path) -> Raw:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointCorruptError(
            f"{path.name} is no index of shards", given=path, expected="a mapping 'weight_map' of names to files"
        )
    files = sorted(set(weight_map.values()))
    outside = [name for name in files if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        raise CheckpointUnsafeError(
            f"{path.name} points outside its folder or to another format",
            given=outside[:10],
            expected="names of .safetensors files beside it",
        )
    shards = {name: _read_safetensors(path.with_name(name)) for name in files}
    found = {tensor: name for name, shard in shards.items() for tensor in shard.tensors}
    differing = sorted(name for name in weight_map.keys() | found.keys() if weight_map.get(name) != found.get(name))
    if differing or sum(len(shard.tensors) for shard in shards.values()) != len(found):
        raise CheckpointCorruptError(
            f"{path.name} and its shards do not hold the same tensors",
            given=differing[:10],
            expected=f"{len(weight_map)} tensors in {len(files)} files",
            remedy="copy all shards again",
        )
    return Raw(
        {name: shards[file].tensors[name] for name, file in weight_map.items()},
        {key: value for shard in shards.values() for key, value in shard.metadata.items()},
    )


def _read_pickle(path: Path) -> Raw:
    with path.open("rb") as file:
        start = file.read(9)
    if not is_pickle(start):
        raise CheckpointCorruptError(
            f"{path.name} is {'empty' if not start else 'not a PyTorch file'}",
            given=path,
            expected="a zip archive or a pickle that torch.save wrote",
            remedy="copy the file again; if it is a safetensors file, name it so",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks about pickle protocols
            # The old format, a bare pickle, cannot be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(b"PK"))
    except pickle.UnpicklingError as error:
        raise _unsafe(path, str(error)) from None
    except Exception as error:  # damage shows itself in any exception
        if "TorchScript" in str(error):
            raise _unsafe(path, "it is a TorchScript archive, a program") from None
        raise CheckpointCorruptError(
            f"{path.name} is damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            given=path,
            expected="a whole file that torch.save wrote",
            remedy="copy or download the file again and compare its checksum",
        ) from error
    return Raw(_state_dict(path, content), {})


def _state_dict(path: Path, content: object) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    entries = content.items() if isinstance(content, Mapping) else [(type(content), content)]
    tensors: dict[str, Tensor] = {}
    foreign = []
    for name, value in entries:
        if isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided:
            tensors[name] = value.detach()
        else:
            foreign.append(str(name))
    if foreign or not tensors:
        raise CheckpointMismatchError(
            f"{path.name} is not a mapping of names to dense tensors",
            given=f"{len(foreign)} of {len(entries)} entries are something else: {', '.join(sorted(foreign)[:10])}",
            expected="a state dict, or one under the key 'state_dict'",
            remedy="save the model's state_dict() alone",
        )
    return tensors


def _unsafe(path: Path, message: str) -> CheckpointUnsafeError:
    # torch's message begins with advice to load the file unsafely, which we do not pass on.
    found = re.search(r"GLOBAL \S+|WeightsUnpickler error:\s*(.+)|.*TorchScript.*", message)
    return CheckpointUnsafeError(
        f"{path.name} holds pickled objects other than tensors and was not loaded",
        given=f"{path} ({found[1] or found[0] if found else 'an object that is not allowed'})",
        expected="tensors, numbers, strings, lists and dicts",
        remedy="where you trust the file, save its state dict alone as .safetensors, and give that",
    )

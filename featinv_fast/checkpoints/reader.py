"""Reading files of tensors: memory-mapped, and without running anything that is stored in them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from featinv_fast.checkpoints.header import check_header
from featinv_fast.checkpoints.listing import listed, short
from featinv_fast.checkpoints.pickles import read_pickle
from featinv_fast.checkpoints.strict_json import parse_json
from featinv_fast.checkpoints.yaml_numbers import read_model_params
from featinv_fast.checks.names import INDEX, PICKLES, require_checkpoint_name
from featinv_fast.errors import CheckpointCorruptError, CheckpointError, CheckpointUnsafeError

LARGEST_JSON = 20_000_000
# Of `Raw.configs`: what says how a checkpoint was trained.
SCHEDULER, HYPER_PARAMETERS, YAML = "scheduler", "hyper_parameters", "yaml"


@dataclasses.dataclass(frozen=True)
class Raw:
    """What stands in a checkpoint, under the names it has there.

    Attributes:
        tensors: views of memory-mapped files where the format allows it.
        metadata: of the safetensors file.
        configs: of a folder, its components' `config.json` and "scheduler"; of a file, Lightning's "hyper_parameters"
            and the numbers of the "yaml" beside it.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    configs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def read_file(path: Path) -> Raw:
    """Read a `.safetensors` file, the index of a sharded one, or a `.ckpt .pt .pth .bin` pickle of tensors.

    Of a `.yaml` with the same name beside it, the numbers below `model: params:` are read.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or its name says nothing about its format.
        CheckpointCorruptError: it is damaged.
        CheckpointUnsafeError: it holds pickled objects other than tensors and plain data.
        CheckpointMismatchError: it holds no tensors, or other things between them.
    """
    require_checkpoint_name(path)
    try:
        if is_index(path):
            return _read_shards(path)
        raw, beside = _read_single(path), path.with_suffix(".yaml")
        return Raw(raw.tensors, raw.metadata, raw.configs | _model_params(beside))
    except OSError as error:
        raise _unreadable(path, error) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Names of classes in it stay strings.

    Raises:
        CheckpointError: the file cannot be read.
        CheckpointCorruptError: it is no JSON object, or absurdly large.
    """
    reason = f"more than {LARGEST_JSON} bytes"
    try:
        if path.stat().st_size <= LARGEST_JSON:
            content = parse_json(path.read_bytes())
            if isinstance(content, dict):
                return content
            reason = "not an object"
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        reason = short(error)
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
    except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
        raise CheckpointCorruptError(
            f"{path.name} is damaged: {short(error)}",
            given=path,
            expected="a whole safetensors file",
            remedy="copy or download the file again and compare its checksum",
        ) from error


def is_index(path: Path) -> bool:
    """Whether a file is the index of shards: `model.safetensors.index.json`, in one of its spellings."""
    return INDEX.fullmatch(path.name) is not None


def shard_files(path: Path) -> list[str]:
    """The names of the shards in an index.

    Raises:
        CheckpointCorruptError: it is no index.
        CheckpointUnsafeError: it points elsewhere.
    """
    return sorted(set(_weight_map(path).values()))


def _read_single(path: Path) -> Raw:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    tensors, hyper_parameters = read_pickle(path)
    return Raw(tensors, {}, {HYPER_PARAMETERS: hyper_parameters} if hyper_parameters else {})


def _model_params(path: Path) -> dict[str, dict[str, Any]]:
    return {YAML: read_model_params(path)} if path.is_file() else {}


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointCorruptError(
            f"{path.name} is no index of shards",
            given=path,
            expected="a mapping 'weight_map' of names to files",
            remedy="copy the folder again",
        )
    suffixes = (".safetensors",) if ".safetensors." in path.name else PICKLES
    outside = [
        name for name in set(weight_map.values()) if name != re.sub(r"[/\\\0]", "", name) or not name.endswith(suffixes)
    ]
    if outside:
        raise CheckpointUnsafeError(
            f"{path.name} points outside its folder or to another format",
            given=listed(outside),
            expected=f"names of {' '.join(suffixes)} files beside it",
            remedy="copy the folder again from its source",
        )
    return weight_map


def _read_shards(path: Path) -> Raw:
    weight_map, files = _weight_map(path), shard_files(path)
    shards = {name: _read_single(path.with_name(name)) for name in files}
    found = {tensor: name for name, shard in shards.items() for tensor in shard.tensors}
    differing = [name for name in weight_map.keys() | found.keys() if weight_map.get(name) != found.get(name)]
    if differing or sum(len(shard.tensors) for shard in shards.values()) != len(found):
        raise CheckpointCorruptError(
            f"{path.name} and its shards do not hold the same tensors",
            given=listed(differing),
            expected=f"{len(weight_map)} tensors in {len(files)} files",
            remedy="copy all shards again",
        )
    return Raw(
        {name: shards[file].tensors[name] for name, file in weight_map.items()},
        {key: value for shard in shards.values() for key, value in shard.metadata.items()},
    )

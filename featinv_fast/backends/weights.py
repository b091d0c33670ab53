"""Whether an engine's weight file holds what its manifest's architecture needs, asked before a tensor is read.

Checksums say that manifest and weights are as they were written, not that they belong together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from featinv_fast.backends.torch_ import WEIGHT_FILE
from featinv_fast.checkpoints.header import check_header
from featinv_fast.config import ModelConfig
from featinv_fast.engine import EngineFolder
from featinv_fast.errors import CheckpointError, EngineIntegrityError
from featinv_fast.rewrites.engine_model import EngineModel, storage_dtypes

# As safetensors spells the types that engines store.
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
# A tensor's shape and type.
Kind = tuple[tuple[int, ...], str]
# How many differences a message lists.
LISTED = 5


def require_fitting_weights(engine: EngineFolder) -> None:
    """Refuse an engine whose weights are not those of its manifest's architecture.

    Raises:
        EngineNotFoundError: it has no weight file.
        EngineIntegrityError: tensors are missing, too many, or of another shape or type.
    """
    manifest, stored = engine.manifest, _stored(engine.file(WEIGHT_FILE))
    # Far too deep a network would take seconds to lay out.
    if missing := [f"{name} is missing" for name in _deepest_blocks(manifest.model) if name not in stored]:
        raise _unfit(engine, missing)
    structure = EngineModel.empty(manifest.model)
    dtypes = storage_dtypes(structure, manifest.storage or manifest.precision, manifest.kept_fp32)
    expected = {name: (tuple(t.shape), _NAMES[dtypes[name]]) for name, t in structure.state_dict().items()}
    differences = _differences(stored, expected)
    differences += [f"{name}, kept in fp32, does not exist" for name in manifest.kept_fp32 if name not in expected]
    if manifest.time_bias_size != structure.time_embedding.size:
        differences.append(f"rows of {structure.time_embedding.size} time biases, not {manifest.time_bias_size}")
    if differences:
        raise _unfit(engine, differences)


def _unfit(engine: EngineFolder, differences: list[str]) -> EngineIntegrityError:
    more = f"; and {len(differences) - LISTED} more" if len(differences) > LISTED else ""
    return EngineIntegrityError(
        f"the weights of the engine {engine.path} are not those of the architecture that its manifest names",
        given="; ".join(differences[:LISTED]) + more,
        expected="exactly the tensors of this architecture",
        remedy="export the checkpoint again",
    )


def _deepest_blocks(config: ModelConfig) -> tuple[str, str]:
    """A tensor of the last block of the last level, of the U-Net and of the decoder, which has one block more."""
    levels, decoder = len(config.channel_multipliers), config.autoencoder
    return (
        f"denoiser.unet.encoder.levels.{levels - 1}.blocks.{config.blocks_per_level - 1}.residual.conv_in.weight",
        f"decoder.levels.{len(decoder.channel_multipliers) - 1}.blocks.{decoder.blocks_per_level}.conv_in.weight",
    )


def _stored(path: Path) -> dict[str, Kind]:
    """Shape and type of each tensor of a weight file, from its header alone.

    Raises:
        EngineIntegrityError: it is no sound safetensors file.
    """
    try:
        check_header(path)
    except CheckpointError as error:
        raise EngineIntegrityError(
            f"{path} is no weight file: {error.problem}",
            given=error.given,
            expected=error.expected,
            remedy="export the checkpoint again",
        ) from error
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 -- it is no mapping
        return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}


def _differences(given: Mapping[str, Kind], expected: Mapping[str, Kind]) -> list[str]:
    """What is missing, too much, or of another shape or type."""
    differences = [f"{name} is missing" for name in expected if name not in given]
    differences += [f"{name} is none of them" for name in given if name not in expected]
    return differences + [
        f"{name} is {given[name][1]} {list(given[name][0])} instead of {kind[1]} {list(kind[0])}"
        for name, kind in expected.items()
        if name in given and given[name] != kind
    ]

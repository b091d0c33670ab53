"""What weights of a backbone are: a file of tensors, in which code never runs, or chance."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featinv_fast.errors import (
    ArgumentError,
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointUnsafeError,
)

_CHANCE = "random:"

# Before the names of heads that tell concepts from the pooled map, in a file that a recipe made, and where its metadata
# say how many codes of how many values each tells. They are no part of the network.
CONCEPT_HEADS, CONCEPTS_NOTE = "featinv.concepts.", "featinv.concepts"


def is_random(weights: str | Path | None) -> bool:
    """Whether these are weights by chance, "random:SEED"."""
    return str(weights).startswith(_CHANCE)


@contextlib.contextmanager
def seeded(weights: str | Path | None) -> Iterator[None]:
    """Draw new weights from the seed of "random:SEED", and leave torch's generator as it was.

    Raises:
        ArgumentError: it is no seed.
    """
    seed = str(weights).removeprefix(_CHANCE)
    if not (seed.isascii() and seed.isdigit() and len(seed) < 19):
        raise ArgumentError(
            "bad seed of random backbone weights",
            given=weights,
            expected="random: and a number of at most 18 digits",
            remedy="write random:0",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        yield


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file; code in it never runs."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointNotFoundError(
            "there is no such file of backbone weights",
            given=path,
            expected="a file under the model's own names, .safetensors or of torch.save",
            remedy="correct the path, or leave it out for the published weights",
        )
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointUnsafeError(
            "the backbone's weight file holds more than tensors",
            given=f"{path}: {str(error)[:200]}",
            expected="a state_dict of tensors",
            remedy="save the state_dict alone, best as .safetensors",
        ) from error
    except Exception as error:  # both readers show damage in any exception
        raise CheckpointCorruptError(
            "the backbone's weight file cannot be read",
            given=f"{path}: {str(error)[:500] or type(error).__name__}",
            expected="a whole file, .safetensors or of torch.save",
            remedy="copy or download it again",
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(_is_weight(*entry) for entry in state.items()):
        raise CheckpointMismatchError(
            "the backbone's weight file holds no state_dict",
            given=path,
            expected="a dictionary of dense tensors by their names",
            remedy="save the model's state_dict() alone",
        )
    return state


def _is_weight(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_quantized or value.is_nested)
    )


def unobtainable(name: str, error: Exception) -> CheckpointError:
    """The refusal where the published weights or configuration of a network cannot be had."""
    return CheckpointError(
        "the backbone's pretrained weights cannot be obtained",
        given=f"{name}: {type(error).__name__}: {str(error)[:500]}",
        expected="a connection to the model hub, or the weights in its cache",
        remedy="download them elsewhere and pass the file with --backbone-weights FILE (Backbone(weights=...))",
    )


def unfit(name: str, path: object, error: object) -> CheckpointMismatchError:
    """The refusal of weights that are another network's."""
    kind = f"{type(error).__name__}: " if isinstance(error, Exception) else ""
    return CheckpointMismatchError(
        f"the weights do not fit the backbone {name}",
        given=f"{path}: {kind}{str(error)[:500]}",
        expected="all weights of that model, under its names",
        remedy="pass the weights of this model, or name the model that they belong to",
    )

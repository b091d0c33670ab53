"""Files of feature maps: none can run code, nor make its reader allocate more than it soundly declares."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featinv_fast.checks import require_feature_file, require_input
from featinv_fast.errors import FeatInvError, UnreadableFileError
from featinv_fast.features import numpy_files

_KEY = "features"


def load_features(path: str | Path) -> np.ndarray | torch.Tensor:
    """The feature array of a file, as stored; no file can run code.

    Args:
        path: `.npy` (mapped into memory, read-only), `.npz` or `.safetensors`. The last two hold one array, or several
            of which one is called "features".

    Raises:
        InputNotFoundError: there is no such file.
        ArgumentError: another suffix.
        UnreadableFileError: a damaged file, pickled objects, or no single array to choose.
    """
    path = require_feature_file(path)
    readers: dict[str, Callable[[Path], np.ndarray | torch.Tensor]] = {
        ".npy": numpy_files.map_npy,
        ".npz": functools.partial(numpy_files.read_npz, choose=lambda keys: _chosen_key(keys, path)),
        ".safetensors": _read_safetensors,
    }
    with _damage_named(path):
        return readers[path.suffix.lower()](path)


def chosen_tensor(path: str | Path) -> tuple[Any, dict[str, str]]:
    """The tensor of a `.safetensors` file that `load_features` reads, as a slice of the file that reads nothing yet.

    Returns:
        The slice, which has `get_shape()` and is read by its indices, and the file's metadata.

    Raises:
        InputNotFoundError, UnreadableFileError: see `load_features`.
    """
    from safetensors import safe_open

    path = require_input(path, "file")
    with _damage_named(path):
        file: Any = safe_open(path, framework="pt")  # holds the declared sizes against the file's
        _refuse_repeated_names(path)
        return file.get_slice(_chosen_key(list(file.keys()), path)), dict(file.metadata() or {})


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except FeatInvError:
        raise
    except MemoryError as error:
        raise _unreadable(path, "there is not enough memory for it; .npy files are mapped, not read") from error
    except Exception as error:  # zipfile and safetensors show damage in any exception
        raise _unreadable(path, str(error) or type(error).__name__) from error


def _read_safetensors(path: Path) -> torch.Tensor:
    chosen, _ = chosen_tensor(path)
    tensor: torch.Tensor = chosen[:] if chosen.get_shape() else chosen[...]
    return tensor


def _refuse_repeated_names(path: Path) -> None:
    """The library takes the last of several tensors of one name."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise numpy_files.DamagedArrayError("its header names one tensor twice")
        return dict(pairs)

    with path.open("rb") as file:
        json.loads(file.read(int.from_bytes(file.read(8), "little")), object_pairs_hook=unique)


def _chosen_key(keys: list[str], path: Path) -> str:
    if _KEY in keys:
        return _KEY
    if len(keys) == 1:
        return keys[0]
    raise UnreadableFileError(
        "it is unclear which array holds the features",
        given=f"{path} with {sorted(keys)[:10] or 'no arrays'}",
        expected=f'one array, or one called "{_KEY}"',
        remedy=f'save the feature maps alone, or under the name "{_KEY}"',
    )


def _unreadable(path: Path, reason: str) -> UnreadableFileError:
    return UnreadableFileError(
        "this feature file cannot be read",
        given=f"{path}: {reason}",
        expected="a whole file of floating-point numbers; pickled objects are never loaded",
        remedy="save the array again with numpy.save or safetensors.torch.save_file",
    )

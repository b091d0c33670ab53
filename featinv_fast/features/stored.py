"""Rows of a feature file, read when they are asked for, and the ids of their images where the file has some."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from featinv_fast.config import FeatureSpec, from_dict
from featinv_fast.errors import FeatInvError, UnreadableFileError
from featinv_fast.features.arrays import to_float_tensor
from featinv_fast.features.files import chosen_tensor, load_features

# In the metadata of .safetensors: a JSON list, and the JSON form of a `FeatureSpec`.
IDS, SPEC = "featinv.ids", "featinv.features"
IDS_SUFFIX = ".ids"  # of a text file beside any other file: an id a line


class StoredFeatures:
    """A feature file as an array whose first axis is the items.

    Args:
        path: see `load_features`. Of `.npy` (mapped) and `.safetensors` (sliced) only the rows that are asked for are
            read; `.npz`, which may be compressed, is read whole.

    Attributes:
        path: of the file.
        shape: of the array.
        spec: what the maps are, where a `.safetensors` file says it in its metadata as "featinv.features".
        ids: of the items: a JSON list under "featinv.ids" in the metadata of a `.safetensors` file, or the lines of a
            text file beside it of the same name, ending in `.ids`; None where there are none.

    Raises:
        InputNotFoundError, ArgumentError, UnreadableFileError: see `load_features`.
        UnreadableFileError: a single number, or ids that are no names of the rows.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        ids = self.spec = None
        if self.path.suffix.lower() == ".safetensors":
            self._array, metadata = chosen_tensor(self.path)
            ids, self.spec = _parsed(metadata.get(IDS), self.path), _parsed_spec(metadata.get(SPEC), self.path)
        else:
            self._array = load_features(self.path)
        shape = self._array.get_shape() if hasattr(self._array, "get_shape") else self._array.shape
        self.shape: tuple[int, ...] = tuple(shape)
        beside = self.path.with_suffix(IDS_SUFFIX)
        if ids is None and beside.is_file():
            ids = tuple(beside.read_text(encoding="utf-8", errors="surrogateescape").splitlines())
        if not self.shape or (ids is not None and len(ids) != self.shape[0]):
            raise UnreadableFileError(
                "this file holds no rows of features" if not self.shape else "the ids do not fit the rows",
                given=f"{self.path}: shape {list(self.shape)}" + ("" if ids is None else f", {len(ids)} ids"),
                expected="an item a row, and where there are ids one for each",
                remedy="write the file and its ids again",
            )
        self.ids = ids

    def rows(self, indices: np.ndarray) -> torch.Tensor:
        """The rows with these indices as they are laid out: float32 [B, ...]."""
        parts = [to_float_tensor(self._array[int(i) : int(i) + 1], f"row {i} of {self.path}") for i in indices]
        return torch.cat(parts)

    def whole(self) -> np.ndarray | torch.Tensor:
        """The array as it is stored, as `load_features` gives it."""
        whole: np.ndarray | torch.Tensor = self._array[:] if hasattr(self._array, "get_shape") else self._array
        return whole


def _parsed(text: str | None, path: Path) -> tuple[str, ...] | None:
    if text is None:
        return None
    try:
        ids = json.loads(text)
    except (ValueError, RecursionError):
        ids = None
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise UnreadableFileError(
            "the ids of this feature file cannot be read",
            given=f"{path}, {IDS} in its metadata",
            expected="a JSON list of strings",
            remedy="write the file again",
        )
    return tuple(ids)


def _parsed_spec(text: str | None, path: Path) -> FeatureSpec | None:
    if text is None:
        return None
    try:
        return from_dict(FeatureSpec, json.loads(text))
    except (FeatInvError, ValueError, RecursionError) as error:
        raise UnreadableFileError(
            "what this feature file says of its maps cannot be read",
            given=f"{path}, {SPEC} in its metadata: {str(error)[:300]}",
            expected="what `featinv features --out` writes there",
            remedy="write the file again",
        ) from error

"""What frozen networks give for repeated images, computed once: in memory, or in files named after their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

BATCH = 64

Compute = Callable[[np.ndarray], Mapping[str, Tensor]]


def precompute(
    compute: Compute, length: int, *, folder: Path | None, identity: Mapping[str, Any], progress: bool
) -> dict[str, np.ndarray]:
    """Results for all items: arrays [length, ...].

    Args:
        compute: results [B, ...] of the items with these indices.
        length: number of items.
        folder: keep them in files there, mapped into memory, and find them again; None keeps them in memory.
        identity: everything that the results depend on, as JSON types. Files of another identity have another name.
        progress: show a bar on stderr.
    """
    if folder is None:
        return _fill(compute, length, lambda _, shape, dtype: np.empty(shape, dtype), progress=progress)
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    path = folder / key
    if not path.is_dir():
        temporary = folder / f".{key}.{os.getpid()}.partial"
        temporary.mkdir(parents=True)
        try:
            _fill(compute, length, lambda *array: _file(temporary, *array), progress=progress)
            (temporary / "identity.json").write_text(json.dumps(identity, indent=2), encoding="utf-8")
            # Another process may have computed the same meanwhile.
            if not path.is_dir():
                temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return {file.stem: np.load(file, mmap_mode="r") for file in sorted(path.glob("*.npy"))}


def rows(arrays: Mapping[str, np.ndarray], indices: np.ndarray) -> dict[str, Tensor]:
    """The items with these indices, copied."""
    return {name: torch.from_numpy(array[indices]) for name, array in arrays.items()}


def _file(folder: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array: np.ndarray = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
    return array


def _fill(
    compute: Compute,
    length: int,
    make: Callable[[str, tuple[int, ...], np.dtype], np.ndarray],
    *,
    progress: bool,
) -> dict[str, np.ndarray]:
    from tqdm import tqdm

    arrays: dict[str, np.ndarray] = {}
    with tqdm(total=length, desc="computing latents and features", unit="image", disable=not progress) as bar:
        for start in range(0, length, BATCH):
            indices = np.arange(start, min(start + BATCH, length), dtype=np.int64)
            for name, tensor in compute(indices).items():
                values = tensor.cpu().numpy()
                if name not in arrays:
                    arrays[name] = make(name, (length, *values.shape[1:]), values.dtype)
                arrays[name][indices] = values
            bar.update(len(indices))
    for array in arrays.values():
        if isinstance(array, np.memmap):
            array.flush()
    return arrays

"""What frozen networks give for repeated images, computed once: in memory, or in files named after their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featinv_fast.checks import file_errors
from featinv_fast.jobs.ledger import open_ledger
from featinv_fast.jobs.stop import held
from featinv_fast.train import processes

BATCH = 64
# Is written last: what the results depend on.
COMPLETE = "identity.json"

Compute = Callable[[np.ndarray], Mapping[str, Tensor]]


def precompute(
    compute: Compute, length: int, *, folder: Path | None, identity: Mapping[str, Any], progress: bool
) -> dict[str, np.ndarray]:
    """Results for all items: arrays [length, ...].

    Files that a stopped or killed run left are filled further: in the same batches, so with the same bytes at the end.

    Args:
        compute: results [B, ...] of the items with these indices.
        length: number of items.
        folder: keep them in files there, mapped into memory, and find them again; None keeps them in memory.
        identity: everything that the results depend on, as JSON types. Files of another identity have another name.
        progress: show a bar on stderr.

    Raises:
        LockedError: another process is filling the same files.
        FileError: the disk is full, ...; what is there already stays.
    """
    if folder is None:
        arrays: dict[str, np.ndarray] = {}
        _fill(compute, length, arrays, lambda _, shape, dtype: np.empty(shape, dtype), progress=progress)
        return arrays
    path = folder / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    with processes.main_first():
        if not (path / COMPLETE).is_file():
            _fill_files(compute, length, path, identity, progress=progress)
    return {file.stem: np.load(file, mmap_mode="r") for file in sorted(path.glob("*.npy"))}


def rows(arrays: Mapping[str, np.ndarray], indices: np.ndarray) -> dict[str, Tensor]:
    """The items with these indices, copied."""
    return {name: torch.from_numpy(array[indices]) for name, array in arrays.items()}


def _fill_files(compute: Compute, length: int, path: Path, identity: Mapping[str, Any], *, progress: bool) -> None:
    """Fill the files that are not complete; the last one to be written says that they are."""
    job = {"identity": identity, "length": length, "batch": BATCH}
    remedy = "remove the folder: a cache is computed again"
    with open_ledger(path, job, work="computation", remedy=remedy) as ledger:
        if (path / COMPLETE).is_file():  # another process came to the end meanwhile
            return
        files = [path / name for name in sorted(ledger.files) if name.endswith(".npy")]
        arrays: dict[str, np.ndarray] = {}
        done: set[int] = set()
        if ledger.rows and all(file.is_file() for file in files):
            done = {row["start"] for row in ledger.rows}
            arrays = {file.stem: np.load(file, mmap_mode="r+") for file in files}

        def make(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            ledger.claim([f"{name}.npy"])
            array: np.ndarray = np.lib.format.open_memmap(path / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
            return array

        def keep(start: int) -> None:
            with held():
                for array in arrays.values():
                    assert isinstance(array, np.memmap)
                    array.flush()
                ledger.enter([{"start": start}])

        with file_errors(path):
            _fill(compute, length, arrays, make, done=done, keep=keep, progress=progress)
            ledger.claim([COMPLETE])
            ledger.write(COMPLETE, lambda file: file.write(json.dumps(identity, indent=2).encode()))


def _fill(
    compute: Compute,
    length: int,
    arrays: dict[str, np.ndarray],
    make: Callable[[str, tuple[int, ...], np.dtype], np.ndarray],
    *,
    done: Collection[int] = (),
    keep: Callable[[int], None] = lambda _: None,
    progress: bool,
) -> None:
    """Compute what is not done, a batch at a time, into `arrays`; those that are missing are made first."""
    from tqdm import tqdm

    starts = [start for start in range(0, length, BATCH) if start not in done]
    computed = sum(min(BATCH, length - start) for start in done)
    with tqdm(
        total=length, initial=computed, desc="computing latents and features", unit="image", disable=not progress
    ) as bar:
        for start in starts:
            indices = np.arange(start, min(start + BATCH, length), dtype=np.int64)
            for name, tensor in compute(indices).items():
                values = tensor.cpu().numpy()
                if name not in arrays:
                    arrays[name] = make(name, (length, *values.shape[1:]), values.dtype)
                arrays[name][indices] = values
            keep(start)
            bar.update(len(indices))

"""Everything random in training as a pure function of (seed, position), so that a restart repeats it exactly."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derived_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names` of the run with `seed`: streams of different names are independent."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A generator on the CPU for the stream `names`; noise then does not depend on the device."""
    return torch.Generator().manual_seed(derived_seed(seed, *names))


def draws(seed: int, step: int, batch_size: int, length: int) -> np.ndarray:
    """Which draws make up batch number `step`: int64 [batch_size].

    Draw n is item `n % length` in pass `n // length` over the data; each pass has an order of its own, and batches
    run across the border of two passes.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    passes = positions // length
    items = np.empty_like(positions)
    for number in np.unique(passes):
        order = np.random.default_rng(derived_seed(seed, "order", int(number))).permutation(length)
        items[passes == number] = order[positions[passes == number] % length]
    return passes * length + items

"""Checks of the seeds and arrays that users pass to `Runtime`; every refusal names the allowed range."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from featinv_fast.checks import integer
from featinv_fast.errors import ArgumentError, ArgumentTypeError

LARGEST_SEED = 2**63 - 1


def seeds(seed: Any, rows: int) -> tuple[int, ...]:
    """One seed for each row: consecutive ones from an integer, or those given."""
    if isinstance(seed, list | tuple | range) or (isinstance(seed, np.ndarray | Tensor) and seed.ndim > 0):
        given = tuple(integer("seed", s) for s in seed)
        if len(given) != rows:
            raise ArgumentError(
                "the number of seeds is not the number of images",
                given=len(given),
                expected=f"{rows}, or one integer for all",
                remedy="pass a seed for each image, or the first one",
            )
    else:
        first = integer("seed", seed)
        given = tuple(range(first, first + rows))
    bad = [s for s in given if not 0 <= s <= LARGEST_SEED]
    if bad:
        raise ArgumentError(
            "a seed is out of range", given=bad[0], expected="0 to 2**63 - 1", remedy="choose seeds within that range"
        )
    return given


def float_tensor(name: str, value: Any, shape: tuple[int | None, ...]) -> Tensor:
    """A finite float32 CPU tensor of `shape` (None = any size) from numpy or torch."""
    try:
        tensor = torch.as_tensor(value).detach().to("cpu", torch.float32)
    except (TypeError, RuntimeError, ValueError):
        raise ArgumentTypeError(
            f"{name} is not an array of numbers",
            given=type(value).__name__,
            expected="a numpy array or torch tensor",
            remedy="pass one",
        ) from None
    fits = tensor.ndim == len(shape) and all(e in (None, s) for s, e in zip(tensor.shape, shape, strict=True))
    if not fits:
        expected = [("N" if e is None else e) for e in shape]
        raise ArgumentError(
            f"{name} has the wrong shape", given=list(tensor.shape), expected=expected, remedy="pass that shape"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ArgumentError(
            f"{name} holds NaN or infinite values",
            given=f"rows {torch.nonzero(~torch.isfinite(tensor).flatten(1).all(dim=1)).flatten().tolist()[:10]}",
            expected="finite values",
            remedy="leave these rows out",
        )
    return tensor.contiguous()

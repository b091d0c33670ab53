"""Checks of what users pass to `Runtime.invert`; every refusal names the allowed range."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featinv_fast.config import SamplingConfig
from featinv_fast.errors import ArgumentError, ArgumentTypeError
from featinv_fast.samplers import SAMPLERS, StepTable, build

# Steps of a sampler where neither the user nor the engine names a number.
USUAL_STEPS = {"ddim": 50, "dpm++2m": 20, "lcm": 4}
LARGEST_SEED = 2**63 - 1


def choice(name: str, value: Any, allowed: Iterable[str]) -> Any:
    """`value` as the member of `allowed` that it equals."""
    options = list(allowed)
    for option in options:
        if value == option:
            return option
    raise ArgumentError(
        f"{name} is not one of its values", given=repr(value), expected=[str(o) for o in options], remedy="name one"
    )


def count(name: str, value: Any) -> int:
    """A positive integer."""
    number = _integer(name, value)
    if number < 1:
        raise ArgumentError(f"{name} is out of range", given=number, expected="an integer of at least 1")
    return number


def finite(name: str, value: Any) -> float:
    """A finite number."""
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        number = float(value)
    except OverflowError:  # an integer beyond every float
        number = math.inf
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"{name} is not a number", given=repr(value), expected="a finite number") from None
    if not math.isfinite(number):
        raise ArgumentError(f"{name} is not finite", given=number, expected="a finite number")
    return number


def seeds(seed: Any, rows: int) -> tuple[int, ...]:
    """One seed for each row: consecutive ones from an integer, or those given."""
    if isinstance(seed, list | tuple | range) or (isinstance(seed, np.ndarray | Tensor) and seed.ndim > 0):
        given = tuple(_integer("seed", s) for s in seed)
        if len(given) != rows:
            raise ArgumentError(
                "the number of seeds is not the number of images",
                given=len(given),
                expected=f"{rows}, or one integer for all",
            )
    else:
        first = _integer("seed", seed)
        given = tuple(range(first, first + rows))
    bad = [s for s in given if not 0 <= s <= LARGEST_SEED]
    if bad:
        raise ArgumentError("a seed is out of range", given=bad[0], expected="0 to 2**63 - 1")
    return given


def float_tensor(name: str, value: Any, shape: tuple[int | None, ...]) -> Tensor:
    """A finite float32 CPU tensor of `shape` (None = any size) from numpy or torch."""
    try:
        tensor = torch.as_tensor(value).detach().to("cpu", torch.float32)
    except (TypeError, RuntimeError, ValueError):
        raise ArgumentTypeError(
            f"{name} is not an array of numbers", given=type(value).__name__, expected="a numpy array or torch tensor"
        ) from None
    fits = tensor.ndim == len(shape) and all(e in (None, s) for s, e in zip(tensor.shape, shape, strict=True))
    if not fits:
        expected = [("N" if e is None else e) for e in shape]
        raise ArgumentError(f"{name} has the wrong shape", given=list(tensor.shape), expected=expected)
    if not bool(torch.isfinite(tensor).all()):
        raise ArgumentError(
            f"{name} holds NaN or infinite values",
            given=f"rows {torch.nonzero(~torch.isfinite(tensor).flatten(1).all(dim=1)).flatten().tolist()[:10]}",
            expected="finite values",
            remedy="leave these rows out",
        )
    return tensor.contiguous()


def step_table(defaults: SamplingConfig, sampler: str | None, steps: int | None, eta: float) -> tuple[str, StepTable]:
    """The sampler's name and table: as asked, by the engine's defaults where nothing is."""
    name = choice("sampler", defaults.sampler if sampler is None else sampler, SAMPLERS)
    if steps is None:
        steps = defaults.steps if name == defaults.sampler else USUAL_STEPS[name]
    return name, build(name, steps, eta=eta)


def _integer(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ArgumentTypeError(f"{name} is not an integer", given=repr(value), expected="an integer") from None

"""How close an op's result has to be to the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from featinv_kernels.spec import OpSpec


def in_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with every tensor in float64."""
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in inputs.items()}


def relative_errors(output: Tensor, truth: Tensor) -> tuple[float, float]:
    """Errors in the root mean square and in the largest value, each relative to that of the truth."""
    difference = output.double() - truth
    return tuple(
        float(torch.linalg.vector_norm(difference, order)) / max(float(torch.linalg.vector_norm(truth, order)), 1e-300)
        for order in (2, float("inf"))
    )


def _check(op: OpSpec, inputs: dict[str, Any], output: Tensor) -> None:
    truth = op.function(**in_float64(inputs), provider="torch")
    plain = op.function(**inputs, provider="torch")
    assert (output.shape, output.dtype) == (plain.shape, plain.dtype)
    assert torch.equal(output.isfinite(), truth.to(output.dtype).isfinite())
    if output.numel() == 0:
        return
    rounding = torch.finfo(output.dtype).eps / 2
    for error, error_of_torch in zip(relative_errors(output, truth), relative_errors(plain, truth), strict=True):
        assert error <= 2 * error_of_torch + rounding, (error, error_of_torch)


@pytest.fixture(name="assert_as_accurate_as_torch", scope="session")
def as_accurate_as_torch() -> Callable[[OpSpec, dict[str, Any], Tensor], None]:
    """A check of an op's output: its error is at most twice that of plain torch in the same dtype, and one rounding.

    The truth is what torch's own ops give in float64.
    """
    return _check

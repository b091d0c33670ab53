"""GEGLU: which half is the gate, the ends of the error function, and which arguments are refused."""

import math

import pytest
import torch

from featinv_kernels import KernelArgumentError, geglu


@pytest.mark.parametrize("provider", ["torch", "reference"])
def test_values_by_hand(provider):
    x = torch.tensor([[3.0, 5.0, 1.0, -1.0]])
    gelu = [0.5 * g * (1.0 + math.erf(g / math.sqrt(2.0))) for g in (1.0, -1.0)]
    torch.testing.assert_close(geglu(x, provider=provider), torch.tensor([[3.0 * gelu[0], 5.0 * gelu[1]]]))


@pytest.mark.parametrize("provider", ["torch", "reference"])
def test_large_gates_pass_or_close(provider):
    x = torch.tensor([2.0, 2.0, 50.0, -50.0])
    assert geglu(x, provider=provider).tolist() == [100.0, 0.0]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 5), "does not divide into values and gates"),
        (torch.zeros(2, 0), "does not divide into values and gates"),
        (torch.zeros(()), "does not divide into values and gates"),
        (torch.zeros(2, 4, dtype=torch.int8), "x is not floating-point"),
    ],
)
def test_refused_arguments(x, message):
    with pytest.raises(KernelArgumentError, match=message):
        geglu(x)

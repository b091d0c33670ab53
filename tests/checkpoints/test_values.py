"""Checks of weights by value."""

from __future__ import annotations

import pytest
import torch

from featinv_fast.checkpoints import check_finite, half_precision_exceptions
from featinv_fast.errors import CheckpointCorruptError

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_b5_weights_that_are_not_finite_are_refused(dtype, value):
    bad = torch.ones(3, 5, dtype=dtype)
    check_finite({"a": bad, "empty": bad[:0]})
    bad[2, 3] = value
    with pytest.raises(CheckpointCorruptError, match=r"1 tensors: b\n"):
        check_finite({"a": torch.ones(2), "b": bad})


def test_b5_the_first_ten_tensors_are_listed():
    with pytest.raises(CheckpointCorruptError) as caught:
        check_finite({f"t{i:02d}": torch.tensor(float("nan")) for i in range(12)})
    assert "12 tensors: t00" in str(caught.value)
    assert "t09, ..." in str(caught.value)


def test_b5_weights_that_do_not_fit_half_precision_are_listed():
    tensors = {
        "fits": torch.tensor([65504.0, -1.0, 1e-9, 0.0]),
        "overflows": torch.tensor([1.0, 7e4]),
        "overflows below": torch.tensor([-7e4, 1.0]),
        "vanishes": torch.tensor([1e-6, -2e-6, 0.0]),
        "zero": torch.zeros(3),
        "empty": torch.zeros(0),
        "already half": torch.tensor([-6e4], dtype=torch.float16),
    }
    assert half_precision_exceptions(tensors, torch.float16) == ["overflows", "overflows below", "vanishes"]
    assert half_precision_exceptions(tensors, torch.bfloat16) == []
    assert half_precision_exceptions({"huge": torch.tensor([1e300], dtype=torch.float64)}, torch.bfloat16) == ["huge"]

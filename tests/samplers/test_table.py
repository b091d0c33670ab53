import dataclasses

import numpy as np
import pytest

from featinv_fast.errors import ArgumentError
from featinv_fast.samplers import StepTable

COLUMNS = ("A", "B", "C", "D", "P", "Q")


def columns(**changed):
    """Three steps whose scalars are all different, as keyword arguments of `StepTable`."""
    values = {name: [index + 0.1, index + 0.2, index + 0.3] for index, name in enumerate(COLUMNS)}
    return {"timesteps": [981, 501, 1], **values, **changed}


def test_holds_read_only_float64_copies():
    given = np.array([1.0, 2.0, 3.0])
    table = StepTable(**columns(A=given))
    given[0] = 99
    assert table.A.tolist() == [1.0, 2.0, 3.0]
    for name in ("timesteps", *COLUMNS):
        assert getattr(table, name).dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            getattr(table, name)[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.A = given


def test_coefficients_and_length():
    table = StepTable(**columns())
    assert len(table) == 3
    assert table.coefficients.shape == (3, 6)
    assert table.coefficients.dtype == np.float64
    assert table.coefficients[1].tolist() == [0.2, 1.2, 2.2, 3.2, 4.2, 5.2]


@pytest.mark.parametrize(("C", "uses_noise"), [([0, 0, 0], False), ([0, 0.1, 0], True), ([0, -0.1, 0], True)])
@pytest.mark.parametrize(("D", "uses_history"), [([0, 0, 0], False), ([0, -0.1, 0], True)])
def test_says_what_it_uses(C, uses_noise, D, uses_history):
    table = StepTable(**columns(C=C, D=D))
    assert table.uses_noise is uses_noise
    assert table.uses_history is uses_history


@pytest.mark.parametrize(
    "wrong",
    [
        {"A": [1.0, 2.0]},
        {"Q": [[1.0, 2.0, 3.0]]},
        {"timesteps": [981, 1]},
        {"P": 1.0},
        {name: [] for name in ("timesteps", *COLUMNS)},
        dict.fromkeys(("timesteps", *COLUMNS), 1.0),
        {name: [[1.0]] for name in ("timesteps", *COLUMNS)},
    ],
)
def test_refuses_wrong_shapes(wrong):
    with pytest.raises(ArgumentError, match=r"one shape \[S\]"):
        StepTable(**columns(**wrong))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["timesteps", *COLUMNS])
def test_refuses_non_finite_scalars(name, value):
    with pytest.raises(ArgumentError, match=f"columns {name}\n"):
        StepTable(**columns(**{name: [3.0, value, 1.0]}))


@pytest.mark.parametrize("times", [[1, 501, 981], [981, 501, 501], [981, 1, 501]])
def test_refuses_times_that_do_not_descend(times):
    with pytest.raises(ArgumentError, match="strictly descending"):
        StepTable(**columns(timesteps=times))

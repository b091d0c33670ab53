"""Values out of their range, and what they were probably meant to be."""

from __future__ import annotations

import pytest

from featinv_fast.checks import choice, count, did_you_mean
from featinv_fast.errors import ArgumentError, ArgumentTypeError


def test_an_integer_of_thousands_of_digits_is_refused_like_any_other_value():
    with pytest.raises(ArgumentError, match="thousands of digits"):
        choice("sampler", 10**5000, ("ddim", "lcm"))


def test_the_nearest_value_is_offered():
    with pytest.raises(ArgumentError, match="did you mean ddim"):
        choice("sampler", "dimm", ("ddim", "lcm"))
    with pytest.raises(ArgumentError) as caught:
        choice("sampler", 3, ("ddim", "lcm"))
    assert "mean" not in str(caught.value)
    assert did_you_mean("--step", ["--steps", "--seed"]) == "--steps"
    assert did_you_mean("--qqq", ["--steps", "--seed"]) is None
    assert did_you_mean(10**5000, ["--steps", "--seed"]) is None  # Python does not write so many digits


def test_counts_have_a_least_value():
    assert count("pictures", 0, least=0) == 0
    with pytest.raises(ArgumentError, match="at least 1"):
        count("samples", 0)
    with pytest.raises(ArgumentTypeError, match="not an integer"):
        count("samples", 1.0)

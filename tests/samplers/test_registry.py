import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featinv_fast.errors import ArgumentError, ArgumentTypeError
from featinv_fast.samplers import OFFICIAL_SCHEDULE, SAMPLERS, NoiseSchedule, SamplerOptions, StepTable, build

LARGEST_STEPS = {"ddim": 1000, "lcm": 50, "dpm++2m": 999}
every_sampler = pytest.mark.parametrize("name", sorted(LARGEST_STEPS))


def test_samplers_by_name():
    assert set(SAMPLERS) == set(LARGEST_STEPS)
    assert SAMPLERS["ddim"](OFFICIAL_SCHEDULE, 20, SamplerOptions(eta=0.5)).uses_noise


@every_sampler
@pytest.mark.parametrize("integer", [int, np.int64, np.uint8])
def test_build_takes_any_integer(name, integer):
    table = build(name, integer(7))
    assert isinstance(table, StepTable)
    np.testing.assert_array_equal(table.coefficients, build(name, 7).coefficients)


@every_sampler
def test_build_passes_the_schedule_on(name):
    other = NoiseSchedule(beta_end=0.02)
    assert not np.allclose(build(name, 7, schedule=other).coefficients, build(name, 7).coefficients)


def test_build_passes_the_options_on():
    assert (build("ddim", 5, eta=np.float32(1.0)).C > 0).all()
    assert build("lcm", 2, original_inference_steps=10).timesteps.tolist() == [999, 499]


@pytest.mark.parametrize("name", ["", "DDIM", "euler", None, 3, ["ddim"]])
def test_a11_unknown_sampler(name):
    with pytest.raises(ArgumentError, match=r"expected: one of ddim, lcm, dpm\+\+2m"):
        build(name, 20)


@every_sampler
def test_a11_range_of_steps(name):
    largest = LARGEST_STEPS[name]
    assert build(name, 1).timesteps.size == 1
    assert build(name, largest).timesteps[-1] >= 1
    for steps in (0, -1, largest + 1):
        with pytest.raises(ArgumentError, match=f"given: {steps}\n  expected: an integer from 1 to {largest}"):
            build(name, steps)


@every_sampler
@pytest.mark.parametrize("steps", [2.0, "20", None, True, [20], np.array([4, 5])])
def test_a11_steps_of_the_wrong_type(name, steps):
    with pytest.raises(ArgumentTypeError, match="expected: an integer from 1 to"):
        build(name, steps)


@every_sampler
@given(steps=st.integers().filter(lambda steps: not 1 <= steps <= 1000))
def test_a11_no_number_of_steps_outside_the_schedule(name, steps):
    with pytest.raises(ArgumentError, match="steps is out of range"):
        build(name, steps)


# eta is checked before the sampler is asked whether it has one: the message is about the value.
@every_sampler
@given(eta=st.floats().filter(lambda eta: not 0 <= eta <= 1) | st.integers(min_value=2) | st.integers(max_value=-1))
def test_a11_eta_outside_its_range(name, eta):
    with pytest.raises(ArgumentError, match="a finite number from 0 to 1"):
        build(name, 20, eta=eta)


@pytest.mark.parametrize("eta", ["0.5", None, True, 1j, np.array([0.1, 0.2])])
def test_a11_eta_of_the_wrong_type(eta):
    with pytest.raises(ArgumentTypeError, match="a number from 0 to 1"):
        build("ddim", 20, eta=eta)


@pytest.mark.parametrize("name", ["lcm", "dpm++2m"])
def test_a11_eta_for_a_sampler_without_it(name):
    with pytest.raises(ArgumentError, match=r"has no eta\n  given: eta=0.5\n  expected: eta=0.0"):
        build(name, 20, eta=0.5)


@pytest.mark.parametrize("name", ["ddim", "dpm++2m"])
def test_a11_original_inference_steps_for_a_sampler_without_them(name):
    with pytest.raises(ArgumentError, match="has no original_inference_steps"):
        build(name, 20, original_inference_steps=50)


@pytest.mark.parametrize("original_inference_steps", [0, -5, 1001])
def test_a11_range_of_original_inference_steps(original_inference_steps):
    with pytest.raises(ArgumentError, match="an integer from 1 to 1000"):
        build("lcm", 1, original_inference_steps=original_inference_steps)


def test_a11_more_lcm_steps_than_distilled_ones():
    with pytest.raises(ArgumentError, match="an integer from 1 to 10 "):
        build("lcm", 11, original_inference_steps=10)


@every_sampler
@given(steps=st.integers(-5, 1005), eta=st.floats(-0.5, 1.5), distilled=st.none() | st.integers(-5, 1005))
def test_a11_a_finite_table_or_an_error_of_ours(name, steps, eta, distilled):
    try:
        table = build(name, steps, eta=eta, original_inference_steps=distilled)
    except ArgumentError:
        in_range = 1 <= steps <= LARGEST_STEPS[name] and 0 <= eta <= 1
        assert not in_range or (eta and name != "ddim") or distilled is not None
    else:
        assert np.isfinite(table.coefficients).all()
        assert table.timesteps.max() <= 999


def test_importing_samplers_does_not_import_torch():
    code = "import sys, featinv_fast.samplers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

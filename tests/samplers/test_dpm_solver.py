import numpy as np
import pytest

from featinv_fast.samplers import OFFICIAL_SCHEDULE, build

ALPHAS_CUMPROD = OFFICIAL_SCHEDULE.alphas_cumprod


def run_on_gaussian_data(steps: int, *, variance: float = 0.3, x: float = 1.7) -> float:
    """Final value from `x` when the data are N(0, variance), for which the best possible eps is known exactly."""
    table, h = build("dpm++2m", steps), 0.0
    for time, (A, B, _, D, P, Q) in zip(table.timesteps.astype(int), table.coefficients, strict=True):
        a = ALPHAS_CUMPROD[time]
        eps = np.sqrt(1 - a) * x / (a * variance + 1 - a)
        x, h = A * x + B * eps + D * h, P * x + Q * eps
    return x


def test_known_times():
    assert build("dpm++2m", 1).timesteps.tolist() == [999]
    assert build("dpm++2m", 4).timesteps.tolist() == [999, 749, 500, 250]
    assert build("dpm++2m", 999).timesteps.tolist() == list(range(999, 0, -1))


def test_every_table_is_finite_without_noise_and_ends_at_the_clean_image():
    for steps in range(1, 1000):
        table = build("dpm++2m", steps)
        assert len(table) == steps
        assert np.isfinite(table.coefficients).all()
        assert not table.uses_noise
        # The first and the last step are of first order, so two steps never look back.
        assert table.uses_history is (steps > 2)
        assert table.D[0] == table.D[-1] == 0
        assert (table.A[-1], table.B[-1]) == (table.P[-1], table.Q[-1])


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_history_is_the_prediction_of_the_clean_image(steps):
    table = build("dpm++2m", steps)
    a = ALPHAS_CUMPROD[table.timesteps.astype(int)]
    x_0, noise = 1.3, -0.4
    x = np.sqrt(a) * x_0 + np.sqrt(1 - a) * noise
    np.testing.assert_allclose(table.P * x + table.Q * noise, x_0, rtol=1e-12)


def test_converges_on_data_with_a_known_solution():
    """For Gaussian data the ODE scales x with the process' standard deviation, so its end point is known."""
    a = ALPHAS_CUMPROD[999]
    exact = 1.7 * np.sqrt(0.3 / (a * 0.3 + 1 - a))
    errors = {steps: abs(run_on_gaussian_data(steps) / exact - 1) for steps in (5, 20, 80)}
    assert errors[20] < errors[5] / 2
    assert errors[80] < 0.02

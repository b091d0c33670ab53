import numpy as np
import pytest

from featinv_fast.samplers import OFFICIAL_SCHEDULE, NoiseSchedule, build

ALPHAS_CUMPROD = OFFICIAL_SCHEDULE.alphas_cumprod
# Where the official code asks for time 1000 and fails; 1000 // steps is then a divisor of 999.
FAILS_UPSTREAM = {3, 9, 27, 36, 37, *range(101, 112), *range(251, 334), *range(501, 1001)}


def official_grid(steps: int) -> list[int]:
    """The official grid written down from its description: start at 1, go up in whole strides while below 1001."""
    stride = int(1000 / steps)
    grid, time = [], 1
    while time <= 1000:
        grid.append(time)
        time += stride
    return grid


def test_grid_equals_the_official_one_wherever_that_works():
    for steps in sorted(set(range(1, 1001)) - FAILS_UPSTREAM):
        grid = official_grid(steps)
        assert grid[-1] <= 999, steps
        assert build("ddim", steps).timesteps.tolist() == grid[::-1], steps


def test_grid_is_clamped_where_the_official_code_fails():
    for steps in sorted(FAILS_UPSTREAM):
        grid = official_grid(steps)
        assert grid[-1] == 1000, steps
        clamped = grid[:-1] if 999 in grid else [*grid[:-1], 999]
        assert build("ddim", steps).timesteps.tolist() == clamped[::-1], steps


@pytest.mark.parametrize(
    ("steps", "executed"), [(1, 1), (3, 4), (9, 10), (20, 20), (30, 31), (50, 50), (334, 500), (501, 999), (1000, 999)]
)
def test_number_of_steps(steps, executed):
    assert len(build("ddim", steps)) == executed


def test_grid_of_the_official_setting():
    table = build("ddim", 50)
    assert table.timesteps[:2].tolist() == [981.0, 961.0]
    assert table.timesteps[-2:].tolist() == [21.0, 1.0]
    assert not table.uses_noise
    assert not table.uses_history


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_every_table_keeps_the_diffusion_process(eta):
    """A step must take the process' signal and variance at one time exactly to those at the next (section 3)."""
    for steps in range(1, 1001):
        table = build("ddim", steps, eta=eta)
        times = table.timesteps.astype(int)
        a, a_prev = ALPHAS_CUMPROD[times], ALPHAS_CUMPROD[[*times[1:], 0]]
        assert np.isfinite(table.coefficients).all()
        np.testing.assert_allclose(table.A * np.sqrt(a), np.sqrt(a_prev), rtol=1e-12)
        noise = table.A * np.sqrt(1 - a) + table.B  # what becomes of the predicted noise
        assert (noise > 0).all()
        np.testing.assert_allclose(noise**2 + table.C**2, 1 - a_prev, rtol=1e-9)
        sigma_of_ddpm = np.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
        np.testing.assert_allclose(table.C, eta * sigma_of_ddpm, rtol=1e-12)
        assert not table.D.any()
        assert not table.P.any()
        assert not table.Q.any()


def test_eta_adds_noise_in_every_step():
    assert (build("ddim", 50, eta=0.5).C > 0).all()


def test_short_schedules():
    schedule = NoiseSchedule(training_steps=10)
    assert build("ddim", 5, schedule=schedule).timesteps.tolist() == [9, 7, 5, 3, 1]
    assert build("ddim", 10, schedule=schedule).timesteps.tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert build("ddim", 1, schedule=NoiseSchedule(training_steps=1)).timesteps.tolist() == [0]

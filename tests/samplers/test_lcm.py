import numpy as np
import pytest

from featinv_fast.samplers import OFFICIAL_SCHEDULE, build

ALPHAS_CUMPROD = OFFICIAL_SCHEDULE.alphas_cumprod


def test_known_times():
    assert build("lcm", 1).timesteps.tolist() == [999]
    assert build("lcm", 4).timesteps.tolist() == [999, 759, 499, 259]
    assert build("lcm", 50).timesteps.tolist() == list(range(999, 0, -20))


@pytest.mark.parametrize("steps", range(1, 51))
def test_noise_between_steps_but_not_after_the_last(steps):
    table = build("lcm", steps)
    assert len(table) == steps
    assert table.C[-1] == 0.0
    np.testing.assert_allclose(table.C[:-1] ** 2, 1 - ALPHAS_CUMPROD[table.timesteps[1:].astype(int)], rtol=1e-12)
    assert table.uses_noise is (steps > 1)
    assert not table.uses_history
    assert np.isfinite(table.coefficients).all()


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_perfect_prediction_gives_the_clean_image(steps):
    """With eps exactly the noise in x, the last step returns x_0, but for c_skip and 1 - c_out, below 2e-5 together."""
    table = build("lcm", steps)
    a = ALPHAS_CUMPROD[int(table.timesteps[-1])]
    x_0, noise = 1.3, -0.4
    x = np.sqrt(a) * x_0 + np.sqrt(1 - a) * noise
    assert table.A[-1] * x + table.B[-1] * noise == pytest.approx(x_0, rel=2e-5)

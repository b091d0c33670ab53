"""The loss of the predicted noise."""

from __future__ import annotations

import pytest
import torch

from featinv_fast.train import diffusion
from featinv_fast.train.settings import Times, Weighting


def test_weightings_are_the_errors_of_eps_and_of_v():
    generator = torch.Generator().manual_seed(0)
    x0, noise, eps = torch.randn(3, 5, 4, 8, 8, generator=generator)
    times = torch.tensor([0, 250, 500, 900, 999])
    a = diffusion.signal_share(times)
    x = diffusion.add_noise(x0, noise, times)
    predicted_x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
    v, predicted = a.sqrt() * noise - (1 - a).sqrt() * x0, a.sqrt() * eps - (1 - a).sqrt() * predicted_x0
    plain = diffusion.losses(eps, noise, times, Weighting.EPS)
    weighted = diffusion.losses(eps, noise, times, Weighting.V)
    torch.testing.assert_close(plain, {"loss": (eps - noise).square().mean()})
    torch.testing.assert_close(weighted["eps"], plain["loss"])
    torch.testing.assert_close(weighted["loss"], (predicted - v).square().mean(), rtol=1e-4, atol=0)
    assert weighted["loss"] > 2 * plain["loss"]


def test_cubic_times_are_mostly_noisy_ones():
    uniform, cubic = (
        diffusion.random_times(20_000, torch.Generator().manual_seed(0), times)
        for times in (Times.UNIFORM, Times.CUBIC)
    )
    for times in (uniform, cubic):
        assert times.dtype == torch.int64
        assert 0 <= times.min() < 10
        assert times.max() == 999
    # P(t >= 1000 s) is 1 - s for uniform times, and (1 - s)^(1/3) where t = 1000 (1 - u^3).
    for share in (0.3, 0.7, 0.9):
        assert (uniform >= 1000 * share).float().mean().item() == pytest.approx(1 - share, abs=0.015)
        assert (cubic >= 1000 * share).float().mean().item() == pytest.approx((1 - share) ** (1 / 3), abs=0.015)

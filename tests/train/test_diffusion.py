"""The loss of the predicted noise."""

from __future__ import annotations

import torch

from featinv_fast.train import diffusion
from featinv_fast.train.settings import Weighting


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

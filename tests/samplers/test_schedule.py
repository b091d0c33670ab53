import dataclasses

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from featinv_fast.errors import ArgumentError
from featinv_fast.samplers import OFFICIAL_SCHEDULE, NoiseSchedule


def test_defaults_are_stable_diffusions():
    assert NoiseSchedule(training_steps=1000, beta_start=0.00085, beta_end=0.0120) == OFFICIAL_SCHEDULE
    betas = torch.linspace(0.00085**0.5, 0.0120**0.5, 1000, dtype=torch.float64) ** 2
    assert OFFICIAL_SCHEDULE.betas.dtype == OFFICIAL_SCHEDULE.alphas_cumprod.dtype == np.float64
    np.testing.assert_allclose(OFFICIAL_SCHEDULE.betas, betas.numpy(), rtol=1e-14)
    np.testing.assert_allclose(OFFICIAL_SCHEDULE.alphas_cumprod, torch.cumprod(1 - betas, 0).numpy(), rtol=1e-13)


def test_agrees_with_diffusers_float32_schedule():
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.0120, beta_schedule="scaled_linear")
    # diffusers multiplies 1000 factors in float32: 9e-7 away at most when this was written.
    np.testing.assert_allclose(OFFICIAL_SCHEDULE.alphas_cumprod, scheduler.alphas_cumprod.numpy(), rtol=5e-6)


def test_another_schedule():
    schedule = NoiseSchedule(training_steps=3, beta_start=0.01, beta_end=0.09)
    np.testing.assert_allclose(schedule.betas, [0.01, 0.04, 0.09], rtol=1e-14)
    np.testing.assert_allclose(schedule.alphas_cumprod, [0.99, 0.99 * 0.96, 0.99 * 0.96 * 0.91], rtol=1e-14)


def test_is_frozen_and_its_arrays_read_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        OFFICIAL_SCHEDULE.beta_start = 0.1
    for array in (OFFICIAL_SCHEDULE.betas, OFFICIAL_SCHEDULE.alphas_cumprod):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"training_steps": 0},
        {"beta_start": 0.0},
        {"beta_start": 0.02},
        {"beta_end": 1.0},
        {"beta_end": float("nan")},
    ],
)
def test_refuses_what_is_no_schedule(wrong):
    with pytest.raises(ArgumentError, match="0 < beta_start <= beta_end < 1"):
        NoiseSchedule(**wrong)

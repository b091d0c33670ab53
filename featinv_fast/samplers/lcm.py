"""Sampling from latent consistency models (Luo et al., arXiv 2310.04378)."""

from __future__ import annotations

import numpy as np

from featinv_fast.samplers.options import SamplerOptions, require_integer
from featinv_fast.samplers.schedule import NoiseSchedule
from featinv_fast.samplers.table import StepTable

# What published latent consistency models are distilled with: the boundary scalings and the number of times.
SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0
ORIGINAL_INFERENCE_STEPS = 50


def lcm(schedule: NoiseSchedule, steps: int, options: SamplerOptions) -> StepTable:
    """Multistep latent consistency sampling, algorithm 3: denoise, add noise of the next time, repeat.

    The times are picked evenly, latest first, from the grid of `options.original_inference_steps` times that the
    model was distilled on. The last step returns the denoised latents as they are.

    Raises:
        ArgumentError: `steps` outside 1 ... original_inference_steps, `original_inference_steps` outside 1 ... T,
            or an option that LCM does not have.
        ArgumentTypeError: one of the two is not an integer.
    """
    options.require_only("lcm", "original_inference_steps")
    original_steps = require_integer(
        "original_inference_steps",
        ORIGINAL_INFERENCE_STEPS if options.original_inference_steps is None else options.original_inference_steps,
        largest=schedule.training_steps,
        sampler="lcm",
    )
    steps = require_integer("steps", steps, largest=original_steps, sampler="lcm")
    stride = schedule.training_steps // original_steps
    distilled_times = np.arange(original_steps, 0, -1) * stride - 1  # [original_steps], latest first
    picked = np.linspace(0, original_steps, steps, endpoint=False).astype(np.int64)  # [S], rounded down
    times = distilled_times[picked]  # [S]

    a = schedule.alphas_cumprod[times]  # [S]
    # After the last step the signal is complete: a_next = 1 makes it x' = denoised, without noise.
    a_next = np.append(schedule.alphas_cumprod[times[1:]], 1.0)  # [S]
    scaled = TIMESTEP_SCALING * times
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    c_out = scaled / np.sqrt(scaled**2 + SIGMA_DATA**2)

    # denoised = c_skip x + c_out (x - sqrt(1 - a) eps) / sqrt(a);  x' = sqrt(a_next) denoised + sqrt(1 - a_next) z
    A = np.sqrt(a_next) * (c_skip + c_out / np.sqrt(a))
    B = -np.sqrt(a_next) * c_out * np.sqrt((1 - a) / a)
    C = np.sqrt(1 - a_next)
    zeros = np.zeros_like(A)
    return StepTable(timesteps=times.astype(np.float64), A=A, B=B, C=C, D=zeros, P=zeros, Q=zeros)

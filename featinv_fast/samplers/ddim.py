"""DDIM (Song et al., arXiv 2010.02502) on the official time grid."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featinv_fast.samplers.options import SamplerOptions, require_integer
from featinv_fast.samplers.schedule import NoiseSchedule
from featinv_fast.samplers.table import StepTable


def ddim(schedule: NoiseSchedule, steps: int, options: SamplerOptions) -> StepTable:
    """DDIM, equation 12, with sigma of equation 16 scaled by `options.eta`.

    The number of steps may differ from `steps`; see `official_times`. The last step leads to time 0, not to the
    clean image, so with `eta > 0` it too adds (a little) noise. Both are as in the official code.

    Raises:
        ArgumentError: `steps` outside 1 ... T, or an option that DDIM does not have.
        ArgumentTypeError: `steps` is not an integer.
    """
    options.require_only("ddim", "eta")
    steps = require_integer("steps", steps, largest=schedule.training_steps, sampler="ddim")
    times = official_times(steps, schedule.training_steps)  # [S]
    a = schedule.alphas_cumprod[times]  # [S]
    a_prev = schedule.alphas_cumprod[np.append(times[1:], 0)]  # [S]
    sigma = options.eta * np.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))  # [S]

    # x0 = (x - sqrt(1 - a) eps) / sqrt(a);  x' = sqrt(a_prev) x0 + sqrt(1 - a_prev - sigma^2) eps + sigma z
    A = np.sqrt(a_prev / a)
    B = np.sqrt(1 - a_prev - sigma**2) - A * np.sqrt(1 - a)
    zeros = np.zeros_like(A)
    return StepTable(timesteps=times.astype(np.float64), A=A, B=B, C=sigma, D=zeros, P=zeros, Q=zeros)


def official_times(steps: int, training_steps: int) -> npt.NDArray[np.int64]:
    """The time grid of the official code: every `T // steps`-th time from 1 on, latest first. [S].

    This grid has quirks, kept because a model's published settings refer to it:

    - `steps` that does not divide T = 1000 gives more steps than asked for: 30 gives 31, 334 gives 500.
    - It starts below the top by almost one stride: 50 steps start at 981, 2 at 501, and a single one at 1, where
      the model takes pure noise for a finished image. Few steps are the business of the other samplers.
    - Where `T // steps` divides T - 1, the last time is T, one beyond the schedule, and the official code fails:
      3, 9, 27, 36, 37, 101-111, 251-333 and 501-1000 steps. Here that time becomes T - 1; if the grid holds T - 1
      already (501-1000 steps), it stays there once.
    """
    grid = np.arange(0, training_steps, training_steps // steps, dtype=np.int64) + 1
    return np.unique(np.minimum(grid, training_steps - 1))[::-1]

"""DPM-Solver++(2M) (Lu et al., arXiv 2211.01095)."""

from __future__ import annotations

import numpy as np

from featinv_fast.samplers.options import SamplerOptions, require_integer
from featinv_fast.samplers.schedule import NoiseSchedule
from featinv_fast.samplers.table import StepTable


def dpm_solver_plus_plus_2m(schedule: NoiseSchedule, steps: int, options: SamplerOptions) -> StepTable:
    """The second-order multistep solver in data prediction, algorithm 2; the history is the last x0 prediction.

    Times are spread evenly from T - 1 down to 0, which itself is left out ("linspace"). So any number of steps
    starts at the noisiest time, the one that N(0, 1) latents fit best: 0.5% of the variance there is signal. The
    usual alternative with Stable Diffusion ("leading") starts 10 steps at time 901 with 1.4%, 2 steps at 667 with
    10%, and this solver is here for few steps. The first step has no history yet, and the last one leads to the
    clean image, infinitely far away in log-SNR: both are of first order.

    Raises:
        ArgumentError: `steps` outside 1 ... T - 1 (more would repeat a time), or any option.
        ArgumentTypeError: `steps` is not an integer.
    """
    options.require_only("dpm++2m")
    last_time = schedule.training_steps - 1
    steps = require_integer("steps", steps, largest=last_time, sampler="dpm++2m")
    times = np.linspace(last_time, 0, steps + 1).round()[:-1].astype(np.int64)  # [S]
    alpha = np.sqrt(schedule.alphas_cumprod[times])  # [S]
    sigma = np.sqrt(1 - schedule.alphas_cumprod[times])  # [S]
    step_size = np.diff(np.log(alpha / sigma))  # [S-1], h in the paper: step i goes from lambda_i to lambda_{i+1}

    # x0 = P x + Q eps;  x' = (sigma'/sigma) x + gain ((1 + weight) x0 - weight h),  weight = h_i / (2 h_{i-1})
    P = 1 / alpha
    Q = -sigma / alpha
    shrink = np.append(sigma[1:] / sigma[:-1], 0.0)  # [S]
    gain = np.append(-alpha[1:] * np.expm1(-step_size), 1.0)  # [S], at the clean image alpha = 1 and h = infinity
    weight = np.zeros(steps)  # [S], zero where the step is of first order
    weight[1:-1] = step_size[1:] / (2 * step_size[:-1])

    A = shrink + gain * (1 + weight) * P
    B = gain * (1 + weight) * Q
    return StepTable(timesteps=times.astype(np.float64), A=A, B=B, C=np.zeros(steps), D=-gain * weight, P=P, Q=Q)

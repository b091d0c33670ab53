"""The samplers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from featinv_fast.errors import ArgumentError
from featinv_fast.samplers.ddim import ddim
from featinv_fast.samplers.dpm_solver import dpm_solver_plus_plus_2m
from featinv_fast.samplers.lcm import lcm
from featinv_fast.samplers.options import SamplerOptions
from featinv_fast.samplers.schedule import OFFICIAL_SCHEDULE, NoiseSchedule
from featinv_fast.samplers.table import StepTable

SAMPLERS: Mapping[str, Callable[[NoiseSchedule, int, SamplerOptions], StepTable]] = {
    "ddim": ddim,
    "lcm": lcm,
    "dpm++2m": dpm_solver_plus_plus_2m,
}


def build(
    name: str,
    steps: int,
    *,
    eta: float = 0.0,
    original_inference_steps: int | None = None,
    schedule: NoiseSchedule = OFFICIAL_SCHEDULE,
) -> StepTable:
    """The table of the sampler called `name`.

    Args:
        name: one of `SAMPLERS`.
        steps: steps asked for, with the defaults from 1 to 1000 (ddim), 50 (lcm) or 999 (dpm++2m). DDIM may take
            another number, as in the official code (30 gives 31): `len(table)` says how many.
        eta: share of fresh noise in [0, 1]; ddim only.
        original_inference_steps: length of the time grid an LCM was distilled on; lcm only, `None` is 50.
        schedule: the noise schedule the model was trained on.

    Raises:
        ArgumentError: unknown sampler, a value out of its range, or an option that the sampler does not have.
        ArgumentTypeError: a value of a type that cannot be used.
    """
    if not isinstance(name, str) or name not in SAMPLERS:
        raise ArgumentError(
            "unknown sampler",
            given=repr(name),
            expected=f"one of {', '.join(SAMPLERS)}",
            remedy="choose one of these names",
        )
    options = SamplerOptions(eta=eta, original_inference_steps=original_inference_steps)
    return SAMPLERS[name](schedule, steps, options)

"""Samplers as tables of per-step scalars: numpy in float64, no tensors, no loop."""

from featinv_fast.samplers.options import SamplerOptions
from featinv_fast.samplers.registry import SAMPLERS, build
from featinv_fast.samplers.resolve import USUAL_STEPS, Sampling, Setting, branches, resolve
from featinv_fast.samplers.schedule import OFFICIAL_SCHEDULE, NoiseSchedule
from featinv_fast.samplers.table import StepTable

__all__ = [
    "OFFICIAL_SCHEDULE",
    "SAMPLERS",
    "USUAL_STEPS",
    "NoiseSchedule",
    "SamplerOptions",
    "Sampling",
    "Setting",
    "StepTable",
    "branches",
    "build",
    "resolve",
]

"""Samplers as tables of per-step scalars: numpy in float64, no tensors, no loop."""

from featinv_fast.samplers.options import SamplerOptions
from featinv_fast.samplers.registry import SAMPLERS, build
from featinv_fast.samplers.schedule import OFFICIAL_SCHEDULE, NoiseSchedule
from featinv_fast.samplers.table import StepTable

__all__ = ["OFFICIAL_SCHEDULE", "SAMPLERS", "NoiseSchedule", "SamplerOptions", "StepTable", "build"]

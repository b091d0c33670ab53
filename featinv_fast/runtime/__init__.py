"""The runtime: the condition once, the sampling loop, the decoder; in batches that fit, on whichever backend serves."""

from featinv_fast.runtime.inversion import Inversion, InversionInterrupted, OutputType, RunFlags
from featinv_fast.runtime.runtime import Runtime

__all__ = ["Inversion", "InversionInterrupted", "OutputType", "RunFlags", "Runtime"]

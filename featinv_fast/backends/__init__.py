"""What can run an engine: torch and onnxruntime, and the choice between them."""

from featinv_fast.backends.base import Backend, Request, Session
from featinv_fast.backends.memory import free_memory, is_out_of_memory
from featinv_fast.backends.onnxruntime_ import provider_problems
from featinv_fast.backends.select import BACKENDS, load, reasons_against, resolve_device
from featinv_fast.backends.torch_ import device_problems

__all__ = [
    "BACKENDS",
    "Backend",
    "Request",
    "Session",
    "device_problems",
    "free_memory",
    "is_out_of_memory",
    "load",
    "provider_problems",
    "reasons_against",
    "resolve_device",
]

"""What can run an engine: torch, onnxruntime and AOTInductor, and the choice between them."""

from featinv_fast.backends.base import Backend, Request, Session
from featinv_fast.backends.memory import free_memory, is_out_of_memory
from featinv_fast.backends.onnxruntime_ import provider_problems
from featinv_fast.backends.select import BACKENDS, load, preferred, reasons_against, resolve_device

__all__ = [
    "BACKENDS",
    "Backend",
    "Request",
    "Session",
    "free_memory",
    "is_out_of_memory",
    "load",
    "preferred",
    "provider_problems",
    "reasons_against",
    "resolve_device",
]

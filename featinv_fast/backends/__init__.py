"""What can run an engine: torch and onnxruntime, and the choice between them."""

from featinv_fast.backends.base import Backend, Request, Session
from featinv_fast.backends.select import BACKENDS, load, reasons_against, resolve_device

__all__ = ["BACKENDS", "Backend", "Request", "Session", "load", "reasons_against", "resolve_device"]

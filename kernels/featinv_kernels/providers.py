"""The kinds of providers that ops are made of, and what each kind needs from the machine."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from featinv_kernels.spec import Provider, Request

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Triton generates code for Ampere and newer.
TRITON_CAPABILITY = (8, 0)


def no_reasons(_: Request) -> list[str]:
    """Of a provider, or of an op's own limits, that refuses nothing."""
    return []


def reference_provider(function: Callable[..., Any]) -> Provider:
    """The plain torch implementation, which runs on every device and with every floating-point dtype."""
    return Provider(name="reference", load=lambda: function, not_supported_reasons=no_reasons)


def triton_provider(
    load: Callable[[], Callable[..., Any]], *, limits: Callable[[Request], list[str]] = no_reasons
) -> Provider:
    """A Triton kernel.

    Args:
        load: imports the op's `triton_kernel.py` and returns its implementation.
        limits: further reasons of this kernel, e.g. from the shape.
    """

    def not_supported_reasons(request: Request) -> list[str]:
        return [*_triton_reasons(request), *limits(request)]

    return Provider(name="triton", load=load, not_supported_reasons=not_supported_reasons)


def device_reasons(device: torch.device) -> list[str]:
    """Why no provider at all can run on `device`."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return ["no CUDA device is available"]
    return []


def _triton_reasons(request: Request) -> list[str]:
    reasons = []
    if not _is_installed("triton"):
        reasons.append("triton is not installed")
    if request.device.type != "cuda" and not _is_interpreted():
        reasons.append(f"it needs CUDA tensors, given {request.device.type} tensors")
    if request.device.type == "cuda" and torch.cuda.is_available():
        capability = torch.cuda.get_device_capability(request.device)
        if capability < TRITON_CAPABILITY:
            needed, given = (".".join(map(str, c)) for c in (TRITON_CAPABILITY, capability))
            reasons.append(f"it needs compute capability {needed} or newer, {request.device} has {given}")
    if request.dtype not in TRITON_DTYPES:
        reasons.append(f"it takes {', '.join(map(str, TRITON_DTYPES))}, given {request.dtype}")
    return reasons


@functools.cache
def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _is_interpreted() -> bool:
    # Triton's own switch: its kernels then run in NumPy, on tensors of any device.
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")

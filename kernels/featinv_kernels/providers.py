"""The kinds of providers that ops are made of, and what each kind needs from the machine."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from featinv_kernels.spec import Provider, Request, no_reasons

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Triton generates code for Ampere and newer.
TRITON_CAPABILITY = (8, 0)


def reference_provider(function: Callable[..., Any]) -> Provider:
    """The plain torch implementation, which runs on every device and with every floating-point dtype."""
    return Provider(name="reference", load=lambda: function, not_supported_reasons=no_reasons)


def torch_provider(function: Callable[..., Any]) -> Provider:
    """Torch's own ops in the arguments' dtype: what one writes without this package."""
    return Provider(name="torch", load=lambda: function, not_supported_reasons=no_reasons)


def xformers_provider(load: Callable[[], Callable[..., Any]], *, dtypes: tuple[torch.dtype, ...]) -> Provider:
    """A kernel of xformers, which is never chosen unasked.

    Args:
        load: imports xformers and returns the implementation.
        dtypes: what the kernel takes.
    """

    def not_supported_reasons(request: Request) -> list[str]:
        reasons = [] if _is_installed("xformers") else ["xformers is not installed"]
        if request.device.type != "cuda":
            reasons.append(f"it needs CUDA tensors, given {request.device.type} tensors")
        if request.dtype not in dtypes:
            reasons.append(f"it takes {', '.join(map(str, dtypes))}, given {request.dtype}")
        return reasons

    def not_preferred_reasons(_: Request) -> list[str]:
        return ['it is used on request only: provider="xformers"']

    return Provider(
        name="xformers",
        load=load,
        not_supported_reasons=not_supported_reasons,
        not_preferred_reasons=not_preferred_reasons,
    )


def triton_provider(
    load: Callable[[], Callable[..., Any]],
    *,
    limits: Callable[[Request], list[str]] = no_reasons,
    not_preferred_reasons: Callable[[Request], list[str]] = no_reasons,
) -> Provider:
    """A Triton kernel.

    Args:
        load: imports the op's `triton_kernel.py` and returns its implementation.
        limits: further reasons of this kernel, e.g. from the shape.
        not_preferred_reasons: where another provider should be tried first.
    """

    def not_supported_reasons(request: Request) -> list[str]:
        return [*_triton_reasons(request), *limits(request)]

    return Provider(
        name="triton",
        load=load,
        not_supported_reasons=not_supported_reasons,
        not_preferred_reasons=not_preferred_reasons,
    )


def device_reasons(device: torch.device) -> list[str]:
    """Why no provider at all can run on `device`."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return ["no CUDA device is available"]
    return []


def compiled_kernel_reasons(request: Request, *, also_on_cpu: bool = False) -> list[str]:
    """Why code that Triton generates cannot run where the request's tensors are, and on their dtype.

    Args:
        request: the call.
        also_on_cpu: the kernels are interpreted, which works on tensors of any device.
    """
    reasons = []
    if request.device.type != "cuda" and not also_on_cpu:
        reasons.append(f"it needs CUDA tensors, given {request.device.type} tensors")
    if request.device.type == "cuda" and torch.cuda.is_available():
        capability = torch.cuda.get_device_capability(request.device)
        if capability < TRITON_CAPABILITY:
            needed, given = (".".join(map(str, c)) for c in (TRITON_CAPABILITY, capability))
            reasons.append(f"it needs compute capability {needed} or newer, {request.device} has {given}")
    if request.dtype not in TRITON_DTYPES:
        reasons.append(f"it takes {', '.join(map(str, TRITON_DTYPES))}, given {request.dtype}")
    return reasons


def _triton_reasons(request: Request) -> list[str]:
    reasons = [] if _is_installed("triton") else ["triton is not installed"]
    return [*reasons, *compiled_kernel_reasons(request, also_on_cpu=_is_interpreted())]


@functools.cache
def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _is_interpreted() -> bool:
    # Triton's own switch: its kernels then run in NumPy, on tensors of any device.
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")

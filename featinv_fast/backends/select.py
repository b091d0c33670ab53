"""Which backend runs an engine: the best that can, or the one that was asked for, or an error with all reasons."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch

from featinv_fast.backends.aoti_ import AotiBackend
from featinv_fast.backends.base import Backend, Request, Session
from featinv_fast.backends.onnxruntime_ import OnnxruntimeBackend
from featinv_fast.backends.onnxruntime_providers import Variant
from featinv_fast.backends.tensorrt_ import TensorrtBackend
from featinv_fast.backends.tensorrt_rtx import TensorrtRtxBackend
from featinv_fast.backends.torch_ import TorchBackend
from featinv_fast.backends.weights import require_fitting_weights
from featinv_fast.checks.options import AUTO, OFF
from featinv_fast.errors import ArgumentError, BackendUnavailableError

logger = logging.getLogger(__name__)

_ALL: tuple[Backend, ...] = (
    TorchBackend(),
    *map(OnnxruntimeBackend, Variant),
    TensorrtBackend(),
    TensorrtRtxBackend(),
    AotiBackend(),
)
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in _ALL}

# Measured: on a CPU onnxruntime takes about half of torch's time (benchmarks/results/full_size.jsonl). AOTInductor
# packages run where they are asked for by name: a small model's step took 0.94 of torch's time, and no GPU has run one.
# TensorRT plans come first where they serve, because somebody built them for this very GPU; not timed yet.
PREFERENCE = {"cpu": ("onnxruntime", "torch"), "cuda": ("tensorrt", "tensorrt-rtx", "torch", "onnxruntime")}


def resolve_device(device: str) -> torch.device:
    """A device by name; "auto" is the first NVIDIA GPU that torch sees, else the CPU.

    Raises:
        ArgumentError: not the name of a device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise ArgumentError(
            "not a device", given=repr(device), expected="'auto', 'cpu', 'cuda' or 'cuda:N'", remedy="name one of these"
        ) from None


def reasons_against(request: Request) -> dict[str, list[str]]:
    """For each backend, why it cannot serve `request`; empty lists where it can.

    Raises:
        ArgumentError: the request names kernels that there are not.
    """
    of_torch, of_rtx = _asked_of_torch(request), _asked_of_rtx(request)
    return {
        name: [
            *([] if name == TorchBackend.name else of_torch),
            *([] if name == TensorrtRtxBackend.name else of_rtx),
            *backend.not_supported_reasons(request),
        ]
        for name, backend in BACKENDS.items()
    }


def _asked_of_torch(request: Request) -> list[str]:
    """Why a backend other than torch's cannot do what is asked by name: with it, that would come to nothing."""
    named = request.kernels not in (AUTO, OFF)
    return [
        *([f"it calls no kernels by name, asked for {request.kernels}"] if named else []),
        *(["torch.compile has no part in it, asked for compiled"] if request.compiled else []),
        *(["it launches its work itself, asked for two_streams"] if request.two_streams else []),
    ]


def _asked_of_rtx(request: Request) -> list[str]:
    """Likewise, what is asked of TensorRT for RTX alone."""
    if request.specialization == AUTO:
        return []
    return [f"it compiles no kernels for shapes, asked for specialization {request.specialization}"]


def preferred(device: torch.device, reasons: Mapping[str, Sequence[str]]) -> str | None:
    """The backend that `backend="auto"` takes, given the reasons against each; `None` where none can serve."""
    return next((name for name in PREFERENCE.get(device.type, ()) if not reasons[name]), None)


def load(request: Request, backend: str = "auto") -> Session:
    """Load an engine with the backend asked for, or with the best that can serve the request.

    Raises:
        ArgumentError: there is no backend of this name.
        BackendUnavailableError: the request cannot be served; it carries every candidate's reasons.
        EngineIntegrityError: the engine's weights are not those of its architecture.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise ArgumentError(
            "unknown backend", given=repr(backend), expected=["auto", *BACKENDS], remedy="name one of these"
        )
    reasons = reasons_against(request)
    name = preferred(request.device, reasons) if backend == "auto" else backend
    if name is not None and not reasons[name]:
        require_fitting_weights(request.engine)
        session = BACKENDS[name].load(request)
        logger.info("running %s on %s with %s", request.engine.path, session.device, name)
        return session
    asked = {} if backend == "auto" else {backend: reasons[backend]}
    raise BackendUnavailableError(
        f"the backend {backend!r} cannot run this engine here" if asked else "no backend can run this engine here",
        given=f"device {request.device}, precision {request.precision or 'of the engine'}",
        reasons=asked | reasons,
        remedy="see `featinv doctor`, or choose backend='auto' and device='auto'",
        command_remedy="see `featinv doctor`, or leave out --backend and --device",
    )

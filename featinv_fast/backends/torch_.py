"""The torch backend: the rewritten networks in eager mode, on any device that torch has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from featinv_fast.backends.base import Request, Session
from featinv_fast.config import ModelConfig, Precision
from featinv_fast.rewrites.engine_model import EngineModel, storage_dtypes

WEIGHT_FILE = "weights.safetensors"


class TorchSession(Session):
    """An engine's graphs as torch modules.

    Args:
        config: the architecture.
        weights: the engine's weight file. It is memory-mapped: on a CPU nothing is copied unless `precision`
            differs from how the weights are stored.
        device: where to run.
        precision: of the arithmetic; the weights are cast where they are stored otherwise.
        kept_fp32: tensors that stay in fp32 in any precision.
        threads: CPU threads of one operation.
    """

    backend = "torch"

    def __init__(
        self,
        config: ModelConfig,
        weights: Path,
        *,
        device: torch.device,
        precision: Precision,
        kept_fp32: tuple[str, ...] = (),
        threads: int | None = None,
    ) -> None:
        self.device = device
        self.precision = precision
        self.threads = threads
        model = EngineModel.empty(config)
        dtypes = storage_dtypes(model, precision, kept_fp32)
        tensors = load_file(weights, device=str(device))
        model.load_state_dict({name: tensor.to(dtypes[name]) for name, tensor in tensors.items()}, assign=True)
        self.graphs = model.eval().requires_grad_(False).graphs()

    def run(self, graph: str, *inputs: Tensor) -> Tensor:
        """Run a graph; see `Session.run`."""
        with limited_threads(self.threads), torch.inference_mode():
            output: Tensor = self.graphs[graph](*inputs)
        return output


@contextlib.contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Torch's thread count is one of the process: it is set for a call and given back."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TorchBackend:
    """Serves every engine on every device that torch can use here."""

    name = "torch"

    def problems_here(self, device: torch.device) -> list[str]:
        """Why torch cannot run on `device`."""
        return device_problems(device)

    def not_supported_reasons(self, request: Request) -> list[str]:
        """Why torch cannot run on the requested device."""
        return self.problems_here(request.device)

    def load(self, request: Request) -> TorchSession:
        """Load the engine's weights into the rewritten networks."""
        manifest = request.engine.manifest
        return TorchSession(
            manifest.model,
            request.engine.file(WEIGHT_FILE),
            device=request.device,
            precision=request.precision or manifest.precision,
            kept_fp32=manifest.kept_fp32,
            threads=request.threads,
        )


def device_problems(device: torch.device) -> list[str]:
    """Why torch has no such device here; empty when it has."""
    if device.type == "cpu":
        return []
    if device.type == "cuda":
        if torch.version.cuda is None:
            return ["this build of torch has no CUDA"]
        if not torch.cuda.is_available():
            return ["torch sees no NVIDIA GPU and driver"]
        if device.index is not None and device.index >= torch.cuda.device_count():
            return [f"torch sees {torch.cuda.device_count()} GPUs, not one numbered {device.index}"]
        return []
    return [f"devices of the kind {device.type!r} are not supported"]

"""The torch backend: the rewritten networks in eager mode, on any device that torch has.

On an NVIDIA GPU the layers call fused operations and keep the channels last (`rewrites/fused_ops.py`). Written for
that and checked on a CPU; not yet run on a GPU.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from featinv_fast.backends.base import Request, Session
from featinv_fast.backends.compiler import compiler_problems
from featinv_fast.backends.torch_compile import COMPILED_GRAPHS, CompiledGraph
from featinv_fast.checks.options import AUTO, OFF, layer_providers
from featinv_fast.config import ModelConfig, Precision
from featinv_fast.rewrites.engine_model import DTYPES, EngineModel, storage_dtypes
from featinv_fast.rewrites.folded_biases import fold_biases
from featinv_fast.rewrites.fused_ops import fuse_ops, provider_problems
from featinv_fast.rewrites.two_streams import side_by_side, stream_problems
from featinv_fast.rewrites.upsample_products import product_layers

WEIGHT_FILE = "weights.safetensors"

logger = logging.getLogger(__name__)


class TorchSession(Session):
    """An engine's graphs as torch modules.

    Args:
        config: the architecture.
        weights: the engine's weight file. It is memory-mapped: on a CPU nothing is copied unless `precision`
            differs from how the weights are stored. What these layers do not use is not read.
        device: where to run.
        precision: of the arithmetic; the weights are cast where they are stored otherwise.
        kept_fp32: tensors that stay in fp32 in any precision.
        threads: CPU threads of one operation.
        kernels: what the layers call; see `Request.kernels`.
        compiled: compile what runs in every step, and the decoder.
        two_streams: run the ControlNet beside the U-Net's encoder, on a GPU.

    Raises:
        ArgumentError: `kernels` names what there is not.
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
        kernels: str | Mapping[str, str] = AUTO,
        compiled: bool = False,
        two_streams: bool = False,
    ) -> None:
        self.device = device
        self.precision = precision
        self.threads = threads
        self.providers = providers_on(device, kernels)
        model = EngineModel.empty(config)
        for layer in product_layers(model):
            # Fused operations take other forms of the doubled convolutions, derived from their kernels.
            layer.keep_kernel() if self.providers else layer.keep_products()
        dtypes = storage_dtypes(model, precision, kept_fp32)
        with safe_open(weights, framework="pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name).to(dtype) for name, dtype in dtypes.items()}
        model.load_state_dict(tensors, assign=True)
        if self.providers:
            moved, fused = fold_biases(model), fuse_ops(model, self.providers)
            logger.info("%d biases moved; layers that call fused operations: %s", moved, fused)
        self.two_streams = two_streams
        if two_streams:
            model.denoiser = side_by_side(model.denoiser)
        self.graphs = model.eval().requires_grad_(False).graphs()
        self.compiled = COMPILED_GRAPHS if compiled else ()
        self._calls: dict[str, Callable[..., Tensor]] = {
            name: CompiledGraph(name, graph) if name in self.compiled else graph for name, graph in self.graphs.items()
        }

    def run(self, graph: str, *inputs: Tensor) -> Tensor:
        """Run a graph; see `Session.run`."""
        with limited_threads(self.threads), torch.inference_mode():
            return self._calls[graph](*inputs)

    def capture_problems(self) -> list[str]:
        """Why there can be no CUDA graph; see `Session.capture_problems`."""
        return [] if self.device.type == "cuda" else [f"CUDA graphs are for NVIDIA GPUs, not for {self.device}"]


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
        """Why torch cannot run on the requested device, or not by what was asked for."""
        device, precision = request.device, request.precision or request.engine.manifest.precision
        return [
            *self.problems_here(device),
            *provider_problems(providers_on(device, request.kernels), device, DTYPES[precision]),
            *(compiler_problems(device) if request.compiled else []),
            *(stream_problems(device) if request.two_streams else []),
            *(["compiled graphs run on one stream"] if request.compiled and request.two_streams else []),
        ]

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
            kernels=request.kernels,
            compiled=request.compiled,
            two_streams=request.two_streams,
        )


def providers_on(device: torch.device, kernels: str | Mapping[str, str]) -> dict[str, str]:
    """The providers of the fused operations for `Request.kernels`; empty where the layers stay plain.

    Raises:
        ArgumentError: there is no such operation or provider.
    """
    if kernels == OFF or (kernels == AUTO and device.type != "cuda"):
        return {}
    return layer_providers(kernels)


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

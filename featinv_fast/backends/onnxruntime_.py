"""The onnxruntime backend: an engine's ONNX graphs on the CPU or CUDA execution provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featinv_fast.backends.base import Request, Session
from featinv_fast.backends.memory import is_out_of_memory
from featinv_fast.backends.torch_ import device_problems
from featinv_fast.config import Precision
from featinv_fast.engine.graphs import GraphSpec
from featinv_fast.errors import BackendUnavailableError, EngineIntegrityError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
SUFFIX = ".onnx"


class OnnxruntimeSession(Session):
    """An engine's ONNX graphs, each loaded when it is first run.

    A guided and an unguided denoiser share one weight file but not onnxruntime's packed copy of it:
    loading what is not used would double the memory.

    Args:
        graphs: the `.onnx` file of each graph.
        specs: the declarations of the graphs.
        device: "cpu" or "cuda".
        precision: of the graphs.
        threads: CPU threads of one operation; `None` uses every core.
        check: called before a graph is loaded; raises where its file must not be read any more.
    """

    backend = "onnxruntime"

    def __init__(
        self,
        graphs: Mapping[str, Path],
        specs: Mapping[str, GraphSpec],
        *,
        device: torch.device,
        precision: Precision,
        threads: int | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.device = device
        self.precision = precision
        self.threads = threads
        self._graphs = dict(graphs)
        self._specs = dict(specs)
        self._check = check
        self._sessions: dict[str, Any] = {}

    def run(self, graph: str, *inputs: Tensor) -> Tensor:
        """Run a graph; see `Session.run`. On a GPU inputs and output stay in its memory."""
        import onnxruntime

        session = self._sessions.get(graph) or self._load(graph)
        names = self._specs[graph].input_names
        if self.device.type == "cpu":
            feeds = {name: x.detach().contiguous().numpy() for name, x in zip(names, inputs, strict=True)}
            return torch.from_numpy(session.run(None, feeds)[0])
        binding = session.io_binding()
        index = self.device.index or 0
        inputs = tuple(x.detach().contiguous() for x in inputs)
        for name, x in zip(names, inputs, strict=True):
            binding.bind_input(name, "cuda", index, "float32", tuple(x.shape), x.data_ptr())
        shapes = {name: tuple(x.shape) for name, x in zip(names, inputs, strict=True)}
        output = torch.empty(self._specs[graph].output_shape(shapes), device=self.device)
        binding.bind_output(
            self._specs[graph].output.name, "cuda", index, "float32", tuple(output.shape), output.data_ptr()
        )
        # onnxruntime runs on a stream of its own: torch's writes must be done before, its own before torch reads.
        torch.cuda.synchronize(self.device)
        session.run_with_iobinding(binding, onnxruntime.RunOptions())
        binding.synchronize_outputs()
        return output

    def _load(self, graph: str) -> Any:
        """Load a graph.

        Raises:
            EngineIntegrityError: the engine was replaced, or onnxruntime refuses the file, as it does where external
                data lie outside the file's folder.
            BackendUnavailableError: the execution provider does not start.
        """
        import onnxruntime

        self._check()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = (
            4  # fatal: its errors are raised, and its remarks are for the exporter's developers
        )
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        provider = PROVIDERS[self.device.type]
        wanted: list[Any] = [provider]
        if self.device.type == "cuda":
            wanted = [(provider, {"device_id": self.device.index or 0})]
        path = self._graphs[graph]
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise EngineIntegrityError(
                f"onnxruntime refuses {path}",
                given=error,
                expected=f"a graph for onnxruntime {onnxruntime.__version__} or older with weights in its own folder",
                remedy="export the engine again, or upgrade onnxruntime",
            ) from error
        used = session.get_providers()
        if used[0] != provider:
            # onnxruntime itself answers with a CPU session where CUDA cannot start.
            raise BackendUnavailableError(
                "onnxruntime did not start the execution provider that was asked for",
                given=provider,
                reasons={"onnxruntime": [f"it started {', '.join(used)} instead"]},
                remedy="install a CUDA and cuDNN that fit this onnxruntime-gpu, or choose device='cpu'",
            )
        self._sessions[graph] = session
        return session


class OnnxruntimeBackend:
    """Serves engines that were exported with ONNX graphs."""

    name = "onnxruntime"

    def problems_here(self, device: torch.device) -> list[str]:
        """Why onnxruntime cannot run on `device`."""
        return provider_problems(device)

    def not_supported_reasons(self, request: Request) -> list[str]:
        """Why onnxruntime cannot run this engine on the requested device."""
        manifest = request.engine.manifest
        reasons = []
        missing = [name for name in manifest.graph_specs() if name + SUFFIX not in manifest.files]
        if missing:
            reasons.append(f"the engine has no ONNX graphs ({', '.join(missing)}): export it with --onnx")
        if request.precision not in (None, manifest.precision):
            reasons.append(
                f"the graphs are {manifest.precision}, not {request.precision}: export with --precision "
                f"{request.precision}"
            )
        if request.device.type == "cpu" and manifest.precision is Precision.BF16:
            reasons.append("onnxruntime has no bf16 kernels for the CPU")
        return [*reasons, *self.problems_here(request.device)]

    def load(self, request: Request) -> OnnxruntimeSession:
        """Load the engine's graphs, lazily."""
        specs = request.engine.graph_specs()
        return OnnxruntimeSession(
            {name: request.engine.file(name + SUFFIX) for name in specs},
            specs,
            device=request.device,
            precision=request.engine.manifest.precision,
            threads=request.threads,
            check=request.engine.require_unchanged,
        )


def provider_problems(device: torch.device) -> list[str]:
    """Why onnxruntime cannot run on `device` here; empty when it can."""
    try:
        import onnxruntime
    except ImportError as error:
        package = "onnxruntime-gpu" if device.type == "cuda" else "onnxruntime"
        return [f"onnxruntime cannot be imported ({error}): pip install 'featinv-fast[{package}]'"]
    provider = PROVIDERS.get(device.type)
    if provider is None:
        return [f"devices of the kind {device.type!r} are not supported"]
    if provider not in onnxruntime.get_available_providers():
        return [f"this onnxruntime has no {provider}: install onnxruntime-gpu in place of onnxruntime"]
    # Buffers are torch's, so torch must see the device too.
    return device_problems(device)

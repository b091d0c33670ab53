"""The onnxruntime backends: an engine's ONNX graphs on the CPU, CUDA or TensorRT execution provider."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featinv_fast.backends.base import Request, Session
from featinv_fast.backends.memory import is_out_of_memory
from featinv_fast.backends.onnxruntime_providers import LOOP_GRAPHS, Variant, misplaced, provider_chain
from featinv_fast.backends.torch_ import device_problems
from featinv_fast.config import Precision
from featinv_fast.engine.graphs import GraphSpec
from featinv_fast.engine.manifest import ONNX_SUFFIX
from featinv_fast.errors import BackendUnavailableError, EngineIntegrityError

SUFFIX = ONNX_SUFFIX
# Graphs captured for one shape each. onnxruntime gives none back, so that what comes later is launched call by call.
MOST_CAPTURES = 24

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Capture:
    """A graph captured for fixed shapes: it is replayed on the very buffers that it was captured with."""

    inputs: dict[str, Tensor]
    output: Tensor
    binding: Any
    options: Any


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
        variant: the way of serving.
        check: is told the name of a file before it is read; raises where it must not be read any more.

    Attributes:
        placements: graph -> execution provider -> the number of nodes that it runs, for the graphs loaded so far.
    """

    def __init__(
        self,
        graphs: Mapping[str, Path],
        specs: Mapping[str, GraphSpec],
        *,
        device: torch.device,
        precision: Precision,
        threads: int | None = None,
        variant: Variant = Variant.STANDARD,
        check: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.backend = str(variant)
        self.device = device
        self.precision = precision
        self.threads = threads
        self.placements: dict[str, dict[str, int]] = {}
        self._variant = variant
        self._graphs = dict(graphs)
        self._specs = dict(specs)
        self._check = check
        self._sessions: dict[str, Any] = {}
        self._captures: dict[tuple[Any, ...], Capture] = {}
        self._stream: Any = None  # a CUDA stream of our own, made when the first graph is loaded

    def run(self, graph: str, *inputs: Tensor) -> Tensor:
        """Run a graph; see `Session.run`. On a GPU inputs and output stay in its memory and nothing waits for it."""
        session = self._sessions.get(graph) or self._load(graph)
        names = self._specs[graph].input_names
        given = {name: x.detach().contiguous() for name, x in zip(names, inputs, strict=True)}
        if self.device.type == "cpu":
            return torch.from_numpy(session.run(None, {name: x.numpy() for name, x in given.items()})[0])
        if self._variant is Variant.CUDA_GRAPHS and graph in LOOP_GRAPHS:
            return self._replay(graph, given)
        return self._run_bound(graph, given)

    def _run_bound(self, graph: str, given: Mapping[str, Tensor], **entries: int) -> Tensor:
        """Run on the memory of torch's own tensors; `entries` are options of the run."""
        output = self._empty_output(graph, given)
        with self._on_our_stream(*given.values(), output):
            self._sessions[graph].run_with_iobinding(self._bind(graph, given, output), _run_options(**entries))
        return output

    def _replay(self, graph: str, given: Mapping[str, Tensor]) -> Tensor:
        """Copy the inputs to where the graph was captured for these shapes, and replay it (at first: capture)."""
        key = (graph, *(tuple(x.shape) for x in given.values()))
        capture = self._captures.get(key)
        if capture is None:
            if len(self._captures) == MOST_CAPTURES:
                return self._run_bound(graph, given, gpu_graph_id=-1)  # neither captured nor replayed
            inputs = {name: torch.empty_like(x) for name, x in given.items()}
            fixed = self._empty_output(graph, given)
            # onnxruntime captures a graph when it first runs one of this number, which no other buffers ever get.
            options = _run_options(gpu_graph_id=len(self._captures) + 1)
            capture = self._captures[key] = Capture(inputs, fixed, self._bind(graph, inputs, fixed), options)
        output = torch.empty_like(capture.output)
        with self._on_our_stream(*given.values(), *capture.inputs.values(), capture.output, output):
            for name, x in given.items():
                capture.inputs[name].copy_(x)
            self._sessions[graph].run_with_iobinding(capture.binding, capture.options)
            output.copy_(capture.output)
        return output

    def _empty_output(self, graph: str, given: Mapping[str, Tensor]) -> Tensor:
        shape = self._specs[graph].output_shape({name: tuple(x.shape) for name, x in given.items()})
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def _bind(self, graph: str, inputs: Mapping[str, Tensor], output: Tensor) -> Any:
        binding = self._sessions[graph].io_binding()
        place = (self.device.type, self.device.index or 0, "float32")
        for name, x in inputs.items():
            binding.bind_input(name, *place, tuple(x.shape), x.data_ptr())
        binding.bind_output(self._specs[graph].output.name, *place, tuple(output.shape), output.data_ptr())
        return binding

    @contextlib.contextmanager
    def _on_our_stream(self, *tensors: Tensor) -> Iterator[None]:
        """Work after what the caller has queued and before what it queues next, without waiting for the GPU."""
        if self._stream is None:
            yield
            return
        caller = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            yield
        caller.wait_stream(self._stream)
        for tensor in tensors:
            tensor.record_stream(self._stream)  # so that torch does not reuse its memory too early

    def _load(self, graph: str) -> Any:
        """Load a graph.

        Raises:
            EngineIntegrityError: the engine was replaced, or onnxruntime refuses the file, as it does where external
                data lie outside the file's folder.
            BackendUnavailableError: the execution provider does not start.
        """
        import onnxruntime

        self._check(self._graphs[graph].name)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = (
            4  # fatal: its errors are raised, and its remarks are for the exporter's developers
        )
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        # Which provider runs which node: its list of providers does not say that.
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if self.device.type == "cuda" and self._stream is None:
            # Not the caller's: onnxruntime takes torch's default stream, whose handle is 0, for none at all.
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        wanted = provider_chain(
            self._variant,
            self._specs[graph],
            device=self.device,
            precision=self.precision,
            stream=0 if self._stream is None else self._stream.cuda_stream,
        )
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
        self.placements[graph] = self._placement(graph, session, [name for name, _ in wanted])
        _require_declared(session, self._specs[graph], path)
        self._sessions[graph] = session
        return session

    def _placement(self, graph: str, session: Any, wanted: list[str]) -> dict[str, int]:
        """How many nodes each provider runs.

        Raises:
            BackendUnavailableError: it is not the wanted ones that run them.
        """
        used = session.get_providers()
        reason = None
        nodes: list[tuple[str, str, str]] = []
        if used[0] != wanted[0]:
            # onnxruntime itself answers with a CPU session where CUDA cannot start.
            reason = f"it started {', '.join(used)} instead"
        else:
            nodes = [
                (part.ep_name, node.name, node.op_type)
                for part in session.get_provider_graph_assignment_info()
                for node in part.get_nodes()
            ]
            elsewhere = misplaced(nodes, wanted)
            if elsewhere:
                reason = f"it leaves {len(elsewhere)} nodes of {graph} to another: {', '.join(elsewhere[:3])}"
        if reason is not None:
            raise BackendUnavailableError(
                "onnxruntime did not start the execution provider that was asked for",
                given=wanted[0],
                reasons={self.backend: [reason]},
                remedy="install a CUDA and cuDNN that fit this onnxruntime-gpu, or choose device='cpu'",
                command_remedy="install a CUDA and cuDNN that fit this onnxruntime-gpu, or choose --device cpu",
            )
        counts = dict(Counter(provider for provider, _, _ in nodes))
        logger.info("onnxruntime runs %s on %s", graph, ", ".join(f"{name} ({n} nodes)" for name, n in counts.items()))
        return counts


def _require_declared(session: Any, spec: GraphSpec, path: Path) -> None:
    """Refuse a graph that is not the one that the manifest's sizes declare.

    Raises:
        EngineIntegrityError: other inputs or another output, or other sizes of them.
    """
    given = {value.name: list(value.shape) for value in (*session.get_inputs(), *session.get_outputs())}
    expected = {tensor.name: list(tensor.shape) for tensor in (*spec.inputs, spec.output)}
    wrong = [name for name in given | expected if not _admits(given.get(name), expected.get(name))]
    if wrong:
        raise EngineIntegrityError(
            f"{path} is not the graph that the engine's manifest declares",
            given={name: given.get(name) for name in wrong},
            expected={name: expected.get(name) for name in wrong},
            remedy="export the checkpoint again",
        )


def _admits(shape: list[int | str] | None, declared: list[int | str] | None) -> bool:
    """Whether a tensor of the graph takes the declared sizes; one of any size takes a certain one."""
    if shape is None or declared is None or len(shape) != len(declared):
        return False
    return all(
        size == wanted or (isinstance(size, str) and isinstance(wanted, int))
        for size, wanted in zip(shape, declared, strict=True)
    )


def _run_options(**entries: int) -> Any:
    """Options of one run. Streams order the work of a GPU, so no run waits for its end."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    for name, value in entries.items():
        options.add_run_config_entry(name, str(value))
    return options


class OnnxruntimeBackend:
    """Serves engines that were exported with ONNX graphs, in one of onnxruntime's ways."""

    def __init__(self, variant: Variant = Variant.STANDARD) -> None:
        self.variant = variant
        self.name = str(variant)

    def problems_here(self, device: torch.device) -> list[str]:
        """Why onnxruntime cannot run on `device`."""
        return provider_problems(device, self.variant)

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
            variant=self.variant,
            check=request.engine.require_unchanged,
        )


def provider_problems(device: torch.device, variant: Variant = Variant.STANDARD) -> list[str]:
    """Why onnxruntime cannot run on `device` here in this way; empty when it can."""
    try:
        import onnxruntime
    except ImportError as error:
        package = "onnxruntime-gpu" if device.type == "cuda" else "onnxruntime"
        return [f"onnxruntime cannot be imported ({error}): pip install 'featinv-fast[{package}]'"]
    provider = variant.provider(device)
    if provider is None:
        only = "" if variant is Variant.STANDARD else ": it needs an NVIDIA GPU"
        return [f"devices of the kind {device.type!r} are not supported{only}"]
    if provider not in onnxruntime.get_available_providers():
        return [f"this onnxruntime has no {provider}: install onnxruntime-gpu in place of onnxruntime"]
    # Buffers are torch's, so torch must see the device too.
    return device_problems(device)

"""The TensorRT backend: an engine's plans on the NVIDIA GPU that they were built for.

Checked against the vendor's Python bindings of TensorRT 10.16 and 11.4 and a double made from them; not yet run on a
GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from featinv_fast.backends.base import Request, Session
from featinv_fast.backends.cuda_launch import CudaLauncher
from featinv_fast.backends.onnxruntime_ import SUFFIX as ONNX_SUFFIX
from featinv_fast.backends.tensorrt_plan import (
    PROPER,
    Flavour,
    Messages,
    check_interface,
    deserialize,
    failure,
    plan_target,
    refit,
)
from featinv_fast.backends.torch_ import WEIGHT_FILE
from featinv_fast.config import Precision
from featinv_fast.engine.folder import EngineFolder
from featinv_fast.engine.graphs import GraphSpec
from featinv_fast.engine.plans import BatchProfile, PlanInfo, PlanWeights, RtxPlanInfo
from featinv_fast.engine.trust import distrust
from featinv_fast.errors import ArgumentError, EngineIntegrityError, FeatInvError


class Plan(Protocol):
    """What running a plan needs to know of it, whichever library built it."""

    @property
    def graph(self) -> str:
        """Name of the graph."""

    @property
    def file_name(self) -> str:
        """The plan's name in an engine folder."""

    @property
    def profiles(self) -> tuple[BatchProfile, ...]:
        """Batch sizes, in the order of the plan's optimisation profiles."""


class ExecutionError(FeatInvError, RuntimeError):
    """TensorRT failed while it ran a plan."""


class TensorrtSession(Session):
    """An engine's plans, each loaded when it is first run; one execution context for each thread and plan.

    Args:
        folder: where the plans lie, and the graphs and weights of those that are stripped.
        plans: what is known of each graph's plan.
        specs: the declarations of the graphs.
        hashes: sha256 of each graph's plan. The bytes are compared again when they are read.
        device: the GPU.
        precision: of the graphs.
        check: is told the names of files that TensorRT reads itself, before a plan is loaded; raises where they must
            not be read any more.
    """

    backend = "tensorrt"
    flavour: ClassVar[Flavour] = PROPER

    def __init__(
        self,
        folder: Path,
        plans: Mapping[str, Plan],
        specs: Mapping[str, GraphSpec],
        hashes: Mapping[str, str],
        *,
        device: torch.device,
        precision: Precision,
        check: Callable[..., None] = lambda *_: None,
    ) -> None:
        self.device = device
        self.precision = precision
        self._folder = folder
        self._plans = dict(plans)
        self._specs = dict(specs)
        self._hashes = dict(hashes)
        self._check = check
        self._messages = Messages(self.flavour)
        self._loading = threading.Lock()
        self._engines: dict[str, Any] = {}
        self._local = threading.local()

    def run(self, graph: str, *inputs: Tensor) -> Tensor:
        """Run a graph; see `Session.run`. Safe to call from several threads."""
        executions: dict[str, Execution] = self._local.__dict__.setdefault("executions", {})
        if graph not in executions:
            with self._loading, on_gpu(self.device):
                engine = self._engines.get(graph) or self._load(graph)
                context = self._context(graph, engine)
                if context is None:
                    name = self._plans[graph].file_name
                    raise failure(FeatInvError, f"{self.flavour.title} cannot run {name}", self._messages)
                executions[graph] = Execution(
                    context, self._plans[graph], self._specs[graph], self.device, self._messages
                )
        with on_gpu(self.device):
            return executions[graph].run([x.detach() for x in inputs])

    def _load(self, graph: str) -> Any:
        """Load a plan.

        Raises:
            EngineIntegrityError: the plan or its engine was replaced, or TensorRT refuses it.
        """
        info = self._plans[graph]
        self._check(*self._read_by_tensorrt(info))
        content = (self._folder / info.file_name).read_bytes()
        if hashlib.sha256(content).hexdigest() != self._hashes[graph]:
            raise EngineIntegrityError(
                f"{info.file_name} was changed",
                given=self._folder,
                expected="the file that was checked",
                remedy=self.flavour.rebuild,
            )
        engine = self._opened(content, info)
        check_interface(engine, self._specs[graph], self.flavour)
        self._engines[graph] = engine
        return engine

    def _read_by_tensorrt(self, info: Any) -> list[str]:
        """Names of the files that TensorRT reads itself to load a plan."""
        return [info.graph + ONNX_SUFFIX] if info.weights is PlanWeights.STRIPPED else []

    def _opened(self, content: bytes, info: Any) -> Any:
        """A plan's bytes as an `ICudaEngine` that has its weights."""
        engine = deserialize(content, self._messages, info.file_name, host_code=info.version_compatible)
        if info.weights is PlanWeights.STRIPPED:
            refit(engine, self._folder / (info.graph + ONNX_SUFFIX), self._messages)
        return engine

    def _context(self, graph: str, engine: Any) -> Any:
        """A new `IExecutionContext` of a plan, or `None` where TensorRT refuses it."""
        del graph
        return engine.create_execution_context()


@dataclasses.dataclass(frozen=True, eq=False)
class Buffers:
    """What a context is bound to, and what a graph of its work belongs to: one set of shapes and the memory for them.

    Attributes:
        shapes: of the inputs.
        tensors: inputs and output by name.
    """

    shapes: dict[str, tuple[int, ...]]
    tensors: dict[str, Tensor]


class Execution:
    """A plan in one thread: its execution context, buffers and stream.

    Args:
        context: the `IExecutionContext`, of an engine that threads share.
        info: what the plan was built for.
        spec: the graph's declaration.
        device: the GPU.
        messages: TensorRT's log.
    """

    def __init__(self, context: Any, info: Plan, spec: GraphSpec, device: torch.device, messages: Messages) -> None:
        self._info = info
        self._spec = spec
        self._device = device
        self._messages = messages
        self._context = context
        self._launch = CudaLauncher(device)
        self._buffers: Buffers | None = None

    def run(self, inputs: Sequence[Tensor]) -> Tensor:
        """Run the plan; see `Session.run`. A batch below the profile's smallest is filled up with zeros."""
        tensors = dict(zip(self._spec.input_names, inputs, strict=True))
        given = {name: tuple(x.shape) for name, x in tensors.items()}
        count = self._spec.output_shape(given)[0]  # raises ArgumentError where the shapes do not fit
        profile, shapes = self._padded(given)
        with self._launch.ordered():
            buffers = self._bound(profile, shapes)
            for name, x in tensors.items():
                buffer = buffers.tensors[name]
                if given[name] != shapes[name]:
                    buffer = buffer[: len(x)]
                buffer.copy_(x)
            self._launch(buffers, self._enqueue)
            output = buffers.tensors[self._spec.output.name][:count].clone()
        output.record_stream(torch.cuda.current_stream(self._device))
        return output

    def _padded(self, given: Mapping[str, tuple[int, ...]]) -> tuple[int, dict[str, tuple[int, ...]]]:
        """Number of the profile that serves these shapes, and the shapes it is run at."""
        batched = [tensor.name for tensor in self._spec.inputs if tensor.dynamic_axes.get(0) == "batch"]
        if not batched:
            return 0, dict(given)
        profile, batch = choose_profile(self._info.profiles, given[batched[0]][0], self._messages.flavour)
        return profile, {name: (batch, *shape[1:]) if name in batched else shape for name, shape in given.items()}

    def _bound(self, profile: int, shapes: dict[str, tuple[int, ...]]) -> Buffers:
        """The buffers of these shapes, known to the context. Others, and their graph, are gone before anything else."""
        if self._buffers is not None and self._buffers.shapes == shapes:
            return self._buffers
        self._buffers = None
        self._launch.forget()
        output = self._spec.output
        context = self._context
        if context.active_optimization_profile != profile:
            self._require(context.set_optimization_profile_async(profile, self._launch.handle))
            self._launch.synchronize()
        all_shapes = shapes | {output.name: self._spec.output_shape(shapes)}
        tensors = {
            name: torch.zeros(shape, dtype=torch.float32, device=self._device) for name, shape in all_shapes.items()
        }
        for name, shape in shapes.items():
            self._require(context.set_input_shape(name, shape))
        for name, buffer in tensors.items():
            self._require(context.set_tensor_address(name, buffer.data_ptr()))
        self._require(not context.infer_shapes())
        self._require(tuple(context.get_tensor_shape(output.name)) == all_shapes[output.name])
        self._buffers = Buffers(shapes, tensors)
        return self._buffers

    def _enqueue(self, stream: int) -> None:
        self._require(self._context.execute_async_v3(stream))

    def _require(self, succeeded: bool) -> None:
        if not succeeded:
            title = self._messages.flavour.title
            raise failure(ExecutionError, f"{title} cannot run {self._info.file_name}", self._messages)


class TensorrtBackend:
    """Serves engines with plans for this GPU and this TensorRT."""

    name = "tensorrt"
    flavour: Flavour = PROPER
    session: type[TensorrtSession] = TensorrtSession

    def problems_here(self, device: torch.device) -> list[str]:
        """Why TensorRT cannot run on `device`."""
        return self.flavour.problems(device)

    def plans(self, engine: EngineFolder) -> dict[str, Any]:
        """The plans of an engine by graph."""
        return {plan.graph: plan for plan in engine.manifest.plans if plan.file_name in engine.manifest.files}

    def options(self, request: Request) -> dict[str, Any]:  # noqa: ARG002 -- there is nothing to choose
        """What its session is told beside the plans."""
        return {}

    def plan_problems(self, plan: Any, device: torch.device) -> list[str]:
        """Why a plan does not run on a GPU that is here."""
        return plan.problems_on(plan_target(device))

    def not_supported_reasons(self, request: Request) -> list[str]:
        """Why TensorRT cannot run this engine on the requested device."""
        manifest = request.engine.manifest
        plans = self.plans(request.engine)
        reasons = []
        missing = [name for name in manifest.graph_specs() if name not in plans]
        if missing:
            title, rebuild = self.flavour.title, self.flavour.rebuild
            reasons.append(f"the engine has no {title} plans ({', '.join(missing)}): {rebuild}")
        if request.precision not in (None, manifest.precision):
            reasons.append(
                f"the plans are {manifest.precision}, not {request.precision}: export with --precision "
                f"{request.precision}"
            )
        problems = self.problems_here(request.device)
        if not problems:
            for plan in plans.values():
                unfit = [*self.plan_problems(plan, request.device), *stale_reasons(plan, request.engine)]
                reasons += [f"{plan.file_name}: {reason}; {self.flavour.rebuild}" for reason in unfit]
        if plans and not request.trust_engine:
            reasons += distrust(request.engine, [plan.file_name for plan in plans.values()])
        return [*reasons, *problems]

    def load(self, request: Request) -> TensorrtSession:
        """Load the engine's plans, lazily."""
        engine = request.engine
        plans = self.plans(engine)
        return self.session(
            engine.path,
            plans,
            engine.graph_specs(),
            {name: engine.manifest.files[plan.file_name].sha256 for name, plan in plans.items()},
            device=request.device,
            precision=engine.manifest.precision,
            check=engine.require_unchanged,
            **self.options(request),
        )


def stale_reasons(plan: PlanInfo | RtxPlanInfo, engine: EngineFolder) -> list[str]:
    """Why a plan is not of the graph and the weights that lie beside it; empty when it is."""
    files = engine.manifest.files
    graph = files.get(plan.graph + ONNX_SUFFIX)
    return plan.staleness(
        precision=engine.manifest.precision,
        graph_sha256=None if graph is None else graph.sha256,
        weights_sha256=files[WEIGHT_FILE].sha256,
    )


def choose_profile(profiles: Sequence[BatchProfile], batch: int, flavour: Flavour = PROPER) -> tuple[int, int]:
    """The profile that serves `batch` with the least padding, then the nearest optimum: its number and its batch.

    Raises:
        ArgumentError: the batch is larger than every profile.
    """
    fitting = [
        (max(batch, profile.minimum), abs(profile.optimum - batch), number)
        for number, profile in enumerate(profiles)
        if batch <= profile.maximum
    ]
    if not fitting:
        raise ArgumentError(
            "the batch is larger than the plan's profiles",
            given=batch,
            expected=f"at most {max(profile.maximum for profile in profiles)}",
            remedy=f"{flavour.rebuild} --max-batch N",
        )
    padded, _, number = min(fitting)
    return number, padded


@contextlib.contextmanager
def on_gpu(device: torch.device) -> Iterator[None]:
    """TensorRT works on the thread's current GPU."""
    with torch.cuda.device(device):
        yield

"""What backends and exporter do with TensorRT itself: is it there, its log, its plans' bytes.

TensorRT comes in two flavours with one interface: TensorRT proper, and TensorRT for RTX, whose plans are built without
a GPU and compiled for the one at hand when they first run.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from featinv_fast.backends.torch_ import device_problems
from featinv_fast.engine.graphs import GraphSpec
from featinv_fast.engine.plans import PlanTarget
from featinv_fast.errors import EngineIntegrityError, FeatInvError, OutOfMemoryError

logger = logging.getLogger(__name__)


def _proper() -> Any:
    import tensorrt

    return tensorrt


def _for_rtx() -> Any:
    import tensorrt_rtx

    return tensorrt_rtx


@dataclasses.dataclass(frozen=True)
class Flavour:
    """One of NVIDIA's two libraries that build and run plans.

    Attributes:
        title: its name.
        package: that of its Python bindings.
        load: imports them.
        oldest: the first release that will do.
        install: what installs it.
        rebuild: what to do about a plan that does not fit.
    """

    title: str
    package: str
    load: Callable[[], Any]
    oldest: tuple[int, int]
    install: str
    rebuild: str

    def import_problems(self) -> list[str]:
        """Why the library is not here; empty when it is."""
        try:
            version = self.load().__version__
        except Exception as error:  # noqa: BLE001 -- a missing shared library shows itself in several ways
            return [f"{self.package} cannot be imported ({error}): pip install {self.install}"]
        if tuple(int(part) for part in version.split(".")[:2]) < self.oldest:
            return [f"{self.title} {version} is too old: install {'.'.join(map(str, self.oldest))} or newer"]
        return []

    def problems(self, device: torch.device) -> list[str]:
        """Why it cannot run plans on `device` here; empty when it can."""
        if not is_gpu(device):
            return [f"{self.title} runs on NVIDIA GPUs, not on {device}"]
        return [*self.import_problems(), *device_problems(device)]


PROPER = Flavour(
    title="TensorRT",
    package="tensorrt",
    load=_proper,
    oldest=(10, 12),  # the first whose API for strongly typed networks is that of 11.x
    install="'tensorrt>=10.12'",
    rebuild="build plans here with `featinv-export --from-onnx DIR --trt`",
)
RTX = Flavour(
    title="TensorRT for RTX",
    package="tensorrt_rtx",
    load=_for_rtx,
    oldest=(1, 7),
    install="'featinv-fast[tensorrt-rtx]'",
    rebuild="build plans with `featinv-export --from-onnx DIR --trt-rtx`",
)


def is_gpu(device: torch.device) -> bool:
    """Whether TensorRT could run on a device of this kind."""
    return device.type == "cuda"


def plan_target(device: torch.device) -> PlanTarget:
    """This machine as a plan of TensorRT proper sees it. Call it only where `PROPER.problems` finds none."""
    properties = torch.cuda.get_device_properties(device)
    return PlanTarget(
        tensorrt=PROPER.load().__version__,
        cuda=str(torch.version.cuda),
        gpu=properties.name,
        compute_capability=compute_capability(device),
    )


def compute_capability(device: torch.device) -> str:
    """Of a GPU that is here, e.g. "9.0"."""
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.major}.{properties.minor}"


class Messages:
    """TensorRT's log: passed on to `logging`, and errors kept, because its calls only return false or nothing.

    TensorRT cannot bear exceptions: one that comes up while it logs, Ctrl-C included, is raised by `raise_if_stopped`.

    Args:
        flavour: the library that logs.

    Attributes:
        flavour: the same.
        tensorrt: its module.
        sink: the `ILogger` to give to it.
    """

    def __init__(self, flavour: Flavour = PROPER) -> None:
        self.flavour = flavour
        self.tensorrt: Any = flavour.load()
        tensorrt = self.tensorrt
        severity = tensorrt.ILogger.Severity
        levels = {severity.WARNING: logging.WARNING, severity.INFO: logging.DEBUG, severity.VERBOSE: logging.DEBUG}
        errors: list[str] = []
        exceptions: list[BaseException] = []

        class Sink(tensorrt.ILogger):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                tensorrt.ILogger.__init__(self)  # its bindings ask for exactly this call

            def log(self, severity: Any, msg: str) -> None:
                try:
                    level = levels.get(severity, logging.ERROR)
                    if level == logging.ERROR:
                        errors.append(msg)
                    logger.log(min(level, logging.WARNING), "%s: %s", flavour.title, msg)
                except BaseException as exception:  # noqa: BLE001 -- nothing may pass through TensorRT
                    exceptions.append(exception)

        self.sink = Sink()
        self._errors = errors
        self._exceptions = exceptions

    def raise_if_stopped(self) -> None:
        """Raise what came up while TensorRT logged, if anything did."""
        if self._exceptions:
            raise self._exceptions.pop()

    def take(self) -> str:
        """The errors since the last call, as one line."""
        text = "; ".join(self._errors) or f"{self.flavour.title} gave no reason"
        self._errors.clear()
        return text


def deserialize(content: bytes, messages: Messages, file_name: str, *, host_code: bool = False) -> Any:
    """A plan's bytes as an `ICudaEngine`. Only trusted bytes: they are native code.

    Args:
        content: the bytes.
        messages: the log of the library to load them with.
        file_name: of the plan, for errors.
        host_code: the plan may bring code that runs on the CPU: a version-compatible one brings the runtime that it was
            built with.

    Raises:
        EngineIntegrityError: TensorRT refuses them.
        OutOfMemoryError: the plan does not fit into the GPU's memory.
    """
    tensorrt = messages.tensorrt
    runtime = tensorrt.Runtime(messages.sink)
    runtime.engine_host_code_allowed = host_code
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise failure(EngineIntegrityError, f"{messages.flavour.title} refuses {file_name}", messages)
    return engine


def refit(engine: Any, graph_file: Path, messages: Messages) -> None:
    """Give an `ICudaEngine` the weights that an ONNX graph points at.

    Raises:
        EngineIntegrityError: the weights are not those of the plan's graph.
    """
    tensorrt = messages.tensorrt
    refitter = tensorrt.Refitter(engine, messages.sink)
    parser = tensorrt.OnnxParserRefitter(refitter, messages.sink)
    if not parser.refit_from_file(str(graph_file)) or not refitter.refit_cuda_engine():
        described = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        missing = refitter.get_missing_weights()
        text = "; ".join([*described, *([f"no weights for {', '.join(missing[:5])}"] if missing else [])])
        raise failure(EngineIntegrityError, f"TensorRT cannot refit the plan of {graph_file.name}", messages, text)


def check_interface(engine: Any, spec: GraphSpec, flavour: Flavour = PROPER) -> None:
    """Compare the plan's inputs and outputs with the graph's declaration.

    Raises:
        EngineIntegrityError: they differ.
    """
    tensorrt = flavour.load()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
    others = [name for name in names if name not in inputs]
    foreign = [name for name in names if engine.get_tensor_dtype(name) != tensorrt.DataType.FLOAT]
    if set(inputs) != set(spec.input_names) or others != [spec.output.name] or foreign:
        raise EngineIntegrityError(
            f"the plan of {spec.name} has another interface than the graph",
            given=f"inputs {inputs}, outputs {others}, not float32: {foreign}",
            expected=f"inputs {list(spec.input_names)}, output {spec.output.name}",
            remedy=flavour.rebuild,
        )


def failure(kind: type[FeatInvError], problem: str, messages: Messages, text: str = "") -> FeatInvError:
    """An error with what TensorRT said; `OutOfMemoryError` where it spoke of memory."""
    messages.raise_if_stopped()
    said = "; ".join(part for part in (text, messages.take()) if part)
    if "outofmemory" in said.lower().replace(" ", ""):
        return OutOfMemoryError(problem, given=said, remedy="free memory, or build the plan with a smaller --max-batch")
    return kind(problem, given=said, remedy=messages.flavour.rebuild)

"""What the backend and the exporter do with TensorRT itself: is it there, its log, its plans' bytes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from featinv_fast.backends.torch_ import device_problems
from featinv_fast.engine.graphs import GraphSpec
from featinv_fast.engine.plans import PlanInfo, PlanTarget
from featinv_fast.errors import EngineIntegrityError, FeatInvError, OutOfMemoryError

# The first release whose API for strongly typed networks is that of 11.x.
OLDEST = (10, 12)
REBUILD = "build plans here with `featinv-export --from-onnx DIR --trt`"

logger = logging.getLogger(__name__)


def tensorrt_problems(device: torch.device) -> list[str]:
    """Why TensorRT cannot be used on `device` here; empty when it can."""
    if not is_gpu(device):
        return [f"TensorRT runs on NVIDIA GPUs, not on {device}"]
    reasons = []
    try:
        import tensorrt
    except Exception as error:  # noqa: BLE001 -- a missing shared library shows itself in several ways
        reasons.append(f"tensorrt cannot be imported ({error}): pip install 'tensorrt>={OLDEST[0]}.{OLDEST[1]}'")
    else:
        release = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
        if release < OLDEST:
            reasons.append(f"TensorRT {tensorrt.__version__} is too old: install {'.'.join(map(str, OLDEST))} or newer")
    return [*reasons, *device_problems(device)]


def is_gpu(device: torch.device) -> bool:
    """Whether TensorRT could run on a device of this kind."""
    return device.type == "cuda"


def plan_target(device: torch.device) -> PlanTarget:
    """This machine as a plan sees it. Call it only where `tensorrt_problems` finds none."""
    import tensorrt

    properties = torch.cuda.get_device_properties(device)
    return PlanTarget(
        tensorrt=tensorrt.__version__,
        cuda=str(torch.version.cuda),
        gpu=properties.name,
        compute_capability=f"{properties.major}.{properties.minor}",
    )


class Messages:
    """TensorRT's log: passed on to `logging`, and errors kept, because its calls only return false or nothing.

    TensorRT cannot bear exceptions: one that comes up while it logs, Ctrl-C included, is raised by `raise_if_stopped`.

    Attributes:
        sink: the `ILogger` to give to TensorRT.
    """

    def __init__(self) -> None:
        import tensorrt

        severity = tensorrt.ILogger.Severity
        levels = {severity.WARNING: logging.WARNING, severity.INFO: logging.DEBUG, severity.VERBOSE: logging.DEBUG}
        errors: list[str] = []
        exceptions: list[BaseException] = []

        class Sink(tensorrt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                tensorrt.ILogger.__init__(self)  # its bindings ask for exactly this call

            def log(self, severity: Any, msg: str) -> None:
                try:
                    level = levels.get(severity, logging.ERROR)
                    if level == logging.ERROR:
                        errors.append(msg)
                    logger.log(min(level, logging.WARNING), "TensorRT: %s", msg)
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
        text = "; ".join(self._errors) or "TensorRT gave no reason"
        self._errors.clear()
        return text


def deserialize(content: bytes, messages: Messages, info: PlanInfo) -> Any:
    """A plan's bytes as an `ICudaEngine`. Only trusted bytes: they are native code.

    Raises:
        EngineIntegrityError: TensorRT refuses them.
        OutOfMemoryError: the plan does not fit into the GPU's memory.
    """
    import tensorrt

    runtime = tensorrt.Runtime(messages.sink)
    # A version-compatible plan brings the runtime that it was built with.
    runtime.engine_host_code_allowed = info.version_compatible
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise failure(EngineIntegrityError, f"TensorRT refuses {info.file_name}", messages)
    return engine


def refit(engine: Any, graph_file: Path, messages: Messages) -> None:
    """Give an `ICudaEngine` the weights that an ONNX graph points at.

    Raises:
        EngineIntegrityError: the weights are not those of the plan's graph.
    """
    import tensorrt

    refitter = tensorrt.Refitter(engine, messages.sink)
    parser = tensorrt.OnnxParserRefitter(refitter, messages.sink)
    if not parser.refit_from_file(str(graph_file)) or not refitter.refit_cuda_engine():
        described = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        missing = refitter.get_missing_weights()
        text = "; ".join([*described, *([f"no weights for {', '.join(missing[:5])}"] if missing else [])])
        raise failure(EngineIntegrityError, f"TensorRT cannot refit the plan of {graph_file.name}", messages, text)


def check_interface(engine: Any, spec: GraphSpec) -> None:
    """Compare the plan's inputs and outputs with the graph's declaration.

    Raises:
        EngineIntegrityError: they differ.
    """
    import tensorrt

    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
    others = [name for name in names if name not in inputs]
    foreign = [name for name in names if engine.get_tensor_dtype(name) != tensorrt.DataType.FLOAT]
    if set(inputs) != set(spec.input_names) or others != [spec.output.name] or foreign:
        raise EngineIntegrityError(
            f"the plan of {spec.name} has another interface than the graph",
            given=f"inputs {inputs}, outputs {others}, not float32: {foreign}",
            expected=f"inputs {list(spec.input_names)}, output {spec.output.name}",
            remedy=REBUILD,
        )


def failure(kind: type[FeatInvError], problem: str, messages: Messages, text: str = "") -> FeatInvError:
    """An error with what TensorRT said; `OutOfMemoryError` where it spoke of memory."""
    messages.raise_if_stopped()
    said = "; ".join(part for part in (text, messages.take()) if part)
    if "outofmemory" in said.lower().replace(" ", ""):
        return OutOfMemoryError(problem, given=said, remedy="free memory, or build the plan with a smaller --max-batch")
    return kind(problem, given=said, remedy=REBUILD)

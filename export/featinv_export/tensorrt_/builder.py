"""One ONNX graph to one TensorRT plan; what TensorRT for RTX does otherwise is in `rtx_builder`.

Networks are strongly typed: the types are those of the graph, and TensorRT chooses kernels but no precision.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featinv_export.tensorrt_.monitor import make_monitor
from featinv_fast.backends.tensorrt_plan import PROPER, Messages, deserialize, failure, refit
from featinv_fast.engine.graphs import GraphSpec
from featinv_fast.engine.plans import BatchProfile, HardwareCompatibility, PlanInfo, PlanWeights, RtxPlanInfo
from featinv_fast.errors import ExportError

logger = logging.getLogger(__name__)

# The shapes of an input at the bottom, the optimum and the top of a profile.
Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Built:
    """A plan, and the kernel times that were known after it was built."""

    plan: bytes
    timing_cache: bytes


def build_plan(
    graph_file: Path,
    spec: GraphSpec,
    info: PlanInfo,
    *,
    timing_cache: bytes = b"",
    report: Callable[[str], None] = lambda _: None,
) -> Built:
    """Build a plan of `graph_file` on this machine's GPU.

    Args:
        graph_file: an ONNX graph; its weights lie beside it.
        spec: the graph's declaration.
        info: what to build, as it is recorded.
        timing_cache: kernel times of earlier builds; those of another GPU or version are ignored.
        report: is told what TensorRT is doing, from threads of its own.

    Raises:
        ExportError: TensorRT cannot read the graph or build the plan; the message is TensorRT's.
        OutOfMemoryError: the GPU's memory is exhausted.
        KeyboardInterrupt: Ctrl-C; the build was stopped at its next step.
    """
    messages = Messages(PROPER)
    caches: list[Any] = []

    def configure(config: Any) -> None:
        _configure(messages.tensorrt, config, info)
        caches.append(_timings(config, timing_cache))

    flags = _network_flags(messages.tensorrt)
    plan = build(messages, graph_file, spec, info, flags=flags, configure=configure, report=report)
    return Built(plan, bytes(memoryview(caches[0].serialize())))


def build(
    messages: Messages,
    graph_file: Path,
    spec: GraphSpec,
    info: PlanInfo | RtxPlanInfo,
    *,
    flags: int,
    configure: Callable[[Any], None],
    report: Callable[[str], None],
) -> bytes:
    """What building a plan is in both flavours of TensorRT; see `build_plan`.

    Args:
        messages: the log of the library that builds.
        graph_file: see `build_plan`.
        spec: see `build_plan`.
        info: see `build_plan`.
        flags: of the network.
        configure: sets up all of the builder's configuration but profiles and monitor.
        report: see `build_plan`.
    """
    tensorrt, title = messages.tensorrt, messages.flavour.title
    builder = tensorrt.Builder(messages.sink)
    network = builder.create_network(flags)
    _parse(messages, network, graph_file)
    _check_network(messages, network, spec)
    config = builder.create_builder_config()
    configure(config)
    for ranges in shape_profiles(spec, info.profiles):
        profile = builder.create_optimization_profile()
        for name, (minimum, optimum, maximum) in ranges.items():
            profile.set_shape(name, minimum, optimum, maximum)
        if config.add_optimization_profile(profile) < 0:
            raise failure(ExportError, f"{title} refuses a profile of {spec.name}", messages, str(ranges))
    monitor = make_monitor(tensorrt, report)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    monitor.raise_if_stopped()
    messages.raise_if_stopped()
    if plan is None:
        raise failure(ExportError, f"{title} cannot build {info.file_name}", messages)
    return bytes(memoryview(plan))


def refitted_plan(plan: bytes, graph_file: Path, info: PlanInfo) -> bytes:
    """A refittable plan with the weights that `graph_file` points at now.

    Args:
        plan: the bytes of a trusted plan.
        graph_file: the graph that the plan was built from, with other weights beside it.
        info: what the plan was built for.

    Raises:
        EngineIntegrityError: TensorRT refuses the plan, or the weights are not those of its graph.
    """
    messages = Messages(PROPER)
    tensorrt = messages.tensorrt
    engine = deserialize(plan, messages, info.file_name, host_code=info.version_compatible)
    refit(engine, graph_file, messages)
    config = engine.create_serialization_config()
    config.set_flag(tensorrt.SerializationFlag.INCLUDE_REFIT)  # otherwise it could not be refitted again
    return bytes(memoryview(engine.serialize_with_config(config)))


def shape_profiles(spec: GraphSpec, profiles: tuple[BatchProfile, ...]) -> list[dict[str, Range]]:
    """For each optimisation profile of a graph, the ranges of those inputs whose shape is not fixed.

    A graph without a batch has one profile, whatever the batch sizes.
    """
    dims = {dim.name: (dim.minimum, dim.optimum, dim.maximum) for dim in spec.dims}
    batches = [(p.minimum, p.optimum, p.maximum) for p in profiles] if "batch" in dims else [None]
    result = []
    for batch in batches:
        sizes = dims | ({} if batch is None else {"batch": batch})
        corners = [spec.input_shapes({name: size[corner] for name, size in sizes.items()}) for corner in range(3)]
        moving = [tensor.name for tensor in spec.inputs if tensor.dynamic_axes]
        result.append({name: (corners[0][name], corners[1][name], corners[2][name]) for name in moving})
    return result


def graph_profiles(spec: GraphSpec, profiles: tuple[BatchProfile, ...]) -> tuple[BatchProfile, ...]:
    """The profiles that concern a graph: none where it has no batch."""
    return profiles if any(dim.name == "batch" for dim in spec.dims) else ()


def _network_flags(tensorrt: Any) -> int:
    """Strong typing is a choice in 10.x; in 11.x it is all there is, and its flag means nothing."""
    if int(tensorrt.__version__.partition(".")[0]) >= 11:
        return 0
    return 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parse(messages: Messages, network: Any, graph_file: Path) -> None:
    tensorrt = messages.tensorrt
    parser = tensorrt.OnnxParser(network, messages.sink)
    if parser.parse_from_file(str(graph_file)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    text = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors[:10])
    raise failure(ExportError, f"{messages.flavour.title} cannot read {graph_file.name}", messages, text)


def _check_network(messages: Messages, network: Any, spec: GraphSpec) -> None:
    """The runtime's buffers come from the spec, so the network must have its names and float32 throughout."""
    tensorrt = messages.tensorrt
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    given = ([tensor.name for tensor in inputs], [tensor.name for tensor in outputs])
    expected = (list(spec.input_names), [spec.output.name])
    foreign = [tensor.name for tensor in (*inputs, *outputs) if tensor.dtype != tensorrt.DataType.FLOAT]
    if given != expected or foreign:
        raise ExportError(
            f"{messages.flavour.title} reads another interface from the graph {spec.name}",
            given=f"{given}, not float32: {foreign}",
            expected=expected,
            remedy="this is a bug: please report it with the version of TensorRT",
        )


def _configure(tensorrt: Any, config: Any, info: PlanInfo) -> None:
    # On by default, and it would round what the graph says is fp32 to 10 bits.
    config.clear_flag(tensorrt.BuilderFlag.TF32)
    if info.weights is not PlanWeights.FIXED:
        config.set_flag(tensorrt.BuilderFlag.REFIT)
    if info.weights is PlanWeights.STRIPPED:
        config.set_flag(tensorrt.BuilderFlag.STRIP_PLAN)
    if info.version_compatible:
        config.set_flag(tensorrt.BuilderFlag.VERSION_COMPATIBLE)
    config.hardware_compatibility_level = {
        HardwareCompatibility.NONE: tensorrt.HardwareCompatibilityLevel.NONE,
        HardwareCompatibility.SAME_COMPUTE_CAPABILITY: tensorrt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
        HardwareCompatibility.AMPERE_PLUS: tensorrt.HardwareCompatibilityLevel.AMPERE_PLUS,
    }[info.hardware]
    config.builder_optimization_level = info.optimization_level
    if info.workspace_mib is not None:
        config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, info.workspace_mib * 2**20)


def _timings(config: Any, content: bytes) -> Any:
    """A timing cache in `config`, with what `content` knows of this GPU."""
    if content:
        timings = config.create_timing_cache(content)
        if timings is not None and config.set_timing_cache(timings, ignore_mismatch=False):
            return timings
        logger.warning("the timing cache is of another GPU or version of TensorRT: starting a new one")
    timings = config.create_timing_cache(b"")
    config.set_timing_cache(timings, ignore_mismatch=False)
    return timings

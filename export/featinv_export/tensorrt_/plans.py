"""The plans of all graphs in an engine folder that is not installed yet."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from featinv_export.parity import Candidate
from featinv_export.progress import Steps
from featinv_export.tensorrt_.builder import build_plan, graph_profiles, shape_profiles
from featinv_export.tensorrt_.cache import Info, PlanCache, TimingCache
from featinv_export.tensorrt_.options import DEFAULT_CAPABILITIES, PlanOptions, RtxOptions
from featinv_export.tensorrt_.rtx_builder import build_rtx_plan
from featinv_export.trt_parser_support import require_supported
from featinv_fast.backends.onnxruntime_ import SUFFIX as ONNX_SUFFIX
from featinv_fast.backends.tensorrt_plan import PROPER, RTX, compute_capability, plan_target
from featinv_fast.backends.torch_ import WEIGHT_FILE, device_problems
from featinv_fast.engine.files import hash_files
from featinv_fast.engine.graphs import GraphSpec
from featinv_fast.engine.plans import RTX_CAPABILITIES, BatchProfile, PlanInfo, RtxPlanInfo, refit_problems
from featinv_fast.engine.trust import cache_folder
from featinv_fast.errors import BackendUnavailableError, EngineLockedError, ExportError

logger = logging.getLogger(__name__)

GPU = torch.device("cuda")


def require_tensorrt(engine: Path, options: PlanOptions) -> None:
    """Refuse to build plans where that is impossible, before any other work.

    Args:
        engine: the folder that the plans are for, which may not exist yet.
        options: how they are to be built.

    Raises:
        BackendUnavailableError: no TensorRT, or no GPU; with the way to do it in two steps.
        ExportError: this release of TensorRT builds wrong plans with these options.
    """
    problems = PROPER.problems(GPU)
    if problems:
        raise BackendUnavailableError(
            "TensorRT plans cannot be built on this machine",
            given="--trt",
            reasons={"tensorrt": problems},
            remedy=f"{'' if engine.exists() else 'export with --onnx now, and '}run `featinv-export --from-onnx "
            f"{engine} --trt` {'' if engine.exists() else 'later '}on the machine with the GPU; or build here with "
            "--trt-rtx, for GPUs such as RTX 30 to 50, A100 and L40 (not H100, H200, B200)",
        )
    version = PROPER.load().__version__
    if wrong := refit_problems(options.weights, version):
        raise ExportError(
            "this release of TensorRT builds no plans whose weights can be replaced",
            given=f"{version}: {'; '.join(wrong)}",
            expected="another release, or plans that keep their weights",
            remedy="upgrade TensorRT, or leave out --refittable and --stripped",
        )


def write_rtx_plans(
    candidate: Candidate, options: RtxOptions, profiles: tuple[BatchProfile, ...], steps: Steps
) -> tuple[RtxPlanInfo, ...]:
    """Write `<graph>.rtxplan` beside each `<graph>.onnx` of an engine in the making; see `write_plans`."""
    folder, specs = candidate.folder, candidate.specs
    hashes = hash_files(folder, [WEIGHT_FILE, *(name + ONNX_SUFFIX for name in specs)])
    cache = PlanCache(options.cache or cache_folder())
    plans = []
    for name, spec in specs.items():
        info = RtxPlanInfo(
            graph=name,
            tensorrt_rtx=RTX.load().__version__,
            capabilities=options.capabilities or capabilities_here() or DEFAULT_CAPABILITIES,
            precision=candidate.precision,
            profiles=graph_profiles(spec, profiles),
            graph_sha256=hashes[name + ONNX_SUFFIX].sha256,
            weights_sha256=hashes[WEIGHT_FILE].sha256,
        )
        steps.begin(f"building {info.file_name}")
        make = functools.partial(build_rtx_plan, folder / (name + ONNX_SUFFIX), spec, info, report=steps.detail)
        provide(cache, info, shape_profiles(spec, profiles), folder / info.file_name, make if options.build else None)
        plans.append(info)
    return tuple(plans)


def capabilities_here() -> tuple[str, ...]:
    """The compute capability of the GPU here; none without a GPU, or of one that TensorRT for RTX does not serve."""
    if device_problems(GPU):
        return ()
    return tuple(name for name in RTX_CAPABILITIES if name == compute_capability(GPU))


def write_plans(
    candidate: Candidate, options: PlanOptions, profiles: tuple[BatchProfile, ...], steps: Steps
) -> tuple[PlanInfo, ...]:
    """Write `<graph>.plan` beside each `<graph>.onnx` of an engine in the making, from the cache or newly built.

    Args:
        candidate: its folder has graphs and weights.
        options: how to build.
        profiles: of all graphs that have a batch.
        steps: is told which plan comes next, and what TensorRT is doing with it.

    Returns:
        What to record of the plans.

    Raises:
        ExportError: TensorRT's parser does not read a graph, or a plan cannot be built, or is not in the cache and may
            not be built.
        OutOfMemoryError: the GPU's memory is exhausted.
    """
    folder, specs = candidate.folder, candidate.specs
    target = plan_target(GPU)
    require_supported([folder / (name + ONNX_SUFFIX) for name in specs], target.tensorrt)
    hashes = hash_files(folder, [WEIGHT_FILE, *(name + ONNX_SUFFIX for name in specs)])
    cache = PlanCache(options.cache or cache_folder())
    timings = TimingCache(options.cache or cache_folder(), target, options.timing_cache)
    plans = []
    for name, spec in specs.items():
        info = PlanInfo(
            graph=name,
            target=target,
            precision=candidate.precision,
            profiles=graph_profiles(spec, profiles),
            graph_sha256=hashes[name + ONNX_SUFFIX].sha256,
            weights_sha256=hashes[WEIGHT_FILE].sha256,
            weights=options.weights,
            hardware=options.hardware,
            version_compatible=options.version_compatible,
            workspace_mib=options.workspace_mib,
            optimization_level=options.optimization_level,
        )
        steps.begin(f"building {info.file_name}")
        graph = folder / (name + ONNX_SUFFIX)
        make = functools.partial(_build_and_time, graph, spec, info, timings=timings, report=steps.detail)
        provide(cache, info, shape_profiles(spec, profiles), folder / info.file_name, make if options.build else None)
        plans.append(info)
    return tuple(plans)


def _build_and_time(
    graph: Path, spec: GraphSpec, info: PlanInfo, *, timings: TimingCache, report: Callable[[str], None]
) -> bytes:
    built = build_plan(graph, spec, info, timing_cache=timings.read(), report=report)
    timings.write(built.timing_cache)
    return built.plan


def provide(
    cache: PlanCache, info: Info, shapes: Sequence[Any], destination: Path, make: Callable[[], bytes] | None
) -> None:
    """Write a plan to `destination`: the one in the cache, or what `make` builds, which is kept there.

    Args:
        cache: of earlier builds.
        info: what the plan must have been built for.
        shapes: its optimisation profiles.
        destination: the file to write.
        make: builds it; `None` where that is not wanted.

    Raises:
        ExportError: it is not in the cache, and may not be built.
    """
    if cache.fetch(info, shapes, destination):
        return
    reason = cache.why_missing(info)
    if make is None:
        raise ExportError(
            f"{info.file_name} would have to be built",
            given=reason,
            expected="a plan in the cache, because of --no-build",
            remedy="leave out --no-build",
        )
    logger.info("building %s: %s", info.file_name, reason)
    plan = make()
    destination.write_bytes(plan)
    try:
        cache.store(info, shapes, plan)
    except (OSError, EngineLockedError) as error:
        logger.warning("%s is not kept for later exports, nor known as built here: %s", info.file_name, error)

"""The plans of all graphs in an engine folder that is not installed yet."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from featinv_export.parity import Candidate
from featinv_export.progress import Steps
from featinv_export.tensorrt_.builder import build_plan, graph_profiles, shape_profiles
from featinv_export.tensorrt_.cache import PlanCache, TimingCache
from featinv_export.tensorrt_.options import PlanOptions
from featinv_export.trt_parser_support import require_supported
from featinv_fast.backends.onnxruntime_ import SUFFIX as ONNX_SUFFIX
from featinv_fast.backends.tensorrt_plan import plan_target, tensorrt_problems
from featinv_fast.backends.torch_ import WEIGHT_FILE
from featinv_fast.engine.files import hash_files
from featinv_fast.engine.plans import BatchProfile, PlanInfo
from featinv_fast.engine.trust import cache_folder
from featinv_fast.errors import BackendUnavailableError, EngineLockedError, ExportError

logger = logging.getLogger(__name__)

GPU = torch.device("cuda")


def require_tensorrt(engine: Path) -> None:
    """Refuse to build plans where that is impossible, before any other work.

    Args:
        engine: the folder that the plans are for, which may not exist yet.

    Raises:
        BackendUnavailableError: no TensorRT, or no GPU; with the way to do it in two steps.
    """
    problems = tensorrt_problems(GPU)
    if problems:
        raise BackendUnavailableError(
            "TensorRT plans cannot be built on this machine",
            given="--trt",
            reasons={"tensorrt": problems},
            remedy=f"{'' if engine.exists() else 'export with --onnx now, and '}run `featinv-export --from-onnx "
            f"{engine} --trt` {'' if engine.exists() else 'later '}on the machine with the GPU",
        )


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
        shapes = shape_profiles(spec, profiles)
        destination = folder / info.file_name
        if not cache.fetch(info, shapes, destination):
            reason = cache.why_missing(info)
            if not options.build:
                raise ExportError(
                    f"{info.file_name} would have to be built",
                    given=reason,
                    expected="a plan in the cache, because of --no-build",
                    remedy="leave out --no-build",
                )
            logger.info("building %s: %s", info.file_name, reason)
            graph = folder / (name + ONNX_SUFFIX)
            built = build_plan(graph, spec, info, timing_cache=timings.read(), report=steps.detail)
            destination.write_bytes(built.plan)
            try:
                timings.write(built.timing_cache)
                cache.store(info, shapes, built.plan)
            except (OSError, EngineLockedError) as error:
                logger.warning("%s is not kept for later exports, nor known as built here: %s", info.file_name, error)
        plans.append(info)
    return tuple(plans)

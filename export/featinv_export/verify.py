"""The parity run once more, for an engine that exists and every backend that can serve it here.

The checkpoint need not be at hand: the reference is what torch computes with the stored weights in fp32.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path

from featinv_export import parity
from featinv_export.aoti_packages import runnable_packages
from featinv_export.checks import GRAPHS, PACKAGES, PLANS, require_checkable
from featinv_export.exporter import CARD, SPARE_BYTES, Progress, Steps
from featinv_export.model_card import model_card
from featinv_export.stored import stored_cases
from featinv_export.tensorrt_.plans import GPU
from featinv_fast.backends import Request
from featinv_fast.backends.tensorrt_ import TensorrtBackend
from featinv_fast.backends.weights import require_fitting_weights
from featinv_fast.config import Precision
from featinv_fast.engine import Manifest, ParityInfo, ParityStatus, open_engine, staging
from featinv_kernels.torch_state import neutral_torch_state


@neutral_torch_state()
def verify(folder: Path, progress: Progress = lambda *_: None, *, unchecked: bool = False) -> Path:
    """Run every graph on every backend that can serve the engine here, and renew the manifest's parity.

    What the engine carries and cannot be run here is refused, unless `unchecked` says to leave it out: then it keeps
    the numbers that it has, as do, in fp32, those of torch, which would be compared with itself.

    Args:
        folder: the engine.
        progress: see `featinv_export.exporter.export`.
        unchecked: verify what can be run here, where that is not all.

    Returns:
        The engine folder.

    Raises:
        EngineError: the engine cannot be opened.
        EngineLockedError, ExportError: it cannot be replaced, or not all of it be checked here.
        ParityError: a graph computes something else. The numbers are in a file beside the engine, named like it with
            `.parity.json` at the end; the engine is as it was.
    """
    engine = open_engine(folder)
    require_fitting_weights(engine)
    manifest = engine.manifest
    onnx = any(name.endswith(".onnx") for name in manifest.files)
    aoti, package_problems = runnable_packages(engine)
    if aoti is not None:
        package_problems = parity.package_problems(aoti, manifest.precision)
    plan_problems = TensorrtBackend().not_supported_reasons(Request(engine=engine, device=GPU))
    problems = {
        GRAPHS: parity.graph_problems(manifest.precision) if onnx else [],
        PACKAGES: package_problems if manifest.aoti is not None else [],
        PLANS: plan_problems if manifest.plans else [],
    }
    require_checkable(problems, unchecked=unchecked)
    required = sum(info.size for info in manifest.files.values())
    with staging(engine.path, force=True, required_bytes=required + SPARE_BYTES) as stage:
        engine.require_unchanged()  # since the lock is ours
        steps = Steps(4 + (len(manifest.graph_specs()) if onnx else 0) + (aoti is not None), progress)
        steps.begin("running torch in fp32")
        candidate = parity.Candidate.of_engine(manifest, engine.path, onnx=onnx, aoti=aoti)
        cases = stored_cases(candidate)
        results = list(parity.compare(candidate, cases, steps.begin))
        steps.begin("checking the plans")
        if manifest.plans and not plan_problems:
            results += parity.compare_plans(candidate, manifest.plans, cases, GPU)
        report = stage.destination.with_name(f"{stage.destination.name}.parity.json")
        checked = parity.require_passed(results, report)

        steps.begin("installing the engine")
        renewed = dataclasses.replace(manifest, parity=renewed_parity(manifest, checked))
        for name in manifest.files:
            if name != CARD:
                shutil.copyfile(engine.path / name, stage.path / name)
        (stage.path / CARD).write_text(model_card(renewed, sorted({*manifest.files, CARD})), encoding="utf-8")
        installed = stage.finish(renewed)
    steps.begin("done")
    return installed


def renewed_parity(manifest: Manifest, checked: Iterable[ParityInfo]) -> tuple[ParityInfo, ...]:
    """The manifest's comparisons, with those replaced that were repeated and those added that are new."""
    results = {_key(info): info for info in manifest.parity}
    for info in checked:
        with_itself = info.backend == "torch" and manifest.precision is Precision.FP32
        ran = info.status is ParityStatus.PASSED
        if not with_itself and (ran or _key(info) not in results):
            results[_key(info)] = info
    return tuple(results.values())


def _key(info: ParityInfo) -> tuple[str, str, int]:
    return info.graph, info.backend, info.batch

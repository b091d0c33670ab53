"""The parity run once more, for an engine that exists and every backend that can serve it here.

The checkpoint need not be at hand: the reference is what torch computes with the stored weights in fp32.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path

from featinv_export import parity, targets
from featinv_export.checks import require_checkable
from featinv_export.exporter import CARD, SPARE_BYTES, install, step_count
from featinv_export.progress import Progress, Steps
from featinv_export.stored import stored_cases
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
    carried = targets.carried(engine)
    problems = {target.title: target.problems(manifest.precision) for target in carried}
    require_checkable(problems, unchecked=unchecked)
    required = sum(info.size for info in manifest.files.values())
    with staging(engine.path, force=True, required_bytes=required + SPARE_BYTES) as stage:
        engine.require_unchanged()  # since the lock is ours
        steps = Steps(3 + step_count(carried, manifest.precision, made=False), progress)
        steps.begin("running torch in fp32")
        candidate = parity.Candidate.of_engine(manifest, engine.path)
        results = targets.compare(candidate, stored_cases(candidate), carried, steps)
        report = stage.destination.with_name(f"{stage.destination.name}.parity.json")
        checked = parity.require_passed(results, report)

        steps.begin("installing the engine")
        renewed = dataclasses.replace(manifest, parity=renewed_parity(manifest, checked))
        for name in manifest.files:
            if name != CARD:
                shutil.copyfile(engine.path / name, stage.path / name)
        installed = install(stage, renewed)
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

"""Files made of an engine's ONNX graphs: the second half of an export, for plans on the machine with the GPU."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from featinv_export import parity, targets
from featinv_export.exporter import CARD, SPARE_BYTES, install, step_count
from featinv_export.external_data import require_own_weights
from featinv_export.progress import Progress, Steps
from featinv_export.stored import stored_cases, unknown_cases
from featinv_export.targets import Target
from featinv_export.targets.tensorrt_ import TensorrtTarget
from featinv_export.targets.tensorrt_rtx import TensorrtRtxTarget
from featinv_export.tensorrt_.options import PlanOptions, RtxOptions
from featinv_fast.backends.onnxruntime_ import SUFFIX as ONNX_SUFFIX
from featinv_fast.backends.torch_ import WEIGHT_FILE
from featinv_fast.backends.weights import require_fitting_weights
from featinv_fast.engine import open_engine, staging
from featinv_fast.errors import ArgumentError


def add_plans(folder: Path, options: PlanOptions | RtxOptions, progress: Progress = lambda *_: None) -> Path:
    """Build plans of an engine's ONNX graphs as `options` say; see `add_files`. Its largest batch becomes theirs."""
    kind = TensorrtRtxTarget if isinstance(options, RtxOptions) else TensorrtTarget
    return add_files(folder, kind.of(options), progress)


def add_files(folder: Path, target: Target, progress: Progress = lambda *_: None) -> Path:
    """Make files of an engine's ONNX graphs, check them against the stored weights in fp32, and install them.

    Files of the kind that the engine has are replaced.

    Args:
        folder: an engine folder with ONNX graphs.
        target: what to make; one that is made of ONNX graphs.
        progress: see `featinv_export.exporter.export`.

    Returns:
        The engine folder.

    Raises:
        BackendUnavailableError, MissingPackageError: what makes the files is not here.
        EngineError: the engine cannot be opened, or a graph has weights outside of it.
        ArgumentError: it has no ONNX graphs.
        ExportError, ParityError: a file cannot be made, or computes something else; the engine is as it was.
    """
    target.require(folder)
    engine = open_engine(folder)
    require_fitting_weights(engine)
    target, manifest = target.added_to(engine.manifest)
    steps = Steps(3 + step_count([target], manifest.precision), progress)
    steps.begin("opening the engine")
    specs = manifest.graph_specs()
    missing = [name for name in specs if name + ONNX_SUFFIX not in manifest.files]
    if missing:
        raise ArgumentError(
            f"the engine has no ONNX graphs to make {target.title} of",
            given=f"{folder} without {', '.join(missing)}",
            expected="an engine exported with --onnx",
            remedy="export the checkpoint again with --onnx",
        )
    for name in specs:
        require_own_weights(engine.file(name + ONNX_SUFFIX))
    kept = [name for name in manifest.files if name != CARD and not name.endswith(target.suffix)]
    required = sum(manifest.files[name].size for name in kept) + target.space(manifest.files[WEIGHT_FILE].size)
    with staging(engine.path, force=True, required_bytes=required + SPARE_BYTES) as stage:
        engine.require_unchanged()  # since the lock is ours
        for name in kept:
            shutil.copyfile(engine.path / name, stage.path / name)
        candidate = parity.Candidate.of_engine(manifest, stage.path)
        made = target.make(candidate, steps)
        steps.begin("running torch in fp32")
        cases = stored_cases(candidate) if made.runs_here() else unknown_cases(specs)
        results = made.compare(candidate, cases, steps)
        checked = parity.require_passed(results, stage.destination.with_name(f"{stage.destination.name}.parity.json"))

        steps.begin("installing the engine")
        others = tuple(info for info in manifest.parity if info.backend != target.backend)
        manifest = dataclasses.replace(manifest, parity=(*others, *checked), tools=manifest.tools | made.tools())
        installed = install(stage, targets.entered(manifest, [made]), [made])
    steps.begin("done")
    return installed

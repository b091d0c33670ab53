"""TensorRT plans for an engine that exists: the second half of an export, on the machine with the GPU."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from featinv_export import parity
from featinv_export.exporter import CARD, PLANS_PER_WEIGHTS, SPARE_BYTES, Progress, Steps
from featinv_export.external_data import require_own_weights
from featinv_export.model_card import model_card
from featinv_export.stored import stored_cases
from featinv_export.tensorrt_.options import PlanOptions
from featinv_export.tensorrt_.plans import GPU, require_tensorrt, write_plans
from featinv_fast.backends.onnxruntime_ import SUFFIX as ONNX_SUFFIX
from featinv_fast.backends.torch_ import WEIGHT_FILE
from featinv_fast.backends.weights import require_fitting_weights
from featinv_fast.engine import open_engine, staging
from featinv_fast.engine.files import entry_names
from featinv_fast.errors import ArgumentError

BACKEND = "tensorrt"


def add_plans(folder: Path, options: PlanOptions, progress: Progress = lambda *_: None) -> Path:
    """Build plans of an engine's ONNX graphs, check them against the stored weights in fp32, and install them.

    Plans that the engine has are replaced; its largest batch becomes that of the plans.

    Args:
        folder: an engine folder with ONNX graphs.
        options: how to build.
        progress: see `featinv_export.exporter.export`.

    Returns:
        The engine folder.

    Raises:
        BackendUnavailableError: there is no TensorRT or no GPU.
        EngineError: the engine cannot be opened, or a graph has weights outside of it.
        ArgumentError: it has no ONNX graphs.
        ExportError, ParityError: a plan cannot be built, or computes something else; the engine is as it was.
    """
    require_tensorrt(folder)
    steps = Steps(9, progress)
    steps.begin("opening the engine")
    engine = open_engine(folder)
    require_fitting_weights(engine)
    profiles = options.batch_profiles(engine.manifest.optimal_batch, engine.manifest.max_batch)
    manifest = dataclasses.replace(
        engine.manifest,
        max_batch=max(profile.maximum for profile in profiles),
        optimal_batch=profiles[0].optimum,
        plans=(),
    )
    specs = manifest.graph_specs()
    missing = [name for name in specs if name + ONNX_SUFFIX not in manifest.files]
    if missing:
        raise ArgumentError(
            "the engine has no ONNX graphs to build plans of",
            given=f"{folder} without {', '.join(missing)}",
            expected="an engine exported with --onnx",
            remedy="export the checkpoint again with --onnx --trt",
        )
    for name in specs:
        require_own_weights(engine.file(name + ONNX_SUFFIX))
    old_plans = {plan.file_name for plan in engine.manifest.plans}
    kept = [name for name in manifest.files if name not in {*old_plans, CARD}]
    required = sum(manifest.files[name].size for name in kept)
    required += PLANS_PER_WEIGHTS * manifest.files[WEIGHT_FILE].size
    with staging(engine.path, force=True, required_bytes=required + SPARE_BYTES) as stage:
        engine.require_unchanged()  # since the lock is ours
        for name in kept:
            shutil.copyfile(engine.path / name, stage.path / name)
        plans = write_plans(stage.path, specs, manifest.precision, options, profiles, steps.begin, steps.detail)
        steps.begin("checking the plans")
        candidate = parity.Candidate.of_engine(manifest, stage.path, onnx=True)
        results = parity.compare_plans(candidate, plans, stored_cases(candidate), GPU)
        checked = parity.require_passed(results, stage.destination.with_name(f"{stage.destination.name}.parity.json"))

        steps.begin("installing the engine")
        others = tuple(info for info in manifest.parity if info.backend != BACKEND)
        manifest = dataclasses.replace(
            manifest,
            plans=plans,
            parity=(*others, *checked),
            tools=manifest.tools | {BACKEND: plans[0].target.tensorrt},
        )
        names = sorted({*entry_names(stage.path), CARD})
        (stage.path / CARD).write_text(model_card(manifest, names), encoding="utf-8")
        installed = stage.finish(manifest)
    steps.begin("done")
    return installed

"""Another checkpoint of the same architecture in an existing engine: weights are replaced, graphs are not made again.

The graphs of an engine do not depend on a weight's value, and they read their weights from one file by place. A file
with the same tensors at the same places is all that another checkpoint needs.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from featinv_export import parity, source
from featinv_export.aoti_packages import runnable_packages
from featinv_export.checks import GRAPHS, PACKAGES, PLANS, require_checkable
from featinv_export.exporter import CARD, SPARE_BYTES, Progress, Steps
from featinv_export.external_data import require_own_weights
from featinv_export.model_card import model_card
from featinv_export.options import ExportOptions
from featinv_export.tensorrt_.builder import refitted_plan
from featinv_export.tensorrt_.plans import GPU
from featinv_export.weights import exceptions_in_fp32, weight_index, write_weights
from featinv_fast.backends.aoti_ import SUFFIX as AOTI_SUFFIX
from featinv_fast.backends.onnxruntime_ import SUFFIX as ONNX_SUFFIX
from featinv_fast.backends.tensorrt_ import stale_reasons
from featinv_fast.backends.tensorrt_plan import plan_target, tensorrt_problems
from featinv_fast.backends.torch_ import WEIGHT_FILE
from featinv_fast.backends.weights import require_fitting_weights
from featinv_fast.checkpoints import Checkpoint, check_finite
from featinv_fast.config import FeatureSpec, to_dict
from featinv_fast.engine import EngineFolder, Manifest, ParityInfo, ParityStatus, open_engine, staging
from featinv_fast.engine.files import entry_names, hash_files
from featinv_fast.engine.plans import PlanInfo, PlanWeights
from featinv_fast.engine.trust import distrust, note_built_here
from featinv_fast.errors import CheckpointMismatchError, ExportError
from featinv_fast.rewrites.engine_model import EngineModel, storage_dtypes
from featinv_kernels.torch_state import neutral_torch_state

logger = logging.getLogger(__name__)

# What a feature spec need not say because the engine's says it: the size of the graphs' inputs, and, unless it names
# another backbone, what belongs to that. Which weights the backbone had is the checkpoint's alone to say.
SIZE = ("height", "width")
COMPLETED = (*SIZE, "backbone", "layer", "input_size", "prefix_tokens")


@neutral_torch_state()
def refit(folder: Path, options: ExportOptions, progress: Progress = lambda *_: None) -> Path:
    """Put a checkpoint's weights into a copy of an engine, check it as an export is checked, and install it.

    Precision, batch sizes and graphs are the engine's; `options` name the checkpoint, its prompts and adaptations.
    AOTInductor packages hold no weights and stay. TensorRT plans are refitted where they were built for that and run
    here; those that hold weights of the old checkpoint are left out, with a warning that says why.

    Args:
        folder: the engine.
        options: what to put into it. Without `options.out` the engine itself is replaced.
        progress: see `featinv_export.exporter.export`.

    Returns:
        The engine folder.

    Raises:
        EngineError: the engine cannot be opened, or a graph has weights outside of it.
        CheckpointError: the checkpoint cannot be read, or has another architecture.
        ExportError: its weights cannot be stored as the graphs need them, or what the engine carries cannot be checked
            here (see `ExportOptions.unchecked`).
        ParityError: a graph does not compute what the model computes; the engine is as it was.
    """
    engine = open_engine(folder)
    require_fitting_weights(engine)
    manifest = engine.manifest
    graphs = [name + ONNX_SUFFIX for name in manifest.graph_specs() if name + ONNX_SUFFIX in manifest.files]
    packages = [name + AOTI_SUFFIX for name in manifest.graph_specs() if name + AOTI_SUFFIX in manifest.files]
    aoti, aoti_problems = runnable_packages(engine)
    if aoti is not None:
        aoti_problems = parity.package_problems(aoti, manifest.precision)
    stripped = [plan for plan in manifest.plans if plan.weights is PlanWeights.STRIPPED]
    kept = [plan for plan in stripped if not stale_reasons(plan, engine)]
    problems = {
        GRAPHS: parity.graph_problems(manifest.precision) if graphs else [],
        PACKAGES: aoti_problems if packages else [],
        PLANS: _plan_problems(engine, kept) if kept else [],
    }
    require_checkable(problems, unchecked=options.unchecked)
    steps = Steps(6 + len(graphs) + (aoti is not None), progress)
    steps.begin("reading the checkpoint")
    checkpoint = source.read_checkpoint(options)
    features = _features(checkpoint, manifest)
    destination, force = (engine.path, True) if options.out is None else (options.out, options.force)
    required = sum(info.size for info in manifest.files.values())
    with staging(destination, force=force, required_bytes=required + SPARE_BYTES) as stage:
        engine.require_unchanged()  # since the lock is ours
        steps.begin("checking the weights")
        check_finite(checkpoint.named_tensors())
        prompts = source.embed_prompts(checkpoint, options)
        plain = source.plain_model(checkpoint)

        steps.begin("writing the weights")
        _write_weights(EngineModel(plain, prompts.embeddings), engine, stage.path)
        for name in (*graphs, *packages):
            shutil.copyfile(engine.path / name, stage.path / name)

        steps.begin("running the plain model")
        specs = manifest.graph_specs()
        cases = parity.reference_cases(plain, prompts.embeddings, specs)
        del plain
        candidate = parity.Candidate.of_engine(manifest, stage.path, onnx=bool(graphs), aoti=aoti)
        results = list(parity.compare(candidate, cases, steps.begin))
        plans = _refit_plans(engine, stage.path)
        plan_problems = _plan_problems(engine, plans)
        if plans and not plan_problems:
            results += parity.compare_plans(candidate, plans, cases, GPU)
        checked = parity.require_passed(results, stage.destination.with_name(f"{stage.destination.name}.parity.json"))
        if plan_problems:
            checked += _unchecked("tensorrt", [plan.graph for plan in plans], plan_problems)
        if packages and aoti is None:
            checked += _unchecked("aoti", list(specs), aoti_problems)

        steps.begin("installing the engine")
        manifest = dataclasses.replace(
            manifest,
            name=options.name or options.stem,
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            features=features,
            sampling=checkpoint.sampling,
            prompts=prompts.info,
            adaptations=checkpoint.adaptations,
            parity=checked,
            plans=plans,
            source=source.source_info(checkpoint),
        )
        names = sorted({*entry_names(stage.path), CARD})
        (stage.path / CARD).write_text(model_card(manifest, names), encoding="utf-8")
        installed = stage.finish(manifest)
    steps.begin("done")
    return installed


def _features(checkpoint: Checkpoint, manifest: Manifest) -> FeatureSpec:
    """The checkpoint's feature spec, completed by the engine's.

    Raises:
        CheckpointMismatchError: another architecture, or feature maps of another size than the graphs take.
    """
    given, expected = to_dict(checkpoint.config), to_dict(manifest.model)
    differing = [name for name in expected if given[name] != expected[name]]
    stated, known = checkpoint.features, manifest.features
    names = COMPLETED if stated.backbone in (None, known.backbone) else SIZE
    missing = {name: getattr(known, name) for name in names if getattr(stated, name) is None}
    features = dataclasses.replace(stated, **missing)
    sizes = (features.height, features.width) == (manifest.features.height, manifest.features.width)
    if differing or not sizes:
        raise CheckpointMismatchError(
            f"the checkpoint {checkpoint.path.name} does not fit the graphs of the engine {manifest.name!r}",
            given={name: given[name] for name in differing} or f"features of {features.height}x{features.width} cells",
            expected={name: expected[name] for name in differing}
            or f"features of {manifest.features.height}x{manifest.features.width} cells",
            remedy="export the checkpoint to an engine of its own",
        )
    return features


def _write_weights(model: EngineModel, engine: EngineFolder, folder: Path) -> None:
    """Write the weight file of `folder` with each tensor in the type and at the place where the engine has it.

    Raises:
        ExportError: some values do not fit that type.
    """
    manifest, tensors = engine.manifest, model.state_dict()
    dtypes = storage_dtypes(model, manifest.storage or manifest.precision, manifest.kept_fp32)
    misfits = sorted({*exceptions_in_fp32(tensors, dtypes)} - {*manifest.kept_fp32})
    if misfits:
        raise ExportError(
            "weights of the checkpoint do not fit the types of the engine's graphs",
            given=f"{len(misfits)} tensors: {', '.join(misfits[:10])}",
            expected=f"values within {manifest.storage or manifest.precision}",
            remedy="export the checkpoint to an engine of its own; it keeps such tensors in fp32",
        )
    write_weights(tensors, dtypes, folder)
    if weight_index(folder) != weight_index(engine.path):
        raise ExportError(
            "the engine's weight file has another order than this version writes",
            given=f"an engine of featinv-fast {manifest.tools.get('featinv-fast', 'of unknown version')}",
            expected="an engine of this version",
            remedy="export the checkpoint to an engine of its own",
        )


def _refit_plans(engine: EngineFolder, folder: Path) -> tuple[PlanInfo, ...]:
    """Write to `folder` those plans that can take its weights; of the others, say why they are left out."""
    weights = hash_files(folder, [WEIGHT_FILE])[WEIGHT_FILE].sha256
    kept = []
    for plan in engine.manifest.plans:
        reasons = stale_reasons(plan, engine)
        if plan.weights is PlanWeights.FIXED:
            reasons.append("it was not built with --refittable or --stripped")
        elif plan.weights is PlanWeights.REFITTABLE:
            reasons += tensorrt_problems(GPU) or plan.problems_on(plan_target(GPU))
            reasons += distrust(engine, [plan.file_name])
        if reasons:
            logger.warning("%s is left out: %s", plan.file_name, "; ".join(reasons))
            continue
        destination = folder / plan.file_name
        if plan.weights is PlanWeights.STRIPPED:  # it has none of its own
            shutil.copyfile(engine.file(plan.file_name), destination)
        else:
            graph = folder / (plan.graph + ONNX_SUFFIX)
            require_own_weights(graph)
            destination.write_bytes(refitted_plan(engine.file(plan.file_name).read_bytes(), graph, plan))
            note_built_here([hash_files(folder, [plan.file_name])[plan.file_name].sha256])
        kept.append(dataclasses.replace(plan, weights_sha256=weights))
    return tuple(kept)


def _plan_problems(engine: EngineFolder, plans: Sequence[PlanInfo]) -> list[str]:
    """Why the plans of the refitted engine cannot be run here to check them, or must not be."""
    problems = tensorrt_problems(GPU)
    if not problems:
        target = plan_target(GPU)
        problems = [f"{plan.file_name}: {reason}" for plan in plans for reason in plan.problems_on(target)]
    return [*problems, *distrust(engine, [plan.file_name for plan in plans])]


def _unchecked(backend: str, graphs: Sequence[str], problems: list[str]) -> tuple[ParityInfo, ...]:
    """What the manifest says of graphs that a backend could not run here."""
    return tuple(
        ParityInfo(graph=graph, backend=backend, batch=batch, status=ParityStatus.NOT_RUN, reason="; ".join(problems))
        for graph in graphs
        for batch in parity.BATCHES
    )

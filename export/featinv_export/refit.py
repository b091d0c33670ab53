"""Another checkpoint of the same architecture in an existing engine: weights are replaced, graphs are not made again.

The graphs of an engine do not depend on a weight's value, and they read their weights from one file by place. A file
with the same tensors at the same places is all that another checkpoint needs.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from pathlib import Path

from featinv_export import parity, source, targets
from featinv_export.checks import require_checkable
from featinv_export.exporter import SPARE_BYTES, install, step_count
from featinv_export.options import ExportOptions
from featinv_export.progress import Progress, Steps
from featinv_export.weights import exceptions_in_fp32, weight_index, write_weights
from featinv_fast.backends.weights import require_fitting_weights
from featinv_fast.checkpoints import Checkpoint, check_finite
from featinv_fast.config import FeatureSpec, to_dict
from featinv_fast.engine import EngineFolder, Manifest, open_engine, staging
from featinv_fast.errors import CheckpointMismatchError, ExportError
from featinv_fast.rewrites.engine_model import EngineModel, storage_dtypes
from featinv_kernels.torch_state import neutral_torch_state

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
    carried = targets.carried(engine)
    problems = {target.title: target.refit_problems(manifest.precision) for target in carried}
    require_checkable(problems, unchecked=options.unchecked)
    steps = Steps(6 + step_count(carried, manifest.precision, made=False), progress)
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
        candidate = parity.Candidate.of_engine(manifest, stage.path)
        refitted = [target.refit(engine, candidate) for target in carried]

        steps.begin("running the plain model")
        specs = manifest.graph_specs()
        cases = parity.reference_cases(plain, prompts.embeddings, specs)
        del plain
        results = targets.compare(candidate, cases, refitted, steps)
        checked = parity.require_passed(results, stage.destination.with_name(f"{stage.destination.name}.parity.json"))

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
            source=source.source_info(checkpoint),
        )
        installed = install(stage, targets.entered(manifest, refitted))
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

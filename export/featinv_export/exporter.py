"""Checkpoint to engine folder."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import platform
from collections.abc import Iterable
from pathlib import Path

from featinv_export import parity, source, targets
from featinv_export.checks import require_checkable
from featinv_export.model_card import GRAPH_CONTENTS, model_card
from featinv_export.options import ExportOptions
from featinv_export.progress import Progress, Steps
from featinv_export.targets import Target
from featinv_export.weights import exceptions_in_fp32, write_weights
from featinv_fast.checkpoints import check_finite
from featinv_fast.checks import refuse_inputs
from featinv_fast.config import Precision
from featinv_fast.engine import Exactness, Manifest, OptionInfo, Stage, graph_specs, staging
from featinv_fast.engine.files import entry_names
from featinv_fast.errors import ArgumentError
from featinv_fast.rewrites.engine_model import EngineModel, storage_dtypes
from featinv_kernels.torch_state import neutral_torch_state

CARD = "README.md"
# What an engine needs on the disk beside its weights: graphs of a few megabytes and the manifest.
SPARE_BYTES = 32 * 2**20
# Each of them is a file of every target.
GRAPHS = len(GRAPH_CONTENTS)


@neutral_torch_state()
def export(options: ExportOptions, progress: Progress = lambda *_: None) -> Path:
    """Make an engine folder of a checkpoint, check it against the plain model, and install it.

    Args:
        options: what to make.
        progress: is called at the beginning of each step, and once more at the end.

    Returns:
        The engine folder.

    Raises:
        ArgumentError: options that are out of range or contradict the checkpoint.
        OutputExistsError: the destination is an input, or one lies in the other.
        CheckpointError: the checkpoint cannot be read, is damaged, or holds NaN or infinite weights.
        TextError: a prompt cannot be embedded.
        BackendUnavailableError: TensorRT plans are asked for, and there is no TensorRT or no GPU.
        MissingPackageError: what is asked for needs a package that is not installed.
        EngineExistsError, EngineLockedError, ExportError: the destination cannot be written, packages not compiled, or
            what is asked for not checked here.
        ParityError: a graph does not compute what the model computes. The numbers are in a file beside the
            destination, named like it with `.parity.json` at the end; nothing was installed.
    """
    refuse_inputs({"the engine": options.destination}, options.inputs, replaced=True)
    asked = targets.asked(options)
    for target in asked:
        target.require(options.destination)
    problems = {target.title: target.problems(options.precision) for target in asked}
    if options.unchecked and not asked:
        raise ArgumentError(
            "unchecked has no effect",
            given="an engine of weights alone",
            expected="something beside them",
            remedy="leave it out: what torch computes is always checked",
        )
    require_checkable(problems, unchecked=options.unchecked)
    steps = Steps(6 + step_count(asked, options.precision), progress)
    steps.begin("reading the checkpoint")
    checkpoint = source.read_checkpoint(options)
    structure = EngineModel.empty(checkpoint.config)
    specs = graph_specs(
        checkpoint.config,
        checkpoint.features,
        time_bias_size=structure.time_embedding.size,
        max_batch=options.max_batch,
        optimal_batch=options.optimal_batch,
    )
    storage = None if options.storage is options.precision else options.storage
    dtypes = storage_dtypes(structure, storage or options.precision)
    required = sum(tensor.numel() * dtypes[name].itemsize for name, tensor in structure.state_dict().items())
    required += sum(target.space(required) for target in asked)
    with staging(options.destination, force=options.force, required_bytes=required + SPARE_BYTES) as stage:
        steps.begin("checking the weights")
        check_finite(checkpoint.named_tensors())
        prompts = source.embed_prompts(checkpoint, options)
        plain = source.plain_model(checkpoint)

        steps.begin("writing the weights")
        tensors = EngineModel(plain, prompts.embeddings).state_dict()
        kept_fp32 = exceptions_in_fp32(tensors, dtypes)
        dtypes = storage_dtypes(structure, storage or options.precision, kept_fp32)
        write_weights(tensors, dtypes, stage.path)
        del tensors

        steps.begin("running the plain model")
        cases = parity.reference_cases(plain, prompts.embeddings, specs)
        del plain
        candidate = parity.Candidate(
            folder=stage.path,
            config=checkpoint.config,
            specs=specs,
            precision=options.precision,
            storage=storage,
            kept_fp32=kept_fp32,
        )
        made = [target.make(candidate, steps) for target in asked]
        results = targets.compare(candidate, cases, made, steps)
        report = stage.destination.with_name(f"{stage.destination.name}.parity.json")
        checked = parity.require_passed(results, report)

        steps.begin("installing the engine")
        manifest = Manifest(
            name=options.name or options.stem,
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            model=checkpoint.config,
            features=checkpoint.features,
            sampling=checkpoint.sampling,
            precision=options.precision,
            storage=storage,
            kept_fp32=kept_fp32,
            prompts=prompts.info,
            time_bias_size=structure.time_embedding.size,
            max_batch=options.max_batch,
            optimal_batch=options.optimal_batch,
            rewrites=_rewrites(structure, storage),
            adaptations=checkpoint.adaptations,
            parity=checked,
            source=source.source_info(checkpoint),
            tools=_tools() | targets.tools(made),
        )
        engine = install(stage, targets.entered(manifest, made), made)
    steps.begin("done")
    return engine


def step_count(chosen: Iterable[Target], precision: Precision, *, made: bool = True) -> int:
    """How many steps it takes to make the files of `chosen`, unless they are there, and to check them if possible."""
    counts = [(*target.steps(GRAPHS), target.problems(precision)) for target in chosen]
    return sum((making if made else 0) + (0 if problems else checking) for making, checking, problems in counts)


def install(stage: Stage, manifest: Manifest, made: Iterable[Target] = ()) -> Path:
    """Write the model card, and put the engine in its place, which is returned.

    Args:
        stage: with all other files.
        manifest: of the engine.
        made: the targets whose files were made here; those that were found in an engine are none of them.
    """
    names = sorted({*entry_names(stage.path), CARD})
    (stage.path / CARD).write_text(model_card(manifest, names), encoding="utf-8")
    engine = stage.finish(manifest)
    for target in made:
        target.installed(engine)
    return engine


def _rewrites(structure: EngineModel, storage: Precision | None) -> tuple[OptionInfo, ...]:
    exact = [OptionInfo(name=name, exactness=Exactness.EXACT, note=note) for name, note in structure.rewrites.items()]
    if storage is None:
        return tuple(exact)
    note = f"stored in {storage} and computed with in fp32; the parity shows what the rounding costs"
    return (*exact, OptionInfo(name="half-precision storage", exactness=Exactness.LOSSY, note=note))


def _tools() -> dict[str, str]:
    """Versions of what makes every engine."""
    packages = ("featinv-fast", "torch")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}

"""Checkpoint to engine folder."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib
import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from featinv_export import parity, source
from featinv_export.aoti_packages import require_compiler, write_packages
from featinv_export.checks import GRAPHS, PACKAGES, require_checkable
from featinv_export.model_card import model_card
from featinv_export.options import ExportOptions
from featinv_export.tensorrt_.plans import GPU, require_tensorrt, write_plans
from featinv_export.weights import exceptions_in_fp32, weight_index, write_weights
from featinv_fast.backends import resolve_device
from featinv_fast.backends.aoti_ import SUFFIX as AOTI_SUFFIX
from featinv_fast.backends.aoti_ import target_here
from featinv_fast.backends.onnxruntime_ import SUFFIX
from featinv_fast.backends.torch_ import OFF, WEIGHT_FILE, TorchSession
from featinv_fast.checkpoints import check_finite
from featinv_fast.checks import refuse_inputs
from featinv_fast.config import Precision
from featinv_fast.engine import Exactness, GraphSpec, Manifest, OptionInfo, graph_specs, staging
from featinv_fast.engine.files import entry_names
from featinv_fast.engine.manifest import MANIFEST_NAME
from featinv_fast.engine.plans import PlanInfo
from featinv_fast.engine.trust import note_built_here
from featinv_fast.errors import ArgumentError, MissingPackageError
from featinv_fast.rewrites.engine_model import EngineModel, storage_dtypes
from featinv_kernels.torch_state import neutral_torch_state

CARD = "README.md"
# What an engine needs on the disk beside its weights: graphs of a few megabytes and the manifest.
SPARE_BYTES = 32 * 2**20


# The plans of the two denoisers hold most of the weights each.
PLANS_PER_WEIGHTS = 2

# Is told what comes next, how many steps are done, and of how many.
Progress = Callable[[str, int, int], None]


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
        MissingPackageError: ONNX graphs or AOTInductor packages are asked for but what writes them is not installed.
        EngineExistsError, EngineLockedError, ExportError: the destination cannot be written, packages not compiled, or
            what is asked for not checked here.
        ParityError: a graph does not compute what the model computes. The numbers are in a file beside the
            destination, named like it with `.parity.json` at the end; nothing was installed.
    """
    refuse_inputs({"the engine": options.destination}, options.inputs, replaced=True)
    if options.trt is not None:
        require_tensorrt(options.destination)
    if options.onnx:
        _require_onnx()
    aoti = None if options.aoti is None else resolve_device(options.aoti)
    if aoti is not None:
        require_compiler(aoti)
    if options.unchecked and not options.onnx and aoti is None:
        raise ArgumentError(
            "unchecked has no effect",
            given="an engine of weights alone",
            expected="ONNX graphs or AOTInductor packages",
            remedy="leave it out: what torch computes is always checked",
        )
    problems = {
        GRAPHS: parity.graph_problems(options.precision) if options.onnx else [],
        PACKAGES: parity.package_problems(aoti, options.precision) if aoti is not None else [],
    }
    require_checkable(problems, unchecked=options.unchecked)
    steps = Steps(_step_count(options), progress)
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
    if options.trt is not None:
        required += required * PLANS_PER_WEIGHTS
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
            onnx=options.onnx,
            aoti=aoti,
        )
        if options.onnx:
            arithmetic = storage_dtypes(structure, options.precision, kept_fp32)
            write_graphs(structure, arithmetic, specs, stage.path, steps.begin)
        if aoti is not None:
            write_packages(_modules(candidate, aoti), specs, aoti, stage.path, steps.begin)
        results = parity.compare(candidate, cases, steps.begin)
        plans: tuple[PlanInfo, ...] = ()
        if options.trt is not None:
            profiles = options.trt.batch_profiles(options.optimal_batch, options.max_batch)
            plans = write_plans(stage.path, specs, options.precision, options.trt, profiles, steps.begin, steps.detail)
            steps.begin("checking the plans")
            results = (*results, *parity.compare_plans(candidate, plans, cases, GPU))
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
            tensorrt_parsers=tensorrt_parsers(stage.path, specs) if options.onnx else None,
            plans=plans,
            aoti=None if aoti is None else target_here(aoti),
            source=source.source_info(checkpoint),
            tools=_tools(options),
        )
        names = sorted({*entry_names(stage.path), CARD})
        (stage.path / CARD).write_text(model_card(manifest, names), encoding="utf-8")
        engine = stage.finish(manifest)
        if aoti is not None:
            _note_packages(engine)
    steps.begin("done")
    return engine


def _step_count(options: ExportOptions) -> int:
    # Reading, checking, writing weights, plain model, torch, installing.
    total = 6
    # Five graphs are written and checked, five packages or plans made and checked at once.
    total += 2 * 5 if options.onnx else 0
    return total + sum(5 + 1 for asked in (options.aoti, options.trt) if asked)


class Steps:
    """Counts the steps of an export for whoever watches it.

    Args:
        total: how many there are.
        progress: is told of each.
    """

    def __init__(self, total: int, progress: Progress) -> None:
        self.total = total
        self.done = -1
        self.what = ""
        self.progress = progress

    def begin(self, what: str) -> None:
        """The step before is done, `what` comes next."""
        self.done += 1
        self.what = what
        self.progress(what, self.done, self.total)

    def detail(self, text: str) -> None:
        """How far the current step is."""
        self.progress(f"{self.what}: {text}", self.done, self.total)


def _require_onnx() -> None:
    """Import what writes ONNX graphs, before any other work.

    Raises:
        MissingPackageError: a package is not installed.
    """
    for name in ("onnx", "onnxscript"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingPackageError(
                f"writing ONNX graphs needs the package {name}",
                given=error,
                remedy="pip install 'featinv-fast[export]', or export without --onnx",
            ) from error


def tensorrt_parsers(folder: Path, specs: Mapping[str, GraphSpec]) -> str:
    """Which releases of TensorRT read the graphs; an engine without plans may be given some later."""
    from featinv_export.trt_parser_support import reading_releases

    return reading_releases([folder / (name + SUFFIX) for name in specs])


def write_graphs(
    structure: EngineModel,
    dtypes: Mapping[str, torch.dtype],
    specs: Mapping[str, GraphSpec],
    folder: Path,
    report: Callable[[str], object],
) -> None:
    """Write each graph as ONNX beside the weight file in `folder`.

    Args:
        structure: on the meta device: no weight is read.
        dtypes: of the arithmetic, by tensor.
        specs: what to write.
        folder: of the engine.
        report: is told what comes next.
    """
    import onnx_ir

    from featinv_export.onnx_graphs import export_graph

    for name, parameter in structure.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    index = weight_index(folder)
    graphs = structure.graphs()
    for name, spec in specs.items():
        report(f"writing {name}{SUFFIX}")
        onnx_ir.save(export_graph(graphs[name], spec, index), folder / (name + SUFFIX))


def _modules(candidate: parity.Candidate, device: torch.device) -> dict[str, torch.nn.Module]:
    """The graphs as torch modules whose weights are those of the engine's file, one for one."""
    session = TorchSession(
        candidate.config,
        candidate.folder / WEIGHT_FILE,
        device=device,
        precision=candidate.precision,
        kept_fp32=candidate.kept_fp32,
        kernels=OFF,
    )
    return session.graphs


def _note_packages(engine: Path) -> None:
    """The packages are native code, which its maker may run without being asked for trust."""
    files = Manifest.from_json((engine / MANIFEST_NAME).read_bytes()).files
    # A cache that cannot be written costs the flag `--trust-engine` later and not the export.
    with contextlib.suppress(OSError):
        note_built_here(info.sha256 for name, info in files.items() if name.endswith(AOTI_SUFFIX))


def _rewrites(structure: EngineModel, storage: Precision | None) -> tuple[OptionInfo, ...]:
    exact = [OptionInfo(name=name, exactness=Exactness.EXACT, note=note) for name, note in structure.rewrites.items()]
    if storage is None:
        return tuple(exact)
    note = f"stored in {storage} and computed with in fp32; the parity shows what the rounding costs"
    return (*exact, OptionInfo(name="half-precision storage", exactness=Exactness.LOSSY, note=note))


def _tools(options: ExportOptions) -> dict[str, str]:
    """Versions of what made the engine."""
    packages = ["featinv-fast", "torch", *(["onnx", "onnxscript"] if options.onnx else [])]
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), **versions}

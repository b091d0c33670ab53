"""The stages of a build: train, export, measure, install."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from featinv_export.demo_build.card import card
from featinv_export.demo_build.measure import measure
from featinv_export.demo_build.options import CARD, PICTURES, PLOT, BuildOptions, Stage
from featinv_export.exporter import export
from featinv_export.options import ExportOptions
from featinv_fast.checkpoints.writer import write_safetensors
from featinv_fast.config import Precision
from featinv_fast.demo import builtin
from featinv_fast.errors import ArgumentError, ExportError
from featinv_fast.train import run

logger = logging.getLogger(__name__)

# A clone should stay quick: all that the demo ships, its code included, stays below 32 MB.
LARGEST_BYTES = 31_000_000


def build(options: BuildOptions) -> Path:
    """Make the built-in engine.

    Args:
        options: what to build, and where.

    Returns:
        The installed folder.

    Raises:
        FeatInvError: see `featinv_fast.train.run`, `featinv_export.exporter.export` and `featinv_fast.evaluate`.
    """
    stages: dict[Stage, Callable[[BuildOptions], None]] = {
        Stage.TRAIN: train,
        Stage.EXPORT: export_engines,
        Stage.MEASURE: measure,
        Stage.INSTALL: install,
    }
    for stage in list(stages)[list(stages).index(options.from_stage) :]:
        logger.info("stage %s", stage)
        stages[stage](options)
    return options.out


def train(options: BuildOptions) -> None:
    """Run every recipe whose result is not there yet."""
    for name in options.recipes:
        if not options.checkpoint(name).exists():
            run(options.recipe(name), root=options.root, progress=options.progress)
        if name == "backbone":
            # As it is shipped: what is trained on its features names the weights that made them.
            _halve(options.checkpoint(name), options.checkpoint(name))


def export_engines(options: BuildOptions) -> None:
    """Export all models, backbone and judge, with weights in fp16: computed with in fp32 they take half the space.

    The two that are installed carry their ONNX graphs, unless that was ruled out.
    """
    engines = {
        "teacher": ("refined", "demo teacher"),
        options.student: (options.student, f"demo {options.student} student"),
        "pooled": ("pooled_refined", "demo pooled teacher"),
        "stage1": ("stage1_refined", "demo stage-1 teacher"),
    }
    for folder, (recipe, name) in engines.items():
        export(
            ExportOptions(
                checkpoint=options.checkpoint(recipe),
                out=options.engines / folder,
                name=name,
                onnx=options.onnx and folder in ("teacher", options.student),
                storage=Precision.FP16,
                optimal_batch=16,
                force=True,
            )
        )
    _halve(options.checkpoint("backbone"), options.engines / builtin.BACKBONE)
    _halve(options.checkpoint("judge"), options.engines / builtin.JUDGE)


def install(options: BuildOptions) -> None:
    """Put the two engines, the backbone, the judge, the figures and the model card into place.

    Raises:
        ArgumentError: another student was measured.
        ExportError: the files are larger than the package should be.
    """
    results = json.loads((options.measured / builtin.RESULTS).read_text(encoding="utf-8"))
    if results["student"] != options.student:
        raise ArgumentError(
            "another student was exported and measured",
            given=options.student,
            expected=results["student"],
            remedy="begin with --from-stage export",
        )
    sources = {
        "teacher": options.engines / "teacher",
        "student": options.engines / options.student,
        **{name: options.engines / name for name in (builtin.BACKBONE, builtin.JUDGE)},
        **{name: options.measured / name for name in (builtin.RESULTS, PLOT, PICTURES)},
    }
    size = sum(path.stat().st_size for source in sources.values() for path in [source, *source.rglob("*")])
    if size > LARGEST_BYTES:
        raise ExportError(
            "the built-in engine is too large",
            given=f"{size:,} bytes",
            expected=f"at most {LARGEST_BYTES:,}",
            remedy="build smaller models: --set channels=...",
        )
    options.out.mkdir(parents=True, exist_ok=True)
    for name, source in sources.items():
        target = options.out / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
    (options.out / CARD).write_text(card(results), encoding="utf-8")


def _halve(source: Path, target: Path) -> None:
    """Copy a weight file with its floating-point tensors in fp16; one that is so already stays where it is."""
    from safetensors import safe_open

    with safe_open(source, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it is no mapping
        metadata = file.metadata() or {}
    stays = all(tensor.dtype is torch.float16 for tensor in tensors.values() if tensor.is_floating_point())
    if source == target and stays:
        return
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    write_safetensors(target, halves, metadata)

"""What the subcommands have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featinv_fast.checks import choice
from featinv_fast.checks.options import check_device, check_running, without_effect
from featinv_fast.cli.program import say
from featinv_fast.config import ImageReading, Precision
from featinv_fast.errors import ExitCode

if TYPE_CHECKING:
    from featinv_fast.engine import EngineFolder
    from featinv_fast.runtime import Runtime

BACKEND_OPTIONS = (
    "device",
    "precision",
    "threads",
    "kernels",
    "cuda_graphs",
    "compiled",
    "two_streams",
    "specialization",
)
DONE, FAILED, PARTIAL = ExitCode.DONE, ExitCode.FAILED, ExitCode.PARTIAL


def add_engine_option(parser: argparse.ArgumentParser) -> None:
    """The engine to run."""
    parser.add_argument("--engine", type=Path, help="folder made by featinv-export (default: the built-in engine)")


def add_running_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Options on how an engine is run."""
    group = parser.add_argument_group("running")
    group.add_argument("--backend", default="auto", help="auto, or a name that `featinv doctor` lists")
    add_backend_options(group)
    group.add_argument(
        "--trust-engine",
        action="store_true",
        help="run native code of the engine that was not built here: TensorRT plans, AOTInductor packages",
    )
    group.add_argument(
        "--force",
        action="store_true",
        help="remove what an earlier run wrote to the folder, and begin anew instead of going on",
    )
    group.add_argument("--quiet", action="store_true", help="no progress bars")
    return group


def add_backend_options(group: argparse._ArgumentGroup) -> None:
    """Options on how a backend runs: where, how precisely, and by what the torch backend computes."""
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--precision", default="auto", help="auto, fp32, fp16 or bf16")
    group.add_argument("--threads", type=int, help="CPU threads of one operation")
    group.add_argument(
        "--kernels",
        type=_kernels,
        default="auto",
        metavar="NAME | OP=NAME,...",
        help="of the torch backend: auto (fused operations on an NVIDIA GPU), off (plain layers), or providers that "
        "`featinv doctor` lists, e.g. triton, or attention=xformers,geglu=triton",
    )
    group.add_argument(
        "--cuda-graphs",
        default="auto",
        metavar="MODE",
        help="of the torch backend: auto, off, step (a CUDA graph for a step) or loop (one for all steps)",
    )
    group.add_argument(
        "--compiled", action="store_true", help="let torch.compile compile the torch backend's steps and decoder"
    )
    group.add_argument(
        "--two-streams",
        action="store_true",
        help="let the torch backend run the ControlNet beside the U-Net's encoder, on an NVIDIA GPU",
    )
    group.add_argument(
        "--specialization",
        default="auto",
        metavar="WHEN",
        help="of tensorrt-rtx, when kernels are compiled for the shapes at hand: auto, eager, lazy or none",
    )


def backend_options(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_backend_options` was given, as arguments of `Runtime`."""
    return {name: getattr(options, name) for name in BACKEND_OPTIONS}


def _kernels(text: str) -> str | dict[str, str]:
    """A name, or one for each operation."""
    if "=" not in text:
        return text
    named = {operation: provider for operation, _, provider in (part.partition("=") for part in text.split(","))}
    if "" in named.values() or len(named) <= text.count(","):  # an operation without a provider, or named twice
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form attention=xformers,geglu=triton")
    return named


def add_backbone_options(parser: argparse.ArgumentParser) -> None:
    """Options on the network whose features are inverted, and on the images that it sees."""
    add_network_options(parser, "where the engine does not say")
    add_reading_options(parser)


def add_reading_options(parser: argparse._ActionsContainer) -> None:
    """The choices in reading images, see `image_reading`."""
    parser.add_argument(
        "--background", type=_colour, metavar="R,G,B", help="what transparent pixels show; default 255,255,255"
    )
    parser.add_argument(
        "--exif-rotation", action="store_true", default=None, help="turn photographs as their EXIF tag says"
    )


def add_network_options(parser: argparse._ActionsContainer, when: str, *, required: bool = False) -> None:
    """The words by which a vision model is named, the same in every command; `when` says when they are wanted."""
    parser.add_argument(
        "--backbone",
        required=required,
        metavar="NAME",
        help=f"{when}: a timm model such as convnext_base, hf-hub:ID, local-dir:PATH, torchvision:NAME, hf:ID or "
        "hf:FOLDER of transformers, or module:function of your own, which runs",
    )
    parser.add_argument(
        "--layer",
        metavar="L",
        help="'final', the number of a stage, or a module such as layer3.1.conv2; several: 1,final",
    )
    parser.add_argument("--image-size", type=int, metavar="S", help="edge in pixels of what the backbone sees")
    parser.add_argument("--backbone-weights", metavar="FILE", help="local weights of the backbone, or random:SEED")


def image_reading(options: argparse.Namespace) -> ImageReading:
    """The choices of `add_backbone_options` in reading images."""
    given = {name: getattr(options, name) for name in ("background", "exif_rotation")}
    return ImageReading(**{name: value for name, value in given.items() if value is not None})


def _colour(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) < 256 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers from 0 to 255, such as 255,255,255")
    return int(parts[0]), int(parts[1]), int(parts[2])


def check_backend_options(options: argparse.Namespace, *backends: str) -> None:
    """Refuse what is known to be wrong by names alone, before torch is loaded.

    Args:
        options: of `add_backend_options`.
        backends: those that were named, if any.

    Raises:
        ArgumentError: an unknown name, a value out of its range, or an option that would have no effect.
    """
    check_device(options.device)
    choice("precision", options.precision, ("auto", *Precision))
    others = {name: value for name, value in backend_options(options).items() if name not in ("device", "precision")}
    for backend in backends or ("auto",):
        check_running(backend=backend, **others)


def refuse_without_effect(options: argparse.Namespace, names: Sequence[str], because: str, *, expected: str) -> None:
    """Refuse those of `names` that were given.

    Raises:
        ArgumentError: there are some.
    """
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if given:
        raise without_effect(given, because, expected=expected)


def named_engine(path: Path | None) -> EngineFolder:
    """The engine in a folder, every byte checked, or the built-in one. Needs no torch.

    Raises:
        EngineError: it cannot be opened.
    """
    if path is None:
        from featinv_fast.demo.builtin import load_engine

        return load_engine()
    from featinv_fast.engine import open_engine

    return open_engine(path)


def tell_builtin(options: argparse.Namespace, engine: EngineFolder) -> None:
    """Say on stderr that no engine was named: the built-in one takes features of one backbone alone."""
    if options.engine is None:
        spec = engine.manifest.features
        say(
            "featinv",
            f"no --engine is named: the built-in one, {engine.manifest.name!r}, which takes features "
            f"[{spec.channels}, {spec.height}, {spec.width}] of the backbone {spec.backbone}, layer {spec.layer}",
        )


def open_runtime(options: argparse.Namespace, engine: EngineFolder) -> Runtime:
    """The runtime of `engine` that `add_running_options` describes."""
    from featinv_fast.runtime import Runtime

    return Runtime(engine, backend=options.backend, trust_engine=options.trust_engine, **backend_options(options))

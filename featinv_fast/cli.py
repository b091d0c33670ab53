"""The command line: `featinv invert | convert | doctor`. Data on stdout, progress and messages on stderr."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from featinv_fast.errors import ArgumentError, FeatInvError

DONE, FAILED, USAGE, PARTIAL, INTERRUPTED = 0, 1, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0 done, 1 failed, 2 wrong usage, 3 partial, 130 interrupted."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(name)s: %(message)s")
    try:
        return int(options.run(options))
    except (FeatInvError, OSError) as error:  # OSError: a full disk, a folder without permission, ...
        print(f"featinv: {error}", file=sys.stderr)
        return USAGE if isinstance(error, ArgumentError) else FAILED
    except KeyboardInterrupt as interruption:
        print(f"featinv: {interruption or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED


def _invert(options: argparse.Namespace) -> int:
    from featinv_fast.commands.invert import InvertOptions, invert
    from featinv_fast.runtime import Runtime

    invert_options = InvertOptions(
        out=options.out,
        images=options.images,
        features=options.features,
        layout=options.layout,
        backbone=options.backbone,
        layer=options.layer,
        backbone_weights=options.backbone_weights,
        sampling={name: getattr(options, name) for name in _SAMPLING if getattr(options, name) is not None},
        progress=not options.quiet,
        force=options.force,
    )
    runtime = Runtime(
        options.engine,
        backend=options.backend,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
    )
    record = invert(runtime, invert_options)
    failed = [item for item in record["items"] if item["error"]]
    for item in failed:
        print(f"featinv: {item['name']}: {item['error']}", file=sys.stderr)
    print(json.dumps(record, indent=2) if options.json else options.out)
    if failed:
        return FAILED if len(failed) == len(record["items"]) else PARTIAL
    return DONE


def _convert(options: argparse.Namespace) -> int:
    from featinv_fast.checkpoints import convert

    print(convert(options.source, options.destination, options.to, force=options.force))
    return DONE


def _doctor(options: argparse.Namespace) -> int:
    from featinv_fast.commands.doctor import can_serve, describe, doctor

    report = doctor(options.engine)
    print(json.dumps(report, indent=2) if options.json else describe(report))
    return DONE if can_serve(report) else FAILED


_SAMPLING = ("steps", "sampler", "guidance_scale", "strength", "guess_mode", "eta", "seed", "samples", "batch_size")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="featinv", description="Feature maps of vision models back to images (FeatInv, arXiv 2505.21032)."
    )
    parser.add_argument("--version", action="version", version=importlib.metadata.version("featinv-fast"))
    parser.add_argument("--verbose", action="store_true", help="say on stderr what is chosen and why")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_invert(commands.add_parser("invert", help="turn images or feature maps into reconstructions"))
    _add_convert(commands.add_parser("convert", help="convert a checkpoint to another layout"))
    _add_doctor(commands.add_parser("doctor", help="show what is installed and which backends can run an engine"))
    return parser


def _add_invert(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_invert)
    parser.add_argument("--engine", required=True, type=Path, help="engine folder made by featinv-export")
    parser.add_argument("--out", required=True, type=Path, help="folder for the images and inversion.json")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, help="folder of images whose features are computed here")
    source.add_argument("--features", type=Path, help="feature maps: .npy, .npz or .safetensors")
    parser.add_argument("--layout", choices=["nchw", "nhwc", "tokens", "pooled"], help="layout of --features")
    parser.add_argument("--backbone", help="timm name, where the engine does not say, e.g. convnext_base")
    parser.add_argument("--layer", help="'final' or the number of a stage")
    parser.add_argument("--backbone-weights", metavar="FILE", help="local weights of the backbone, or random:SEED")
    sampling = parser.add_argument_group("sampling (defaults: the engine's)")
    sampling.add_argument("--steps", type=int)
    sampling.add_argument("--sampler", help="ddim, lcm or dpm++2m")
    sampling.add_argument("--guidance-scale", type=float)
    sampling.add_argument("--strength", type=float, help="scale of the ControlNet's residuals")
    sampling.add_argument("--guess-mode", action="store_true", default=None)
    sampling.add_argument("--eta", type=float, help="DDIM's noise, 0 to 1")
    sampling.add_argument("--seed", type=int, help="row k uses SEED + k; default 0")
    sampling.add_argument("--samples", type=int, help="images for each feature map")
    sampling.add_argument("--batch-size", type=int)
    running = parser.add_argument_group("running")
    running.add_argument("--backend", default="auto", help="auto, torch or onnxruntime")
    running.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    running.add_argument("--precision", default="auto", help="auto, fp32, fp16 or bf16")
    running.add_argument("--threads", type=int, help="CPU threads of one operation")
    running.add_argument("--force", action="store_true", help="write into a folder that holds an earlier run")
    running.add_argument("--quiet", action="store_true", help="no progress bars")
    running.add_argument("--json", action="store_true", help="print the whole record instead of the folder")


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_convert)
    parser.add_argument("source", type=Path, help="checkpoint file, or a folder in the diffusers layout")
    parser.add_argument("destination", type=Path, help=".safetensors file, or a folder for the diffusers layout")
    parser.add_argument("--to", default="featinv", choices=["featinv", "ldm", "diffusers"], help="default: featinv")
    parser.add_argument("--force", action="store_true", help="replace a checkpoint that is already there")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_doctor)
    parser.add_argument("--engine", type=Path, help="engine folder to check and to judge the backends by")
    parser.add_argument("--json", action="store_true", help="machine-readable")


if __name__ == "__main__":
    sys.exit(main())

"""`featinv invert`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from featinv_fast.cli.shared import (
    DONE,
    FAILED,
    PARTIAL,
    add_backbone_options,
    add_engine_option,
    add_running_options,
    open_runtime,
)

SAMPLING = (
    "steps",
    "sampler",
    "guidance_scale",
    "strength",
    "guess_mode",
    "unconditional_strength",
    "eta",
    "seed",
    "samples",
    "batch_size",
)


def add_parser(commands: Any) -> None:
    """Add the subcommand to `commands`, what `ArgumentParser.add_subparsers` returns."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "invert", help="turn images or feature maps into reconstructions"
    )
    parser.set_defaults(run=run)
    add_engine_option(parser)
    parser.add_argument("--out", required=True, type=Path, help="folder for the images and inversion.json")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, help="folder of images whose features are computed here")
    source.add_argument("--features", type=Path, help="feature maps: .npy, .npz or .safetensors")
    parser.add_argument("--layout", choices=["nchw", "nhwc", "tokens", "pooled"], help="layout of --features")
    add_backbone_options(parser)
    sampling = parser.add_argument_group("sampling (defaults: the engine's)")
    sampling.add_argument("--steps", type=int)
    sampling.add_argument("--sampler", help="ddim, lcm or dpm++2m")
    sampling.add_argument("--guidance-scale", type=float)
    sampling.add_argument("--strength", type=float, help="scale of the ControlNet's residuals")
    sampling.add_argument("--guess-mode", action="store_true", default=None)
    sampling.add_argument(
        "--unconditional-strength", type=float, help="share of the strength in guidance's unconditional branch"
    )
    sampling.add_argument("--eta", type=float, help="DDIM's noise, 0 to 1")
    sampling.add_argument("--seed", type=int, help="row k uses SEED + k; default 0")
    sampling.add_argument("--samples", type=int, help="images for each feature map")
    sampling.add_argument("--batch-size", type=int)
    running = add_running_options(parser)
    running.add_argument("--json", action="store_true", help="print the whole record instead of the folder")


def run(options: argparse.Namespace) -> int:
    """Invert, report the items that failed, print the folder or the record."""
    from featinv_fast.commands.invert import InvertOptions, invert

    invert_options = InvertOptions(
        out=options.out,
        images=options.images,
        features=options.features,
        layout=options.layout,
        backbone=options.backbone,
        layer=options.layer,
        backbone_weights=options.backbone_weights,
        sampling={name: getattr(options, name) for name in SAMPLING if getattr(options, name) is not None},
        progress=not options.quiet,
        force=options.force,
    )
    record = invert(open_runtime(options), invert_options)
    failed = [item for item in record["items"] if item["error"]]
    for item in failed:
        print(f"featinv: {item['name']}: {item['error']}", file=sys.stderr)
    print(json.dumps(record, indent=2) if options.json else options.out)
    if failed:
        return FAILED if len(failed) == len(record["items"]) else PARTIAL
    return DONE

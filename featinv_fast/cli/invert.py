"""`featinv invert`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featinv_fast.checks import count, require_feature_file, require_input, require_writable
from featinv_fast.cli.program import say
from featinv_fast.cli.shared import (
    DONE,
    FAILED,
    PARTIAL,
    add_backbone_options,
    add_engine_option,
    add_running_options,
    check_backend_options,
    image_reading,
    named_engine,
    open_runtime,
    refuse_without_effect,
    tell_builtin,
)

if TYPE_CHECKING:
    from featinv_fast.engine import EngineFolder

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
OF_SAMPLER = SAMPLING[: SAMPLING.index("seed")]


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
    _check(options)
    from featinv_fast.commands.invert_options import InvertOptions

    invert_options = InvertOptions(
        out=options.out,
        images=options.images,
        features=options.features,
        layout=options.layout,
        backbone=options.backbone,
        layer=options.layer,
        image_size=options.image_size,
        backbone_weights=options.backbone_weights,
        reading=image_reading(options),
        sampling={name: getattr(options, name) for name in SAMPLING if getattr(options, name) is not None},
        progress=not options.quiet,
        force=options.force,
    )
    engine = _engine(options)
    from featinv_fast.commands.invert import invert

    tell_builtin(options, engine)
    record = invert(open_runtime(options, engine), invert_options)
    failed = [item for item in record["items"] if item["error"]]
    for item in failed:
        say("featinv", f"{item['name']}: {item['error']}")
    print(json.dumps(record, indent=2) if options.json else options.out)
    if failed:
        return FAILED if len(failed) == len(record["items"]) else PARTIAL
    return DONE


def _check(options: argparse.Namespace) -> None:
    """Refuse what is known to be wrong before an engine is opened.

    Raises:
        FeatInvError: something is.
    """
    check_backend_options(options, options.backend)
    if options.images is not None:
        require_input(options.images, "file or folder", expected="a folder of images, or an image")
        refuse_without_effect(
            options, ["layout"], "images have none, the backbone says it", expected="--layout with --features"
        )
    else:
        require_feature_file(options.features)
        names = ["backbone", "layer", "image_size", "backbone_weights", "background", "exif_rotation"]
        refuse_without_effect(
            options,
            names,
            "features that were computed elsewhere need no backbone and no images",
            expected="them with --images",
        )
    require_writable(options.out)
    for name in ("samples", "batch_size"):
        if getattr(options, name) is not None:
            count(name, getattr(options, name))


def _engine(options: argparse.Namespace) -> EngineFolder:
    """The engine, which can sample as it is asked to. Needs no torch.

    Raises:
        FeatInvError: it cannot, or cannot be opened.
    """
    engine = named_engine(options.engine)
    from featinv_fast.samplers import resolve

    given = {name: getattr(options, name) for name in OF_SAMPLER if getattr(options, name) is not None}
    resolve(engine.manifest.sampling, engine.manifest.model, **given)
    return engine

"""`featinv features`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from featinv_fast.checks import count, refuse_existing, refuse_inputs, require_input, require_writable
from featinv_fast.checks.options import check_device
from featinv_fast.cli.shared import DONE, add_network_options, add_reading_options, image_reading, refuse_without_effect
from featinv_fast.errors import ArgumentError

WRITTEN = ".safetensors"


def add_parser(commands: Any) -> None:
    """Add the subcommand to `commands`, what `ArgumentParser.add_subparsers` returns."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "features", help="show what maps a vision model gives, or write those of images to a file"
    )
    parser.set_defaults(run=run)
    add_network_options(parser, "the vision model", required=True)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--layers", action="store_true", default=None, help="list every layer of the model, with its shape"
    )
    parser.add_argument("--json", action="store_true", default=None, help="machine-readable")
    group = parser.add_argument_group("writing maps")
    group.add_argument("--images", type=Path, metavar="DIR", help="images to look at: a folder, or one")
    group.add_argument("--out", type=Path, metavar="FILE", help="file of their maps, .safetensors")
    group.add_argument("--batch-size", type=int, metavar="N", help="images at once (default: 8)")
    add_reading_options(group)
    group.add_argument("--force", action="store_true", default=None, help="replace a file that is already there")
    group.add_argument("--quiet", action="store_true", default=None, help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Print the spec of the maps, or write them and print the file."""
    _check(options)
    from featinv_fast.backends import resolve_device
    from featinv_fast.commands.features import as_data, as_text, write_maps
    from featinv_fast.features import open_backbone

    backbone = open_backbone(
        options.backbone,
        layer=options.layer,
        image_size=options.image_size,
        weights=options.backbone_weights,
        device=resolve_device(options.device),
    )
    if options.out is not None:
        print(
            write_maps(
                backbone,
                options.images,
                options.out,
                batch_size=options.batch_size or 8,
                reading=image_reading(options),
                force=bool(options.force),
                progress=not options.quiet,
            )
        )
        return DONE
    data = as_data(backbone, layers=bool(options.layers))
    print(json.dumps(data, indent=2) if options.json else as_text(data))
    return DONE


def _check(options: argparse.Namespace) -> None:
    check_device(options.device)
    if options.image_size is not None:
        count("--image-size", options.image_size)
    if (options.images is None) != (options.out is None):
        raise ArgumentError(
            "images and a file of their maps belong together",
            given="--images without --out" if options.out is None else "--out without --images",
            expected="both, or neither to see what the maps are",
            remedy="pass both",
        )
    if options.out is None:
        names = ["batch_size", "background", "exif_rotation", "force", "quiet"]
        refuse_without_effect(options, names, "no maps are written", expected="--images and --out as well")
        return
    refuse_without_effect(options, ["layers", "json"], "maps are written", expected="them without --images and --out")
    if options.batch_size is not None:
        count("--batch-size", options.batch_size)
    if options.out.suffix.lower() != WRITTEN:
        raise ArgumentError(
            "maps are not written to this kind of file",
            given=options.out,
            expected=f"a name that ends in {WRITTEN}",
            remedy=f"name it {options.out.with_suffix(WRITTEN).name}",
        )
    require_input(options.images, "file or folder", expected="a folder of images, or an image")
    refuse_inputs({"the file of maps": options.out}, {"the images": options.images})
    refuse_existing(options.out, force=bool(options.force))
    require_writable(options.out)

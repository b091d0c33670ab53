"""`featinv convert`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from featinv_fast.checks import refuse_inputs, require_checkpoint, require_layout_name, require_writable
from featinv_fast.cli.shared import DONE
from featinv_fast.errors import OutputExistsError


def add_parser(commands: Any) -> None:
    """Add the subcommand to `commands`, what `ArgumentParser.add_subparsers` returns."""
    parser: argparse.ArgumentParser = commands.add_parser("convert", help="convert a checkpoint to another layout")
    parser.set_defaults(run=run)
    parser.add_argument("source", type=Path, help="checkpoint file, or a folder in the diffusers layout")
    parser.add_argument("destination", type=Path, help=".safetensors file, or a folder for the diffusers layout")
    parser.add_argument("--to", default="featinv", choices=["featinv", "ldm", "diffusers"], help="default: featinv")
    parser.add_argument("--force", action="store_true", help="replace a checkpoint that is already there")


def run(options: argparse.Namespace) -> int:
    """Convert and print the destination."""
    _check(options)
    from featinv_fast.checkpoints import convert

    print(convert(options.source, options.destination, options.to, force=options.force))
    return DONE


def _check(options: argparse.Namespace) -> None:
    """Refuse what is known to be wrong before torch is loaded; `checkpoints.convert` looks closer."""
    require_checkpoint(options.source)
    require_layout_name(options.destination, options.to)
    refuse_inputs({"the destination": options.destination}, {"the checkpoint": options.source}, replaced=True)
    require_writable(options.destination)
    if os.path.lexists(options.destination) and not options.force:
        raise OutputExistsError(
            "the destination exists",
            given=options.destination,
            expected="a path at which there is nothing",
            remedy="choose another destination, or pass --force",
        )

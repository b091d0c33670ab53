"""`featinv convert`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from featinv_fast.cli.shared import DONE


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
    from featinv_fast.checkpoints import convert

    print(convert(options.source, options.destination, options.to, force=options.force))
    return DONE

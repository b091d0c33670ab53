"""`featinv`: parse, run a subcommand, turn errors into messages and exit codes."""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import sys
from collections.abc import Sequence

from featinv_fast.cli import bench, convert, demo, doctor, evaluate, invert, train
from featinv_fast.cli.shared import FAILED, INTERRUPTED, USAGE
from featinv_fast.errors import ArgumentError, FeatInvError


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="featinv", description="Feature maps of vision models back to images (FeatInv, arXiv 2505.21032)."
    )
    parser.add_argument("--version", action="version", version=importlib.metadata.version("featinv-fast"))
    parser.add_argument("--verbose", action="store_true", help="say on stderr what is chosen and why")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (demo, invert, evaluate, train, bench, convert, doctor):
        command.add_parser(commands)
    return parser

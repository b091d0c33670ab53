"""`featinv`: parse, run a subcommand, turn errors into messages and exit codes."""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
from collections.abc import Sequence

from featinv_fast.cli import bench, convert, demo, doctor, evaluate, features, invert, table, train
from featinv_fast.cli.program import Parser, run_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns an `ExitCode`."""

    def work() -> int:
        options = _parser().parse_args(arguments)
        logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(name)s: %(message)s")
        return int(options.run(options))

    return run_program("featinv", work)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="featinv", description="Feature maps of vision models back to images (FeatInv, arXiv 2505.21032)."
    )
    parser.add_argument("--version", action="version", version=importlib.metadata.version("featinv-fast"))
    parser.add_argument("--verbose", action="store_true", help="say on stderr what is chosen and why")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (demo, features, invert, evaluate, table, train, bench, convert, doctor):
        command.add_parser(commands)
    return parser

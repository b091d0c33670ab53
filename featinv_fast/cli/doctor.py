"""`featinv doctor`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from featinv_fast.cli.shared import DONE, FAILED, named_engine


def add_parser(commands: Any) -> None:
    """Add the subcommand to `commands`, what `ArgumentParser.add_subparsers` returns."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor", help="show what is installed and which backends can run an engine"
    )
    parser.set_defaults(run=run)
    parser.add_argument("--engine", type=Path, help="engine folder to check and to judge the backends by")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def run(options: argparse.Namespace) -> int:
    """Print the report; fail where nothing can run."""
    engine = None if options.engine is None else named_engine(options.engine)
    from featinv_fast.commands.doctor import can_serve, describe, doctor

    report = doctor(engine)
    print(json.dumps(report, indent=2) if options.json else describe(report))
    return DONE if can_serve(report) else FAILED

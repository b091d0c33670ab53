"""`featinv demo`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from featinv_fast.cli.program import say
from featinv_fast.cli.shared import (
    DONE,
    FAILED,
    PARTIAL,
    add_running_options,
    check_backend_options,
    open_runtime,
)


def add_parser(commands: Any) -> None:
    """Add the subcommand to `commands`, what `ArgumentParser.add_subparsers` returns."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo", help="invert features of test scenes with the built-in engines: 50 steps beside few"
    )
    parser.set_defaults(run=run)
    parser.add_argument("--count", type=int, default=8, metavar="N", help="test scenes; default 8")
    parser.add_argument("--first", type=int, default=0, metavar="K", help="number of the first one; default 0")
    parser.add_argument("--seed", type=int, default=0, help="scene k uses SEED + k; default 0")
    parser.add_argument("--out", type=Path, default=Path("demo.png"), help="the picture; default demo.png")
    running = add_running_options(parser)
    running.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")


def run(options: argparse.Namespace) -> int:
    """Write the picture, print the table or the figures."""
    from featinv_fast.commands.demo_options import DemoOptions
    from featinv_fast.config import to_dict
    from featinv_fast.demo.builtin import load_engine

    check_backend_options(options, options.backend)
    demo_options = DemoOptions(
        out=options.out,
        count=options.count,
        first=options.first,
        seed=options.seed,
        progress=not options.quiet,
        force=options.force,
    )
    engines = [load_engine(name) for name in ("teacher", "student")]
    from featinv_fast.commands.demo import show
    from featinv_fast.evaluate import Kind, markdown, note_lines, summary_cells

    runtimes = [open_runtime(options, engine) for engine in engines]
    report = show(runtimes, demo_options)
    if options.json:
        items = [to_dict(item) for item in report.items]
        print(json.dumps({"picture": str(options.out), **report.to_dict(), "images": items}, indent=2))
    else:
        print(markdown(summary_cells(report.rows)))
        for note in note_lines(report.notes):
            print(note, file=sys.stderr)
        say("featinv", f"{options.out}: originals and reconstructions with their feature cosines")
    rows = [row for row in report.rows if row.kind is Kind.ENGINE]
    if not any(row.n for row in rows):
        return FAILED
    return PARTIAL if any(row.failed for row in rows) else DONE

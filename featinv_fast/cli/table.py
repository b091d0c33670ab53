"""`featinv table`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from featinv_fast.checks import require_input
from featinv_fast.cli.shared import DONE, refuse_without_effect


def add_parser(commands: Any) -> None:
    """Add the subcommand to `commands`, what `ArgumentParser.add_subparsers` returns."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "table", help="put the figures of several evaluations side by side"
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folders that `featinv eval` wrote, or their report.json"
    )
    parser.add_argument(
        "--measures",
        nargs="+",
        metavar="NAME",
        help="figures by their names in report.json (default: cosine, ssim, lpips, feature_distance, total_variation, "
        "top1 and what a judge says of them, where they are)",
    )
    parser.add_argument("--csv", action="store_true", help="all figures, with the ends of their intervals, as CSV")


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    for path in options.runs:
        require_input(path, "file or folder", expected="a folder that `featinv eval` wrote, or its report.json")
    if options.csv:
        refuse_without_effect(options, ["measures"], "the CSV has all figures", expected="--csv alone")
    from featinv_fast.evaluate import Report, comparison_cells, comparison_csv, markdown

    rows = [row for path in options.runs for row in Report.read_rows(path)]
    print(comparison_csv(rows).rstrip() if options.csv else markdown(comparison_cells(rows, options.measures)))
    return DONE

"""`featinv bench`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from featinv_fast.cli.shared import DONE, FAILED, PARTIAL, add_backend_options, backend_options
from featinv_fast.errors import ArgumentError


def add_parser(commands: Any) -> None:
    """Add the subcommand to `commands`, what `ArgumentParser.add_subparsers` returns."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench", help="time an engine over batch sizes, samplers and backends that agree"
    )
    parser.set_defaults(run=run)
    parser.add_argument("engine", nargs="?", type=Path, metavar="ENGINE", help="engine folder (default: the built-in)")
    parser.add_argument(
        "--backends", type=_names, default=(), metavar="A,B", help="speed-ups are over the first; default: all"
    )
    parser.add_argument("--batch-sizes", type=_integers, default=(1, 8), metavar="N,M", help="default 1,8")
    parser.add_argument(
        "--samplers",
        type=_names,
        default=("",),
        metavar="SAMPLER:STEPS:GUIDANCE,...",
        help="e.g. ddim:50,lcm:4:1 (default: the engine's own)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each contender, in turns; default 5")
    parser.add_argument("--warm-up", type=int, default=1, help="calls before that; default 1")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a .jsonl file to append the rows to")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture of the curves; needs matplotlib")
    running = parser.add_argument_group("running")
    add_backend_options(running)
    running.add_argument("--force", action="store_true", help="replace a picture that is already there")
    running.add_argument("--quiet", action="store_true", help="no progress bars")
    running.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")


def run(options: argparse.Namespace) -> int:
    """Measure, write and print the rows; what did not run or did not agree is said on stderr."""
    from featinv_fast.checks import refuse_inputs
    from featinv_fast.commands.bench import Bench, BenchOptions, cells
    from featinv_fast.evaluate import Setting, markdown, require_matplotlib

    bench_options = BenchOptions(
        engine=options.engine,
        backends=options.backends,
        batch_sizes=options.batch_sizes,
        settings=tuple(Setting.parse(text) for text in options.samplers),
        rounds=options.rounds,
        warm_up=options.warm_up,
        out=options.out,
        progress=not options.quiet,
        **backend_options(options),
    )
    if options.plot is not None:  # before the work: where this fails, the work would be lost
        require_matplotlib()
        _check_picture(options.plot, force=options.force)
    written = {name: path for name, path in (("--out", options.out), ("--plot", options.plot)) if path is not None}
    refuse_inputs(written, {"the engine": options.engine})
    for path in (options.out, options.plot):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(bench_options)
    for name, reasons in bench.refused.items():
        print(f"featinv: {name} cannot run: {'; '.join(reasons)}", file=sys.stderr)
    rows = list(bench.rows())
    for row in rows:
        if "error" in row:
            what = f"{row['backend']}, {row['sampler']}:{row['steps']}, batch {row['batch']}"
            print(f"featinv: {what}: {row['error']}", file=sys.stderr)
    print(json.dumps({"rows": rows, "refused": bench.refused}, indent=2) if options.json else markdown(cells(rows)))
    timed = [row for row in rows if "seconds" in row]
    if not timed:
        return FAILED
    if options.plot is not None:
        from featinv_fast.commands.bench_plot import bench_plot

        bench_plot(rows).save(options.plot)
    complete = len(timed) == len(rows) and not (options.backends and bench.refused)
    return DONE if complete else PARTIAL


def _check_picture(path: Path, *, force: bool) -> None:
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ArgumentError("this is no name of a picture", given=path, expected="a name such as bench.png")
    if path.exists() and not force:
        raise ArgumentError(
            "the picture is there already",
            given=path,
            expected="the name of a file that does not exist",
            remedy="name another, or pass --force",
        )


def _names(text: str) -> tuple[str, ...]:
    """The parts of a list written with commas."""
    return tuple(part.strip() for part in text.split(","))


def _integers(text: str) -> tuple[int, ...]:
    """The numbers of a list written with commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,8,32") from None

"""`featinv bench`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featinv_fast.checks import (
    file_errors,
    output_folder,
    refuse_inputs,
    require_matplotlib,
    require_picture_name,
    require_writable,
)
from featinv_fast.cli.program import say
from featinv_fast.cli.shared import (
    DONE,
    FAILED,
    PARTIAL,
    add_backend_options,
    backend_options,
    check_backend_options,
    named_engine,
)

if TYPE_CHECKING:
    from featinv_fast.commands.bench import Bench


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
    from featinv_fast.commands.bench_options import BenchOptions
    from featinv_fast.samplers import Setting, resolve

    check_backend_options(options)

    bench_options = BenchOptions(
        backends=options.backends,
        batch_sizes=options.batch_sizes,
        settings=tuple(Setting.parse(text) for text in options.samplers),
        rounds=options.rounds,
        warm_up=options.warm_up,
        out=options.out,
        progress=not options.quiet,
        **backend_options(options),
    )
    written = {name: path for name, path in (("--out", options.out), ("--plot", options.plot)) if path is not None}
    refuse_inputs(written, {"the engine": options.engine})
    for path in (options.out, options.plot):
        if path is not None:
            require_writable(path)
    if options.plot is not None:
        require_matplotlib()
        require_picture_name(options.plot, force=options.force)
    engine = named_engine(options.engine)
    for setting in bench_options.settings:
        resolve(engine.manifest.sampling, engine.manifest.model, **dataclasses.asdict(setting))
    from featinv_fast.commands.bench import Bench

    with contextlib.ExitStack() as folders:  # before the work: where this fails, the work would be lost
        for path in (options.out, options.plot):
            if path is not None:
                folders.enter_context(output_folder(path.parent))
        return _measure(options, Bench(bench_options, engine))


def _measure(options: argparse.Namespace, bench: Bench) -> int:
    from featinv_fast.commands.bench import cells
    from featinv_fast.evaluate import markdown

    for name, reasons in bench.refused.items():
        say("featinv", f"{name} cannot run: {'; '.join(reasons)}")
    rows = list(bench.rows())
    for row in rows:
        if "error" in row:
            what = f"{row['backend']}, {row['sampler']}:{row['steps']}, batch {row['batch']}"
            say("featinv", f"{what}: {row['error']}")
    print(json.dumps({"rows": rows, "refused": bench.refused}, indent=2) if options.json else markdown(cells(rows)))
    timed = [row for row in rows if "seconds" in row]
    if not timed:
        return FAILED
    if options.plot is not None:
        from featinv_fast.commands.bench_plot import bench_plot

        with file_errors(options.plot):
            bench_plot(rows).save(options.plot)
    complete = len(timed) == len(rows) and not (bench.options.backends and bench.refused)
    return DONE if complete else PARTIAL


def _names(text: str) -> tuple[str, ...]:
    """The parts of a list written with commas."""
    return tuple(part.strip() for part in text.split(","))


def _integers(text: str) -> tuple[int, ...]:
    """The numbers of a list written with commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,8,32") from None

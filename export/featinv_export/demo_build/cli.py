"""The command line of `python -m featinv_export.demo_build`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from featinv_export.demo_build.options import BuildOptions, Stage
from featinv_fast.cli.program import Parser, run_program
from featinv_fast.errors import ExitCode


def main(arguments: Sequence[str] | None = None) -> int:
    """Build; returns an `ExitCode`."""
    return run_program("demo_build", lambda: _work(arguments))


def _work(arguments: Sequence[str] | None) -> int:
    parsed = vars(_parser().parse_args(arguments))
    parsed["progress"] = not parsed.pop("quiet")
    options = BuildOptions(**{name: value for name, value in parsed.items() if value is not None})
    # Here and not above, so that --help and usage errors do not wait for torch.
    from featinv_export.demo_build.build import build

    try:
        print(build(options))
    except KeyboardInterrupt as interruption:
        raise KeyboardInterrupt("interrupted; the same command goes on from here") from interruption
    return ExitCode.DONE


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m featinv_export.demo_build",
        description="Make featinv-fast's built-in engine from nothing: train, export, measure, install. Whatever is in "
        "ROOT already is not made again; a killed run goes on from its last checkpoint.",
    )
    add = parser.add_argument
    add("--root", type=Path, required=True, help="folder for checkpoints, caches and logs (some GB)")
    add(
        "--out", type=Path, metavar="DIR", help="where to install (default: the package's own featinv_fast/demo/engine)"
    )
    add(
        "--from-stage",
        type=Stage,
        choices=list(Stage),
        metavar="|".join(Stage),
        help="begin here, with what the stages before left in ROOT",
    )
    add(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="[RECIPE:]KEY=VALUE",
        help="replace a value of one recipe or of all, as in base:training.steps=100",
    )
    add("--student", metavar="RECIPE", help="the distillation to install: consistency (default) or trajectory")
    add("--scenes", type=int, metavar="N", help="test scenes to measure on (default: 512)")
    add("--no-onnx", dest="onnx", action="store_false", help="no ONNX graphs: engines for the torch backend alone")
    add("--quiet", action="store_true", help="no progress bars")
    return parser

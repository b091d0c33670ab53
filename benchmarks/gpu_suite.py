"""Everything that a GPU can answer about this project, in one command and less than nine minutes.

    python benchmarks/gpu_suite.py [--dry] [--results FILE] [--markdown FILE] [--seconds N] [--only PART ...]

Correctness of every op and rewrite on the GPU, op times against their roofline, graphs, images by plain layers, by
fused operations and by CUDA graphs, images end to end, decoders, and other loops that do the same work, with random
weights made on the spot. Each part runs in a process of its own with a time of its own, so that a crash, a hang or a
lost device costs that part alone; what is most worth knowing comes first. `--dry` runs the same code on a small model
on the CPU.

The exit code is 0 where all went well, 3 where a part failed or a result was wrong, 1 where nothing could be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_parts import decoders, end_to_end, graphs, launch_paths, loops, ops, rates, weights
from gpu_parts.context import Context, Row, Sizes
from gpu_parts.report import FAILED, report
from make_checkpoint import CONVNEXT, SMALL, SMALL_FEATURES

from featinv_fast.commands.bench import append
from featinv_fast.commands.measuring import revision
from featinv_fast.config import ModelConfig, Precision
from featinv_kernels import OPS

RESULTS = Path(__file__).resolve().parent / "results"
SECONDS = 520.0  # of all parts together
OP_SECONDS = 100.0  # of all ops together
# A process that is stuck is given so long beyond its time before it is killed.
GRACE = 5.0
SHORTEST = 3.0
# Of a dry run, which may be on a busy machine and has nothing to hurry for.
DRY_PATIENCE = 10.0

FULL = Sizes(
    model=ModelConfig(),
    features=CONVNEXT,
    precisions=(Precision.FP16, Precision.BF16),
    runs=(("ddim", 50, 1.75), ("lcm", 4, 1.0), ("ddim", 20, 1.75), ("dpm++2m", 10, 1.75)),
    batches=(1, 32, 8, 64),
    step_batches=(1, 32),
    baseline_steps=10,
    product=8192,
    copy_bytes=2**30,
    rounds=9,
    compile={"mode": "reduce-overhead"},
)
DRY = Sizes(
    # Small images: plain layers in bf16 are slow on many CPUs.
    model=dataclasses.replace(
        SMALL, latent_size=8, autoencoder=dataclasses.replace(SMALL.autoencoder, channel_multipliers=(1, 2))
    ),
    features=SMALL_FEATURES,
    precisions=(Precision.BF16,),
    runs=(("ddim", 2, 1.75), ("lcm", 1, 1.0)),
    batches=(1, 2),
    step_batches=(1,),
    baseline_steps=2,
    product=64,
    copy_bytes=2**16,
    rounds=2,
    compile={"backend": "eager"},  # without a compiler: the same code but for what it makes
)

# (name, seconds, what it runs), the most worth knowing first.
Part = tuple[str, float, Callable[[Context], None]]
PARTS: tuple[Part, ...] = (
    ("rates", 20, rates.run),
    ("weights", 60, weights.run),
    *((f"op {name}", OP_SECONDS / len(OPS), functools.partial(ops.run, name=name)) for name in OPS),
    ("graphs", 90, graphs.run),
    ("launch paths", 60, launch_paths.run),
    ("end to end", 120, end_to_end.run),
    ("straightforward loop", 35, loops.run_straightforward),
    ("decoders", 35, decoders.run),
    ("diffusers eager", 40, loops.run_eager),
    ("diffusers compiled", 80, loops.run_compiled),
    ("compiled", 150, launch_paths.run_compiled),
)


def main() -> int:
    """Run the parts, write the rows as they come and the Markdown at the end."""
    arguments = parse()
    if not arguments.dry and not _in_a_process(_has_gpu):
        print("gpu_suite: torch sees no NVIDIA GPU here; --dry tries the suite on the CPU", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as work:
        results = arguments.results or (Path(work) / "dry.jsonl" if arguments.dry else RESULTS / "gpu_suite.jsonl")
        results.parent.mkdir(parents=True, exist_ok=True)
        before = results.stat().st_size if results.exists() else 0
        run_parts(arguments, results, Path(work), before)
        rows = _rows(results, before)
        if not rows:
            print("gpu_suite: nothing was measured", file=sys.stderr)
            return 1
        text = report(rows)
    print(text)
    markdown = arguments.markdown or (None if arguments.dry else results.with_suffix(".md"))
    if markdown is not None:
        markdown.write_text(text, encoding="utf-8")
    counts = {status: sum(row["status"] == status for row in rows) for status in ("ok", "skipped", *FAILED)}
    print(f"gpu_suite: {', '.join(f'{count} {status}' for status, count in counts.items())}", file=sys.stderr)
    if not counts["ok"]:
        return 1
    return 3 if any(counts[status] for status in FAILED) else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Everything that a GPU can answer about this project.")
    parser.add_argument("--dry", action="store_true", help="the same code on a small model on the CPU")
    parser.add_argument("--results", type=Path, help="a .jsonl file to append to; default results/gpu_suite.jsonl")
    parser.add_argument("--markdown", type=Path, help="the tables; default: beside the rows")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of all parts together; default {SECONDS:.0f}")
    names = [name for name, _, _ in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=f"of {', '.join(names)}")
    return parser.parse_args()


def run_parts(arguments: argparse.Namespace, results: Path, work: Path, before: int) -> None:
    """Run each part in its process, for its time or what is left of the whole, if that is less."""
    revision()  # asked once, here: it is remembered in the processes of the parts
    if arguments.dry:
        # Work that every part would do again. Not where there is a GPU: what touches CUDA here breaks it there.
        importlib.import_module("torch._dynamo")
    patience = DRY_PATIENCE if arguments.dry else 1.0
    end = time.monotonic() + patience * arguments.seconds
    # Rates and weights are what other parts start from.
    chosen = [p for p in PARTS if arguments.only is None or p[0] in (*arguments.only, "rates", "weights")]
    for name, seconds, run in chosen:
        limit = min(patience * seconds, end - time.monotonic())
        print(f"gpu_suite: {name}, at most {limit:.0f} s", file=sys.stderr)
        problem = f"{limit:.0f} s are left"
        if limit >= SHORTEST:
            context = Context(
                part=name,
                device=torch.device("cpu" if arguments.dry else "cuda"),
                dry=arguments.dry,
                sizes=DRY if arguments.dry else FULL,
                work=work,
                results=results,
                deadline=time.monotonic() + limit,
                rates=rates.rates_of(_rows(results, before)),
            )
            problem = run_part(run, context, limit + GRACE)
        if problem:
            status = "error" if limit >= SHORTEST else "skipped"
            # Without a look at the GPU: CUDA does not survive a fork, so this process must not touch it.
            known = next(iter(_rows(results, before)), {})
            machine = {
                key: known[key] for key in ("date", "revision", "modified", "versions", "device") if key in known
            }
            row = {"benchmark": "gpu_suite", "dry": arguments.dry, "part": name, "what": "part", "status": status}
            append(results, row | {"error": problem} | machine)


def run_part(run: Callable[[Context], None], context: Context, limit: float) -> str:
    """Run a part in a process of its own; what went wrong with it, empty where nothing did."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(run, context))
    process.start()
    try:
        process.join(limit)
    finally:
        stuck = process.is_alive()
        if stuck:
            # With all that it started: compilers have helpers.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
    if stuck:
        return f"it was still running after {limit:.0f} s and was killed"
    if process.exitcode:
        return f"it ended with exit code {process.exitcode}" if process.exitcode > 0 else _signal(-process.exitcode)
    return ""


def _child(run: Callable[[Context], None], context: Context) -> None:
    os.setsid()
    try:
        run(context)
    except Exception as error:  # noqa: BLE001 - the row says what it was
        traceback.print_exc()
        context.emit("part", "error", error=f"{type(error).__name__}: {error}"[:2000])


def _signal(number: int) -> str:
    return f"it was ended by {signal.Signals(number).name}"


def _in_a_process(question: Callable[[], bool]) -> bool:
    """A question that touches CUDA, asked in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(0 if question() else 1))
    process.start()
    process.join()
    return process.exitcode == 0


def _has_gpu() -> bool:
    return torch.cuda.is_available()


def _rows(results: Path, before: int) -> list[Row]:
    """The rows behind the first `before` bytes."""
    if not results.exists():
        return []
    with results.open("rb") as file:
        file.seek(before)
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    sys.exit(main())

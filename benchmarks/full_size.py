"""The official model's size on a CPU: export, inversion and speed, with their peak memory.

    python benchmarks/full_size.py [--small] [--precision fp16] [--threads N] [--rounds R] [--steps K] [--work DIR]
        [--results FILE]

It makes a checkpoint of 1.31 G random parameters, exports it with `featinv-export --onnx`, inverts one feature map
with each backend, and times a guided step and the decoder against the straightforward torch loop. Each part runs in
a process of its own. Needs 16 GB of free memory and 20 GB of disk at full size.

In fp16 it exports and inverts with onnxruntime alone, which computes in fp32 where the CPU has no half precision:
that its graphs load and run is worth knowing, their time on a CPU is not compared with anything.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memory import Measured, run_measured
from rows import REPOSITORY, append, available_cores, environment, table

BENCHMARKS = Path(__file__).resolve().parent
# Precision -> what an engine of it is run with.
BACKENDS = {"fp32": ("torch", "onnxruntime"), "fp16": ("onnxruntime",)}


def script(name: str, *arguments: object) -> list[str]:
    """The command line of one of the scripts beside this one."""
    return [sys.executable, str(BENCHMARKS / name), *(str(a) for a in arguments)]


def command(*arguments: object) -> list[str]:
    """The command line of `featinv-export`, as users run it."""
    return [str(Path(sysconfig.get_path("scripts")) / "featinv-export"), *(str(a) for a in arguments)]


def memory(measured: Measured) -> dict[str, float]:
    """The memory entries of a row."""
    return {
        "peak_resident_gib": round(measured.peak_resident / 2**30, 3),
        "peak_anonymous_gib": round(measured.peak_anonymous / 2**30, 3),
    }


def count_parameters(checkpoint: Path) -> int:
    """Parameters of the model in a safetensors file, told by its header; stored prompts do not count."""
    with checkpoint.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if not name.startswith(("__", "featinv.")))


def compared(engine: Path) -> dict[str, dict[str, Any]]:
    """What the export found when it ran the graphs, by backend: which ran, the largest error, why others did not."""
    result: dict[str, dict[str, Any]] = {}
    for info in json.loads((engine / "manifest.json").read_text(encoding="utf-8"))["parity"]:
        backend = result.setdefault(info["backend"], {})
        if info["status"] == "passed":
            backend["graphs"] = sorted({*backend.get("graphs", []), info["graph"]})
            backend["relative"] = max(backend.get("relative", 0.0), float(f"{info['relative']:.3g}"))
        else:
            backend["not_run"] = info["reason"]
    return result


def export(checkpoint: Path, engine: Path, precision: str, threads: int) -> dict[str, Any]:
    """Export it with ONNX graphs."""
    options = ["--ckpt", checkpoint, "--out", engine, "--onnx", "--precision", precision, "--force"]
    measured = run_measured(command(*options), threads)
    return {
        "what": "featinv-export --onnx",
        "dtype": precision,
        "seconds": {"export": round(measured.seconds, 1)},
        **memory(measured),
        "compared": compared(engine),
        "checkpoint_gib": round(checkpoint.stat().st_size / 2**30, 3),
        "engine_gib": round(sum(file.stat().st_size for file in engine.iterdir()) / 2**30, 3),
    }


def invert(engine: Path, backend: str, steps: int, threads: int) -> dict[str, Any]:
    """Invert one feature map with one backend."""
    options = ("--engine", engine, "--backend", backend, "--steps", steps, "--threads", threads)
    measured = run_measured(script("invert_one.py", *options), threads)
    weights = (engine / "weights.safetensors").stat().st_size
    return {
        "what": "invert one map",
        **json.loads(measured.output),
        **memory(measured),
        "weights_gib": round(weights / 2**30, 3),
    }


def speed(checkpoint: Path, engine: Path, rounds: int, threads: int, tolerance: float | None) -> list[dict[str, Any]]:
    """The interleaved comparisons."""
    options = ["--ckpt", checkpoint, "--engine", engine, "--rounds", rounds, "--threads", threads]
    options += [] if tolerance is None else ["--tolerance", tolerance]
    measured = run_measured(script("step_speed.py", *options), threads)
    note = "of the process, which holds all contenders"
    return [{**json.loads(line), **memory(measured), "memory_is": note} for line in measured.output.splitlines()]


def show(row: Mapping[str, Any]) -> None:
    """Print a row for people."""
    if "speed_up" in row:
        cells = [[f"{row['what']}, batch 1, {row['dtype']}", "median s", "p20", "p80", "speed-up"]]
        for name, seconds in row["seconds"].items():
            ratio = f"{row['speed_up'][name]['median']:.2f}x" if name in row["speed_up"] else "1"
            cells.append([name, *(f"{seconds[key]:.3f}" for key in ("median", "p20", "p80")), ratio])
        print(table(cells))
    else:
        parts = " + ".join(f"{name} {seconds:.1f} s" for name, seconds in row["seconds"].items())
        print(f"{row['what']} {row.get('backend', '')}".strip(), parts, sep=": ")
    resident, anonymous = row["peak_resident_gib"], row["peak_anonymous_gib"]
    print(f"  peak memory {resident:.2f} GiB resident with mapped files, {anonymous:.2f} GiB allocated\n", flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Export, inversion and speed at the official model's size on a CPU.")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the benchmark with")
    parser.add_argument("--precision", choices=BACKENDS, default="fp32", help="of the engine")
    parser.add_argument("--ckpt", type=Path, help="an fp32 checkpoint with stored prompts in place of a random one")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=9, help="of the interleaved timing, at least 2")
    parser.add_argument("--steps", type=int, default=50, help="of the inversion")
    parser.add_argument("--tolerance", type=float, help="of the gate; the default is step_speed.py's")
    parser.add_argument("--work", type=Path, help="where checkpoint and engine go and stay; default: a temporary one")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results" / "full_size.jsonl")
    return parser.parse_args()


def measure(arguments: argparse.Namespace, work: Path) -> None:
    """Run the parts and append their rows as they finish."""
    threads = arguments.threads
    checkpoint, engine = arguments.ckpt or work / "random.safetensors", work / "random.engine"
    small = ["--small"] if arguments.small else []
    if arguments.ckpt is None:
        print(run_measured(script("make_checkpoint.py", "--out", checkpoint, *small), threads).output)
    precision = arguments.precision
    options = {"precision": precision, "threads": threads, "rounds": arguments.rounds, "steps": arguments.steps}
    common = {
        # Without paths: they are of this machine.
        "command": " ".join(["python benchmarks/full_size.py", *small, *(f"--{k} {v}" for k, v in options.items())]),
        "parameters": count_parameters(checkpoint),
        **environment(threads),
    }

    def report(row: dict[str, Any]) -> None:
        row = {"benchmark": "full_size", **row, **common}
        append(arguments.results, row)
        show(row)

    report(export(checkpoint, engine, precision, threads))
    for backend in BACKENDS[precision]:
        report(invert(engine, backend, arguments.steps, threads))
    if precision == "fp32":
        for row in speed(checkpoint, engine, arguments.rounds, threads, arguments.tolerance):
            report(row)


def main() -> None:
    """Parse the command line, measure."""
    arguments = parse()
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
        measure(arguments, arguments.work)
        return
    with tempfile.TemporaryDirectory() as work:
        measure(arguments, Path(work))


if __name__ == "__main__":
    main()

"""Plans of TensorRT for RTX at the official model's size, built without a GPU: time, peak memory and size.

    python benchmarks/rtx_plans.py [--small] [--precision fp16] [--sm 89] [--sm 86,89,120] [--max-batch 8] [--work DIR]
        [--results FILE]

It makes a checkpoint of 1.31 G random parameters, exports it with `featinv-export --onnx`, and builds plans of all
graphs with `featinv-export --from-onnx --trt-rtx`, once for every `--sm`. Needs 16 GB of free memory and 25 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from full_size import command, count_parameters, memory, script
from memory import run_measured
from rows import REPOSITORY, append, available_cores, environment

PRECISIONS = ("fp32", "fp16", "bf16")
TARGETS = ("89", "86,89,120")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Plans of TensorRT for RTX at the official model's size.")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the benchmark with")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16", help="of the engine")
    parser.add_argument("--sm", action="append", help="GPUs of one plan, such as 86,89,120; again for more plans")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--work", type=Path, help="where checkpoint and engine go and stay; default: a temporary one")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results" / "rtx_plans.jsonl")
    return parser.parse_args()


def build(engine: Path, targets: str, max_batch: int, cache: Path, threads: int) -> dict[str, Any]:
    """Build all plans of an engine in a process of its own, with a cache that is empty."""
    options = ["--from-onnx", engine, "--trt-rtx", "--sm", targets, "--max-batch", max_batch, "--plan-cache", cache]
    measured = run_measured(command(*options), threads)
    manifest = json.loads((engine / "manifest.json").read_text(encoding="utf-8"))
    files = manifest["files"]
    return {
        "what": "featinv-export --from-onnx --trt-rtx",
        "dtype": manifest["precision"],
        "compute_capabilities": manifest["rtx_plans"][0]["capabilities"],
        "profiles": [f"{p['minimum']}:{p['optimum']}:{p['maximum']}" for p in manifest["rtx_plans"][-1]["profiles"]],
        "seconds": {"build": round(measured.seconds, 1)},
        **memory(measured),
        "weights_gib": round(files["weights.safetensors"]["size"] / 2**30, 3),
        "plans_gib": {name: round(i["size"] / 2**30, 4) for name, i in files.items() if name.endswith(".rtxplan")},
        "executed": False,
        "tensorrt_rtx": manifest["rtx_plans"][0]["tensorrt_rtx"],
    }


def measure(arguments: argparse.Namespace, work: Path) -> None:
    """Make the engine, build its plans and append a row for each build."""
    threads, small = arguments.threads, ["--small"] if arguments.small else []
    checkpoint, engine = work / "random.safetensors", work / f"random-{arguments.precision}.engine"
    if not checkpoint.exists():
        run_measured(script("make_checkpoint.py", "--out", checkpoint, *small), threads)
    if not engine.exists():
        options = ["--onnx", "--precision", arguments.precision, "--max-batch", arguments.max_batch]
        # onnxruntime has no bf16 on a CPU.
        options += ["--unchecked"] if arguments.precision == "bf16" else []
        run_measured(command("--ckpt", checkpoint, "--out", engine, *options), threads)
    for targets in arguments.sm or TARGETS:
        with tempfile.TemporaryDirectory(dir=work) as cache:
            row = build(engine, targets, arguments.max_batch, Path(cache), threads)
        given = f"--precision {arguments.precision} --sm {targets} --max-batch {arguments.max_batch}"
        row |= {
            "command": " ".join(["python benchmarks/rtx_plans.py", *small, given]),
            "parameters": count_parameters(checkpoint),
        }
        append(arguments.results, {"benchmark": "rtx_plans", **row, **environment(threads)})
        size = sum(row["plans_gib"].values())
        print(
            f"{row['dtype']} for {', '.join(row['compute_capabilities'])}: {row['seconds']['build']:.0f} s, "
            f"peak {row['peak_resident_gib']:.1f} GiB, plans of {size:.2f} GiB",
            flush=True,
        )


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

"""Draws images per second and seconds of a call against batch size from rows of `featinv bench` or `gpu_suite.py`.

    python benchmarks/plot.py ROWS.jsonl --out plot.png

Of the same measurement on the same device the latest row is shown. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from featinv_fast.commands.bench_plot import bench_plot

KEY = ("engine", "device", "backend", "precision", "sampler", "steps", "guidance_scale", "batch")


def main() -> None:
    """Parse the command line, choose the rows, draw."""
    parser = argparse.ArgumentParser(description="Throughput and latency against batch size.")
    parser.add_argument("rows", type=Path, help="a .jsonl file")
    parser.add_argument("--out", type=Path, required=True, help="the picture")
    parser.add_argument("--device", help="only rows of this device; default: that of the last row")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.rows.read_text(encoding="utf-8").splitlines()]
    # Not those of a dry run, whose times mean nothing.
    timed = [row for row in rows if "images_per_second" in row and "sampler" in row and not row.get("dry")]
    if not timed:
        parser.error(f"{arguments.rows} holds no row of an inversion that was timed")
    device = arguments.device or timed[-1]["device"]
    latest = {tuple(row[name] for name in KEY): row for row in timed if row["device"] == device}
    bench_plot(list(latest.values())).save(arguments.out)


if __name__ == "__main__":
    main()

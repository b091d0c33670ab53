"""Inverts one feature map with an engine, in a process of its own, and says how long it took.

    python benchmarks/invert_one.py --engine DIR --backend torch [--steps 50] [--threads N]

Prints one JSON object; `full_size.py` runs it under `memory.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from rows import available_cores

from featinv_fast import Runtime


def main() -> None:
    """Parse the command line, invert, report."""
    parser = argparse.ArgumentParser(description="Invert one feature map and report the time.")
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=available_cores())
    arguments = parser.parse_args()

    start = time.perf_counter()
    runtime = Runtime(arguments.engine, backend=arguments.backend, device="cpu", threads=arguments.threads)
    opened = time.perf_counter()
    spec = runtime.engine.manifest.features
    features = torch.randn(1, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(1))
    inversion = runtime.invert(features, steps=arguments.steps, layout="nchw")
    finished = time.perf_counter()
    # Random weights make no picture, but they must make one.
    assert inversion.images.dtype == np.uint8
    assert inversion.images.std() > 0.0
    report = {
        "shape": {"features": list(features.shape), "images": list(inversion.images.shape)},
        "dtype": str(runtime.engine.manifest.precision),
        "backend": inversion.flags.backend,
        "steps": inversion.flags.steps,
        "guidance_scale": inversion.flags.guidance_scale,
        "seconds": {"open": round(opened - start, 3), "invert": round(finished - opened, 3)},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()

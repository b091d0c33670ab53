"""What `featinv invert` spends on a map beside inverting it: ledger and record, without and with the pictures.

    python benchmarks/invert_bookkeeping.py [--maps 10000 100000] [--pictures]

A stand-in takes no time for its images of 8 x 8 pixels. Prints a line of JSON for each number of maps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featinv_fast.commands.invert import invert
from featinv_fast.commands.invert_options import InvertOptions
from featinv_fast.config import FeatureSpec
from featinv_fast.jobs.ledger import Ledger
from featinv_fast.runtime import Inversion, OutputType, RunFlags

FLAGS = RunFlags(
    backend="none", device="cpu", precision="fp32", sampler="ddim", steps=1, guidance_scale=1.0, batch_size=8
)


class StandIn:
    """Gives black images at once and keeps account of its time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.info = {"name": "none", "device": "cpu", "usual_batch": 8}
        spec = FeatureSpec(channels=4, height=2, width=2)
        self.engine = types.SimpleNamespace(manifest=types.SimpleNamespace(features=spec))

    def invert(self, maps: Any, *, seed: list[int], **_: Any) -> Inversion:
        """See `Runtime.invert`."""
        started = time.perf_counter()
        inversion = Inversion(
            images=np.zeros((len(maps), 8, 8, 3), np.uint8),
            latents=torch.zeros(len(maps), 4, 1, 1),
            seeds=tuple(seed),
            errors={},
            output_type=OutputType.UINT8,
            flags=FLAGS,
        )
        self.seconds += time.perf_counter() - started
        return inversion


def measure(folder: Path, maps: int, *, pictures: bool) -> dict[str, Any]:
    """Invert so many maps; the milliseconds of each, those of the stand-in left out."""
    np.save(folder / "maps.npy", np.zeros((maps, 4, 2, 2), np.float32))
    options = InvertOptions(out=folder / f"out{maps}", features=folder / "maps.npy", sampling={}, progress=False)
    runtime: Any = StandIn()
    write = Ledger.write
    if not pictures:
        Ledger.write = lambda self, name, content: None if name.endswith(".png") else write(self, name, content)  # type: ignore[method-assign]
    started = time.perf_counter()
    try:
        record = invert(runtime, options)
    finally:
        Ledger.write = write  # type: ignore[method-assign]
    seconds = time.perf_counter() - started - runtime.seconds
    assert len(record["items"]) == maps
    return {"maps": maps, "pictures": pictures, "ms_per_map": round(1000 * seconds / maps, 4)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--maps", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--pictures", action="store_true", help="write them, each flushed to the disk")
    options = parser.parse_args()
    for maps in options.maps:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder), maps, pictures=options.pictures)))


if __name__ == "__main__":
    main()

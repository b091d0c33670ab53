"""The benchmark of full-size training runs at a small size, and its row stands alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_full_size.py"


def test_a_row_of_a_small_training(tmp_path):
    results = tmp_path / "rows.jsonl"
    options = ["--small", "--steps", "2", "--batch", "2", "--threads", "1", "--results", str(results)]
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = [json.loads(line) for line in results.read_text().splitlines()]
    assert (row["steps"], row["batch"], row["threads"], len(row["losses"])) == (2, 2, 1, 2)
    assert 0 < row["learning"] < row["parameters"]
    assert 0.05 < row["peak_anonymous_gib"] < row["peak_resident_gib"] < 4.0
    assert row["device"]

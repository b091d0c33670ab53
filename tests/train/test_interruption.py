"""Killed with signal 9 at any moment and started again, a run ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the children are forks")
def test_a_run_that_was_killed_anywhere_ends_with_the_same_weights_and_log(tmp_path):
    script = Path(__file__).with_name("kill_everywhere.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) > 40
    for point, same, leftovers, kept in results:
        assert same, f"other weights or another log after a kill at event {point}"
        assert leftovers == [], f"after a kill at event {point}"
        assert kept == 2, f"after a kill at event {point}"

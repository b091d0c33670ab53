"""Killed at any moment and started again, jobs end as if nothing had happened: the short form of kill_everywhere.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the children are forks")
def test_jobs_that_were_killed_end_with_the_same_pictures_rows_and_tables(tmp_path, stand_ins):
    script = Path(__file__).with_name("kill_everywhere.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, "--kills", "1", "--seed", "3", "--built-in", stand_ins],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row for row in rows if row["wrong"]] == [], done.stderr
    assert done.returncode == 0, done.stderr
    assert [(row["job"], row["signal"], row["kills"]) for row in rows] == [
        (job, number, 1) for job in ("invert", "eval", "cache") for number in (9, 15)
    ]

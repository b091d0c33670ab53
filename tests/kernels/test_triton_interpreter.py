"""Runs the kernels' tests on the CPU, through Triton's interpreter, in a process of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is optional")


def test_kernels_pass_in_the_interpreter(pytestconfig):
    suite = Path(__file__).with_name("test_triton_kernels.py")
    # Nothing of this run's own options, such as a marker expression or a worker's id, reaches the other process.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"TRITON_INTERPRET": "1"}
    # -P: `kernels/` in the working directory must not become an importable package.
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(suite)]
    result = subprocess.run(
        command, cwd=pytestconfig.rootpath, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    report = result.stdout + result.stderr
    assert result.returncode == 0, report
    assert re.search(r"\b\d+ passed\b", report), report
    assert not re.search(r"\b\d+ (skipped|deselected|xfailed)\b", report), report

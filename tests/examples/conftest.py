"""Running an example as a user would who has not installed this project."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
ALONE = """
import runpy, sys

class Refusal:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("featinv_fast", "featinv_export", "featinv_kernels", "torch"):
            raise ImportError(name)

sys.meta_path.insert(0, Refusal())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="session")
def run_alone() -> Callable[..., None]:
    """`run_alone("example.py", *arguments)`: it succeeds and says nothing; neither torch nor our packages are there."""

    def run(example: str, *arguments: Path) -> None:
        command = [sys.executable, "-c", ALONE, str(EXAMPLES / example), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    return run

"""What messages and documents tell people to install is there to be installed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("featinv_fast", "export", "kernels", "examples", "benchmarks")


def test_every_extra_that_is_named_exists():
    files = [path for place in PLACES for path in (ROOT / place).rglob("*") if path.suffix in (".py", ".md")]
    files += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "pyproject.toml")]
    named = {
        extra
        for path in files
        for extras in re.findall(r"featinv-fast\[([a-z,-]+)\]", path.read_text(encoding="utf-8"))
        for extra in extras.split(",")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"all", "export", "test"} <= named
    assert named <= project["optional-dependencies"].keys()

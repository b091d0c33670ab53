"""Packages that cannot stand in one environment with ours, or with one another: each set in a folder of its own.

    python tests/tools/separate_packages.py     # fetches what is not there yet

The folders lie inside the environment that runs this, so that they go with it. Tests which need one look there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(sys.prefix) / "separate-packages"
# Versions are those that were tested, as in constraints.txt; dependencies are listed, never resolved.
SETS: dict[str, tuple[str, ...]] = {
    # The vendor's Python classes of two releases, whose contracts the double of TensorRT keeps.
    "tensorrt-10.16": ("tensorrt-cu13-bindings==10.16.1.11",),
    "tensorrt-11.4": ("tensorrt-cu13-bindings==11.4.0.106",),
    # optimum-onnx needs transformers < 4.58, and with it older packages than we are tested with.
    "optimum": (
        "optimum==2.1.0",
        "optimum-onnx==0.1.0",
        "transformers==4.57.6",
        "huggingface_hub==0.36.2",
        "tokenizers==0.22.2",
        "diffusers==0.36.0",
        "httpx==0.28.1",
        "httpcore==1.0.9",
        "h11==0.16.0",
        "anyio==4.16.0",
    ),
}
COMPLETE = "requirements.txt"


def folder(name: str) -> Path:
    """Where the packages of the set `name` lie."""
    return ROOT / name


def missing(name: str) -> str | None:
    """Why the set cannot be used, or `None`: it was not fetched, or another version of it was."""
    note = folder(name) / COMPLETE
    if note.is_file() and note.read_text() == _requirements(name):
        return None
    return f"the packages of {name} are not there: python tests/tools/separate_packages.py"


def fetch(name: str) -> None:
    """Install the set into its folder, which holds its list of requirements once it is complete."""
    shutil.rmtree(folder(name), ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder(name), *SETS[name]]
    subprocess.run(command, check=True)
    (folder(name) / COMPLETE).write_text(_requirements(name))


def _requirements(name: str) -> str:
    return "".join(f"{requirement}\n" for requirement in SETS[name])


if __name__ == "__main__":
    for each in SETS:
        if missing(each):
            fetch(each)

"""Faults that the fuzzer must notice, for its own test: this target is not in the list."""

from __future__ import annotations

import ctypes
import time
import warnings
from pathlib import Path
from random import Random

from target import Target

from featinv_fast.errors import ArgumentError

FAULTS = ("none", "refused", "outside", "warning", "destructor", "allocation", "crash", "hang", "exit", "message")
ALLOCATED = 100 * 2**20


class Broken:
    """It cannot even be thrown away."""

    def __del__(self) -> None:
        raise OSError("left open")


class EndlessError(ArgumentError):
    """It says too much."""

    def __str__(self) -> str:
        return "x" * 20_000


class Planted(Target):
    """Reading a file does what it says."""

    def mutant(self, random: Random, folder: Path) -> Path:
        """A file that holds the name of a fault."""
        path = folder / "planted"
        path.write_text(random.choice(FAULTS))
        return path

    def declared(self, path: Path) -> int | None:  # noqa: ARG002 -- there is nothing to look at
        """There is a header, and it declares nothing."""
        return 0

    def run(self, path: Path) -> None:
        """Do what the file says."""
        match path.read_text():
            case "refused":
                raise ArgumentError("refused")
            case "outside":
                raise KeyError("outside")
            case "warning":
                warnings.warn("nobody expects this", UserWarning, stacklevel=1)
            case "destructor":
                Broken()
            case "allocation":
                bytes(bytearray(ALLOCATED))
            case "crash":
                ctypes.string_at(0)
            case "hang":
                time.sleep(60)
            case "message":
                raise EndlessError("message")
            case "exit":
                raise SystemExit(0)


TARGET = Planted

"""What a target of the fuzzer is: how its inputs are made, and how a user's own would be read."""

from __future__ import annotations

import abc
import shutil
from pathlib import Path
from random import Random


class Target(abc.ABC):
    """One kind of file or folder that users hand in.

    Args:
        folder: for what all mutants are made of; filled once per worker, never changed afterwards.

    Attributes:
        name: that of its file.
        warns: what the reader may say without refusing; every other warning is a finding.
    """

    warns: tuple[type[Warning], ...] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = type(self).__module__.rpartition(".")[2]

    @abc.abstractmethod
    def mutant(self, random: Random, folder: Path) -> Path:
        """Write one input into the empty `folder`; all choices are drawn from `random`."""

    def kept(self, entry: Path, folder: Path) -> Path:
        """Write an entry of the corpus into the empty `folder`: as it is, where the target knows nothing shorter."""
        return shutil.copyfile(entry, folder / entry.name)

    @abc.abstractmethod
    def declared(self, path: Path) -> int | None:
        """How many bytes the header of a mutant declares, read without the code that is tested.

        None where the mutant does not get past the first header check: it is not of the format that its name says. 0
        where it gets past, and what its header declares makes no sense or is not there.
        """

    @abc.abstractmethod
    def run(self, path: Path) -> None:
        """Read a mutant through the public interface, and use what was read as far as a user would."""

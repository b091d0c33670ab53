"""The error family.

Every message states what was given, what was expected and the remedy, so that a user can act
without reading our source. `assert` is for our own bugs, these classes are for everything else.
"""

from __future__ import annotations

import copy
import enum
import types
from collections.abc import Mapping, Sequence
from typing import Any, Self


class ExitCode(enum.IntEnum):
    """How a command ends; the table in README.md says when."""

    DONE = 0
    FAILED = 1  # what was asked for could not be done
    USAGE = 2  # another command line is needed
    PARTIAL = 3  # some items failed, the others are done
    INTERRUPTED = 130  # 128 + SIGINT, as shells count
    BROKEN_PIPE = 141  # 128 + SIGPIPE
    TERMINATED = 143  # 128 + SIGTERM


LONGEST = 4000  # characters of a part of a message


def _said(value: object) -> str:
    """A part of a message: whatever stands in a user's file neither breaks it nor hides the rest."""
    try:
        text = str(value).encode(errors="backslashreplace").decode()
    except ValueError:  # Python does not write integers of thousands of digits
        return f"{type(value).__name__} with thousands of digits"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"


class FeatInvError(Exception):
    """Base class of every error this project raises on purpose.

    Args:
        problem: what is wrong, in one sentence.
        given: what was found or passed.
        expected: what would have been accepted.
        remedy: what the user can do next.
        command_remedy: the same for whoever types a command, where it differs: nobody can pass `errors="return"` there.
        subject: what the sentence is about, where only the caller knows its name: "feature map 3". The problem then
            begins with its verb.

    Attributes:
        exit_code: of a command that ends by this error.
    """

    exit_code = ExitCode.FAILED

    def __init__(
        self,
        problem: str,
        *,
        given: object = None,
        expected: object = None,
        remedy: str | None = None,
        command_remedy: str | None = None,
        subject: str | None = None,
    ) -> None:
        self.problem = problem
        self.given = given
        self.expected = expected
        self.remedy = remedy
        self.command_remedy = command_remedy
        self.subject = subject
        super().__init__(problem)

    def __str__(self) -> str:
        return self.message()

    def message(self, *, command_line: bool = False) -> str:
        """Problem, given, expected and remedy; the remedy as it can be followed on a command line, or in Python."""
        lines = [_said(self.problem if self.subject is None else f"{self.subject} {self.problem}")]
        remedy = self.command_remedy if command_line and self.command_remedy is not None else self.remedy
        facts = {"given": self.given, "expected": self.expected, **self._facts(), "remedy": remedy}
        lines += [f"{name}: {_said(value)}" for name, value in facts.items() if value is not None]
        return "\n  ".join(lines)

    def about(self, subject: str) -> Self:
        """The same error of what the user calls `subject`: a place in the whole run instead of one in a call."""
        error = copy.copy(self)
        error.subject = subject
        return error

    def _facts(self) -> dict[str, object]:
        """More lines of the message, by their names."""
        return {}


class ConfigError(FeatInvError, ValueError):
    """A configuration has an unknown key, a missing key or a value of the wrong kind."""


class ArgumentError(FeatInvError, ValueError):
    """An argument lies outside its allowed range, contradicts another one, or would have no effect."""

    exit_code = ExitCode.USAGE


class ArgumentTypeError(FeatInvError, TypeError):
    """An argument has a type or dtype that cannot be used."""

    exit_code = ExitCode.USAGE


class InputNotFoundError(ArgumentError, FileNotFoundError):
    """There is no file or folder of the name that was given."""


class OutputExistsError(ArgumentError, FileExistsError):
    """There is something where the result should go, and replacing it was not asked for or would lose it."""


class UnreadableFileError(ArgumentError):
    """A file that was named is there, and what is in it cannot be used."""

    exit_code = ExitCode.FAILED


class FileError(FeatInvError, OSError):
    """The system refuses to read or write a file or folder; `errno` and `filename` are the system's."""

    # In place of OSError's own, which copies and pickles lose.
    errno: int | None = None
    filename: str | None = None


class MissingPackageError(FeatInvError, ImportError):
    """An optional package that this call needs is not installed."""


class FeatureShapeError(FeatInvError, ValueError):
    """Feature maps have the wrong rank, channel count or size for this engine."""


class FeatureLayoutError(FeatInvError, ValueError):
    """The layout of feature maps is ambiguous; name it with `layout=`."""


class NonFiniteFeatureError(FeatInvError, ValueError):
    """A feature map holds NaN or infinite values."""


class NumericalError(FeatInvError, ArithmeticError):
    """A row gave NaN or infinite values that recomputing in fp32 did not repair.

    `finished`, where it was raised by a call on many rows, is the result with the other rows.
    """

    finished: Any = None


class OutOfMemoryError(FeatInvError, MemoryError):
    """Even a batch of one does not fit into the device's memory.

    `finished`, where it was raised by a call on many rows, is the result with the rows that were done before.
    """

    finished: Any = None


class CheckpointError(FeatInvError):
    """Base class of the errors about checkpoints."""


class CheckpointNotFoundError(CheckpointError, InputNotFoundError):
    """There is no checkpoint where one was expected."""


class CheckpointExistsError(CheckpointError, OutputExistsError):
    """The destination exists, and replacing it was not asked for or would lose something else."""


class CheckpointCorruptError(CheckpointError):
    """A checkpoint file is damaged: truncated, overlapping, duplicated or not what its name says."""


class CheckpointUnsafeError(CheckpointError):
    """A checkpoint file holds pickled code, which is never run."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint's tensors do not fit the layout they are read as."""


class TextError(FeatInvError):
    """A prompt cannot be turned into an embedding with what is at hand."""


class EngineError(FeatInvError):
    """Base class of the errors about engine folders."""


class EngineNotFoundError(EngineError, InputNotFoundError):
    """There is no engine where one was expected."""


class InstallationError(EngineNotFoundError):
    """This installation lacks a part of the built-in engine."""

    exit_code = ExitCode.FAILED


class EngineExistsError(EngineError, OutputExistsError):
    """The output folder exists, and replacing it was not asked for or would lose something else."""


class EngineIntegrityError(EngineError):
    """A file of an engine folder is missing, changed, longer or unsafe."""


class EngineFormatError(EngineError):
    """An engine folder was written in a format that this version does not read."""


class LockedError(FeatInvError):
    """Another process is writing the same folder."""


class EngineLockedError(EngineError, LockedError):
    """Another process is writing the same engine folder."""


class LedgerError(FeatInvError):
    """The ledger of a job is damaged."""


class ExportError(FeatInvError):
    """An export failed; nothing was installed."""


class ParityError(ExportError):
    """An exported graph does not compute what the model computes; nothing was installed."""


class TrainingError(FeatInvError):
    """A training run cannot go on."""


class BackendUnavailableError(FeatInvError, RuntimeError):
    """A backend or device that was asked for cannot serve here.

    `reasons` maps each candidate to why it cannot be used; those without a reason are what would be accepted.
    """

    def __init__(
        self,
        problem: str,
        *,
        reasons: Mapping[str, Sequence[str]] = types.MappingProxyType({}),
        given: object = None,
        remedy: str | None = None,
        command_remedy: str | None = None,
    ) -> None:
        self.reasons = {name: list(why) for name, why in reasons.items()}
        ready = ", ".join(name for name, why in self.reasons.items() if not why)
        super().__init__(problem, given=given, expected=ready or None, remedy=remedy, command_remedy=command_remedy)

    def _facts(self) -> dict[str, object]:
        against = "; ".join(f"{name}: {', '.join(why)}" for name, why in self.reasons.items() if why)
        return {"reasons against": against or None}

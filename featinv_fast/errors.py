"""The error family.

Every message states what was given, what was expected and the remedy, so that a user can act
without reading our source. `assert` is for our own bugs, these classes are for everything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class FeatInvError(Exception):
    """Base class of every error this project raises on purpose.

    Args:
        problem: what is wrong, in one sentence.
        given: what was found or passed.
        expected: what would have been accepted.
        remedy: what the user can do next.
    """

    def __init__(
        self, problem: str, *, given: object = None, expected: object = None, remedy: str | None = None
    ) -> None:
        self.problem = problem
        self.given = given
        self.expected = expected
        self.remedy = remedy
        parts = [problem]
        parts += [f"given: {given}"] if given is not None else []
        parts += [f"expected: {expected}"] if expected is not None else []
        parts += [f"remedy: {remedy}"] if remedy is not None else []
        super().__init__("\n  ".join(parts))


class ConfigError(FeatInvError, ValueError):
    """A configuration has an unknown key, a missing key or a value of the wrong kind."""


class ArgumentError(FeatInvError, ValueError):
    """An argument lies outside its allowed range."""


class ArgumentTypeError(FeatInvError, TypeError):
    """An argument has a type or dtype that cannot be used."""


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


class EngineNotFoundError(EngineError, FileNotFoundError):
    """There is no engine where one was expected."""


class EngineExistsError(EngineError, FileExistsError):
    """The output folder exists and replacing it was not asked for."""


class EngineIntegrityError(EngineError):
    """A file of an engine folder is missing, changed, longer or unsafe."""


class EngineFormatError(EngineError):
    """An engine folder was written in a format that this version does not read."""


class EngineLockedError(EngineError):
    """Another process is writing the same engine folder."""


class ExportError(FeatInvError):
    """An export failed; nothing was installed."""


class ParityError(ExportError):
    """An exported graph does not compute what the model computes; nothing was installed."""


class TrainingError(FeatInvError):
    """A training run cannot go on."""


class BackendUnavailableError(FeatInvError, RuntimeError):
    """A backend or device that was asked for cannot serve here.

    `reasons` maps each candidate to why it cannot be used.
    """

    def __init__(
        self, problem: str, *, reasons: Mapping[str, Sequence[str]], given: object = None, remedy: str | None = None
    ) -> None:
        self.reasons = {name: list(why) for name, why in reasons.items()}
        listing = "; ".join(f"{name}: {', '.join(why) if why else 'available'}" for name, why in self.reasons.items())
        super().__init__(problem, given=given, expected=listing, remedy=remedy)

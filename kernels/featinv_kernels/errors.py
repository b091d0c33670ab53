"""The errors of this package. Every message states what was given, what was expected and the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class KernelError(Exception):
    """Base class of every error this package raises on purpose.

    Args:
        problem: what is wrong, in one sentence.
        given: what was passed.
        expected: what would have been accepted.
        remedy: what the caller can do next.
    """

    def __init__(
        self, problem: str, *, given: object = None, expected: object = None, remedy: str | None = None
    ) -> None:
        self.problem = problem
        self.given = given
        self.expected = expected
        self.remedy = remedy
        details = {"given": given, "expected": expected, "remedy": remedy}
        super().__init__("\n  ".join([problem, *(f"{k}: {v}" for k, v in details.items() if v is not None)]))


class KernelArgumentError(KernelError, ValueError):
    """An argument has a shape, dtype, device or name that the op does not take."""


class ProviderUnavailableError(KernelError, RuntimeError):
    """No provider, or not the one that was asked for, can serve a request.

    `reasons` maps each candidate to why it cannot serve; an empty list means that it can.
    """

    def __init__(self, problem: str, *, reasons: Mapping[str, Sequence[str]], given: object, remedy: str) -> None:
        self.reasons = {name: list(why) for name, why in reasons.items()}
        listing = "; ".join(f"{name}: {', '.join(why) or 'available'}" for name, why in self.reasons.items())
        super().__init__(problem, given=given, expected=listing, remedy=remedy)

"""What a sampler may be asked for, and the checks that all samplers share."""

from __future__ import annotations

import dataclasses
import operator

from featinv_fast.errors import ArgumentError, ArgumentTypeError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """Everything about a sampler but its schedule and its number of steps.

    Attributes:
        eta: share of fresh noise in DDIM, from 0 (deterministic) to 1 (as in DDPM). Beyond 1 a step may need to
            add more variance than the next time has.
        original_inference_steps: length of the time grid that an LCM was distilled on; `None` is 50.

    Raises:
        ArgumentError: `eta` lies outside [0, 1] or is not finite.
        ArgumentTypeError: `eta` is not a real number.
    """

    eta: float = 0.0
    original_inference_steps: int | None = None

    def __post_init__(self) -> None:
        try:
            # False for NaN and infinities too; a TypeError for text and None, a ValueError for arrays.
            in_range = bool(0 <= self.eta <= 1)
        except (TypeError, ValueError):
            in_range = None
        if in_range is None or isinstance(self.eta, bool):
            raise ArgumentTypeError(
                "eta is not a number", given=repr(self.eta), expected="a number from 0 to 1", remedy="pass a float"
            )
        if not in_range:
            raise ArgumentError(
                "eta is out of range",
                given=self.eta,
                expected="a finite number from 0 to 1",
                remedy="use 0 for deterministic DDIM or 1 for as much noise as DDPM adds",
            )

    def require_only(self, sampler: str, *allowed: str) -> None:
        """Refuse options that `sampler` does not have: an option is obeyed or refused, never dropped.

        Raises:
            ArgumentError: an option outside `allowed` differs from its default.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in allowed and value != field.default:
                raise ArgumentError(
                    f"the sampler {sampler!r} has no {field.name}",
                    given=f"{field.name}={value}",
                    expected=f"{field.name}={field.default}",
                    remedy=f"leave {field.name} out or choose a sampler that has it",
                )


def require_integer(name: str, value: int, *, largest: int, sampler: str) -> int:
    """Return `value` as a plain int from 1 to `largest`.

    Args:
        name: what the argument is called.
        value: any integer, also numpy's; bool is refused.
        largest: the end of the allowed range, inclusive.
        sampler: the sampler whose range this is.

    Raises:
        ArgumentTypeError: not an integer.
        ArgumentError: outside the range.
    """
    expected = f"an integer from 1 to {largest} for the sampler {sampler!r}"
    try:
        integer = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        integer = None
    if integer is None:
        raise ArgumentTypeError(f"{name} is not an integer", given=repr(value), expected=expected, remedy="pass an int")
    if not 1 <= integer <= largest:
        raise ArgumentError(
            f"{name} is out of range", given=integer, expected=expected, remedy=f"choose {name} within that range"
        )
    return integer

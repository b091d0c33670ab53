"""Values and their ranges; every refusal names the range."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any, TypeVar

from featinv_fast.errors import ArgumentError, ArgumentTypeError

Option = TypeVar("Option", bound=str)


def choice(name: str, value: Any, allowed: Iterable[Option]) -> Option:
    """`value` as the member of `allowed` that it equals.

    Raises:
        ArgumentError: it equals none.
    """
    options = list(allowed)
    for option in options:
        if isinstance(value, str) and value == option:
            return option
    near = did_you_mean(value, options)
    raise ArgumentError(
        f"{name} is not one of its values",
        given=_shown(value),
        expected=", ".join(options),
        remedy=f"name one{f'; did you mean {near}?' if near else ''}",
    )


def did_you_mean(value: Any, allowed: Iterable[str]) -> str | None:
    """The member of `allowed` that `value` was probably meant to be; `None` where none is near, or it is no text."""
    if not isinstance(value, str):
        return None
    near = difflib.get_close_matches(value, [str(option) for option in allowed], n=1)
    return near[0] if near else None


def count(name: str, value: Any, least: int = 1) -> int:
    """An integer of at least `least`.

    Raises:
        ArgumentError, ArgumentTypeError: it is less, or no integer.
    """
    number = integer(name, value)
    if number < least:
        raise ArgumentError(
            f"{name} is out of range",
            given=number,
            expected=f"an integer of at least {least}",
            remedy="choose a larger number",
        )
    return number


def finite(name: str, value: Any) -> float:
    """A finite number.

    Raises:
        ArgumentError, ArgumentTypeError: it is not finite, or no number.
    """
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        number = float(value)
    except OverflowError:  # an integer beyond every float
        number = math.inf
    except (TypeError, ValueError):
        raise ArgumentTypeError(
            f"{name} is not a number",
            given=_shown(value),
            expected="a finite number",
            remedy="pass a float",
        ) from None
    if not math.isfinite(number):
        raise ArgumentError(f"{name} is not finite", given=number, expected="a finite number", remedy="choose one")
    return number


def integer(name: str, value: Any) -> int:
    """An integer, also numpy's; bool is refused.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ArgumentTypeError(
            f"{name} is not an integer", given=_shown(value), expected="an integer", remedy="pass an int"
        ) from None


def _shown(value: Any) -> Any:
    """Text in quotation marks, anything else as it is: a message can say integers of any length, `repr` cannot."""
    return repr(value) if isinstance(value, str) else value

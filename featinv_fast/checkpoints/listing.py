"""Lists of names in messages: counted, the first few shown, none of them long enough to hide the rest."""

from __future__ import annotations

from collections.abc import Iterable

LISTED = 10  # how many names of each kind an error shows
LONGEST = 160  # characters of a name


def listed(names: Iterable[str]) -> str:
    """The first names in order, and "..." where there are more."""
    names = sorted(names)
    return ", ".join(short(name) for name in names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def short(text: object) -> str:
    """A name or value from a file as it is shown in a message: of bounded length, and printable everywhere."""
    shown = str(text).encode(errors="backslashreplace").decode()
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."

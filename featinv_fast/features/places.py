"""What messages call the items of a call: their places in the whole run, not in the batch that they travel in."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence

Place = int | str

_place: contextvars.ContextVar[Callable[[int], Place]] = contextvars.ContextVar("place", default=int)


def place_of(item: int) -> Place:
    """What a message calls item `item` of the call that finds something to say about it."""
    return _place.get()(item)


@contextlib.contextmanager
def items_at(places: int | Sequence[Place]) -> Iterator[None]:
    """Within the block, warnings and errors call an item by its place in the whole run, or by its name.

    Blocks nest: a number in an inner one is an item of the block around it. Hold none open across a `yield`.

    Args:
        places: of the items of a call, or the place of the first one, which the others follow.
    """
    around = _place.get()

    def place(item: int) -> Place:
        if isinstance(places, int):
            return around(places + item)
        here = places[item] if item < len(places) else item
        return here if isinstance(here, str) else around(here)

    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)

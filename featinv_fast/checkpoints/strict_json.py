"""JSON that somebody else wrote: read with one meaning and a bounded depth, or refused with a ValueError."""

from __future__ import annotations

import collections
import json
from typing import Any

from featinv_fast.checkpoints.listing import listed

DEEPEST = 32  # what is read here has a depth of 5


def parse_json(text: str | bytes) -> Any:
    """The content of a JSON text in UTF-8.

    Raises:
        ValueError: it is no JSON, has a key twice, an integer beyond 64 bits, or is nested too deeply; the message says
            which.
    """
    text = text.decode() if isinstance(text, bytes) else text
    try:
        content = json.loads(text, object_pairs_hook=_unique, parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_depth(content)
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        twice = [name for name, count in counts.items() if count > 1]
        raise ValueError(f"it has {len(twice)} duplicate keys: {listed(twice)}")
    return entries


def _integer(digits: str) -> int:
    # Larger ones are no count of anything, and fit neither a float nor a tensor.
    if len(digits) > 20 or not -(2**63) <= (value := int(digits)) < 2**64:
        raise ValueError(f"it has an integer of {len(digits)} digits")
    return value


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(DEEPEST):
        level = [child for item in level for child in _children(item) if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEEPEST} deep")


def _children(item: Any) -> list[Any]:
    return list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else []

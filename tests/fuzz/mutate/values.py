"""Mutations of nested plain values (what JSON and TOML say), and their text."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

INTEGERS = (
    0, 1, -1, 2, 3, 5, 7, 8, 16, 31, 32, 64, 127, 128, 255, 256, 1000, 4096, 20_000, 65_535, 10**6, 2**31 - 1, 2**31,
    2**32, 10**12, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**31), -(2**63), 10**30, 10**400,
)  # fmt: skip
FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 1.5, 1e-320, 1e-8, 1e8, 1e38, 1e39, 1e308, float("inf"), float("-inf"))
TEXTS = (
    "", " ", "0", "1", "-1", "none", "null", "nan", "true", "final", "nchw", "tokens", "fp16", "ddim", "..", "../x",
    "/", "a/b", "a\\b", "C:\\x", "\x00", "a\x00b", "\n", "\x1b[31m", "\ud800", "\u202e", "é", "名" * 50, "x" * 300,
    "x" * 100_000, "%s", "{}", "{0.__class__}", "1" * 5000, "[" * 3000, '{"a": 1}', "1x1x1", "6x5x5", "99999999x1x1",
    "9" * 5000 + "x1x1",
)  # fmt: skip
# What no value of Python's becomes: put into the text where the mutant holds the marker.
MARKERS = {
    '"<deep list>"': "[" * 100_000 + "]" * 100_000,
    '"<deep object>"': '{"a":' * 50_000 + "1" + "}" * 50_000,
    '"<many digits>"': "1" + "0" * 5000,
    '"<beyond floats>"': "1e999",
}


def anything(random: Random, depth: int = 2) -> Any:
    """A value of any kind, mostly of those that are hard on readers; nested at most `depth` times."""
    match random.randrange(10 if depth else 7):
        case 0 | 1 | 2:
            return random.choice(INTEGERS)
        case 3:
            return random.choice((*FLOATS, float("nan")))
        case 4 | 5:
            return random.choice(TEXTS)
        case 6:
            return random.choice((None, True, False))
        case 7:
            return [anything(random, depth - 1) for _ in range(random.choice((0, 1, 2, 3, 4, 64)))]
        case 8:
            return {random.choice(TEXTS[:20]): anything(random, depth - 1) for _ in range(random.randrange(3))}
    return random.choice(tuple(MARKERS)).strip('"')


def mutated(random: Random, value: Any, *, changes: int | None = None) -> Any:
    """A copy of a nested value with a few of its entries changed, removed, renamed, doubled or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(changes or random.choice((1, 1, 1, 2, 3))):
        value = _changed(random, value)
    return value


def nudged(random: Random, value: Any) -> Any:
    """Something like `value`: of its kind, nearby."""
    match value:
        case bool():
            return not value
        case int():
            return random.choice(
                (value + 1, value - 1, 2 * value, -value, value // 2, value * 1000, float(value % 10**300))
            )
        case float():
            return random.choice((-value, value * 2, value / 1000, value * 1e30, int(value) if abs(value) < 1e9 else 0))
        case str():
            return random.choice((value + "x", value[1:], value.upper(), value * 2, f" {value}", value[::-1]))
        case list():
            return random.choice((value[1:], value + value, value[::-1], [*value, 1], [value], value[:1] * 100))
    return anything(random)


def text_of(random: Random, value: Any) -> str:
    """The JSON of a mutant. Now and then with what only text can have: a key twice, something between the tokens."""
    text = json.dumps(value)
    for marker, replacement in MARKERS.items():
        text = text.replace(marker, replacement, 1)
    if random.random() < 0.03:
        keys = [part for part in text.split('"')[1:40:2] if part]
        if len(keys) > 1:
            text = text.replace(f'"{random.choice(keys)}"', f'"{random.choice(keys)}"', 1)
    if random.random() < 0.03:
        place = random.randrange(len(text) + 1)
        text = text[:place] + random.choice((",", "]", "}", '"', "NaN", "\x00", "//", "'")) + text[place:]
    return text


def _changed(random: Random, value: Any) -> Any:
    holder, key = _place(random, value)
    if holder is None:
        return anything(random)
    match random.randrange(10):
        case 0 | 1 | 2:
            holder[key] = anything(random)
        case 3 | 4 | 5:
            holder[key] = nudged(random, holder[key])
        case 6:
            del holder[key]
        case 7 if isinstance(holder, dict):
            holder[random.choice((f"{key}x", key.upper(), key[1:], random.choice(TEXTS)))] = holder.pop(key)
        case 8 if isinstance(holder, dict):
            holder[random.choice((f"{key}_2", *TEXTS[:20]))] = copy.deepcopy(holder[key])
        case _:
            other, elsewhere = _place(random, value)
            if other is not None:
                holder[key] = copy.deepcopy(other[elsewhere])
    return value


def _place(random: Random, value: Any) -> tuple[Any, Any]:
    """A container somewhere in `value`, and a key or index of it; (None, None) where there is no entry."""
    holder, key = None, None
    while isinstance(value, dict | list) and value:
        holder, key = value, random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
        value = value[key]
        if random.random() < 0.15:
            break
    return holder, key

"""The text of TOML files with mutated values. Everything deeper than a table is written within a line."""

from __future__ import annotations

import json
import math
from random import Random
from typing import Any

from mutate import values

# Values that TOML alone has.
OTHERS = (
    "1979-05-27T07:32:00Z", "1979-05-27", "07:32:00", "0xFF", "0o7", "1_000", "'''x'''", '"""\n"""', "+nan", "-inf",
    "{}", "[[]]", "0x" + "F" * 5000,
)  # fmt: skip
LINES = ("[[training]]", "a.b.c = 1", "= 1")


def text_of(random: Random, value: Any) -> str:
    """The TOML of a mutant."""
    if not isinstance(value, dict):
        return f"x = {_inline(value)}\n"
    lines = [f"{_key(key)} = {_inline(entry)}" for key, entry in value.items() if not isinstance(entry, dict)]
    for key, entry in value.items():
        if isinstance(entry, dict):
            lines += [f"[{_key(key)}]", *(f"{_key(inner)} = {_inline(inmost)}" for inner, inmost in entry.items())]
    if random.random() < 0.1 and lines:
        place = random.randrange(len(lines))
        lines[place] = f"{lines[place].partition(' = ')[0]} = {random.choice(OTHERS)}"
    if random.random() < 0.03 and lines:
        lines.insert(random.randrange(len(lines)), random.choice((random.choice(lines), *LINES)))
    text = "\n".join(lines) + "\n"
    for marker, replacement in values.MARKERS.items():
        text = text.replace(marker, replacement.replace('"a":', "a="), 1)
    return text


def _key(key: str) -> str:
    return key if key.isidentifier() and key.isascii() else _quoted(key)


def _inline(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float() if not math.isfinite(value):
            return str(value)
        case int() if abs(value) >= 10**4000:
            return "1" + "0" * 400
        case int() | float():
            return str(value)
        case list():
            return f"[{', '.join(map(_inline, value))}]"
        case dict():
            return f"{{{', '.join(f'{_key(key)} = {_inline(entry)}' for key, entry in value.items())}}}"
        case None:
            return '""'
    return _quoted(str(value))


def _quoted(text: str) -> str:
    return json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False).replace("\x7f", "\\u007f")

"""Mutations of numpy's files: the literal of their header, its length, the version, the data."""

from __future__ import annotations

import ast
import math
import struct
from random import Random
from typing import Any

from mutate import plain

MAGIC = b"\x93NUMPY"
DTYPES = (
    "<f4", "<f2", "<f8", ">f4", "<i4", "|b1", "|O", "|S4", "<U4", "<c8", "<M8[s]", "|V4", "<f16", "f", "<f3", "",
    "object", "<m8", [("a", "<f4")], [("a", "<f4", (2, 2))], ["a"], [("a",)], ("<f4", (3,)), None, 4, {"a": 1},
    "f4,f4", "<f4" * 100, "(1000000,)f4", "V4294967296", "S2147483647", "float32", "(", "é", "|f4,", [], [("", "|V0")],
    [("x", [("y", "|O")])],
)  # fmt: skip
SIZES = (
    0,
    1,
    2,
    5,
    -1,
    -5,
    2**20,
    2**31,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    1.0,
    True,
    None,
    "5",
    (5,),
)
# A header is read by a parser of Python literals: what such parsers give up on.
LITERALS = (
    "(" * 5000 + ")" * 5000, "[" * 100_000, "-" * 100_000 + "1", "{'shape': 9**9**9}", "__import__('os')",
    "{" + "'a': 1," * 3000, "1" * 5000, "{'descr': '<f4', 'fortran_order': False, 'shape': (5L,)}", "{'a': 1}", "{}",
    "[]", "1", "'", "\\", "\x00", "{'descr': '<f4', 'fortran_order': False, 'shape': (6, 5, 5), }\n\n\n  x", "{**{}}",
    "f'{1}'", "{1:2", "\tx", "0777", "1_0", "{'descr': '<f4', 'fortran_order': False, 'shape': (6,\n 5, 5)",
    "b'\\xff'", "'\\N{x}'", "{[]: 1}", "{'descr': ..., 'shape': ()}",
)  # fmt: skip


def written(header: Any, data: bytes, *, version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    """A `.npy` file; `header` is a dict, or text to be taken as it is."""
    text = (header if isinstance(header, str) else repr(header)).encode("utf-8", "surrogatepass")
    width = "<H" if version[0] == 1 else "<I"
    start = len(MAGIC) + 2 + struct.calcsize(width)
    text += b" " * (-(start + len(text) + 1) % 64) + b"\n"
    size = len(text) if length is None else length
    packed = struct.pack(width, size & (0xFFFF if width == "<H" else 0xFFFFFFFF))
    return MAGIC + bytes(version) + packed + text + data


def mutated(random: Random, shape: tuple[int, ...], data: bytes) -> bytes:
    """A mutant of the file of a float32 array."""
    header = {"descr": "<f4", "fortran_order": random.random() < 0.2, "shape": shape}
    kind = random.randrange(20)
    if kind == 0:
        return plain.mutated(random, written(header, data), first=128)
    if kind == 1:
        return written(header, data, version=random.choice(((1, 0), (2, 0), (3, 0), (0, 0), (4, 0), (255, 255))))
    if kind == 2:
        return written(header, data, length=random.choice((0, 1, 10, 60, 117, 119, 1000, 65_535, 2**31, 2**32 - 1)))
    if kind in (3, 4):
        return written(random.choice(LITERALS), data, version=random.choice(((1, 0), (2, 0), (3, 0))))
    if kind == 5:
        return written(header, random.choice((b"", data[:-1], data + b"x", data * 3)))
    if kind in (6, 7):
        header["descr"] = random.choice(DTYPES)
        return written(header, data * random.choice((1, 2)))
    if kind == 8:
        values = (0, 1, None, "x", 2.0, [])
        return written(header | {random.choice(("fortran_order", "extra", "", "shape")): random.choice(values)}, data)
    if kind == 9:
        del header[random.choice(tuple(header))]
        return written(header, data)
    if kind in (10, 11):  # other values that fit
        descr = random.choice(("<f2", "<f8", ">f4", ">f8", "<i4", "|b1", "<c8", "|u1", "<f4"))
        item = int(descr[2])
        sizes = tuple(random.choice((1, 2, 3, 5, 6)) for _ in range(random.choice((0, 1, 2, 3, 4, 5))))
        content = random.randbytes(item * math.prod(sizes))
        return written(header | {"descr": descr, "shape": sizes}, content)
    if kind == 12:
        sizes = (*shape, *[1] * random.choice((1, 28, 29, 30, 60, 70)))
        return written(header | {"shape": sizes}, data)
    sizes = list(shape)
    for _ in range(random.choice((1, 1, 2))):
        sizes[random.randrange(len(sizes))] = random.choice(SIZES)
    return written(header | {"shape": tuple(sizes)}, random.choice((data, b"")))


def declared(content: bytes) -> int | None:
    """See `Target.declared`: the array's size where the header is a literal, and the data are all there."""
    if content[: len(MAGIC)] != MAGIC or content[6:7] not in (b"\1", b"\2", b"\3"):
        return None
    width = "<H" if content[6] == 1 else "<I"
    start = 8 + struct.calcsize(width)
    if len(content) < start:
        return None
    (length,) = struct.unpack(width, content[8:start])
    text = content[start : start + length]
    if len(text) < length or length > 100_000:
        return None
    try:
        header = ast.literal_eval(text.decode("latin1").strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
    return len(content) - start - length if isinstance(header, dict) else None

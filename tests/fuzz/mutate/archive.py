"""Mutations of zip archives: of their members, with the right checksums, or of the records that describe them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from random import Random

LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
# Offset and width of the fields of each kind of record.
FIELDS = {
    LOCAL: ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
    CENTRAL: ((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (42, 4)),
    END: ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
}
VALUES = (0, 1, 2, 8, 9, 12, 14, 93, 99, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def members(content: bytes) -> dict[str, bytes]:
    """Names and contents of a sound archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(contents: Mapping[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def mutated_records(random: Random, content: bytes) -> bytes:
    """An archive with one or two fields of its records changed."""
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2))):
        kind = random.choice(tuple(FIELDS))
        starts = [place for place in _places(content, kind) if place + 46 <= len(content) or kind == END]
        if starts:
            offset, width = random.choice(FIELDS[kind])
            place = random.choice(starts) + offset
            old = int.from_bytes(content[place : place + width], "little")
            new = random.choice((*VALUES, old + 1, max(0, old - 1), 2 * old)) & (256**width - 1)
            changed[place : place + width] = new.to_bytes(width, "little")
    return bytes(changed)


def mutated_names(random: Random, contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """Members lost, renamed, emptied, cut or exchanged."""
    contents = dict(contents)
    names = list(contents)
    name, other = random.choice(names), random.choice(names)
    match random.randrange(5):
        case 0:
            del contents[name]
        case 1:
            contents[random.choice((f"{name}x", f"../{name}", f"/{name}", name.rpartition("/")[2], ""))] = contents.pop(
                name
            )
        case 2:
            contents[name] = b""
        case 3:
            contents[name] = contents[name][: random.randrange(len(contents[name]) + 1)]
        case 4:
            contents[name], contents[other] = contents[other], contents[name]
    return contents


def is_archive(content: bytes) -> bool:
    """Whether the directory of an archive can be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return bool(archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return False


def _places(content: bytes, signature: bytes) -> list[int]:
    places, start = [], 0
    while (start := content.find(signature, start)) >= 0:
        places.append(start)
        start += 4
    return places

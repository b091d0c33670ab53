"""Mutations of headers with fields at fixed places, and of lists of segments: BMP, JPEG, TIFF, WebP."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from random import Random

from mutate import plain

VALUES = (0, 1, 2, 3, 4, 5, 7, 8, 16, 24, 32, 255, 256, 257, 1000, 0x7FFF, 0xFFFF, 2**20, 2**31 - 1, 2**31, 2**32 - 1)
# (offset, width in bytes) of a BMP's header.
BMP = ((2, 4), (10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), *((offset, 4) for offset in range(30, 54, 4)))
# The kinds of JPEG's segments, and what applications put into some of them.
MARKERS = (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xDB, 0xC4, 0xDD, 0xE1, 0xE2, 0xEE)
PAYLOADS = (b"Exif\x00\x00II*\x00" + b"\xff" * 30, b"Exif\x00\x00", b"ICC_PROFILE\x00\x01\x02x", b"")


def mutated(random: Random, content: bytes, places: list[tuple[int, int]], order: str = "little") -> bytes:
    """`content` with one or two of the fields (offset, width) at `places` changed."""
    changed = bytearray(content)
    for offset, width in random.sample(places, min(len(places), random.choice((1, 1, 2)))):
        old = int.from_bytes(content[offset : offset + width], order)
        new = random.choice((*VALUES, old + 1, max(0, old - 1), 2 * old)) & (256**width - 1)
        changed[offset : offset + width] = new.to_bytes(width, order)
    return bytes(changed)


def tiff_places(content: bytes) -> list[tuple[int, int]]:
    """Tag, kind, count and value of each entry of a little-endian TIFF's first directory, and where the next one is."""
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    entries = [start + 2 + 12 * index for index in range(count)]
    parts = ((0, 2), (2, 2), (4, 4), (8, 4))
    return [(entry + offset, width) for entry in entries for offset, width in parts] + [(4, 4), (start, 2)]


def riff_places(content: bytes) -> list[tuple[int, int]]:
    """Lengths of a WebP's chunks, and the first bytes of each."""
    places, start = [(4, 4)], 12
    while start + 8 <= len(content):
        (length,) = struct.unpack_from("<I", content, start + 4)
        places += [(start + 4, 4), *((start + 8 + index, 1) for index in range(min(10, length)))]
        start += 8 + length + length % 2
    return [place for place in places if sum(place) <= len(content)]


def mutated_jpeg(random: Random, content: bytes) -> bytes:
    """A JPEG with segments changed, lost, doubled or put in between, and lengths that are right."""
    segments, scan = list(_segments(content)), content[content.index(b"\xff\xda") :]
    for _ in range(random.choice((1, 1, 2))):
        place = random.randrange(len(segments))
        marker, data = segments[place]
        match random.randrange(6):
            case 0:
                del segments[place]
            case 1:
                segments.insert(random.randrange(len(segments) + 1), (marker, data))
            case 2:
                segments[place] = (random.choice(MARKERS), data)
            case 3:
                segments.insert(0, (random.choice(MARKERS[-3:]), random.choice(PAYLOADS)))
            case 4 if len(data) > 1:
                places = [(index, 1) for index in range(min(len(data), 40))]
                segments[place] = (marker, mutated(random, data, places, "big"))
            case _:
                scan = plain.mutated(random, scan)
        if not segments:
            break
    return (
        b"\xff\xd8"
        + b"".join(struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data for marker, data in segments)
        + scan
    )


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    place = 2
    while content[place : place + 2] != b"\xff\xda":
        (length,) = struct.unpack_from(">H", content, place + 2)
        yield content[place + 1], content[place + 4 : place + 2 + length]
        place += 2 + length

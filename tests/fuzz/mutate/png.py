"""PNG files, a chunk at a time, with checksums that are right."""

from __future__ import annotations

import struct
import zlib
from random import Random

from mutate import plain

SIGNATURE = b"\x89PNG\r\n\x1a\n"
EDGES = (0, 1, 2, 7, 9, 16, 17, 64, 1000, 20_000, 65_535, 2**20, 2**31 - 1, 2**31, 2**32 - 1)
TEXT = b"Comment\x00"
# Chunks that readers know beside those of the picture.
OTHERS = (
    (b"tEXt", TEXT + b"x" * 200), (b"zTXt", TEXT + b"\x00" + zlib.compress(bytes(2**22))),
    (b"iTXt", TEXT + b"\x01\x00en\x00\x00" + zlib.compress(bytes(2**22))), (b"iTXt", b"a\x00\x02\x00\x00\x00\xff\xfe"),
    (b"iCCP", b"name\x00\x00" + zlib.compress(bytes(3000))), (b"iCCP", b"x" * 90), (b"gAMA", struct.pack(">I", 0)),
    (b"pHYs", struct.pack(">IIB", 0, 2**32 - 1, 7)), (b"tRNS", b"\x00\x01"), (b"tRNS", b"\x00" * 300),
    (b"cHRM", b"\xff" * 32), (b"PLTE", b"\x00" * 768), (b"PLTE", b"\x00" * 4), (b"PLTE", b""), (b"sRGB", b"\xff"),
    (b"eXIf", b"II*\x00" + b"\xff" * 40), (b"eXIf", b""), (b"acTL", struct.pack(">II", 2**31 - 1, 0)),
    (b"fcTL", b"\x00" * 26), (b"fdAT", b"\x00" * 4), (b"tIME", b""), (b"IHDR", b"\x00" * 13), (b"IDAT", b""),
    (b"IEND", b"x"), (b"\x00\x00\x00\x00", b""), (b"ABCD", b"critical"), (b"zTXt", b""),
)  # fmt: skip


def split(content: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and data of each chunk of a sound file."""
    chunks, place = [], len(SIGNATURE)
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def joined(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A file of these chunks."""
    return SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def mutated(random: Random, content: bytes) -> bytes:
    """A PNG with one or two of its chunks changed, lost, doubled, moved or put in between."""
    chunks = split(content)
    for _ in range(random.choice((1, 1, 2))):
        place = random.randrange(len(chunks))
        kind, data = chunks[place]
        match random.randrange(8):
            case 0 | 1:
                chunks[0] = (b"IHDR", _header(random, chunks[0][1]))
            case 2:
                chunks.insert(random.randrange(1, len(chunks) + 1), random.choice(OTHERS))
            case 3:
                chunks.insert(random.randrange(len(chunks) + 1), (kind, data))
            case 4 if len(chunks) > 1:
                del chunks[place]
            case 5:
                chunks[place] = (kind, plain.mutated(random, data))
            case 6:
                pixels = zlib.decompress(b"".join(data for kind, data in split(content) if kind == b"IDAT"))
                pixels = random.choice((plain.mutated(random, pixels), pixels[:-1], bytes(2**22), b""))
                chunks = [*(chunk for chunk in chunks if chunk[0] != b"IDAT"), (b"IDAT", zlib.compress(pixels))]
                chunks.append((b"IEND", b""))
            case _:
                chunks.insert(random.randrange(1, len(chunks) + 1), random.choice(OTHERS))
    return joined(chunks)


def _header(random: Random, data: bytes) -> bytes:
    fields = list(struct.unpack(">IIBBBBB", data.ljust(13, b"\x00")[:13]))
    place = random.randrange(len(fields))
    fields[place] = random.choice(EDGES if place < 2 else (0, 1, 2, 3, 4, 6, 8, 16, 32, 255))
    return struct.pack(">IIBBBBB", *fields)

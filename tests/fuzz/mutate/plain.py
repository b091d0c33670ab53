"""Mutations of bytes that know nothing of their meaning."""

from __future__ import annotations

from random import Random

TELLING = (0x00, 0x01, 0x7F, 0x80, 0xFF, 0x0A, 0x22, 0x2E, 0x50, 0x7B, 0x7D)


def mutated(random: Random, content: bytes, *, first: int | None = None) -> bytes:
    """`content` with one to four changes: bits, bytes, stretches lost, repeated, moved or filled, an end cut off.

    Args:
        random: draws the changes.
        content: of a file.
        first: change only the first so many bytes, where headers are.
    """
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        limit = min(len(changed), first or len(changed))
        if not limit:
            return bytes(changed)
        begin = random.randrange(limit)
        end = min(limit, begin + random.choice((1, 2, 4, 8, 32, 256)))
        match random.randrange(8):
            case 0:
                changed[begin] ^= 1 << random.randrange(8)
            case 1:
                changed[begin] = random.choice(TELLING)
            case 2:
                changed[begin:end] = random.randbytes(end - begin)
            case 3:
                del changed[begin:end]
            case 4:
                changed[begin:begin] = changed[begin:end] * random.choice((1, 2, 64))
            case 5:
                changed[begin:end] = bytes([random.choice(TELLING)]) * (end - begin)
            case 6:
                del changed[begin:]
            case 7:
                changed += random.randbytes(random.choice((1, 4, 100)))
    return bytes(changed)

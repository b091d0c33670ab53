"""Mutations of pickles, an opcode at a time."""

from __future__ import annotations

import pickletools
import struct
from random import Random

from mutate import values

# Callables and types that a restricted unpickler knows or must refuse.
GLOBALS = (
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch._utils _rebuild_sparse_tensor",
    "torch._utils _rebuild_meta_tensor_no_storage", "torch._utils _rebuild_qtensor", "torch FloatStorage",
    "torch HalfStorage", "torch LongStorage", "torch BoolStorage", "torch ComplexDoubleStorage", "torch Size",
    "torch device", "torch float16", "torch.nn.parameter Parameter", "torch._tensor _rebuild_from_type_v2",
    "collections OrderedDict", "collections defaultdict", "builtins bytearray", "builtins set", "builtins complex",
    "builtins eval", "os system", "numpy ndarray", "numpy.core.multiarray _reconstruct", "_codecs encode", "no such",
    "torch._utils _rebuild_device_tensor_from_numpy", "torch storage", "torch.serialization _get_layout",
)  # fmt: skip
PLAIN = tuple(bytes([code]) for code in b".02(t}])NRbsueaQ\x85\x94")
WORDS = ("cpu", "cuda:0", "meta", "0", "1", "99", "", "x" * 1000, "../0", "\x00", "state_dict", "storage")


def mutated(random: Random, content: bytes) -> bytes:
    """A pickle with one to three opcodes changed, lost, doubled, exchanged or put in between."""
    parts = split(content)
    for _ in range(random.choice((1, 1, 2, 3))):
        if len(parts) < 2:
            break
        place = random.randrange(len(parts) - 1)
        match random.randrange(10):
            case 0:
                del parts[place]
            case 1:
                parts[place:place] = parts[place : place + random.choice((1, 1, 4))]
            case 2:
                other = random.randrange(len(parts))
                parts[place], parts[other] = parts[other], parts[place]
            case 3:
                parts.insert(place, random.choice(PLAIN) * random.choice((1, 1, 1, 5000)))
            case _:  # most opcodes have no argument: find one that has
                telling = [index for index, part in enumerate(parts) if part[:1] in b"KMJXcGI\x8a\x8b\x88\x89\x8c"]
                if telling:
                    place = random.choice(telling)
                    parts[place] = _changed(random, parts[place])
    return b"".join(parts)


def split(content: bytes) -> list[bytes]:
    """The opcodes of a sound pickle, each with its argument."""
    positions = [position for _, _, position in pickletools.genops(content)]
    ends = [*positions[1:], len(content)]
    return [content[begin:end] for begin, end in zip(positions, ends, strict=True)]


def integer(value: int) -> bytes:
    """The opcode that pushes an integer."""
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded if len(encoded) < 256 else b"J\xff\xff\xff\x7f"


def text(value: str) -> bytes:
    """The opcode that pushes a string."""
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _changed(random: Random, part: bytes) -> bytes:
    """Another argument, and now and then another kind of value."""
    if random.random() < 0.1:
        return random.choice((b"N", b"}", b"]", b")", b"\x88", b"G" + struct.pack(">d", random.choice(values.FLOATS))))
    if part[:1] in b"X\x8c":
        return text(random.choice((*WORDS, *values.TEXTS[:30])))
    if part[:1] == b"c":
        module, _, name = random.choice(GLOBALS).partition(" ")
        return f"c{module}\n{name}\n".encode()
    return integer(random.choice(values.INTEGERS))

"""`.ckpt` files: torch's zip archives and the bare pickles of old, with odd tensors and with mutated opcodes."""

from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import tiny
import torch
from mutate import archive, opcodes, plain, values
from target import Target
from torch import Tensor

from featinv_fast.checkpoints import check_finite, load
from featinv_fast.checks.names import PICKLES

# What saving raises where something odd cannot be saved; an array of no strides would have to be written in full.
UNSAVABLE = (TypeError, NotImplementedError, RuntimeError, MemoryError)


class Pickles(Target):
    """Whole checkpoints, of which a few tensors are of interest, and small files for what the reader alone does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        # Of halves: a zip archive is written for each mutant.
        self.whole = {
            name: tensor.half()
            for name, tensor in load(tiny.write_checkpoint(folder / "tiny.safetensors")).named_tensors().items()
        }
        names = ("denoiser.unet.encoder.conv_in.weight", "condition_encoder.conv_in.weight", "featinv.prompt.cond")
        self.small = {name: self.whole[name].clone() for name in names}

    def mutant(self, random: Random, folder: Path) -> Path:
        """A file under one of the suffixes that pickles have."""
        path = folder / f"mutant{random.choice(PICKLES)}"
        kind = random.random()
        tensors = dict(self.whole if kind < 0.15 else self.small)
        if kind < 0.5:
            _make_odd(random, tensors)
        content = _saved(random, _wrapped(random, tensors))
        if kind >= 0.35:
            content = _mutated(random, content)
        path.write_bytes(content)
        return path

    def declared(self, path: Path) -> int | None:
        """The file's own size: what tensors claim is to be found there."""
        content = path.read_bytes()
        sound = (
            archive.is_archive(content) if content.startswith(b"PK") else content[:1] == b"\x80" and len(content) > 9
        )
        return len(content) if sound else None

    def run(self, path: Path) -> None:
        """Load it and look at every weight."""
        check_finite(load(path).named_tensors())


class Foreign:
    """An object that no checkpoint holds."""


def _make_odd(random: Random, tensors: dict[str, Any]) -> None:
    """Put something else in the place of a tensor or two."""
    oddities: tuple[Callable[[Tensor], Any], ...] = (
        lambda t: t.new_zeros(()).expand(t.shape),
        lambda t: t.new_zeros(1).as_strided(t.shape, [0] * t.ndim),
        lambda t: t.new_zeros(1).expand(2**20, 2**20),
        lambda t: torch.empty(t.shape, device="meta"),
        lambda _: torch.empty(2**40, device="meta"),
        lambda t: t.float().to_sparse(),
        lambda t: t.to(random.choice((torch.int8, torch.bool, torch.complex64, torch.float64, torch.float8_e4m3fn))),
        lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
        torch.nn.Parameter,
        lambda t: t.flatten(),
        lambda t: t.transpose(0, -1),
        lambda t: t[..., :0],
        lambda t: t + float("nan"),
        lambda t: t.numpy(),
        lambda _: values.anything(random),
        lambda _: Foreign(),
        lambda t: {"weight": t},
        lambda t: torch.nested.nested_tensor([t.flatten(), t.flatten()[:1]]),
        lambda _: torch.zeros(2, 3, requires_grad=True),
    )
    for _ in range(random.choice((1, 1, 2))):
        name = random.choice(list(tensors))
        try:
            tensors[name] = random.choice(oddities)(tensors[name])
        except (TypeError, ValueError, AttributeError, RuntimeError):
            tensors[name] = None  # the second change of an odd one


def _wrapped(random: Random, tensors: dict[str, Any]) -> Any:
    match random.randrange(10):
        case 0:
            return {"state_dict": tensors, "epoch": 3, "optimizer_states": [{"state": {}}]}
        case 1:
            return {"state_dict": collections.OrderedDict(tensors), "hyper_parameters": values.anything(random)}
        case 2:
            broken = (
                {"state_dict": {}},
                {"state_dict": None},
                {"model": tensors},
                {**tensors, 7: 1},
                list(tensors.values()),
            )
            return random.choice(broken)
    return tensors


def _saved(random: Random, content: Any) -> bytes:
    buffer = io.BytesIO()
    if random.random() < 0.05:
        try:
            return pickle.dumps(content, protocol=random.choice((0, 2, 4, 5)))
        except UNSAVABLE:
            content = None
    try:
        torch.save(content, buffer, _use_new_zipfile_serialization=random.random() < 0.75)
    except UNSAVABLE:  # not everything odd can be saved
        buffer = io.BytesIO()
        torch.save({}, buffer)
    return buffer.getvalue()


def _mutated(random: Random, content: bytes) -> bytes:
    if not content.startswith(b"PK") or random.random() < 0.1:
        if content.startswith(b"\x80") and random.random() < 0.7:
            return _old_format(random, content)
        return plain.mutated(random, content)
    if random.random() < 0.15:
        return archive.mutated_records(random, content)
    members = archive.members(content)
    if random.random() < 0.2:
        return archive.written(archive.mutated_names(random, members))
    name = next(name for name in members if name.endswith("data.pkl"))
    if random.random() < 0.15:  # byte order, version and the like
        name = random.choice([other for other in members if other != name])
        return archive.written(members | {name: random.choice((b"", b"big", b"little", b"\xff" * 40, b"999999"))})
    return archive.written(members | {name: opcodes.mutated(random, members[name])})


def _old_format(random: Random, content: bytes) -> bytes:
    """Five pickles one after another (magic number, version, system, object, keys), then the storages."""
    parts, position = [], 0
    for _ in range(5):
        stream = io.BytesIO(content[position:])
        try:
            for _ in opcodes.pickletools.genops(stream):
                pass
        except ValueError:
            return plain.mutated(random, content)
        parts.append(content[position : position + stream.tell()])
        position += stream.tell()
    place = random.choice((0, 1, 2, 3, 3, 3, 3, 4, 4))
    parts[place] = opcodes.mutated(random, parts[place])
    return b"".join([*parts, content[position:]])


TARGET = Pickles

"""Files of feature maps."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import torch
from mutate import archive, arrays, plain, tensors
from target import Target

from featinv_fast.checks.names import FEATURES
from featinv_fast.config import FeatureSpec
from featinv_fast.features import FeatureStatisticsWarning, check_statistics, load_features, non_finite_items, normalise

SHAPE = (3, 6, 5, 5)
SPEC = FeatureSpec(channels=6, height=5, width=5, absolute_max=4.0)
BOMB_BYTES = 128 * 2**20


class Features(Target):
    """Three maps of six channels, in every format that is read."""

    warns = (FeatureStatisticsWarning,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
        self.data = values.tobytes()
        self.npy = arrays.written({"descr": "<f4", "fortran_order": False, "shape": SHAPE}, self.data)

    def mutant(self, random: Random, folder: Path) -> Path:
        """A file of one of the formats."""
        suffix = random.choice(FEATURES)
        path = folder / f"mutant{suffix}"
        match suffix:
            case ".npy":
                path.write_bytes(arrays.mutated(random, SHAPE, self.data))
            case ".npz":
                path.write_bytes(self._archive(random))
            case ".safetensors":
                shapes = {"features": SHAPE} | ({"labels": (3,)} if random.random() < 0.3 else {})
                dtype = random.choice(("F32", "F32", "F16", "BF16", "F64", "I64"))
                tensors.write_mutant(random, path, tensors.header_of(shapes, dtype, {"format": "pt", "from": "a test"}))
            case _:
                buffer = io.BytesIO()
                torch.save({"features": torch.zeros(SHAPE)}, buffer)
                path.write_bytes(plain.mutated(random, buffer.getvalue()))
        return path

    def declared(self, path: Path) -> int | None:
        """The file's size, or what the members of an archive say they are."""
        content = path.read_bytes()
        match path.suffix:
            case ".npy":
                return arrays.declared(content)
            case ".safetensors":
                return tensors.declared(path)
            case ".npz" if archive.is_archive(content):
                with zipfile.ZipFile(io.BytesIO(content)) as members:
                    return max((member.file_size for member in members.infolist()), default=0)
        return len(content) if archive.is_archive(content) else None

    def run(self, path: Path) -> None:
        """Read it as `featinv invert` does, map by map, and look at the values."""
        maps = normalise(load_features(path), SPEC)
        non_finite_items(maps)
        check_statistics(maps, SPEC)

    def _archive(self, random: Random) -> bytes:
        compression = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
        kind = random.random()
        if kind < 0.01:
            return _bomb(random)
        if kind < 0.1:
            return plain.mutated(random, archive.written({"features.npy": self.npy}, compression=compression))
        if kind < 0.3:
            return archive.mutated_records(random, archive.written({"features.npy": self.npy}, compression=compression))
        members = {"features.npy": arrays.mutated(random, SHAPE, self.data)}
        if random.random() < 0.3:
            members |= {random.choice(("labels.npy", "other.txt", "features", "é.npy")): self.npy}
        if kind < 0.4:
            members = archive.mutated_names(random, members)
        return archive.written(members, compression=compression)


def _bomb(random: Random) -> bytes:
    """A few hundred kilobytes that become hundreds of megabytes, or claim to."""
    maps = BOMB_BYTES // (4 * 6 * 5 * 5)
    claimed = random.choice((maps, 2**40, 3))
    header = arrays.written({"descr": "<f4", "fortran_order": False, "shape": (claimed, 6, 5, 5)}, b"")
    content = archive.written({"features.npy": header + bytes(BOMB_BYTES)}, compression=zipfile.ZIP_DEFLATED)
    if random.random() < 0.5:  # the directory tells less than there is
        place = content.index(archive.CENTRAL) + 24
        content = content[:place] + struct.pack("<I", 1000) + content[place + 4 :]
    return content


TARGET = Features

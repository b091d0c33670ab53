"""Manifests of engines, and weight files that do not fit them, with the right checksums: they are tested elsewhere."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from random import Random
from typing import Any

import tiny
import torch
from mutate import plain, tensors, values
from target import Target

from featinv_export.exporter import export
from featinv_export.options import ExportOptions
from featinv_fast import Runtime
from featinv_fast.engine import open_engine
from featinv_fast.features import FeatureStatisticsWarning

MANIFEST, CHECKSUM, WEIGHTS = "manifest.json", "manifest.json.sha256", "weights.safetensors"
# What says how the engine computes. The rest, notes mostly, is longer and would take most of the mutations.
SECTIONS = ("model", "features", "sampling", "time_bias_size", "max_batch", "optimal_batch", "precision", "kept_fp32")


LARGEST_MAP = 2**22  # values of a map that it pays to invert here


class Manifests(Target):
    """An engine of the tiny model; the files that a mutant leaves alone are links to it."""

    warns = (FeatureStatisticsWarning,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        checkpoint = tiny.write_checkpoint(folder / "tiny.safetensors")
        self.engine = export(ExportOptions(checkpoint=checkpoint, out=folder / "tiny.engine"))
        self.manifest = json.loads((self.engine / MANIFEST).read_bytes())
        self.weights = tensors.read_header(self.engine / WEIGHTS)

    def mutant(self, random: Random, folder: Path) -> Path:
        """A folder with another manifest, or with other weights."""
        if random.random() < 0.15:
            return self._with_other_weights(random, folder)
        return self._written(folder, self._text(random), random.random() < 0.98)

    def kept(self, entry: Path, folder: Path) -> Path:
        """The engine with the changes that an entry tells: tables within tables, as the manifest has them."""
        return self._written(folder, json.dumps(_merged(self.manifest, json.loads(entry.read_bytes()))).encode())

    def declared(self, path: Path) -> int | None:
        """The files of the folder, where the manifest is JSON of its checksum and of a known format."""
        text = (path / MANIFEST).read_bytes()
        if (path / CHECKSUM).read_bytes()[:64] != hashlib.sha256(text).hexdigest().encode():
            return None
        try:
            manifest = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(manifest, dict) or manifest.get("format_version") != self.manifest["format_version"]:
            return None
        return sum(file.stat().st_size for file in path.iterdir())

    def run(self, path: Path) -> None:
        """Open it, load it and invert a map."""
        runtime = Runtime(open_engine(path, hard_links=True), backend="torch", device="cpu")
        spec = runtime.engine.manifest.features
        shape = (1, spec.channels, spec.height or 5, spec.width or 5)
        if math.prod(shape) <= LARGEST_MAP:
            runtime.invert(torch.zeros(shape), steps=1)

    def _text(self, random: Random) -> bytes:
        if random.random() < 0.1:
            return plain.mutated(random, json.dumps(self.manifest).encode())
        mutant: Any = self.manifest
        if random.random() < 0.75:
            section = {name: mutant[name] for name in SECTIONS}
            changed = values.mutated(random, section)
            if isinstance(changed, dict):
                mutant = {name: value for name, value in mutant.items() if name not in section} | changed
        else:
            mutant = values.mutated(random, mutant)
        return values.text_of(random, mutant).encode("utf-8", "surrogatepass")

    def _with_other_weights(self, random: Random, folder: Path) -> Path:
        mutant = tensors.write_mutant(random, folder / WEIGHTS, self.weights)
        content = mutant.read_bytes()
        described = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        manifest = self.manifest | {"files": self.manifest["files"] | {WEIGHTS: described}}
        engine = self._written(folder, json.dumps(manifest).encode())
        mutant.replace(engine / WEIGHTS)
        return engine

    def _written(self, folder: Path, manifest: bytes, checksum: bool = True) -> Path:
        engine = folder / "engine"
        engine.mkdir()
        for name in self.manifest["files"]:
            os.link(self.engine / name, engine / name)
        (engine / MANIFEST).write_bytes(manifest)
        digest = hashlib.sha256(manifest).hexdigest() if checksum else "0" * 64
        (engine / CHECKSUM).write_bytes(f"{digest}  {MANIFEST}\n".encode())
        return engine


def _merged(value: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = {
        name: _merged(value[name], change) if isinstance(change, dict) else change for name, change in changes.items()
    }
    return value | merged


TARGET = Manifests

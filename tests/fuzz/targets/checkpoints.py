"""Checkpoints of every layout: headers of safetensors files, indices of shards, configurations in folders."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random

import tiny
import torch
from mutate import plain, tensors, values
from target import Target

from featinv_fast.checkpoints import BaseModel, Checkpoint, check_finite, load, load_base
from featinv_fast.models import FeatInv


class Checkpoints(Target):
    """Mutants of one file each; the others of a folder are as they were."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        tiny.write_layouts(folder)
        (folder / "shards").mkdir()
        tiny.write_shards(folder / "ours.safetensors", folder / "shards")
        self.headers = {path: tensors.read_header(path) for path in folder.rglob("*.safetensors")}

    def mutant(self, random: Random, folder: Path) -> Path:
        """A file, or a folder of which one file is mutated."""
        kind = random.choice(("ours", "ours", "ldm", "ldm", "base", "diffusers", "diffusers", "shards"))
        source = self.folder / kind
        if not source.is_dir():
            source = source.with_suffix(".safetensors")
            return tensors.write_mutant(random, folder / source.name, self.headers[source])
        whole = folder / kind
        shutil.copytree(source, whole, copy_function=os.link)
        chosen = random.choice(sorted(path for path in whole.rglob("*") if path.is_file()))
        chosen.unlink()
        original = source / chosen.relative_to(whole)
        if chosen.suffix == ".json":
            _write_json_mutant(random, chosen, original.read_bytes())
        elif random.random() < 0.95:
            tensors.write_mutant(random, chosen, self.headers[original])
        return whole / "model.safetensors.index.json" if kind == "shards" else whole

    def declared(self, path: Path) -> int | None:
        """The data of all files, where each has a header that is JSON."""
        files = [path] if path.suffix == ".safetensors" else sorted(_root(path).rglob("*.*"))
        total = 0
        for file in files:
            if file.suffix == ".json":
                if not _is_json(file):
                    return None
            elif file.suffix == ".safetensors":
                size = tensors.declared(file)
                if size is None:
                    return None
                total += size
        return total

    def run(self, path: Path) -> None:
        """Load it, check its weights and put them into the networks."""
        if path.name == "base.safetensors":
            base: BaseModel = load_base(path)
            check_finite(base.tensors)
            return
        checkpoint: Checkpoint = load(path)
        check_finite(checkpoint.named_tensors())
        with torch.device("meta"):
            model = FeatInv(checkpoint.config)
        model.load_state_dict(dict(checkpoint.tensors), strict=True, assign=True)


def _root(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return True


def _write_json_mutant(random: Random, path: Path, content: bytes) -> None:
    if random.random() < 0.15:
        path.write_bytes(plain.mutated(random, content))
    else:
        mutant = values.text_of(random, values.mutated(random, json.loads(content)))
        path.write_bytes(mutant.encode("utf-8", "surrogatepass"))


TARGET = Checkpoints

"""What a run depends on beside its recipe's numbers: the contents of its images and of every file that it reads.

A run that goes on compares them with what it started from. Every file is hashed whole at every start (SHA-256, about
a second for 1 GB); of images, only those that changed since they were last looked at, see `scan`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featinv_fast.checks import file_errors
from featinv_fast.config import to_dict
from featinv_fast.errors import ConfigError
from featinv_fast.train import processes
from featinv_fast.train.data import Data, ImageFolder, identity
from featinv_fast.train.progress import CHECKPOINTS, holds_progress
from featinv_fast.train.scan import digest_of
from featinv_fast.train.settings import ControlNetRecipe, Recipe

IMAGES = "images.json"
NAMED = 5  # images that a message names


def run_identity(recipe: Recipe, files: Mapping[str, Path], data: Data) -> dict[str, Any]:
    """What may not differ between two starts of one run, the optimisation aside, as JSON types.

    Where files are hashed, their names may differ: what is in them counts.
    """
    settings = to_dict(recipe)
    free = {"folder", "out", "training", "validation", *files}
    free |= {"data.on_unreadable"}  # the images say which were left out
    if isinstance(data, ImageFolder):
        free.add("data.source")
    if isinstance(recipe, ControlNetRecipe):  # defaults that are stored with the weights
        free |= {"steps", "guidance_scale", "unconditional_strength"}
    for path in free:
        *tables, name = path.split(".")
        table = settings
        for one in tables:
            table = table[one]
        table.pop(name)
    inputs = {}
    for key, file in files.items():
        with file_errors(file):
            inputs[key] = digest_of(file)
    return settings | {"inputs": inputs, "images": _images(recipe, data)}


def refuse_other_images(folder: Path, data: Data) -> None:
    """Refuse to go on with a run on other images than it started with; a run that starts takes note of its images.

    Raises:
        ConfigError: with the names of images that came, went or changed.
    """
    if not isinstance(data, ImageFolder):
        return
    record, now = folder / IMAGES, data.selection.contents()
    if not processes.is_main():
        return  # the main process has looked
    if not holds_progress(folder / CHECKPOINTS):
        with file_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            temporary = record.with_suffix(".partial")
            temporary.write_text(json.dumps(now, indent=0), encoding="ascii")
            temporary.replace(record)
        return
    try:
        then: dict[str, str] = json.loads(record.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return  # the checkpoints know the hash of all images
    changes = {
        "new": [name for name in now if name not in then],
        "gone": [name for name in then if name not in now],
        "changed": [name for name in now if name in then and now[name] != then[name]],
    }
    differing = [f"{len(names)} {how} ({_some(names)})" for how, names in changes.items() if names]
    if differing:
        raise ConfigError(
            "the folder holds a run on other images",
            given=f"{', '.join(differing)} in {data.selection.root}",
            expected=f"the {len(then)} images that the run in {folder} started with",
            remedy=f"bring these images back, use another folder, or remove {folder} to start again",
        )


def _images(recipe: Recipe, data: Data) -> dict[str, Any]:
    if isinstance(data, ImageFolder):
        images = data.selection
        return {
            "sha256": images.sha256(),
            "count": len(images.paths),
            "classes": list(images.class_names),
        }
    probe = np.linspace(0, len(data) - 1, min(len(data), 16)).astype(np.int64)
    told = hashlib.sha256()
    for name, values in sorted(data.batch(probe).items()):
        told.update(name.encode() + np.ascontiguousarray(values).tobytes())
    return identity(data, recipe.data) | {"probe": told.hexdigest()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")

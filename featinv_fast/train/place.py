"""Where a run reads and writes: everything about it that can be known, and refused, before a network is loaded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featinv_fast.checks import refuse_inputs
from featinv_fast.config import to_dict
from featinv_fast.errors import ConfigError
from featinv_fast.train.data import Data, ImageFolder, open_data, open_held_out
from featinv_fast.train.input_files import input_files
from featinv_fast.train.provenance import refuse_other_images, run_identity
from featinv_fast.train.result import Result
from featinv_fast.train.settings import SCENES, Recipe

# Where checkpoints note the recipe that made them, and what it was given.
RECIPE_NOTE = "featinv.info.recipe"
INPUTS_NOTE = "featinv.info.inputs"
# What the recipe does not say of the training, a JSON list of sentences.
REMARKS_NOTE = "featinv.info.remarks"


@dataclasses.dataclass(frozen=True)
class Place:
    """A run's inputs and outputs.

    Attributes:
        root: what the recipe's relative paths start from.
        folder: of the run.
        data: the images.
        held_out: those that are only validated on, or None.
        identity: what may not differ between two starts of the run, its optimisation aside.
        result: the file to make.
        notes: metadata that say how it was made.
        progress: show bars on stderr.
    """

    root: Path
    folder: Path
    data: Data
    held_out: Data | None
    identity: Mapping[str, Any]
    result: Result
    notes: Mapping[str, str]
    progress: bool

    @property
    def cache(self) -> Path:
        """For kept latents and features, which all recipes share."""
        return cache_of(self.root)


def prepare(recipe: Recipe, root: Path, *, config: Path | None, force: bool, progress: bool) -> Place:
    """Look at all inputs and outputs of a run.

    Args:
        recipe: what is to be trained.
        root: what its relative paths start from.
        config: the file that it was read from.
        force: replace whatever file is where the result goes.
        progress: show bars on stderr.

    Raises:
        InputNotFoundError: an input is not there.
        OutputExistsError: the result would replace an input, or what this run did not write.
        TrainingError: images cannot be read.
        ConfigError: the folder holds a run on other images.
    """
    folder, out = root / recipe.folder, root / recipe.out
    files = input_files(recipe, root)
    read = dict(files) if config is None else {**files, "the recipe itself": config}
    if recipe.data.source != SCENES:
        read["data.source"] = root / recipe.data.source
    # What a run shows of itself would become images to train on.
    shown = {f"the run's {name}": folder / name for name in ("images", "validation")}
    refuse_inputs({"out": out, "folder": folder, **shown}, read)
    if out.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ConfigError(
            "out is where the run's folder is",
            given=f"{out} and {folder}",
            expected="two places",
            remedy="change `out` or `folder`",
        )
    result = Result(out, folder, force=force)
    data = open_data(recipe.data, root, records=cache_of(root), progress=progress)
    held_out = None
    if recipe.validation is not None:
        held_out = open_held_out(recipe.data, root, records=cache_of(root), progress=progress)
    refuse_other_images(folder, data)
    identity = run_identity(recipe, files, data)
    inputs = {name: identity[name] for name in ("inputs", "images")}
    if isinstance(data, ImageFolder):
        inputs["skipped"] = len(data.selection.skipped)
    return Place(
        root=root,
        folder=folder,
        data=data,
        held_out=held_out,
        identity=identity,
        result=result,
        notes={
            RECIPE_NOTE: json.dumps(to_dict(recipe), sort_keys=True),
            INPUTS_NOTE: json.dumps(inputs, sort_keys=True),
        },
        progress=progress,
    )


def cache_of(root: Path) -> Path:
    """The folder of what is computed from images and kept."""
    return root / "cache"

"""Checkpoints of a run: whole or not there, the last two kept, the newest whole one found again."""

from __future__ import annotations

import logging
import os
import pickle  # for its exception; nothing is unpickled with it
import re
from pathlib import Path
from typing import Any

import torch

from featinv_fast.errors import TrainingError

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"  # the folder of a run that holds them
KEPT = 2
_NAME = re.compile(r"step_(\d{9})\.pt")


def save_progress(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the checkpoint of `step`: to a temporary file, flushed to the disk, then renamed. Older ones go."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:09d}.pt"
    temporary = path.with_suffix(".partial")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _remove_old(folder)
    return path


def load_progress(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, or None; what a killed run left half written is removed.

    Raises:
        TrainingError: there are checkpoints, and none of them can be read.
    """
    for partial in folder.glob("*.partial"):
        partial.unlink()
    _remove_old(folder)
    found = _found(folder)
    for step, path in reversed(found):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            logger.warning("the checkpoint of step %d is damaged (%s): %s", step, path, error)
            continue
        return state
    if found:
        raise TrainingError(
            "no checkpoint of this run can be read",
            given=[str(path) for _, path in found],
            expected="at least one whole file",
            remedy="start again in another folder, or remove these files",
        )
    return None


def holds_progress(folder: Path) -> bool:
    """Whether there are checkpoints, whole or not."""
    return bool(_found(folder))


def _remove_old(folder: Path) -> None:
    for _, old in _found(folder)[:-KEPT]:
        old.unlink()


def _found(folder: Path) -> list[tuple[int, Path]]:
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.glob("step_*.pt"))
    return sorted((int(match[1]), path) for match, path in matches if match)

"""What a run shows of itself: a CSV log, TensorBoard where it is installed, and grids of images."""

from __future__ import annotations

import csv
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from torch import Tensor

from featinv_fast.train.images import to_bytes

LOG, VALIDATION = "log.csv", "validation.csv"


class Log:
    """Rows of numbers by step, in a CSV file and for TensorBoard.

    Args:
        folder: of the run.
        step: rows beyond it, which a killed run wrote after its last checkpoint, are dropped.
        name: of the file. TensorBoard shows each file as a run of its own, so that equal columns share a chart.
    """

    def __init__(self, folder: Path, step: int, name: str = LOG) -> None:
        self._path = folder / name
        rows = read_log(folder, name) if self._path.exists() else []
        self._columns = list(rows[0]) if rows else []
        kept = [row for row in rows if row["step"] <= step]
        if kept != rows:
            self._rewrite(kept)
        self._board = _board(folder / "tensorboard" / ("" if name == LOG else self._path.stem), step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row."""
        row = {"step": step, **values}
        if not self._columns:
            self._columns = list(row)
            self._rewrite([])
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(_exact(row))
        for name, value in values.items():
            if self._board is not None:
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def _rewrite(self, rows: list[dict[str, float]]) -> None:
        temporary = self._path.with_suffix(".partial")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(_exact, rows))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


def read_log(folder: Path, name: str = LOG) -> list[dict[str, float]]:
    """The rows of a run's log. A last row that a killed run wrote half is left out."""
    lines = (folder / name).read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return [{name: float(text) for name, text in row.items()} for row in csv.DictReader(whole)]


def save_grid(path: Path, images: Tensor) -> None:
    """Save `images` [rows, columns, 3, H, W] in [-1, 1] as one PNG."""
    from PIL import Image

    pixels = to_bytes(images).cpu().numpy()
    rows, columns, height, width, _ = pixels.shape
    grid = pixels.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(grid)).save(path)


def _exact(row: Mapping[str, float]) -> dict[str, str]:
    """Numbers as text that gives the same numbers again."""
    return {name: str(int(value)) if name == "step" else repr(float(value)) for name, value in row.items()}


def _board(folder: Path, step: int) -> Any:
    """TensorBoard's writer, None where it is not installed."""
    try:
        board = importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        return None
    return board.SummaryWriter(str(folder), purge_step=step + 1 if step else None)

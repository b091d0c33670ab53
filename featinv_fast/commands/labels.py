"""The true classes of images: the folders that they lie in, or a table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from featinv_fast.checks import file_errors
from featinv_fast.errors import ArgumentError, UnreadableFileError
from featinv_fast.features import class_folders

FOLDERS = "folders"
COLUMNS = ("name", "label")


def read_labels(labels: str, root: Path, names: Sequence[str]) -> list[str]:
    """The label of each image.

    Args:
        labels: "folders", or a CSV file with the columns `name` and `label`; others are left alone.
        root: the folder of the images.
        names: of the images, relative to it.

    Raises:
        ArgumentError: an image has no label.
        UnreadableFileError: the table is none.
    """
    if labels == FOLDERS:
        folders = class_folders(root, [root / name for name in names])
        if folders is None:
            raise ArgumentError(
                "images lie in no folder of a class",
                given=root,
                expected="a sub-folder for each class, with all images",
                remedy="sort the images into folders, or name a table of their labels",
                command_remedy="sort the images into folders, or name a table of their labels: --labels FILE.csv",
            )
        return folders
    table = _table(Path(labels))
    missing = [name for name in names if name not in table]
    if missing:
        raise ArgumentError(
            "images without a label",
            given=f"{len(missing)} of {len(names)}, such as {missing[:3]}",
            expected=f"a line for each in {labels}, by its path below {root}",
            remedy="add them to the table, or leave these images out",
        )
    return [table[name] for name in names]


def _table(path: Path) -> dict[str, str]:
    try:
        with file_errors(path), path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
    except (ValueError, csv.Error):
        lines = []
    if not lines or any(line.get(column) is None for line in lines for column in COLUMNS):
        raise UnreadableFileError(
            "this is no table of labels",
            given=path,
            expected=f"CSV in UTF-8 whose first line has the columns {' and '.join(COLUMNS)}",
            remedy="write it so: name,label and below it 1.jpg,tiger cat",
        )
    return {line["name"]: line["label"] for line in lines}

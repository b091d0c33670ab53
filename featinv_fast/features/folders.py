"""Folders of images: which files, in which order, of which classes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from featinv_fast.errors import ArgumentError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def list_images(folder: str | Path) -> list[Path]:
    """The image files below `folder` in natural order ("2.png" before "10.png"); an image file gives itself.

    Hidden files and folders are left out; links to folders are not followed.

    Raises:
        ArgumentError: no such folder, or no image in it.
    """
    folder = Path(folder)
    if folder.is_file():
        found = [folder] if folder.suffix.lower() in IMAGE_SUFFIXES else []
    else:
        found = sorted(_walk(folder), key=lambda path: _natural_order(path.relative_to(folder)))
    if not found:
        raise ArgumentError(
            "there are no images" if folder.exists() else "there is no such folder",
            given=folder,
            expected=f"a folder with files ending in {', '.join(IMAGE_SUFFIXES)}",
            remedy="check the path, or convert the images",
        )
    return found


def class_folders(folder: str | Path, paths: Sequence[Path]) -> list[str] | None:
    """The class of each image below `folder`: its sub-folder there. None where an image lies in no sub-folder."""
    parts = [path.relative_to(folder).parts for path in paths if path != Path(folder)]
    if len(parts) < len(paths) or any(len(names) < 2 for names in parts):
        return None
    return [names[0] for names in parts]


def _walk(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return found


def _natural_order(path: Path) -> tuple[list[list[tuple[str, int]]], str]:
    # The split alternates between text and digits, so like is compared with like; the path settles "01" and "1".
    def key(part: str) -> list[tuple[str, int]]:
        pieces = re.split(r"([0-9]+)", part.casefold())
        return [(text, int(digits or 0)) for text, digits in zip(pieces[::2], [*pieces[1::2], ""], strict=True)]

    return [key(part) for part in path.parts], str(path)

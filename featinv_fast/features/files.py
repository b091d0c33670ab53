"""Feature files and image folders."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from featinv_fast.errors import ArgumentError

if TYPE_CHECKING:
    from PIL import Image

FEATURE_SUFFIXES = (".npy", ".npz", ".safetensors")
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_KEY = "features"


def load_features(path: str | Path) -> np.ndarray | torch.Tensor:
    """The feature array of a file, as stored; no file can run code.

    Args:
        path: `.npy` (mapped into memory, read-only), `.npz` or `.safetensors`. The last two hold one array, or several
            of which one is called "features".

    Raises:
        ArgumentError: no such file, another suffix, a damaged file, pickled objects, or no single array to choose.
    """
    path = _existing_file(Path(path))
    match path.suffix.lower():
        case ".npy":
            return _load_npy(path)
        case ".npz":
            return _load_npz(path)
        case ".safetensors":
            return _load_safetensors(path)
    raise ArgumentError(
        "features are not read from this kind of file",
        given=path,
        expected=", ".join(FEATURE_SUFFIXES),
        remedy="save them with numpy.save or safetensors.torch.save_file",
    )


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
        )
    return found


def class_folders(folder: str | Path, paths: Sequence[Path]) -> list[str] | None:
    """The class of each image below `folder`: its sub-folder there. None where an image lies in no sub-folder."""
    parts = [path.relative_to(folder).parts for path in paths if path != Path(folder)]
    if len(parts) < len(paths) or any(len(names) < 2 for names in parts):
        return None
    return [names[0] for names in parts]


def read_image(path: str | Path) -> Image.Image:
    """An image file as RGB, without its transparency and not turned by its EXIF tag, like the official code.

    Raises:
        ArgumentError: no such file, or not a readable image.
    """
    from PIL import Image

    path = _existing_file(Path(path))
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ArgumentError("this image cannot be read", given=f"{path}: {error}", expected="a whole image") from error


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise ArgumentError("there is no such file", given=path, expected="a file")
    return path


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(path, mode="r")  # refuses objects and whatever is no .npy file
    except (ValueError, OSError) as error:
        raise _unreadable(path, error) from error


def _load_npz(path: Path) -> np.ndarray:
    try:
        # Opened here: numpy leaves its own handle of a damaged archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            array: np.ndarray = archive[_chosen_key(list(archive.files), path)]
    except ArgumentError:
        raise
    # numpy gives a lone array, which is no context manager, for a .npy file under this name: a TypeError.
    except (ValueError, EOFError, OSError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from error
    return array


def _load_safetensors(path: Path) -> torch.Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(_chosen_key(list(file.keys()), path))
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    return tensor


def _chosen_key(keys: list[str], path: Path) -> str:
    if _KEY in keys:
        return _KEY
    if len(keys) == 1:
        return keys[0]
    raise ArgumentError(
        "it is unclear which array holds the features",
        given=f"{path} with {sorted(keys)[:10] or 'no arrays'}",
        expected=f'one array, or one called "{_KEY}"',
    )


def _unreadable(path: Path, error: Any) -> ArgumentError:
    return ArgumentError(
        "this feature file cannot be read",
        given=f"{path}: {error}",
        expected="a whole file of floating-point numbers; pickled objects are never loaded",
        remedy="save the array again with numpy.save or safetensors.torch.save_file",
    )


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

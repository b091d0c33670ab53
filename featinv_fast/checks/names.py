"""Names that say how a file is read or written."""

from __future__ import annotations

import re
from pathlib import Path

from featinv_fast.checks.paths import StrPath, as_path, refuse_existing, require_input
from featinv_fast.errors import ArgumentError, CheckpointError

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
FEATURES = (".npy", ".npz", ".safetensors")
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
# The index of shards: `model.safetensors.index.json`, in one of its spellings.
INDEX = re.compile(r".*\.(safetensors|bin)\.index(\.\w+)?\.json")
# The layout of checkpoints that is a folder; all others are one file.
FOLDER_LAYOUT = "diffusers"


def require_picture_name(path: StrPath, *, force: bool) -> Path:
    """An output file whose name says how to write a picture.

    Raises:
        ArgumentError: it has another name.
        OutputExistsError, FileError: see `refuse_existing`.
    """
    path = as_path(path)
    if path.suffix.lower() not in PICTURES:
        raise ArgumentError(
            "this is no name of a picture",
            given=path,
            expected=f"a name that ends in {', '.join(PICTURES)}",
            remedy=f"name it {path.name}.png" if path.name else "name a file",
        )
    return refuse_existing(path, force=force, what="picture")


def require_feature_file(path: StrPath) -> Path:
    """A file that is there and whose name says how feature maps stand in it.

    Raises:
        InputNotFoundError, FileError: see `require_input`.
        ArgumentError: it has another name.
    """
    path = require_input(path, "file", expected="feature maps: .npy, .npz or .safetensors")
    if path.suffix.lower() not in FEATURES:
        raise ArgumentError(
            "features are not read from this kind of file",
            given=path,
            expected=", ".join(FEATURES),
            remedy="save them with numpy.save or safetensors.torch.save_file",
        )
    return path


def require_checkpoint(path: StrPath) -> Path:
    """A checkpoint that is there: a folder, or a file whose name says how it is read.

    Raises:
        InputNotFoundError, FileError: see `require_input`.
        CheckpointError: a file of another name.
    """
    path = require_input(path, "checkpoint", expected="a .safetensors or .ckpt file, or a folder of diffusers")
    if not path.is_dir():
        require_checkpoint_name(path)
    return path


def require_checkpoint_name(path: Path) -> None:
    """Refuse files whose names do not say how tensors stand in them.

    Raises:
        CheckpointError: it is such a file.
    """
    if path.suffix not in (".safetensors", *PICKLES) and not INDEX.fullmatch(path.name):
        raise CheckpointError(
            "the file's name does not say how it is to be read",
            given=path,
            expected="a folder, or a name that ends in .safetensors, .safetensors.index.json, " + ", ".join(PICKLES),
            remedy="rename the file by its format",
        )


def require_layout_name(path: StrPath, layout: str) -> Path:
    """A place for a checkpoint whose name suits its layout.

    Raises:
        ArgumentError: it does not.
    """
    path = as_path(path)
    if (path.suffix == ".safetensors") == (layout == FOLDER_LAYOUT):
        raise ArgumentError(
            f"the destination's name does not suit the layout '{layout}'",
            given=path,
            expected="a folder" if layout == FOLDER_LAYOUT else "a name that ends in .safetensors",
            remedy="name it so, or choose another layout",
        )
    return path

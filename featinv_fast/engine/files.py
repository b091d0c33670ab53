"""Names and content of the files in and beside an engine folder."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path

from featinv_fast.engine.manifest import CHECKSUM_NAME, MANIFEST_NAME, FileInfo
from featinv_fast.errors import ArgumentError

# What an export keeps beside the engine while it runs; an interrupted one leaves it behind.
LOCK_SUFFIX = ".featinv-lock"
PARTIAL_SUFFIX = ".featinv-partial"
PREVIOUS_SUFFIX = ".featinv-previous"

CHUNK_BYTES = 4 * 2**20


def real_path(path: str | os.PathLike[str]) -> Path:
    """The absolute path without symbolic links, which need not exist.

    Raises:
        ArgumentError: the path cannot exist on this system.
    """
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:
        raise ArgumentError(
            "this is not a path", given=repr(path), expected="a path of this system", remedy="name another"
        ) from error


def set_aside_path(folder: Path) -> Path:
    """Where the old engine waits, complete, while the new one takes its place."""
    return folder.with_name(f".{folder.name}{PREVIOUS_SUFFIX}")


def entry_names(folder: Path) -> set[str]:
    """Names of everything in a folder."""
    return {entry.name for entry in folder.iterdir()}


def is_member_name(name: str) -> bool:
    """Whether a file of an engine may have this name: no folders, nothing hidden, the same on every system."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) is not None and name not in (MANIFEST_NAME, CHECKSUM_NAME)


def file_problem(path: Path, *, hard_links: bool = False) -> str | None:
    """Why this is not a plain file that only its folder holds, or `None`.

    Whoever can write to the other end of a link changes the engine behind its checksums. `hard_links` allows files
    that other folders hold, too.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return f"{path.name} is missing"
    if stat.S_ISLNK(status.st_mode):
        return f"{path.name} is a symbolic link"
    if not stat.S_ISREG(status.st_mode):
        return f"{path.name} is not a regular file"
    if status.st_nlink > 1 and not hard_links:
        return f"{path.name} is a hard link"
    return None


def hash_files(folder: Path, names: Collection[str]) -> dict[str, FileInfo]:
    """Hash and size of files, several at a time (hashing releases the interpreter lock)."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        return dict(zip(names, pool.map(lambda name: _hash_file(folder / name), names), strict=True))


def _hash_file(path: Path) -> FileInfo:
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return FileInfo(sha256=digest.hexdigest(), size=size)


def manifest_checksum(content: bytes) -> bytes:
    """The bytes of the manifest's checksum file, as `sha256sum` writes them."""
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST_NAME}\n".encode("ascii")

"""A look at every image before a training: what its file holds, and whether it can be read.

What was found out is kept in a file, with each image's size, times and inode, and not looked at again while these stay
as they are. No program can set the time of a file's last change back, so a changed content cannot hide behind an old
date; files that changed within seconds of the look are looked at again, as their clock may not have moved.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from featinv_fast.errors import ArgumentError
from featinv_fast.features import read_image

THREADS = 8
FRESH = 2_000_000_000  # nanoseconds: coarser clocks than this are of no file system that holds images

# Size, time of change of the content and of the file, inode.
Stamp = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Look:
    """What was found out about a file.

    Attributes:
        sha256: of its content; empty where the system does not give it.
        error: why it is no readable image; None for one that is.
    """

    sha256: str
    error: str | None


class Scan:
    """Looks at images.

    Args:
        root: of the images.
        record: the file in which to keep what was found out; None to keep it in memory alone.
        progress: show a bar on stderr.
    """

    def __init__(self, root: Path, record: Path | None = None, *, progress: bool = False) -> None:
        self._root = root
        self._record = record
        self._progress = progress
        self._known: dict[str, tuple[Stamp, Look]] = {} if record is None else _read(record)
        self._looked: set[str] = set()  # by this object, however fresh the file was

    def look(self, paths: Sequence[Path]) -> list[Look]:
        """What each image is; those that are not known yet are opened."""
        names = [name_of(path, self._root) for path in paths]
        unknown = {
            name: path
            for name, path in zip(names, paths, strict=True)
            if name not in self._looked and (name not in self._known or self._known[name][0] != _stamp(path))
        }
        try:
            self._open(unknown)
        finally:
            if unknown and self._record is not None:
                _write(self._record, self._known)
        self._looked.update(names)
        return [self._known[name][1] for name in names]

    def _open(self, unknown: dict[str, Path]) -> None:
        from tqdm import tqdm

        shown = self._progress and bool(unknown)
        bar = tqdm(total=len(unknown), desc="looking at images", unit="image", disable=not shown)
        with bar, ThreadPoolExecutor(THREADS, thread_name_prefix="scan") as pool:
            for name, found in zip(unknown, pool.map(_opened, unknown.values()), strict=True):
                self._known[name] = found
                bar.update()


def name_of(path: Path, root: Path) -> str:
    """The name of an image below `root`, the same on every system."""
    return path.name if path == root else path.relative_to(root).as_posix()


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, or of the names and contents of all files below a folder."""
    if path.is_dir():
        parts = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
        return hashlib.sha256("\n".join(f"{name}:{digest_of(file)}" for name, file in parts).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> Stamp | None:
    """What changes with the content; None where that cannot be told, or may not have shown yet."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _opened(path: Path) -> tuple[Stamp, Look]:
    now = time.time_ns()
    stamp = _stamp(path)
    try:
        look = Look(digest_of(path), _trouble(path))
    except OSError as error:
        look = Look("", f"{path}: {error.strerror or error}")
    if stamp is None or max(stamp[1:3]) > now - FRESH:
        stamp = (-1, 0, 0, 0)  # of no file: it is looked at again the next time
    return stamp, look


def _trouble(path: Path) -> str | None:
    try:
        read_image(path)
    except ArgumentError as error:
        return str(error.given)
    return None


def _read(record: Path) -> dict[str, tuple[Stamp, Look]]:
    """What an earlier scan kept; nothing where that cannot be read, or another version wrote it."""
    try:
        head, *lines = record.read_text(encoding="ascii").splitlines()
        if json.loads(head) != _head():
            return {}
        rows: Iterable[list[Any]] = map(json.loads, lines)
        return {name: (tuple(stamp), Look(sha256, error)) for name, stamp, sha256, error in rows}
    except (OSError, ValueError, TypeError):
        return {}


def _write(record: Path, known: dict[str, tuple[Stamp, Look]]) -> None:
    lines = [json.dumps(_head())]
    lines += [json.dumps([name, stamp, look.sha256, look.error]) for name, (stamp, look) in known.items()]
    record.parent.mkdir(parents=True, exist_ok=True)
    temporary = record.with_suffix(f".{os.getpid()}.partial")
    with temporary.open("w", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(record)


def _head() -> list[str]:
    """What reads images: another version may read them otherwise."""
    return [f"{package} {importlib.metadata.version(package)}" for package in ("featinv-fast", "pillow")]

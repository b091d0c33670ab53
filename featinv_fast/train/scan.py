"""A look at every image before a training: what its file holds, and whether it can be read.

What was found out is kept in a file, with each image's size, times and inode, and not looked at again while these stay
as they are. No program can set the time of a file's last change back, so a changed content cannot hide behind an old
date; files that changed within seconds of the look are looked at again, as their clock may not have moved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from featinv_fast.checks import file_errors
from featinv_fast.errors import ArgumentError
from featinv_fast.features import read_image

THREADS = 8
BLOCK = 256  # images between two lots of rows of the record
FRESH = 2_000_000_000  # nanoseconds: coarser clocks than this are of no file system that holds images

# Size, time of change of the content and of the file, inode.
Stamp = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Look:
    """What was found out about a file.

    Attributes:
        stamp: by which a change shows; None where the system does not give it.
        sha256: of its content; empty where the system does not give it.
        error: why it is no readable image; None for one that is.
    """

    stamp: Stamp | None
    sha256: str
    error: str | None


class Scan:
    """Looks at images.

    Args:
        root: of the images.
        record: the file in which to keep what was found out, row by row, also when the scan is killed; None to keep it
            in memory alone.
        progress: show a bar on stderr.
    """

    def __init__(self, root: Path, record: Path | None = None, *, progress: bool = False) -> None:
        self._root = root
        self._record = record
        self._progress = progress
        self._known: dict[str, Look] = {} if record is None else _read(record)
        self._looked: set[str] = set()  # by this object, however fresh the file was

    def look(self, paths: Sequence[Path]) -> list[Look]:
        """What each image is; those that are not known yet, or changed since then, are opened."""
        names = [name_of(path, self._root) for path in paths]
        unknown = [
            (name, path)
            for name, path in zip(names, paths, strict=True)
            if name not in self._looked and (name not in self._known or self._known[name].stamp != stamp_of(path))
        ]
        self._open(unknown)
        self._looked.update(names)
        return [self._known[name] for name in names]

    def _open(self, unknown: Sequence[tuple[str, Path]]) -> None:
        from tqdm import tqdm

        shown = self._progress and bool(unknown)
        bar = tqdm(total=len(unknown), desc="looking at images", unit="image", disable=not shown)
        with bar, ThreadPoolExecutor(THREADS, thread_name_prefix="scan") as pool:
            for start in range(0, len(unknown), BLOCK):
                names, files = zip(*unknown[start : start + BLOCK], strict=True)
                now = time.time_ns()
                found = dict(zip(names, pool.map(_opened, files), strict=True))
                self._known |= found
                if self._record is not None:
                    _append(self._record, {name: look for name, look in found.items() if _is_settled(look.stamp, now)})
                bar.update(len(found))


def name_of(path: Path, root: Path) -> str:
    """The name of an image below `root`, the same on every system."""
    return path.name if path == root else path.relative_to(root).as_posix()


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, or of the names and contents of all files below a folder."""
    if path.is_dir():
        parts = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
        text = "\n".join(f"{name}:{digest_of(file)}" for name, file in parts)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_of(path: Path) -> Stamp | None:
    """What changes with a file's content; None where the system does not tell."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _is_settled(stamp: Stamp | None, now: int) -> bool:
    """Whether a change after `now` must show in the stamp."""
    return stamp is not None and max(stamp[1:3]) < now - FRESH


def _opened(path: Path) -> Look:
    stamp = stamp_of(path)  # before the content: a change meanwhile then shows the next time
    try:
        return Look(stamp, digest_of(path), _trouble(path))
    except OSError as error:
        return Look(stamp, "", f"{path}: {error.strerror or error}")


def _trouble(path: Path) -> str | None:
    try:
        read_image(path)
    except ArgumentError as error:
        return str(error.given)
    return None


def _read(record: Path) -> dict[str, Look]:
    """What earlier scans kept, without damaged rows; nothing where another version wrote it."""
    try:
        head, *rows = record.read_text(encoding="ascii", errors="replace").split("\n")
    except OSError:
        return {}
    if head != _head():
        with file_errors(record):
            record.unlink(missing_ok=True)  # it would stand before the rows to come
        return {}
    known = {}
    for row in rows:
        with contextlib.suppress(ValueError, TypeError):
            name, stamp, sha256, error = json.loads(row)
            known[name] = Look(tuple(stamp), sha256, error)
    return known


def _append(record: Path, looks: Mapping[str, Look]) -> None:
    """Add rows. Each begins a line, so that one that a kill tears does not touch the next."""
    with file_errors(record):
        record.parent.mkdir(parents=True, exist_ok=True)
    with file_errors(record), record.open("a", encoding="ascii") as file:
        head = "" if file.tell() else _head()
        rows = (json.dumps([name, look.stamp, look.sha256, look.error]) for name, look in looks.items())
        file.write(head + "".join(f"\n{row}" for row in rows))


def _head() -> str:
    """What reads images: another version may read them otherwise."""
    return json.dumps([f"{package} {importlib.metadata.version(package)}" for package in ("featinv-fast", "pillow")])

"""What a job has finished, as append-only lines of JSON: what is not in its ledger was not done.

The first line tells whose work it is (see `open_ledger`). Then there are names of files that the job may write, before
it writes any of them, and rows of what it has finished, each after its files. Files are written under another name,
flushed and renamed. So a job that was killed at any moment finds whole files only, knows which of them are its own, and
repeats what has no row.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from featinv_fast.checks import file_errors, output_folder
from featinv_fast.engine.files import PARTIAL_SUFFIX
from featinv_fast.engine.lock import exclusive_lock
from featinv_fast.errors import FileError, LedgerError, LockedError, OutputExistsError

LEDGER = "ledger.jsonl"
LOCK = f".{LEDGER}.lock"
PARTIAL = re.compile(rf"\.[0-9a-f]{{16}}{re.escape(PARTIAL_SUFFIX)}")
FORMAT = 1
# A power cut may cost the rows of so many seconds, whose work is then repeated. A kill costs none.
FLUSH_SECONDS = 1.0


class Ledger:
    """A ledger that this process alone writes; `open_ledger` makes it.

    Attributes:
        folder: where the ledger is, and the job's files.
        rows: everything finished, in the order in which it was entered.
        files: names in `folder`, "/" between folders, that are the job's own.
    """

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self.files: set[str] = set()
        self._begun = False
        self._descriptor = descriptor
        self._flushed = time.monotonic()

    def claim(self, names: Iterable[str]) -> None:
        """Say which files the job may write from now on. Those that are its own already are left out.

        Raises:
            OutputExistsError: something that the job did not write has one of these names; nothing was claimed.
            FileError: the ledger cannot be written.
        """
        new = [name for name in names if name not in self.files]
        if not new:
            return
        folders = {str(PurePosixPath(name).parent) for name in new}
        there = _names_in(self.folder, folders)
        lowered = {name.casefold() for name in there}  # some file systems take upper and lower case for the same
        strange = [name for name in new if name in there or name.casefold() in lowered]
        if strange:
            raise _in_the_way(self.folder, strange)
        self._append([{"files": new}])
        self.flush()
        self.files.update(new)

    def write(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Write a file of the job's own: whole and on the disk, or not at all. May be called from several threads.

        Args:
            name: one that was claimed.
            write: writes the content.

        Raises:
            FileError: it cannot be written.
        """
        assert name in self.files, f"{name} was not claimed"
        path = self.folder / name
        partial = self.folder / f".{secrets.token_hex(8)}{PARTIAL_SUFFIX}"
        with file_errors(path):
            path.parent.mkdir(exist_ok=True)
            try:
                with partial.open("xb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise

    def enter(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Note what is finished; its files are written before.

        Raises:
            FileError: the ledger cannot be written.
        """
        self._append([{"done": row} for row in rows])
        self.rows.extend(dict(row) for row in rows)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def drop(self, names: Iterable[str]) -> None:
        """Remove files of the job's own, where they are, and their folders when nothing else is in them."""
        _remove(self.folder, [name for name in names if name in self.files])

    def flush(self) -> None:
        """Make sure that a power cut costs nothing of what was entered."""
        with file_errors(self.folder / LEDGER):
            _flush_folder(self.folder)
            os.fsync(self._descriptor)
        self._flushed = time.monotonic()

    def _begin(self, work: str, identity: Mapping[str, Any], remedy: str, *, restart: bool) -> None:
        """Take over what is there, or write the first line."""
        header, self.rows, self.files = _read(self.folder / LEDGER, self._descriptor)
        if restart:
            _remove(self.folder, self.files)
            self.rows, self.files = [], set()
        elif header is not None and not self._is_unused():
            differing = differences({"work": header.get("work"), **header["identity"]}, {"work": work, **identity})
            if differing:
                raise _another_job(self.folder, str(header.get("work")), differing, remedy)
        # What a kill left half-written; the lock says that nobody is writing it now.
        _remove(self.folder, [entry.name for entry in _entries(self.folder) if PARTIAL.fullmatch(entry.name)])
        if self._is_unused():
            self.files = set()
            os.ftruncate(self._descriptor, 0)
            self._append([{"ledger": FORMAT, "work": work, "identity": identity}])
        self._begun = True

    def _close(self) -> None:
        os.close(self._descriptor)
        if self._begun and self._is_unused():
            with contextlib.suppress(OSError):
                (self.folder / LEDGER).unlink()

    def _is_unused(self) -> bool:
        """Whether nothing is finished, and nothing that was claimed is there."""
        if self.rows:
            return False
        folders = {str(PurePosixPath(name).parent) for name in self.files}
        return self.files.isdisjoint(_names_in(self.folder, folders))

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Add lines in one write; of a write that fails nothing stays."""
        content = b"".join(_line(line) for line in lines)
        end = os.fstat(self._descriptor).st_size
        with file_errors(self.folder / LEDGER):
            try:
                if os.write(self._descriptor, content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # the disk took only a part
            except BaseException:
                os.ftruncate(self._descriptor, end)
                raise


@contextlib.contextmanager
def open_ledger(
    folder: Path, identity: Mapping[str, Any], *, work: str, remedy: str, restart: bool = False
) -> Iterator[Ledger]:
    """Begin a job in a folder, or go on with the one that the folder's ledger tells of, as its only writer.

    A job that ends before it has entered or claimed anything leaves neither a ledger nor a folder that was not there.

    Args:
        folder: made if needed, with its parents.
        identity: what must be the same to go on, as JSON types: the work, its settings, its tools.
        work: what the job is called in messages, such as "inversion".
        remedy: where the folder holds another job, how to begin in spite of that or elsewhere.
        restart: remove what the folder's ledger says that its job wrote, whichever it was, and begin anew.

    Raises:
        OutputExistsError: the folder holds a job of another identity; the message names what differs.
        LockedError: another process works in the folder.
        LedgerError: the ledger is damaged.
        FileError: the folder cannot be written.
    """
    folder = Path(os.path.realpath(folder))
    with contextlib.ExitStack() as cleanup:
        cleanup.enter_context(output_folder(folder))
        with file_errors(folder):
            cleanup.enter_context(exclusive_lock(folder / LOCK, work=work, place="folder", error=LockedError))
        path = folder / LEDGER
        with file_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o666)
        ledger = Ledger(folder, descriptor)
        cleanup.callback(ledger._close)  # noqa: SLF001 -- the two are one
        ledger._begin(work, json.loads(json.dumps(identity)), remedy, restart=restart)  # noqa: SLF001
        yield ledger


def read_job(folder: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Identity and rows of the job that the folder's ledger tells of; no identity where nothing was done.

    Raises:
        LedgerError: the ledger is damaged.
    """
    path = folder / LEDGER
    try:
        with file_errors(path):
            descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except FileError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None, []
        raise
    try:
        header, rows, _ = _read(path, descriptor, cut=False)
    finally:
        os.close(descriptor)
    return header["identity"] if header is not None and rows else None, rows


def differences(then: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Where two values of JSON types differ: name, one value, the other."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [*then, *(key for key in now if key not in then)]
        return [
            difference
            for key in keys
            for difference in differences(then.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if then == now else [(name, then, now)]


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def _read(
    path: Path, descriptor: int, *, cut: bool = True
) -> tuple[dict[str, Any] | None, list[dict[str, Any]], set[str]]:
    """Header, rows and files of a ledger. What follows the last whole line was being written when the job died."""
    header: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = []
    files: set[str] = set()
    end = 0
    with file_errors(path), open(descriptor, "rb", closefd=False) as file:
        for number, content in enumerate(file, 1):
            if not content.endswith(b"\n"):
                break
            try:
                line = json.loads(content)
                if number == 1:
                    if line["ledger"] != FORMAT or not isinstance(line["identity"], dict):
                        raise ValueError(f"format {line['ledger']!r} instead of {FORMAT}")
                    header = line
                elif "done" in line:
                    rows.append(line["done"])
                else:
                    files.update(_own_names(line["files"]))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise LedgerError(
                    "this ledger is damaged",
                    given=f"{path}, line {number}: {error!r}",
                    expected="lines of JSON that only featinv wrote",
                    remedy="move the folder away, or name another",
                ) from error
            end += len(content)
        if cut and os.fstat(descriptor).st_size > end:
            os.ftruncate(descriptor, end)
    return header, rows, files


def _own_names(names: Iterable[str]) -> Iterator[str]:
    """Names of files in the ledger's folder or one below it: a ledger is no way to reach others."""
    for name in names:
        parts = PurePosixPath(name).parts
        if not 1 <= len(parts) <= 2 or ".." in parts or "/" in parts or "\\" in name or ":" in name:
            raise ValueError(f"{name!r} is no file of this folder")
        yield name


def _in_the_way(folder: Path, names: Sequence[str]) -> OutputExistsError:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return OutputExistsError(
        f"files in {folder} are in the way that no run noted in its ledger wrote",
        given=", ".join(map(repr, names[:5])) + more,
        expected="a folder without files of these names",
        remedy="move them away, or name another folder",
    )


def _another_job(folder: Path, work: str, differing: Sequence[tuple[str, Any, Any]], remedy: str) -> OutputExistsError:
    return OutputExistsError(
        f"the folder {folder} holds another {work}",
        given="; ".join(f"{name}: {now!r}" for name, _, now in differing[:10]),
        expected="; ".join(f"{name}: {then!r}" for name, then, _ in differing[:10]),
        remedy=remedy,
    )


def _names_in(folder: Path, below: Iterable[str]) -> set[str]:
    """The names of everything in these folders below `folder`, as a ledger has them."""
    return {str(PurePosixPath(name, entry.name)) for name in below for entry in _entries(folder / name)}


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove(folder: Path, names: Iterable[str]) -> None:
    parents = set()
    for name in names:
        path = folder / name
        with file_errors(path):
            path.unlink(missing_ok=True)
        parents.add(path.parent)
    for parent in parents - {folder}:
        with contextlib.suppress(OSError):  # something else is in it
            parent.rmdir()


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # which flushes files only
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

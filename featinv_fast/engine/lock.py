"""A lock file that the operating system frees when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from featinv_fast.errors import EngineLockedError, LockedError

if sys.platform == "win32":
    import msvcrt

    # Windows locks bytes and forbids reading them, so the locked byte lies behind the holder's name.
    LOCKED_BYTE = 2**20

    def _try_lock(descriptor: int) -> bool:
        os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        os.lseek(descriptor, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextlib.contextmanager
def exclusive_lock(
    path: Path, *, work: str = "export", place: str = "engine", error: type[LockedError] = EngineLockedError
) -> Iterator[None]:
    """Hold the lock file `path`; it is removed on leaving.

    A lock file that a dead process left behind is not locked any more and is taken over.

    Args:
        path: the lock file.
        work: what its holder does, for the message.
        place: what is locked, likewise.
        error: what is raised where another process holds it.

    Raises:
        LockedError: another process holds it; the message names the process. It is of the class `error`.
        OSError: the file cannot be written, or the file system has no locks.
    """
    descriptor = _acquire(path, lambda holder: _locked(path, holder, work, place, error))
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        # Windows removes no open file, and elsewhere the lock must be held while its file goes (see `_is_open_at`).
        if sys.platform == "win32":
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _locked(path: Path, holder: str, work: str, place: str, error: type[LockedError]) -> LockedError:
    return error(
        f"another {work} is writing this {place}",
        given=f"{path}, held by {holder}",
        expected=f"one {work} at a time",
        remedy="wait until it ends, or name another folder",
    )


def _acquire(path: Path, refusal: Callable[[str], LockedError]) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if not _try_lock(descriptor):
                os.lseek(descriptor, 0, os.SEEK_SET)
                holder = os.read(descriptor, 1000).decode(errors="replace") or "a process that has just started"
                raise refusal(holder)
            if _is_open_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_open_at(path: Path, descriptor: int) -> bool:
    """Whether the open file still has its name; the last holder may have removed it after we opened it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False

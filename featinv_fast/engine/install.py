"""Writing an engine folder so that a crash at any moment leaves the old engine or none.

The files are written to a hidden folder beside the destination, flushed to the disk and renamed into
place. An old engine is renamed aside first and deleted last. `_recover` knows every state in which an
export can die and runs before and after each one, so failing and being killed are cleaned up alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from featinv_fast.checks import file_errors, require_writable
from featinv_fast.engine.files import (
    LOCK_SUFFIX,
    PARTIAL_SUFFIX,
    PREVIOUS_SUFFIX,
    entry_names,
    file_problem,
    hash_files,
    is_member_name,
    manifest_checksum,
    real_path,
    set_aside_path,
)
from featinv_fast.engine.lock import exclusive_lock
from featinv_fast.engine.manifest import CHECKSUM_NAME, MANIFEST_NAME, Manifest, listed_files
from featinv_fast.errors import ArgumentError, EngineExistsError, EngineFormatError, ExportError, FeatInvError

logger = logging.getLogger(__name__)

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A folder under construction.

    Attributes:
        path: where to write the engine's files, flat.
        destination: where the engine will be.
        force: whether an engine there may be replaced.
    """

    path: Path
    destination: Path
    force: bool

    def finish(self, manifest: Manifest) -> Path:
        """Complete the folder and put it in place; nothing may be written to `path` afterwards.

        Args:
            manifest: without `files`, which are listed and hashed here.

        Returns:
            The destination.

        Raises:
            EngineExistsError: something that may not be replaced has appeared at the destination.
            ExportError: the folder holds what an engine may not hold, or cannot be written.
        """
        with _reporting(self.destination):
            names = sorted(entry_names(self.path))
            problems = [f"{name!r} is not a valid name" for name in names if not is_member_name(name)]
            problems += [problem for name in names if (problem := file_problem(self.path / name))]
            if problems:
                raise ExportError(
                    "an engine cannot hold these files",
                    given="; ".join(problems),
                    expected="plain files with plain names, flat in one folder",
                    remedy="write these files otherwise; where featinv-export wrote them, please report it",
                )
            content = dataclasses.replace(manifest, files=hash_files(self.path, names)).to_json()
            (self.path / MANIFEST_NAME).write_bytes(content)
            (self.path / CHECKSUM_NAME).write_bytes(manifest_checksum(content))
            for name in (*names, MANIFEST_NAME, CHECKSUM_NAME):
                _flush(self.path / name)
            _flush(self.path)

            _refuse_to_overwrite(self.destination, force=self.force)
            if self.destination.exists():
                self.destination.rename(set_aside_path(self.destination))
            self.path.rename(self.destination)
            _flush(self.destination.parent)
        return self.destination


@contextlib.contextmanager
def staging(destination: str | os.PathLike[str], *, force: bool = False, required_bytes: int = 0) -> Iterator[Stage]:
    """A folder to write an engine to, which `Stage.finish` installs; left without it, nothing is installed.

    Args:
        destination: the engine folder to be; missing parents are made.
        force: replace an engine that is already there. Anything else is never replaced.
        required_bytes: disk space that the export needs.

    Raises:
        ArgumentError: the destination is not a path.
        EngineExistsError: the destination exists and may not be replaced.
        EngineLockedError: another process is writing the same engine.
        ExportError: the place cannot be written or has too little space.
    """
    destination = real_path(destination)
    if not destination.name or destination.name.endswith((LOCK_SUFFIX, PARTIAL_SUFFIX, PREVIOUS_SUFFIX)):
        raise ArgumentError("an engine cannot have this name", given=destination, remedy="choose another name")
    with contextlib.ExitStack() as cleanup:
        with _reporting(destination):
            destination.parent.mkdir(parents=True, exist_ok=True)
            cleanup.enter_context(exclusive_lock(destination.with_name(f".{destination.name}{LOCK_SUFFIX}")))
            _recover(destination)
            cleanup.callback(_recover, destination)
            _refuse_to_overwrite(destination, force=force)
            _require_space(destination.parent, required_bytes)
            path = _partial_path(destination)
            path.mkdir()
        try:
            yield Stage(path, destination, force)
        except OSError as error:
            # Of the caller's own errors, only a full disk is about this folder.
            if error.errno in FULL_DISK:
                raise _not_written(destination, error) from error
            raise


def _partial_path(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}")


def _recover(destination: Path) -> None:
    """Bring the destination and its surroundings into a clean state; the caller holds the lock.

    Only the holder of the lock has partial folders, so all that are found are leftovers.
    """
    previous = set_aside_path(destination)
    leftover = re.compile(rf"\.{re.escape(destination.name)}\.\d+-[0-9a-f]{{8}}{re.escape(PARTIAL_SUFFIX)}")
    with _reporting(destination):
        if previous.is_dir() and not os.path.lexists(destination):
            previous.rename(destination)
            logger.warning("restored the engine %s after an interrupted export", destination)
        elif previous.is_dir() and (destination / MANIFEST_NAME).is_file():
            # Renamed before it is deleted: what is called "previous" is complete at all times.
            previous.rename(_partial_path(destination))
        for name in entry_names(destination.parent):
            if leftover.fullmatch(name):
                # One that cannot be deleted (it is another user's) is in nobody's way.
                shutil.rmtree(destination.with_name(name), ignore_errors=True)


def require_destination(destination: str | os.PathLike[str], *, force: bool) -> None:
    """Refuse a destination that `staging` would refuse, before the work that comes before it.

    Raises:
        EngineExistsError: it exists and may not be replaced.
        FileError: nothing can be made there.
    """
    require_writable(destination)
    with file_errors(destination):
        _refuse_to_overwrite(real_path(destination), force=force)


def _refuse_to_overwrite(destination: Path, *, force: bool) -> None:
    if not os.path.lexists(destination):
        return
    problems = _replacement_problems(destination)
    if force and not problems:
        return
    raise EngineExistsError(
        "the output folder exists and cannot be replaced: " + "; ".join(problems[:10])
        if problems
        else "the output folder exists",
        given=destination,
        expected="a folder that does not exist" + (", or an engine folder with nothing else in it" if force else ""),
        remedy="choose another folder, or move this one away" if problems else "choose another, or pass force=True",
        command_remedy=None if problems else "choose another, or pass --force",
    )


def _replacement_problems(folder: Path) -> list[str]:
    """Why replacing the folder could lose something that is not an engine; empty when it could not.

    Only names count, not contents: replacing an engine that is damaged or of an older format is what `--force` is good
    for.
    """
    if not folder.is_dir():
        return ["it is not a folder"]
    entries = entry_names(folder)
    if not entries:
        return []
    if MANIFEST_NAME not in entries:
        return ["it is not an engine"]
    try:
        listed = listed_files((folder / MANIFEST_NAME).read_bytes())
    except (EngineFormatError, OSError) as error:
        return [str(error)]
    return [f"{name!r} is not part of the engine" for name in sorted(entries - {*listed, MANIFEST_NAME, CHECKSUM_NAME})]


def _require_space(parent: Path, required_bytes: int) -> None:
    free = shutil.disk_usage(parent).free
    if free < required_bytes:
        raise ExportError(
            f"there is too little space in {parent}",
            given=f"{free / 2**20:,.0f} MiB free",
            expected=f"{required_bytes / 2**20:,.0f} MiB",
            remedy="free some space, or export to another disk",
        )


def _flush(path: Path) -> None:
    """Make sure that a file, or a folder's listing, is on the disk and not only in a cache."""
    if os.name == "nt":
        # Windows flushes writable files only and no folders.
        if path.is_dir():
            return
        descriptor = os.open(path, os.O_RDWR)
    else:
        descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _reporting(destination: Path) -> Iterator[None]:
    """Turn what the operating system refuses into an error that says what to do."""
    try:
        yield
    except FeatInvError:  # some of ours are OSErrors, too
        raise
    except OSError as error:
        raise _not_written(destination, error) from error


def _not_written(destination: Path, error: OSError) -> ExportError:
    full = error.errno in FULL_DISK
    return ExportError(
        "the disk is full" if full else "the engine cannot be written",
        given=f"{destination}: {error}",
        expected="a folder on a disk with enough space" if full else "a folder that may be written to",
        remedy="free some space, or export to another disk" if full else "check its permissions, or choose another",
    )

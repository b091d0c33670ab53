"""Files and folders that users name: inputs are there, outputs can be written, and what the system refuses is said."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from featinv_fast.checks.system_errors import file_error
from featinv_fast.errors import ArgumentError, ArgumentTypeError, FeatInvError, InputNotFoundError, OutputExistsError

StrPath = str | os.PathLike[str]


def as_path(path: StrPath, name: str = "the path") -> Path:
    """A path of this system, which need not exist.

    Raises:
        ArgumentTypeError: neither text nor a path.
        ArgumentError: text that no path can be.
    """
    try:
        text = os.fspath(path)
        if not isinstance(text, str):
            raise TypeError
        if not text or b"\0" in os.fsencode(text):  # no encoding, a ValueError: no path either
            raise ValueError
    except TypeError:
        raise ArgumentTypeError(
            f"{name} is not a path", given=repr(path), expected="text or a pathlib.Path", remedy="pass one of these"
        ) from None
    except ValueError:
        raise ArgumentError(
            f"{name} is not a path", given=repr(path), expected="a path of this system", remedy="name another"
        ) from None
    return Path(text)


def require_input(path: StrPath, what: str = "file or folder", *, expected: str | None = None) -> Path:
    """An input that is there.

    Args:
        path: what the user named.
        what: "file", "folder", or another word for whichever it may be.
        expected: what it should be.

    Raises:
        InputNotFoundError: there is none.
        FileError: the system does not let us look.
    """
    path = as_path(path)
    with file_errors(path):
        found = {"file": path.is_file, "folder": path.is_dir}.get(what, path.exists)()
        there = os.path.lexists(path)
    if not found:
        raise InputNotFoundError(
            f"this is not a {what}" if there else f"there is no such {what}",
            given=path,
            expected=expected or f"a {what} that exists",
            remedy="check the path" + (", or mend the symbolic link" if there and path.is_symlink() else ""),
        )
    return path


def refuse_existing(path: StrPath, *, force: bool, what: str = "file") -> Path:
    """An output file that is not there, or that may be replaced.

    Raises:
        OutputExistsError: it is there, and it was not asked to be replaced.
        FileError: it cannot be replaced: it is a folder.
    """
    path = as_path(path)
    with file_errors(path):
        if not os.path.lexists(path):
            return path
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not force:
        raise OutputExistsError(
            f"the {what} is there already",
            given=path,
            expected="the name of a file that does not exist",
            remedy="name another, or pass force=True",
            command_remedy="name another, or pass --force",
        )
    return path


def refuse_inputs(
    outputs: Mapping[str, StrPath], inputs: Mapping[str, StrPath | None], *, replaced: bool = False
) -> None:
    """Refuse outputs that would lose or change an input: that are one, by whatever path or link, or lie in one.

    Args:
        outputs: what they are called -> files or folders that will be written.
        inputs: what they are called -> files or folders that are read; None where there is none.
        replaced: outputs are replaced with all that lies in them, so that no input may.

    Raises:
        OutputExistsError: an output is an input, or lies in a folder that is one.
        FileError: the system does not let us look.
    """
    for output, written in outputs.items():
        for name, read in inputs.items():
            if read is None:
                continue
            with file_errors(written):
                inside = _lies_in(as_path(written), as_path(read))
                around = replaced and _lies_in(as_path(read), as_path(written))
            if inside or around:
                raise OutputExistsError(
                    f"{output} is or {'lies in' if inside else 'holds'} an input, {name}",
                    given=f"{written} and {read}",
                    expected="a place that nothing is read from",
                    remedy=f"name another place for {output}",
                )


def _lies_in(path: Path, other: Path) -> bool:
    """Whether writing `path` touches `other`: it is the same file or folder, or below it."""
    if path.exists() and other.exists() and path.samefile(other):  # hard links, too
        return True
    path, other = path.resolve(), other.resolve()
    return path == other or other in path.parents


def require_writable(path: StrPath) -> Path:
    """An output, file or folder, at a place where something can be made; nothing is made yet.

    Raises:
        FileError: there is no permission, or a part of the path is no folder.
    """
    path = as_path(path)
    with file_errors(path):
        existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        if not existing.is_dir() and existing != path:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        # Folders take new entries only where they may be entered as well.
        if not os.access(existing, os.W_OK | (os.X_OK if existing.is_dir() else 0)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))
    return path


@contextlib.contextmanager
def file_errors(path: StrPath | None = None) -> Iterator[None]:
    """Turn what the system refuses within the block into an error that says what to do.

    Args:
        path: what is read or written, where the system does not say it.

    Raises:
        FileError: in place of an OSError that is none of ours. A broken pipe goes on: nobody is left to be told.
    """
    try:
        yield
    except (FeatInvError, BrokenPipeError):
        raise
    except OSError as error:
        raise file_error(error, path) from error


@contextlib.contextmanager
def output_folder(path: StrPath) -> Iterator[Path]:
    """A folder for results, made with its parents, so that where this fails no work is lost.

    What the block leaves by an error, however it was interrupted, is no empty folder that was not there before.

    Raises:
        FileError: it cannot be made.
    """
    path = as_path(path)
    with file_errors(path):
        made = list(itertools.takewhile(lambda folder: not folder.exists(), (path, *path.parents)))
    try:
        with file_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        yield path
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # it holds something, or was never made
                folder.rmdir()
        raise

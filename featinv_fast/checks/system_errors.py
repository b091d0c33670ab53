"""What the system says of files and folders, in words that can be acted on."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from featinv_fast.errors import FileError


class _Meaning(NamedTuple):
    """What an error number means to whoever named the path."""

    problem: str
    expected: str
    remedy: str


_PERMISSION = _Meaning(
    "there is no permission for this file or folder",
    "one that this user may read or write",
    "check its owner and permissions, or name another",
)
_FULL = _Meaning("the disk is full", "space for the whole result", "free some space, or name a place on another disk")
_QUOTA = _Meaning(
    "the disk quota is used up", "space for the whole result", "free some space, or name a place on another disk"
)
_LIMIT = _Meaning("too many files are open", "a free file handle", "close other programs, or raise `ulimit -n`")
_DEVICE = _Meaning("the device failed", "a disk that answers", "check the disk or the connection to it, and try again")
_UNSUPPORTED = _Meaning(
    "the file system cannot do this", "one with locks, renames and links", "name a place on a local disk"
)

MEANINGS = {
    "ENOENT": _Meaning("there is no such file or folder", "a path that exists", "check the path"),
    "EEXIST": _Meaning("something else is there already", "a path at which there is nothing", "name another"),
    "EACCES": _PERMISSION,
    "EPERM": _PERMISSION,
    "EROFS": _Meaning("the file system is read-only", "a place that can be written", "name a place on another disk"),
    "ENOSPC": _FULL,
    "EDQUOT": _QUOTA,
    "EFBIG": _Meaning("the file becomes too large for its file system", "room for it", "name a place on another disk"),
    "EISDIR": _Meaning("this is a folder", "the name of a file", "name a file in it, or another"),
    "ENOTDIR": _Meaning("a part of this path is not a folder", "a path through folders alone", "check the path"),
    "ENOTEMPTY": _Meaning("the folder is not empty", "an empty one", "name another"),
    "ENAMETOOLONG": _Meaning(
        "the name is too long for the file system", "255 bytes for a name, and about 4,000 for a path", "name another"
    ),
    "ELOOP": _Meaning("the symbolic links of this path lead in a circle", "a path with an end", "mend the links"),
    "EMFILE": _LIMIT,
    "ENFILE": _LIMIT,
    "EIO": _DEVICE,
    "ENXIO": _DEVICE,
    "ENODEV": _DEVICE,
    "ESTALE": _DEVICE,
    "ETIMEDOUT": _DEVICE,
    "EBUSY": _Meaning("another program uses this file", "one that is free", "end the program, or name another"),
    "ETXTBSY": _Meaning("this file is running as a program", "one that is free", "end the program, or name another"),
    "EINVAL": _Meaning("the file system does not take this name", "another name", "name another"),
    "EILSEQ": _Meaning("the file system does not take this name", "another name", "name another"),
    "EXDEV": _UNSUPPORTED,
    "ENOLCK": _UNSUPPORTED,
    "ENOTSUP": _UNSUPPORTED,
    "EOPNOTSUPP": _UNSUPPORTED,
    "ENOSYS": _UNSUPPORTED,
}


def file_error(error: OSError, path: str | os.PathLike[str] | None = None) -> FileError:
    """What `error` means, for whoever named the path.

    Args:
        error: of the system.
        path: what was read or written, where the system does not say it, as it does not of a full disk.
    """
    name = errno.errorcode.get(error.errno or 0, "")
    said = error.strerror or str(error) or type(error).__name__
    meaning = MEANINGS.get(name)
    where = path if error.filename is None else error.filename
    where = os.fsdecode(where) if isinstance(where, bytes) else where
    told = FileError(
        meaning.problem if meaning else f"the system refuses to read or write: {said}",
        given=said if where is None else where,
        expected=meaning.expected if meaning else "a file or folder that can be read or written",
        remedy=meaning.remedy if meaning else "check the path and its disk, or name another",
    )
    told.errno = error.errno
    told.filename = None if where is None else str(where)
    return told

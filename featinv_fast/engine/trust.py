"""Which files of native code this user may run: those made here, and those declared trustworthy.

A TensorRT plan holds machine code that runs with the user's rights, and the manifest's checksums show that a folder
is complete, not who made it. So what is built here is noted, by its hash, in the user's own cache folder.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from featinv_fast.engine.folder import EngineFolder

CACHE_VARIABLE = "FEATINV_CACHE"


def cache_folder() -> Path:
    """The user's cache folder of this package: `FEATINV_CACHE`, or where the system keeps caches."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    if sys.platform == "win32":
        parent = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    else:
        parent = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(parent) / "featinv-fast"


def note_built_here(hashes: Iterable[str]) -> None:
    """Remember that files of these sha256 were built on this machine by this user."""
    folder = _notes()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for sha256 in hashes:
        (folder / sha256).touch()


def distrust(engine: EngineFolder, names: Iterable[str]) -> list[str]:
    """Why the native code in these files of `engine` should not run; empty when it may."""
    reasons = []
    writable = [path.name for path in (engine.path, *map(engine.file, names)) if _others_write(path)]
    if writable:
        reasons.append(f"others than the owner may write to {', '.join(writable)}: change the permissions")
    foreign = [name for name in names if not (_notes() / engine.manifest.files[name].sha256).is_file()]
    if foreign:
        reasons.append(
            f"not built here: {', '.join(foreign)}, which hold native code; pass --trust-engine (trust_engine=True) if "
            "you trust whoever made them"
        )
    return reasons


def _notes() -> Path:
    return cache_folder() / "built-here"


def _others_write(path: Path) -> bool:
    if sys.platform == "win32":  # it has no such bits
        return False
    status = path.stat()
    # Many systems give each user a group of their own and let it write.
    foreign_group = status.st_gid != os.getegid() and status.st_mode & stat.S_IWGRP
    return bool(status.st_mode & stat.S_IWOTH or foreign_group)

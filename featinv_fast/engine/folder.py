"""Reading an engine folder: nothing in it is handed to a library before every byte is checked."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from featinv_fast.engine.files import (
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
from featinv_fast.engine.graphs import GraphSpec
from featinv_fast.engine.manifest import CHECKSUM_NAME, MANIFEST_NAME, Manifest
from featinv_fast.errors import EngineIntegrityError, EngineNotFoundError, FeatInvError

# A manifest is tens of kilobytes; a file beyond this is something else and not worth reading.
MANIFEST_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class EngineFolder:
    """An engine folder whose files were all checked against its manifest.

    Attributes:
        path: the folder.
        manifest: what it says of itself.
        checksum: the content of the manifest's checksum file, which stands for every byte of the engine.
    """

    path: Path
    manifest: Manifest
    checksum: bytes

    def file(self, name: str) -> Path:
        """The path of a file of the engine.

        Raises:
            EngineNotFoundError: the engine has no such file.
        """
        if name not in self.manifest.files:
            raise EngineNotFoundError(
                f"the engine {self.path} has no such file",
                given=name,
                expected=sorted(self.manifest.files),
                remedy="export the checkpoint again with the option that writes this file",
            )
        return self.path / name

    def require_unchanged(self, *names: str) -> None:
        """Refuse what is read late from an engine that was replaced since it was opened: parts of two do not mix.

        Args:
            names: files that are about to be read, every byte of which is compared once more.

        Raises:
            EngineIntegrityError: another engine, or none, is in the folder now, or one of these files was changed.
        """
        try:
            unchanged = (self.path / CHECKSUM_NAME).read_bytes() == self.checksum
        except OSError:
            unchanged = False
        if not unchanged:
            raise EngineIntegrityError(
                f"the engine {self.path} was replaced since it was opened",
                given="another engine, or none",
                expected=f"the engine {self.manifest.name!r} of {self.manifest.created}",
                remedy="open it again",
            )
        try:
            hashes = hash_files(self.path, names)
        except OSError as error:
            raise _damaged(self.path, [f"it cannot be read: {error}"]) from error
        changed = [f"{name} was changed" for name in names if hashes[name] != self.manifest.files[name]]
        if changed:
            raise _damaged(self.path, changed)

    def graph_specs(self) -> dict[str, GraphSpec]:
        """The graphs of the engine by name."""
        return self.manifest.graph_specs()


def open_engine(path: str | os.PathLike[str], *, hard_links: bool = False) -> EngineFolder:
    """Open an engine folder after checking every byte of it.

    Args:
        path: the folder; it may be a symbolic link, its files may not.
        hard_links: accept files that other folders hold, too: installers link a package's files to their caches, and
            whoever can write there could change the package's code as well.

    Raises:
        EngineNotFoundError: there is no engine, or only what an interrupted export left.
        EngineIntegrityError: a file is changed, missing, of another size, a link, or not listed.
        EngineFormatError: the engine was written in another format.
    """
    folder = real_path(path)
    try:
        require_engine(folder)
        content = _checked_manifest(folder, hard_links=hard_links)
        manifest = Manifest.from_json(content)
        _check_files(folder, manifest, hard_links=hard_links)
    except FeatInvError:
        raise
    except OSError as error:
        raise _damaged(folder, [f"it cannot be read: {error}"]) from error
    return EngineFolder(folder, manifest, manifest_checksum(content))


def require_engine(path: str | os.PathLike[str]) -> None:
    """Refuse a folder that holds neither a manifest nor its checksum, or that an interrupted export left.

    Raises:
        EngineNotFoundError: that is so.
    """
    folder = real_path(path)
    if folder.name.endswith((PARTIAL_SUFFIX, PREVIOUS_SUFFIX)):
        raise EngineNotFoundError(
            "this folder was left by an interrupted export",
            given=folder,
            expected="an engine folder",
            remedy="run the export again; it cleans up",
        )
    if any(os.path.lexists(folder / name) for name in (MANIFEST_NAME, CHECKSUM_NAME)):
        return
    remedy = "make one with `featinv-export --ckpt FILE --out DIR`"
    if not folder.exists() and set_aside_path(folder).is_dir():
        remedy = f"an interrupted export left the old engine in {set_aside_path(folder)}: export again or rename it"
    raise EngineNotFoundError(
        "there is no engine here", given=folder, expected=f"a folder with {MANIFEST_NAME}", remedy=remedy
    )


def _checked_manifest(folder: Path, *, hard_links: bool) -> bytes:
    """The bytes of the manifest, which agree with its checksum file."""
    names = (MANIFEST_NAME, CHECKSUM_NAME)
    problems = [problem for name in names if (problem := file_problem(folder / name, hard_links=hard_links))]
    if problems:
        raise _damaged(folder, problems)
    if any((folder / name).stat().st_size > MANIFEST_BYTES for name in names):
        raise _damaged(folder, [f"{MANIFEST_NAME} or {CHECKSUM_NAME} is larger than {MANIFEST_BYTES} bytes"])
    content = (folder / MANIFEST_NAME).read_bytes()
    if (folder / CHECKSUM_NAME).read_bytes() != manifest_checksum(content):
        raise _damaged(folder, [f"{MANIFEST_NAME} or {CHECKSUM_NAME} was changed: they do not agree"])
    return content


def _check_files(folder: Path, manifest: Manifest, *, hard_links: bool) -> None:
    """Compare the folder with the manifest: names and kinds first, then sizes, then every byte."""
    problems = [f"{name!r} is not the name of a plain file" for name in manifest.files if not is_member_name(name)]
    if not problems:
        unlisted = entry_names(folder) - {*manifest.files, MANIFEST_NAME, CHECKSUM_NAME}
        problems = [f"{name!r} is not part of the engine" for name in sorted(unlisted)]
        paths = [folder / name for name in manifest.files]
        problems += [problem for path in paths if (problem := file_problem(path, hard_links=hard_links))]
    if not problems:
        sizes = {name: (folder / name).stat().st_size for name in manifest.files}
        problems = [
            f"{name} has {sizes[name]} bytes instead of {info.size}"
            for name, info in manifest.files.items()
            if sizes[name] != info.size
        ]
    if not problems:
        hashes = hash_files(folder, manifest.files)
        problems = [f"{name} was changed" for name, info in manifest.files.items() if hashes[name] != info]
    if problems:
        raise _damaged(folder, problems)


def _damaged(folder: Path, problems: Sequence[str]) -> EngineIntegrityError:
    more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
    return EngineIntegrityError(
        f"the engine {folder} is damaged or unsafe",
        given="; ".join([*problems[:10], *more]),
        expected=f"exactly the files that {MANIFEST_NAME} lists, unchanged and not linked",
        remedy="export the engine again, or copy it from its source once more, as plain files (`cp -rL`)",
    )

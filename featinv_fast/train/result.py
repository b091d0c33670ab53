"""The file that a run makes. It replaces nothing but what the same run wrote."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from featinv_fast.checkpoints.writer import write_json
from featinv_fast.checks import file_errors, require_writable
from featinv_fast.errors import OutputExistsError
from featinv_fast.train.scan import digest_of

RECORD = "result.json"
KEPT = 2  # a kill between recording a result and moving it to its place leaves the one before


class Result:
    """A run's result, and the record in its folder of what it wrote.

    Args:
        path: where the result goes.
        folder: of the run.
        force: replace whatever file is there.

    Raises:
        OutputExistsError: something is there that this run did not write.
        FileError: nothing can be written there.
    """

    def __init__(self, path: Path, folder: Path, *, force: bool) -> None:
        self.path = path
        self._folder = folder
        self._force = force
        self._refuse_others()
        require_writable(path)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """A place beside the result to write it to; at the end of the block it is recorded, then renamed.

        Raises:
            OutputExistsError: something has come there meanwhile. What was trained is in the run's folder.
            FileError: it cannot be written.
        """
        run = hashlib.sha256(os.fsencode(self._folder.resolve())).hexdigest()[:8]
        # One name for all attempts of a run: the next one replaces what a killed one left.
        temporary = self.path.with_name(f".{self.path.stem}.{run}.partial.safetensors")
        try:
            self._refuse_others()
            with file_errors(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with file_errors(self.path):
                self._record(digest_of(temporary))
                temporary.replace(self.path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _refuse_others(self) -> None:
        with file_errors(self.path):
            if not os.path.lexists(self.path):
                return
            # No force deletes a folder, and a link is nothing that a run wrote.
            if self.path.is_dir() or not (self._force or self._is_ours()):
                raise OutputExistsError(
                    "the recipe's out is there, and this run did not write it",
                    given=self.path,
                    expected=f"nothing there, or what the run in {self._folder} wrote",
                    remedy="name another out, move the file away, or pass force=True to replace it",
                    command_remedy="pass --set out=NAME for another, move the file away, or pass --force to replace it",
                )

    def _is_ours(self) -> bool:
        return self.path.is_file() and not self.path.is_symlink() and digest_of(self.path) in self._recorded()

    def _recorded(self) -> list[str]:
        """The SHA-256 of what this run wrote, the last one last."""
        try:
            return [str(one) for one in json.loads((self._folder / RECORD).read_text(encoding="utf-8"))["sha256"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _record(self, digest: str) -> None:
        written = [one for one in self._recorded() if one != digest] + [digest]
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f"{RECORD}.partial"
        write_json(temporary, {"sha256": written[-KEPT:]})
        temporary.replace(self._folder / RECORD)

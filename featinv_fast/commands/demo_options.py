"""What `featinv demo` is asked for. Needs no torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from featinv_fast.checks import count, require_picture_name, require_writable


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What to show.

    Attributes:
        out: the picture's file.
        count: number of scenes.
        first: number of the first scene of the test split.
        seed: of the first scene's noise.
        progress: show a count on stderr.
        force: replace a file of that name.

    Raises:
        ArgumentError: the file is there already, has no name of a picture, or a number is out of range.
    """

    out: Path
    count: int = 8
    first: int = 0
    seed: int = 0
    progress: bool = True
    force: bool = False

    def __post_init__(self) -> None:
        require_picture_name(self.out, force=self.force)
        require_writable(self.out)
        count("the number of scenes", self.count)
        count("the number of the first scene", self.first, least=0)

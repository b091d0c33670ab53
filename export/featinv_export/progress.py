"""How far an export is, for whoever watches it."""

from __future__ import annotations

from collections.abc import Callable

# Is told what comes next, how many steps are done, and of how many.
Progress = Callable[[str, int, int], object]


class Steps:
    """Counts the steps of an export for whoever watches it.

    Args:
        total: how many there are.
        progress: is told of each.
    """

    def __init__(self, total: int, progress: Progress = lambda *_: None) -> None:
        self.total = total
        self.done = -1
        self.what = ""
        self.progress = progress

    def begin(self, what: str) -> None:
        """The step before is done, `what` comes next."""
        self.done += 1
        self.what = what
        self.progress(what, self.done, self.total)

    def detail(self, text: str) -> None:
        """How far the current step is."""
        self.progress(f"{self.what}: {text}", self.done, self.total)

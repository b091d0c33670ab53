"""What TensorRT's builder is doing, as short lines for a progress bar, and stopping it by Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


def make_monitor(tensorrt: Any, report: Callable[[str], None]) -> Any:
    """An `IProgressMonitor` of the module `tensorrt`: tells `report` the outermost phase of a build and how far it is.

    TensorRT calls it from threads of its own and cannot bear exceptions: one that comes up, Ctrl-C included, stops the
    build and is raised by `raise_if_stopped` once TensorRT has returned.
    """

    class Monitor(tensorrt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.IProgressMonitor.__init__(self)  # its bindings ask for exactly this call
            self._lock = threading.Lock()
            self._outermost: tuple[str, int] | None = None  # its name and its number of steps
            self._error: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self._guarded(lambda: self._begin(phase_name, num_steps))

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._guarded(lambda: self._tell(phase_name, step + 1))
            return self._error is None

        def raise_if_stopped(self) -> None:
            """Raise what stopped the build, if anything did."""
            if self._error is not None:
                raise self._error

        def _begin(self, name: str, steps: int) -> None:
            self._outermost = (name, steps)
            report(f"{name} 0/{steps}")

        def _tell(self, name: str, done: int) -> None:
            if self._outermost is not None and name == self._outermost[0]:
                report(f"{name} {done}/{self._outermost[1]}")

        def _guarded(self, work: Callable[[], None]) -> None:
            try:
                with self._lock:
                    work()
            except BaseException as error:  # noqa: BLE001 -- Ctrl-C as well: nothing may pass through TensorRT
                self._error = error

    return Monitor()

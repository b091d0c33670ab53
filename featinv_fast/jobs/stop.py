"""Being asked to stop: SIGTERM (a scheduler's time limit, `docker stop`) ends a command as Ctrl-C does."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Whatever gives way to Ctrl-C gives way to this."""


class Stop:
    """How the process was asked to stop.

    Attributes:
        terminated: whether it was by SIGTERM.
    """

    def __init__(self) -> None:
        self.terminated = False


@contextlib.contextmanager
def termination() -> Iterator[Stop]:
    """Let SIGTERM raise `Terminated` in here.

    It does so once: the process is then busy with ending, and schedulers like to repeat themselves. Where handlers
    cannot be set, in another thread than the main one, nothing changes.
    """
    stop = Stop()
    process = os.getpid()

    def stopped(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:  # a forked child, which has nothing to put in order
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not stop.terminated:
            stop.terminated = True
            raise Terminated("interrupted")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.signal(signal.SIGTERM, stopped)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the block ends: what is finished is written, not lost half-way.

    Only for blocks of a moment. Where handlers cannot be set, in another thread than the main one, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    # Of a handler that was not set from Python nothing is known, and nothing is changed.
    previous = {number: handler for number in numbers if (handler := signal.getsignal(number)) is not None}
    try:
        for number in previous:
            signal.signal(number, lambda received, _: waiting.append(received))
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for received in dict.fromkeys(waiting):
            signal.raise_signal(received)

"""SIGTERM ends work as Ctrl-C does, once; what is being written waits for neither to break it."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from featinv_fast.jobs.stop import Terminated, held, termination


def test_sigterm_interrupts_once_and_the_old_handler_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with termination() as stop:
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # schedulers repeat themselves
    assert stop.terminated
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_until_a_held_block_ends(number):
    reached = []

    def work():
        with held():
            signal.raise_signal(number)
            signal.raise_signal(number)
            reached.append("the end of the block")
        reached.append("more")

    with termination(), pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["the end of the block"]


def test_other_threads_set_no_handlers():
    found = []

    def work():
        with termination() as stop, held():
            found.append(stop.terminated)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_simply_ends():
    with termination() as stop:
        child = os.fork()
        if child == 0:
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert not stop.terminated

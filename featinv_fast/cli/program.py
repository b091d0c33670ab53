"""What every command line of ours does around its work: messages, exit codes, streams that somebody closed."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from featinv_fast.checks import did_you_mean, file_error
from featinv_fast.errors import ExitCode, FeatInvError
from featinv_fast.jobs.stop import termination

logger = logging.getLogger(__name__)


def run_program(name: str, work: Callable[[], int]) -> int:
    """Run `work` and turn whatever ends it into a message on stderr and an exit code.

    Args:
        name: of the program, which begins each message.
        work: parses and runs; returns the exit code.
    """
    _prepare_streams()
    try:
        with termination() as stop:
            code = _run(name, work)
        return ExitCode.TERMINATED if stop.terminated and code == ExitCode.INTERRUPTED else code
    finally:  # also on argparse's SystemExit
        _close_broken_streams()


def say(name: str, text: object) -> None:
    """A message on stderr, which may be closed."""
    with contextlib.suppress(OSError):
        print(f"{name}: {text}", file=sys.stderr, flush=True)


def _run(name: str, work: Callable[[], int]) -> int:
    try:
        code = int(work())
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk is heard of here, or when it is too late
        return code
    except FeatInvError as error:
        say(name, error.message(command_line=True))
        return error.exit_code
    except BrokenPipeError:  # `| head` has read enough
        return ExitCode.BROKEN_PIPE
    except OSError as error:
        say(name, file_error(error, "the output" if error.filename is None else None))
    except MemoryError:
        exhausted = FeatInvError(
            "memory ran out", expected="memory for the model and the data", remedy="free some, or take less at once"
        )
        say(name, exhausted)
    except RecursionError:
        logger.info("where it happened", exc_info=True)
        say(
            name,
            FeatInvError(
                "an input is nested too deeply", expected="files as our programs write them", remedy="make it anew"
            ),
        )
    except KeyboardInterrupt as interruption:
        # What is said in Python may name attributes.
        say(name, getattr(interruption, "command_message", str(interruption) or "interrupted"))
        return ExitCode.INTERRUPTED
    return ExitCode.FAILED


def _prepare_streams() -> None:
    """Closed streams become the null device, or the next file that is opened would take what is printed.

    Names of files may hold what the terminal's encoding does not: they are shown escaped instead of ending the program.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _close_broken_streams() -> None:
    """What cannot be flushed any more goes to the null device: the interpreter would complain of it at its end."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Parser(argparse.ArgumentParser):
    """A parser that takes options by their whole names: a prefix may become another option's in the next version."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse; arguments that are left over are refused here, by the parser that knows what they might have been."""
        given = list(sys.argv[1:] if args is None else args)
        if self._subparsers is None:  # before anything that a misspelt option leaves missing
            options = itertools.takewhile(lambda argument: argument != "--", given)
            self._refuse([o for o in options if o.startswith("--") and o.partition("=")[0] not in self._known()])
        found, surplus = super().parse_known_args(given, namespace)
        self._refuse(surplus)
        return found, surplus

    def _known(self) -> list[str]:
        return list(self._option_string_actions)

    def _refuse(self, surplus: Sequence[str]) -> None:
        if not surplus:
            return
        near = did_you_mean(surplus[0].partition("=")[0], self._known())
        self.error(f"unrecognized arguments: {' '.join(surplus)}" + (f" (did you mean {near}?)" if near else ""))

    def error(self, message: str) -> NoReturn:
        """Usage and message on stderr, which may be closed."""
        with contextlib.suppress(OSError):
            super().error(message)
        raise SystemExit(int(ExitCode.USAGE))

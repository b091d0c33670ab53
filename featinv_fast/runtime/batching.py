"""Computing rows on a session: in batches that fit into memory, and again in fp32 where half precision overflows."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

import torch

from featinv_fast.backends import Request, Session, free_memory, is_out_of_memory, load
from featinv_fast.config import Precision
from featinv_fast.errors import BackendUnavailableError, NumericalError, OutOfMemoryError
from featinv_fast.features import place_of

logger = logging.getLogger(__name__)

# Images computed at once where the user names no number: throughput is flat beyond, memory is not.
USUAL_BATCH = {"cpu": 8, "cuda": 32}

# Computes a batch of rows and returns those that overflowed. It leaves no trace when it runs out of memory.
Compute = Callable[[Sequence[int]], Sequence[int]]


class Executor:
    """A session, the one that repairs its overflows, and how many rows at once each has been found to bear.

    The repair session is loaded at the first overflow and kept: maps that overflow come together, and loading takes
    seconds and no less memory each time. It is given back where memory runs out, before batches are halved.

    Attributes:
        session: the engine, loaded.
        lock: hold it while computing: a session serves one thread at a time.

    Raises:
        BackendUnavailableError: the engine cannot be loaded as `request` and `backend` ask.
        OutOfMemoryError: it does not fit into memory.
    """

    def __init__(self, request: Request, backend: str) -> None:
        with _exhaustion_explained("the engine does not fit into memory", request.device):
            self.session = load(request, backend)
        self._request = request
        self._repair: Session | None = None
        # By session: how much fits beside one says nothing of the other.
        self._fitting: weakref.WeakKeyDictionary[Session, int] = weakref.WeakKeyDictionary()
        self.lock = threading.RLock()
        self._process = os.getpid()

    @property
    def fitting_batch(self) -> int:
        """Most rows at once in `session`; shrinks where memory runs out."""
        return self._fits(self.session)

    @property
    def usual_batch(self) -> int:
        """Rows at once where the user names no number."""
        return USUAL_BATCH[self.session.device.type]

    def refuse_fork(self) -> None:
        """Refuse to work in a forked child, where thread pools and CUDA contexts are gone and calls may hang.

        Raises:
            BackendUnavailableError: this process is not the one that loaded the session.
        """
        if os.getpid() != self._process:
            raise BackendUnavailableError(
                "this Runtime was made in another process",
                given="a forked process",
                reasons={self.session.backend: ["its threads and device handles do not survive a fork"]},
                remedy="use the 'spawn' start method, and make a Runtime in each process",
            )

    def compute(self, rows: Sequence[int], size: int, begin: Callable[[Session], Compute]) -> dict[int, NumericalError]:
        """Compute all rows, then again in fp32 those that overflowed in half precision.

        Args:
            rows: what to compute; nothing at all is called where there are none.
            size: rows at once; fewer where memory runs out.
            begin: prepares a session.

        Returns:
            An error for each row that overflows in fp32 too.

        Raises:
            OutOfMemoryError: not even one row fits.
        """
        overflowed = self._compute(rows, size, self.session, begin, give_back=self._give_back_repair)
        if overflowed and self.session.precision is not Precision.FP32:
            logger.warning("%d rows overflowed in %s: again in fp32", len(overflowed), self.session.precision)
            overflowed = self._compute(overflowed, size, self._repair_session(), begin)
        return {
            row: NumericalError(
                "gave NaN or infinite values in fp32",
                subject=f"row {place_of(row)}",
                given="an input that the networks amplify beyond fp32",
                expected="finite values",
                remedy="check the scale of the input, or lower strength and guidance_scale",
                command_remedy="check the scale of the input, or lower --strength and --guidance-scale",
            )
            for row in overflowed
        }

    def _repair_session(self) -> Session:
        if self._repair is None:
            with _exhaustion_explained("the engine does not fit into memory once more in fp32", self.session.device):
                # Compiling takes minutes, which these rows alone are not worth.
                request = dataclasses.replace(self._request, precision=Precision.FP32, compiled=False)
                self._repair = load(request, "torch")
        return self._repair

    def _give_back_repair(self) -> bool:
        there, self._repair = self._repair is not None, None
        return there

    def _fits(self, session: Session) -> int:
        return self._fitting.get(session, self._request.engine.manifest.max_batch)

    def _compute(
        self,
        rows: Sequence[int],
        size: int,
        session: Session,
        begin: Callable[[Session], Compute],
        give_back: Callable[[], bool] = lambda: False,
    ) -> list[int]:
        if not rows:
            return []
        with _exhaustion_explained("a graph of the engine does not fit into memory", session.device):
            compute = begin(session)
        overflowed: list[int] = []
        size = min(size, self._fits(session))
        fitting = run_in_batches(rows, size, session.device, lambda batch: overflowed.extend(compute(batch)), give_back)
        if fitting < size:
            self._fitting[session] = fitting
        return overflowed


def run_in_batches(
    rows: Sequence[int],
    size: int,
    device: torch.device,
    work: Callable[[Sequence[int]], None],
    give_back: Callable[[], bool] = lambda: False,
) -> int:
    """Call `work` on consecutive batches of `rows`, halving them whenever memory runs out.

    Args:
        rows: what to work on, in order.
        size: largest batch to begin with.
        device: where the memory is, for messages.
        work: must leave no trace when it runs out of memory.
        give_back: frees what can be done without, and says whether there was anything: the batch is then tried again.

    Returns:
        The batch size that fitted, to begin with next time.

    Raises:
        OutOfMemoryError: not even a batch of one fits.
    """
    done = 0
    while done < len(rows):
        batch = rows[done : done + size]
        try:
            work(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            freed = give_back()
            if len(batch) == 1 and not freed:
                raise _explained("not even one image fits into memory", device, error) from error
        else:
            done += len(batch)
            continue
        # Only here, where the exception is gone, are the tensors gone that its traceback kept alive.
        if not freed:
            size = len(batch) // 2
            logger.warning("out of memory with %d images at once; going on with %d", len(batch), size)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return size


@contextlib.contextmanager
def _exhaustion_explained(problem: str, device: torch.device) -> Iterator[None]:
    """Turn what a library says of exhausted memory into our error."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise _explained(problem, device, error) from error


def _explained(problem: str, device: torch.device, error: Exception) -> OutOfMemoryError:
    return OutOfMemoryError(
        problem,
        given=f"{free_memory(device)}; the allocator said: {str(error).partition(chr(10))[0]}",
        expected="memory for the model and one image",
        remedy="free memory, use a half-precision engine, or another device",
    )

"""Several processes that train one model together, as `accelerate launch` and torchrun start them.

Each has every n-th item of each batch, and draws the noise of the whole batch to keep that of its own items. Gradients
and losses are averaged, so that what is trained is what one process trains with the same recipe, up to the order of
sums. The main process alone writes; the others read what it has written, after it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from featinv_fast.errors import BackendUnavailableError, ConfigError, MissingPackageError, TrainingError
from featinv_fast.train.randomness import Share

# Others wait while the main process looks at images or fills a cache, which takes as long as it takes.
PATIENCE = dt.timedelta(days=7)
# Seconds in which a main process that failed can say why: launchers end all processes as soon as one has ended.
GRACE = 2.0
_ERRORS = (torch.distributed.DistError,) if torch.distributed.is_available() else ()


def count() -> int:
    """How many processes there are; 1 where none were launched."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def number() -> int:
    """Which of them this is, from 0 on."""
    return int(os.environ.get("RANK") or 0) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the one that writes."""
    return number() == 0


def share() -> Share:
    """Which items of a batch are this process's."""
    return Share(number(), count())


def start(device: torch.device) -> None:
    """Meet the others, where there are any; nothing happens the second time.

    Args:
        device: that the recipe means; of several GPUs each process has one.

    Raises:
        MissingPackageError: accelerate is not installed.
        BackendUnavailableError: there are fewer GPUs than processes on this machine.
    """
    if count() == 1:
        return
    place, gpus = int(os.environ.get("LOCAL_RANK") or 0), torch.cuda.device_count()
    if device.type == "cuda" and place >= gpus:
        raise BackendUnavailableError(
            "there are more processes than GPUs",
            given=f"process {place} of this machine, counted from 0, and {gpus} GPUs",
            remedy=f"start {gpus} processes, or use device = 'cpu'",
        )
    state = accelerate_module("accelerate.state")
    with others_may_end():
        state.PartialState(cpu=device.type == "cpu", timeout=PATIENCE)


def end() -> None:
    """Part from the others."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wait() -> None:
    """Wait until all have come here.

    Raises:
        TrainingError: one of them has ended.
    """
    if count() > 1:
        with others_may_end():
            accelerate_module("accelerate.state").PartialState().wait_for_everyone()


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block while the others wait, then they do.

    Raises:
        TrainingError: in the others, where the main process has failed.
    """
    if count() == 1:
        yield
        return
    if not is_main():
        if not _of_main(value=None):
            time.sleep(GRACE)
            raise TrainingError(
                "the main process could not go on",
                given=f"process {number()} of {count()}",
                expected="a main process that comes to the end of its preparations",
                remedy="see what the main process says",
            )
        yield
        return
    try:
        yield
    except BaseException:
        with contextlib.suppress(TrainingError):  # the others are gone
            _of_main(value=False)
        raise
    _of_main(value=True)


def require_same(step: int) -> None:
    """Refuse to go on where the processes have read different checkpoints.

    Raises:
        TrainingError: they have.
    """
    if count() == 1:
        return
    steps: list[Any] = [None] * count()
    with others_may_end():
        torch.distributed.all_gather_object(steps, step)
    if len(set(steps)) > 1:
        raise TrainingError(
            "the processes do not see the same run",
            given=f"checkpoints of the steps {steps}",
            expected="one checkpoint for all",
            remedy="put the run's folder where every machine sees it",
        )


def averaged(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Means over the processes.

    Args:
        values: with the same names everywhere.
        device: of the training.

    Raises:
        TrainingError: another process has ended.
    """
    if count() == 1:
        return dict(values)
    sums = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    with others_may_end():
        torch.distributed.all_reduce(sums)
    return dict(zip(values, (sums / count()).tolist(), strict=True))


def require_divisible(batch_size: int) -> None:
    """Refuse batches of which the processes cannot have equal shares.

    Raises:
        ConfigError: they cannot.
    """
    if batch_size % count():
        raise ConfigError(
            "the processes cannot have equal shares of a batch",
            given=f"training.batch_size = {batch_size}, {count()} processes",
            expected=f"a multiple of {count()}: the batch is that of all processes together",
            remedy=f"set training.batch_size = {-(-batch_size // count()) * count()}, or start another number of "
            "processes",
        )


@contextlib.contextmanager
def others_may_end() -> Iterator[None]:
    """Say so where another process has ended, in words that tell what to do.

    Raises:
        TrainingError: one has.
    """
    try:
        yield
    except RuntimeError as error:
        told = str(error).lower()
        if count() == 1 or not (isinstance(error, _ERRORS) or "gloo" in told or "closed by peer" in told):
            raise
        raise TrainingError(
            "another process of this training has ended",
            given=str(error).strip().splitlines()[0],
            expected=f"{count()} processes until the end",
            remedy="see what it says, and start all of them again: the run goes on from its last checkpoint",
        ) from error


def accelerate_module(name: str) -> Any:
    """The accelerate package, or a module of it.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        # By name: the package has no type information.
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            "training needs accelerate", given=str(error), remedy="pip install 'featinv-fast[train]'"
        ) from error


def _of_main(*, value: bool | None) -> bool:
    """What the main process says, in all of them."""
    told = [value]
    with others_may_end():
        torch.distributed.broadcast_object_list(told, src=0)
    return bool(told[0])

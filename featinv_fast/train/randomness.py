"""Everything random in training as a pure function of (seed, position), so that a restart repeats it exactly."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Share:
    """Every `count`-th item of a batch from item `first` on: what one of several processes has of it."""

    first: int = 0
    count: int = 1

    @property
    def places(self) -> slice:
        """Of its items in the batch."""
        return slice(self.first, None, self.count)


WHOLE = Share()


class _Generator(torch.Generator):
    share = WHOLE


def derived_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names` of the run with `seed`: streams of different names are independent."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: str | int, share: Share = WHOLE) -> torch.Generator:
    """A generator on the CPU for the stream `names`; noise then does not depend on the device.

    For a share of a batch, `of_items` gives its items what it gives them in the whole batch.
    """
    made = _Generator()
    made.share = share
    return made.manual_seed(derived_seed(seed, *names))


def of_items(draw: Callable[[int], Tensor], count: int, generator: torch.Generator) -> Tensor:
    """What is drawn for `count` items of a batch: of a share of it, the share of what is drawn for the whole batch.

    Args:
        draw: by the generator, for so many items, which are the first axis.
        count: of the items at hand.
        generator: see `generator`; any other one is of a whole batch.
    """
    share = getattr(generator, "share", WHOLE)
    return draw(count * share.count)[share.places]


def draws(seed: int, step: int, batch_size: int, length: int) -> np.ndarray:
    """Which draws make up batch number `step`: int64 [batch_size].

    Draw n is item `n % length` in pass `n // length` over the data; each pass has an order of its own, and batches
    run across the border of two passes.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    passes = positions // length
    items = np.empty_like(positions)
    for number in np.unique(passes):
        order = np.random.default_rng(derived_seed(seed, "order", int(number))).permutation(length)
        items[passes == number] = order[positions[passes == number] % length]
    return passes * length + items

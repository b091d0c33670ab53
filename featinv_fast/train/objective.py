"""What a recipe gives to the trainer."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from featinv_fast.train.data import Data
from featinv_fast.train.inputs import Inputs

SHOWN = 8  # images in a preview


class Objective(nn.Module, abc.ABC):
    """What is trained, on what, and towards what. Its parameters with `requires_grad` learn."""

    @property
    @abc.abstractmethod
    def length(self) -> int:
        """Number of different items in the data."""

    @abc.abstractmethod
    def load(self, draws: np.ndarray) -> dict[str, Tensor]:
        """The items of `draws` on the CPU, a function of `draws` alone; called from another thread."""

    @abc.abstractmethod
    def load_from(self, data: Data, draws: np.ndarray) -> dict[str, Tensor]:
        """Items of other data in the same form: what is held out."""

    @abc.abstractmethod
    def forward(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, average: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """The loss under the name "loss", and whatever else belongs into the log.

        Args:
            batch: what `load` gave, on the device.
            generator: of all noise, on the CPU. What each item has of its own is drawn by `randomness.of_items`, so
                that several processes, each with a share of the batch, draw together what one does.
            average: the averaged weights by the names of this module's parameters, None without an average.
        """

    def reasons_against_shares(self, batch_size: int, processes: int) -> list[str]:
        """Why the losses of equal shares of a batch, averaged, are not that of the batch; none where they are."""
        del batch_size, processes
        return []

    def show(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Images [rows, B, 3, H, W] in [-1, 1] of a batch, what is made of it in the last row; None for none."""
        del batch
        return None

    def likeness(self, images: Tensor, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Cosines [B] of the features of `images` [B, 3, H, W] in [-1, 1] to those of the batch; None without any."""
        del images, batch
        return None

    def preview(self) -> Tensor | None:
        """Images [rows, columns, 3, H, W] in [-1, 1] that show how far the training is; None for none."""
        device = next(self.parameters()).device
        batch = self.load(np.arange(min(SHOWN, self.length), dtype=np.int64))
        return self.show({name: tensor.to(device) for name, tensor in batch.items()})


def uneven_parts(parts: Mapping[str, float | None], batch_size: int, processes: int) -> list[str]:
    """Which parts of every batch, by the names of their shares, are not the same number of items in each process."""
    return [
        f"{name} = {part} of {batch_size} items is {math.ceil(part * batch_size)}, no multiple of {processes}"
        for name, part in parts.items()
        if part is not None and processes * math.ceil(part * (batch_size // processes)) != math.ceil(part * batch_size)
    ]


class LatentObjective(Objective, abc.ABC):
    """An objective on latents, and on features where there are any.

    Args:
        inputs: where both come from.
    """

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs

    @property
    def length(self) -> int:
        """Number of different images."""
        return self.inputs.length

    def load(self, draws: np.ndarray) -> dict[str, Tensor]:
        """See `Inputs.load`."""
        return self.inputs.load(draws)

    def load_from(self, data: Data, draws: np.ndarray) -> dict[str, Tensor]:
        """See `Inputs.load_from`."""
        return self.inputs.load_from(data, draws)

    def likeness(self, images: Tensor, batch: Mapping[str, Tensor]) -> Tensor | None:
        """See `Inputs.likeness`."""
        return self.inputs.likeness(images, batch)

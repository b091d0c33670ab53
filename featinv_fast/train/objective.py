"""What a recipe gives to the trainer."""

from __future__ import annotations

import abc
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn


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
    def forward(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, average: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """The loss under the name "loss", and whatever else belongs into the log.

        Args:
            batch: what `load` gave, on the device.
            generator: of all noise, on the CPU.
            average: the averaged weights by the names of this module's parameters, None without an average.
        """

    def preview(self) -> Tensor | None:
        """Images [rows, columns, 3, H, W] in [-1, 1] that show how far the training is; None for none."""
        return None

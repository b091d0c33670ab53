"""What the weights of a run make of items that are held out: losses, cosines and pictures. Nothing is learned here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from featinv_fast.train import randomness
from featinv_fast.train.data import Data
from featinv_fast.train.objective import Objective
from featinv_fast.train.settings import ValidationConfig


class Validation:
    """Held-out items, and what an objective makes of them.

    Args:
        config: how many of them.
        data: the held-out part, see `data.open_held_out`.
        batch_size: items of one forward pass.
        seed: of the noise, which is the same in every validation and none of the training's.
    """

    def __init__(self, config: ValidationConfig, data: Data, *, batch_size: int, seed: int) -> None:
        self.every = config.every
        self._shown = config.shown
        self._data = data
        # Over the whole part, in which classes follow one another.
        items = np.unique(np.linspace(0, len(data) - 1, min(config.count, len(data))).astype(np.int64))
        self._parts = np.split(items, range(batch_size, len(items), batch_size))
        self._seed = seed

    @torch.no_grad()
    def of(
        self, objective: Objective, average: Mapping[str, Tensor] | None, device: torch.device
    ) -> tuple[dict[str, float], Tensor | None]:
        """Validate an objective that is in evaluation mode, with the weights that it holds.

        Returns:
            The means of its losses and, of recipes that invert features, the "cosine" of the features of what they make
            to those that it is made from; and the first items as `Objective.show` gives them, or None.
        """
        totals: dict[str, float] = {}
        pictures: list[Tensor] = []
        count = sum(map(len, self._parts))
        for number, part in enumerate(self._parts):
            batch = {name: t.to(device) for name, t in objective.load_from(self._data, part).items()}
            values = dict(objective(batch, randomness.generator(self._seed, "validation", number), average))
            shown = objective.show(batch)
            if shown is not None:
                pictures.append(shown.cpu())
                cosines = objective.likeness(shown[-1], batch)
                values |= {} if cosines is None else {"cosine": cosines.mean()}
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value.item() * len(part) / count
        return totals, torch.cat(pictures, dim=1)[:, : self._shown] if pictures else None

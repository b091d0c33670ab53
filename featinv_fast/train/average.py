"""The exponential moving average of the weights that learn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Average:
    """Averages of the learning parameters of `module`, kept beside it: frozen weights are not copied.

    The decay grows to its full value over the first steps, so that the random start is soon forgotten:
    min(decay, (1 + n) / (10 + n)) after n updates, as in TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._parameters = learning(module)
        self._decay = decay
        self.updates = 0
        self.weights = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights."""
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(list(self.weights.values()), list(self._parameters.values()), 1.0 - decay)

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Take over a saved average."""
        self.updates = updates
        _copy(weights, self.weights)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The module with averaged weights, for the time of the block."""
        weights = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.write()
        try:
            yield
        finally:
            _copy(weights, self._parameters)

    def write(self) -> None:
        """Replace the module's weights by their averages."""
        _copy(self.weights, self._parameters)


def learning(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], destination: Mapping[str, Tensor]) -> None:
    for name, tensor in destination.items():
        tensor.copy_(source[name])

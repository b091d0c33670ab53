"""Gradients of one batch from several threads, each with a part of it.

Small models leave cores idle when every operator is spread over them; a part of the batch for each core keeps them
busy. The result depends on the number of parts (each draws noise of its own), not on the threads' timing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce

import torch
from torch import Tensor, nn

from featinv_fast.config import Precision
from featinv_fast.errors import ConfigError
from featinv_fast.train.settings import TrainingConfig

# The loss and what else is logged, from a part of a batch and its number.
Loss = Callable[[Mapping[str, Tensor], int], dict[str, Tensor]]


class Workers:
    """Threads that share the work on every batch.

    Args:
        config: says how many.
        objective: what is trained.
        device: where it is trained.

    Raises:
        ConfigError: batches cannot be shared here.
    """

    def __init__(self, config: TrainingConfig, objective: nn.Module, device: torch.device) -> None:
        reasons = list(_reasons_against(config, objective, device))
        if reasons:
            raise ConfigError(
                "batches cannot be shared by several threads",
                given=f"workers = {config.workers}; {'; '.join(reasons)}",
                expected="a CPU, fp32 or bf16, a divisible batch, layers without random numbers or statistics",
                remedy="use workers = 1",
            )
        self._count = config.workers
        self._share = 1.0 / (config.workers * config.accumulation)
        # Each thread has a core to itself.
        self._pool = ThreadPoolExecutor(config.workers, "part", initializer=partial(torch.set_num_threads, 1))

    def add_gradients(
        self, loss: Loss, batch: Mapping[str, Tensor], parameters: list[nn.Parameter]
    ) -> dict[str, Tensor]:
        """Add the gradient of the mean loss to `parameters`' own, and return the means of what `loss` returned."""
        parts = list(self._pool.map(partial(self._part, loss, batch, parameters), range(self._count)))
        for i, parameter in enumerate(parameters):
            # In the order of the parts: floating-point sums depend on it.
            found = [gradients[i] for _, gradients in parts if gradients[i] is not None]
            if found:
                gradient = reduce(torch.add, found) * self._share
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return {name: torch.stack([losses[name] for losses, _ in parts]).mean() for name in parts[0][0]}

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _part(
        self, loss: Loss, batch: Mapping[str, Tensor], parameters: list[nn.Parameter], number: int
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        part = {name: tensor.chunk(self._count)[number] for name, tensor in batch.items()}
        losses = loss(part, number)
        gradients = torch.autograd.grad(losses["loss"], parameters, allow_unused=True)
        return {name: value.detach() for name, value in losses.items()}, gradients


def _reasons_against(config: TrainingConfig, objective: nn.Module, device: torch.device) -> list[str]:
    reasons = []
    if device.type != "cpu":
        reasons.append(f"the device is {device.type}")
    if config.precision is Precision.FP16:
        reasons.append("fp16 scales its loss")
    if config.batch_size % config.workers:
        reasons.append(f"batch_size = {config.batch_size} is no multiple")
    return [*reasons, *layers_of_a_whole_batch(objective)]


def layers_of_a_whole_batch(objective: nn.Module) -> list[str]:
    """Layers that give a part of a batch something else than the whole batch: random ones, and statistics."""
    reasons = []
    for name, module in objective.named_modules():
        # timm's DropPath has a `drop_prob`, torch's dropouts a `p`; the generator of both is the process's.
        random = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0  # noqa: SLF001
        if random or getattr(module, "drop_prob", None) or isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001
            reasons.append(f"{name} is a {type(module).__name__}")
    return reasons

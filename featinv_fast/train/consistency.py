"""Latent consistency distillation (arXiv 2310.04378, algorithm 1), exactly as `samplers.lcm` samples."""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featinv_fast.samplers import OFFICIAL_SCHEDULE
from featinv_fast.samplers.lcm import ORIGINAL_INFERENCE_STEPS, SIGMA_DATA, TIMESTEP_SCALING
from featinv_fast.train import diffusion
from featinv_fast.train.distill import DistillObjective
from featinv_fast.train.randomness import of_items

SKIP = OFFICIAL_SCHEDULE.training_steps // ORIGINAL_INFERENCE_STEPS  # k, 20 times


class ConsistencyObjective(DistillObjective):
    """f(z_{n+k}, t_{n+k}) should be f-(z_n, t_n), where the teacher makes z_n by one guided DDIM step.

    f- has the averaged weights of the student (eq. 8 with the loss of the public code,
    sqrt(d^2 + c^2) - c).
    """

    sampler = "lcm"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = threading.Lock()
        self._target: list[nn.Module] = []  # in a list: it is no part of this module

    def forward(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, average: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """The consistency loss on a random pair of neighbouring times of the grid, and the perceptual loss."""
        assert average is not None, "the target has averaged weights"
        latents, features = self.inputs.latents(batch, generator), self.inputs.features(batch)
        count, device = len(latents), latents.device
        index = of_items(lambda n: torch.randint(ORIGINAL_INFERENCE_STEPS, (n,), generator=generator), count, generator)
        times = (index + 1) * SKIP - 1  # [B], 19, 39, ..., 999
        scale = self.guidance(count, generator, device)
        noise = diffusion.normal(latents, generator)
        z = diffusion.add_noise(latents, noise, times)
        target = latents.clone()  # of the first items, which stand on the student's own path
        own = 0
        if self.recipe.own_path is not None:
            own = math.ceil(self.recipe.own_path.share * count)
            stops = diffusion.own_stops(times[:own], self.recipe.own_path.jumps, generator)
            z[:own] = self._own_path(noise[:own], stops, features[:own], scale[:own], generator)
        if own < count:
            target[own:] = self._taught(z[own:], times[own:], features[own:], scale[own:], average)
        made = self._x0(self.student, z, times, features, scale).float()
        c = self.recipe.huber
        distance = ((made - target.float()).square() + c**2).sqrt() - c
        losses = {"loss": distance.mean()}
        parts = {"own_path": distance[:own], "consistency": distance[own:]}
        losses |= {name: part.detach().mean() for name, part in parts.items() if len(part)}
        if self.perceptual is not None:
            seen = self.perceptual(made, latents)
            losses |= {"loss": losses["loss"] + seen, "perceptual": seen.detach()}
        return losses

    @torch.no_grad()
    def _taught(
        self, z: Tensor, times: Tensor, features: Tensor, scale: Tensor, average: Mapping[str, Tensor]
    ) -> Tensor:
        """x0 of the averaged student, one step of the teacher after `z` [B, 4, h, w] at `times` [B]."""
        end = (times - SKIP).clamp_min(0)
        eps = self.teacher.guided(z, times.to(z.device).float(), features, scale)
        z = diffusion.ddim_step(z, eps, *(diffusion.signal_share(t).to(z.device) for t in (times, end)))
        return self._x0(self._averaged(average), z, end, features, scale)

    @torch.no_grad()
    def _own_path(
        self, z: Tensor, stops: list[Tensor], features: Tensor, scale: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Where the student's own LCM steps lead from pure noise `z` [B, 4, h, w], from stop to stop."""
        for start, end in itertools.pairwise(stops):
            x0 = self._x0(self.student, z, start, features, scale)
            z = diffusion.add_noise(x0, diffusion.normal(z, generator), end)
        return z

    def _x0(self, student: nn.Module, z: Tensor, times: Tensor, features: Tensor, scale: Tensor) -> Tensor:
        time = times.to(z.device).float()
        eps = student(z, time, features, scale if self.recipe.guidance_channels else None)
        return consistency(z, eps, time, diffusion.signal_share(times).to(z.device))

    def _averaged(self, average: Mapping[str, Tensor]) -> nn.Module:
        """The student with averaged weights: a second module, since several threads may use both at the same time."""
        with self._lock:
            if not self._target:
                # The very tensors that the trainer updates, and those that do not learn.
                memo = {
                    id(parameter): nn.Parameter(average[f"student.{name}"], requires_grad=False)
                    if parameter.requires_grad
                    else parameter
                    for name, parameter in self.student.named_parameters()
                }
                self._target.append(copy.deepcopy(self.student, memo))
        return self._target[0]


def consistency(z: Tensor, eps: Tensor, time: Tensor, a: Tensor) -> Tensor:
    """f(z, t) = c_skip(t) z + c_out(t) x0 (arXiv 2310.04378, eq. 9): `time` [B], signal share `a` [B, 1, 1, 1]."""
    scaled = TIMESTEP_SCALING * time[:, None, None, None]
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    c_out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
    return c_skip * z + c_out * diffusion.predicted_x0(z, eps, a)

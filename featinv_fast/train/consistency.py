"""Latent consistency distillation (arXiv 2310.04378, algorithm 1), exactly as `samplers.lcm` samples."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featinv_fast.samplers import OFFICIAL_SCHEDULE
from featinv_fast.samplers.lcm import ORIGINAL_INFERENCE_STEPS, SIGMA_DATA, TIMESTEP_SCALING
from featinv_fast.train import diffusion
from featinv_fast.train.distill import DistillObjective, ddim_step

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
        index = torch.randint(ORIGINAL_INFERENCE_STEPS, (count,), generator=generator)
        start = (index + 1) * SKIP - 1  # [B], 19, 39, ..., 999
        end = (start - SKIP).clamp_min(0)
        scale = self.guidance(count, generator, device)
        embedded = scale if self.recipe.guidance_channels else None
        z_start = diffusion.add_noise(latents, diffusion.normal(latents, generator), start)
        a_start, a_end = (diffusion.signal_share(times).to(device) for times in (start, end))
        start_time, end_time = (times.to(device).float() for times in (start, end))
        with torch.no_grad():
            eps = self.teacher.guided(z_start, start_time, features, scale)
            z_end = ddim_step(z_start, eps, a_start, a_end)
            eps = self._averaged(average)(z_end, end_time, features, embedded)
            target = consistency(z_end, eps, end_time, a_end)
        eps = self.student(z_start, start_time, features, embedded)
        made = consistency(z_start, eps, start_time, a_start).float()
        c = self.recipe.huber
        loss = (((made - target.float()).square() + c**2).sqrt() - c).mean()
        if self.perceptual is None:
            return {"loss": loss}
        seen = self.perceptual(made, latents)
        return {"loss": loss + seen, "consistency": loss.detach(), "perceptual": seen.detach()}

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

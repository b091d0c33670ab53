"""Distilling the teacher's DDIM path: the student makes in one step what the teacher makes in several.

Consistency models draw fresh noise after every step, so the image no longer follows from the start noise. This keeps
the teacher's map from noise and features to the image, which is what a reconstruction wants: progressive distillation
(arXiv 2202.00512, algorithm 2) with all halvings taken at once. Each step of the student's DDIM table is a segment of
the teacher's finer path, and the student learns the eps that leads from the segment's start to its end, measured where
the step ends. The official grid of few steps begins below the noisiest time (751 for 4 steps) and yet starts from pure
noise; the first segment therefore begins with noise where the teacher begins (arXiv 2101.02388), and the student
learns to make up for that, too. The result is sampled with plain DDIM.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from featinv_fast import samplers
from featinv_fast.errors import ConfigError
from featinv_fast.samplers import OFFICIAL_SCHEDULE
from featinv_fast.train import diffusion
from featinv_fast.train.distill import DistillObjective


@dataclasses.dataclass(frozen=True)
class Segment:
    """One step of the student.

    Attributes:
        time: at which the student predicts.
        path: the teacher's times, the first one where it starts, each followed by the next; it ends at `end`.
        end: time at which the step ends.
    """

    time: int
    path: tuple[int, ...]
    end: int


def segments(student_steps: int, teacher_steps: int) -> list[Segment]:
    """The student's DDIM steps, and the teacher's times inside of each.

    Raises:
        ConfigError: the teacher has no more steps than the student.
    """
    times = samplers.build("ddim", student_steps).timesteps.astype(int).tolist()
    fine = samplers.build("ddim", teacher_steps).timesteps.astype(int).tolist()
    if len(fine) <= len(times):
        raise ConfigError(
            "the teacher has no more steps than the student",
            given=f"teacher_steps = {teacher_steps}, steps = {student_steps}",
            expected="more steps of the teacher",
            remedy="raise teacher_steps, or lower steps",
        )
    found = []
    for i, (time, end) in enumerate(zip(times, [*times[1:], 0], strict=True)):
        inside = [t for t in fine if end < t and (i == 0 or t < time)]
        found.append(Segment(time, tuple(inside if i == 0 else [time, *inside]), end))
    return found


class TrajectoryObjective(DistillObjective):
    """See the module; arguments as for `DistillObjective`."""

    sampler = "ddim"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._segments = segments(self.recipe.steps, self.recipe.teacher_steps)
        # Each of the teacher's steps is as likely as any other, so that trivial segments cost little.
        self._shares = torch.tensor([float(len(segment.path)) for segment in self._segments])

    def forward(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, average: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """The squared error at the end of a random segment, the same one for the whole batch."""
        del average
        latents, features = self.inputs.latents(batch, generator), self.inputs.features(batch)
        number = int(torch.multinomial(self._shares, 1, generator=generator))
        segment = self._segments[number]
        scale = self.guidance(len(latents), generator, latents.device)
        embedded = scale if self.recipe.guidance_channels else None
        noise = diffusion.normal(latents, generator)
        times = torch.full((len(latents),), segment.time)
        start = noise if number == 0 else diffusion.add_noise(latents, noise, times)
        with torch.no_grad():
            end = self._teachers_path(segment, start, features, scale)
        eps = self.student(start, times.to(latents.device).float(), features, embedded)
        made = diffusion.ddim_step(start, eps, *_shares(segment.time, segment.end, start))
        return {"loss": F.mse_loss(made.float(), end)}

    def _teachers_path(self, segment: Segment, x: Tensor, features: Tensor, scale: Tensor) -> Tensor:
        for time, following in zip(segment.path, [*segment.path[1:], segment.end], strict=True):
            eps = self.teacher.guided(x, torch.full((1,), float(time), device=x.device), features, scale)
            x = diffusion.ddim_step(x, eps, *_shares(time, following, x))
        return x


def _shares(time: int, following: int, like: Tensor) -> tuple[Tensor, Tensor]:
    a = OFFICIAL_SCHEDULE.alphas_cumprod[np.array([time, following])]
    return torch.tensor(a[0]).to(like), torch.tensor(a[1]).to(like)

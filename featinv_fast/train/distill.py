"""What both distillations share: the networks, the inputs, and pictures of the student's few steps."""

from __future__ import annotations

import abc
from collections.abc import Mapping

import torch
from torch import Tensor

from featinv_fast import samplers
from featinv_fast.models import FeatInv
from featinv_fast.train import diffusion
from featinv_fast.train.base import PREVIEW_STEPS
from featinv_fast.train.inputs import Inputs
from featinv_fast.train.objective import LatentObjective, uneven_parts
from featinv_fast.train.perceptual import LatentPerceptual
from featinv_fast.train.randomness import of_items
from featinv_fast.train.settings import DistillRecipe
from featinv_fast.train.student import Conditioned


class DistillObjective(LatentObjective, abc.ABC):
    """A student learns from a teacher.

    Args:
        teacher: frozen.
        student: what learns in it has `requires_grad`; the rest may be shared with the teacher.
        inputs: latents and features.
        recipe: the distillation.
        prompts: "cond" and "uncond", [1, T, D].
        perceptual: a second loss, on x0; None for none.
    """

    sampler: str

    def __init__(
        self,
        teacher: FeatInv,
        student: FeatInv,
        inputs: Inputs,
        recipe: DistillRecipe,
        prompts: dict[str, Tensor],
        perceptual: LatentPerceptual | None = None,
    ) -> None:
        super().__init__(inputs)
        self.perceptual = perceptual
        self.student = Conditioned(student, prompts)
        self.teacher = Conditioned(teacher, prompts, recipe.unconditional_strength)
        self.recipe = recipe

    def guidance(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Guidance scales, uniform on the recipe's range: [count]."""
        low, high = self.recipe.guidance_scale
        drawn = of_items(lambda n: torch.rand(n, generator=generator), count, generator)
        return (low + (high - low) * drawn).to(device)

    def reasons_against_shares(self, batch_size: int, processes: int) -> list[str]:
        """See `Objective`."""
        return uneven_parts(self.recipe.parts(), batch_size, processes)

    def show(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Decoded latents, the teacher's reconstructions, and the student's with few steps, from the same noise."""
        latents, features = self.inputs.mean_latents(batch), self.inputs.features(batch)
        noise = diffusion.normal(latents, torch.Generator().manual_seed(0))
        scale = torch.full((len(latents),), sum(self.recipe.guidance_scale) / 2, device=latents.device)
        embedded = scale if self.recipe.guidance_channels else None
        slow = diffusion.sample(
            samplers.build("ddim", PREVIEW_STEPS), lambda x, t: self.teacher.guided(x, t, features, scale), noise
        )
        fast = diffusion.sample(
            samplers.build(self.sampler, self.recipe.steps),
            lambda x, t: self.student(x, t, features, embedded),
            noise,
            torch.Generator().manual_seed(1),
        )
        return torch.stack([self.inputs.autoencoder.decode(x) for x in (latents, slow, fast)])

"""Training a base model: latent diffusion on unlabelled images with two constant prompts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from featinv_fast import samplers
from featinv_fast.config import ModelConfig
from featinv_fast.models import UNet
from featinv_fast.train import diffusion
from featinv_fast.train.inputs import Inputs
from featinv_fast.train.objective import Objective
from featinv_fast.train.settings import Weighting

SHOWN = 8  # images in a preview
PREVIEW_STEPS = 20


class BaseObjective(Objective):
    """The simple loss on eps (arXiv 2006.11239, eq. 14) in latent space, with the prompt dropped now and then.

    Args:
        unet: learns.
        config: its architecture.
        inputs: latents.
        prompts: "cond" and "uncond", [1, T, D].
        drop_prompt: how often the prompt is the empty one.
        weighting: of the times.
    """

    cond: Tensor
    uncond: Tensor

    def __init__(
        self,
        unet: UNet,
        config: ModelConfig,
        inputs: Inputs,
        prompts: Mapping[str, Tensor],
        drop_prompt: float,
        weighting: Weighting = Weighting.EPS,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.inputs = inputs
        self._drop_prompt = drop_prompt
        self._weighting = weighting
        self._latent_shape = (config.latent_channels, config.latent_size, config.latent_size)
        self.register_buffer("cond", prompts["cond"])
        self.register_buffer("uncond", prompts["uncond"])

    @property
    def length(self) -> int:
        """Number of different images."""
        return self.inputs.length

    def load(self, draws: np.ndarray) -> dict[str, Tensor]:
        """See `Inputs.load`."""
        return self.inputs.load(draws)

    def forward(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, average: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """The mean squared error of the predicted noise, see `diffusion.losses`."""
        del average
        latents = self.inputs.latents(batch, generator)
        times = diffusion.random_times(len(latents), generator)
        noise = diffusion.normal(latents, generator)
        dropped = drop_mask(len(latents), self._drop_prompt, generator).to(latents.device)  # [B, 1, 1]
        context = torch.where(dropped, self.uncond, self.cond)  # [B, T, D]
        eps = self.unet(diffusion.add_noise(latents, noise, times), times.to(latents.device).float(), context)
        return diffusion.losses(eps, noise, times, self._weighting)

    def preview(self) -> Tensor:
        """Samples of the prompt, from the same noise every time."""
        noise = torch.randn(SHOWN, *self._latent_shape, generator=torch.Generator().manual_seed(0)).to(self.cond.device)
        latents = diffusion.sample(
            samplers.build("ddim", PREVIEW_STEPS), lambda x, time: self.unet(x, time, self.cond), noise
        )
        return self.inputs.autoencoder.decode(latents)[None]


def drop_mask(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """Which items are dropped: bool [count, 1, 1]."""
    return (torch.rand(count, generator=generator) < probability)[:, None, None]

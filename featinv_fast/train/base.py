"""Training a base model: latent diffusion with two constant prompts, and captions where the data tell something."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from featinv_fast import samplers
from featinv_fast.config import ModelConfig
from featinv_fast.models import UNet
from featinv_fast.train import diffusion
from featinv_fast.train.concepts import Captions
from featinv_fast.train.inputs import Inputs
from featinv_fast.train.objective import SHOWN, LatentObjective
from featinv_fast.train.randomness import of_items
from featinv_fast.train.settings import BaseRecipe

PREVIEW_STEPS = 20


class BaseObjective(LatentObjective):
    """The simple loss on eps (arXiv 2006.11239, eq. 14) in latent space, with the prompt dropped now and then.

    Args:
        unet: learns.
        recipe: how often the prompt is dropped, and the weighting of the times.
        config: its architecture.
        inputs: latents, and the codes of the recipe's concepts.
        prompts: "cond" and "uncond", [1, T, D].
        captions: prompts from those codes; they learn. None where the constant prompt is all.
    """

    cond: Tensor
    uncond: Tensor

    def __init__(
        self,
        unet: UNet,
        recipe: BaseRecipe,
        config: ModelConfig,
        inputs: Inputs,
        prompts: Mapping[str, Tensor],
        captions: Captions | None = None,
    ) -> None:
        super().__init__(inputs)
        self.unet = unet
        self.captions = captions
        self._recipe = recipe
        self._latent_shape = (config.latent_channels, config.latent_size, config.latent_size)
        self.register_buffer("cond", prompts["cond"])
        self.register_buffer("uncond", prompts["uncond"])

    def forward(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, average: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """The mean squared error of the predicted noise, see `diffusion.losses`."""
        del average
        latents = self.inputs.latents(batch, generator)
        times = diffusion.random_times(len(latents), generator)
        noise = diffusion.normal(latents, generator)
        context = self._prompts(batch, len(latents), generator).to(latents.device)
        eps = self.unet(diffusion.add_noise(latents, noise, times), times.to(latents.device).float(), context)
        return diffusion.losses(eps, noise, times, self._recipe.weighting)

    def _prompts(self, batch: Mapping[str, Tensor], count: int, generator: torch.Generator) -> Tensor:
        """What the items are said to show: [B, T, D]. Equal tokens are to attention what one of them is."""
        said = self.cond
        if self.captions is not None:
            silent = drop_mask(count, self._recipe.drop_caption, generator).to(said.device)  # [B, 1, 1]
            said = torch.where(silent, said, self.captions(batch))
        return torch.where(drop_mask(count, self._recipe.drop_prompt, generator).to(said.device), self.uncond, said)

    def preview(self) -> Tensor:
        """Samples of the prompt, from the same noise every time."""
        noise = torch.randn(SHOWN, *self._latent_shape, generator=torch.Generator().manual_seed(0)).to(self.cond.device)
        latents = diffusion.sample(
            samplers.build("ddim", PREVIEW_STEPS), lambda x, time: self.unet(x, time, self.cond), noise
        )
        return self.inputs.autoencoder.decode(latents)[None]


def drop_mask(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """Which items are dropped: bool [count, 1, 1]."""
    chance = of_items(lambda n: torch.rand(n, generator=generator), count, generator)
    return (chance < probability)[:, None, None]

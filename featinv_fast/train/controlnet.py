"""Training FeatInv: a ControlNet and a condition encoder on a frozen base (arXiv 2505.21032)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from featinv_fast import samplers
from featinv_fast.models import FeatInv
from featinv_fast.train import diffusion
from featinv_fast.train.base import PREVIEW_STEPS, drop_mask
from featinv_fast.train.inputs import Inputs
from featinv_fast.train.objective import LatentObjective, uneven_parts
from featinv_fast.train.perceptual import LatentPerceptual
from featinv_fast.train.settings import ControlNetRecipe


class ControlNetObjective(LatentObjective):
    """The loss on eps, features and prompt dropped together: zeros and the empty prompt.

    Args:
        model: its ControlNet and condition encoder learn.
        inputs: latents and features.
        prompts: "cond" and "uncond", [1, T, D].
        recipe: how often features and prompt are dropped, and the choice and the weighting of the times.
        perceptual: a second loss, on x0; None for none.
    """

    cond: Tensor
    uncond: Tensor
    control_scales: Tensor

    def __init__(
        self,
        model: FeatInv,
        inputs: Inputs,
        prompts: Mapping[str, Tensor],
        recipe: ControlNetRecipe,
        perceptual: LatentPerceptual | None = None,
    ) -> None:
        super().__init__(inputs)
        self.model = model
        self._recipe = recipe
        self._perceptual = perceptual
        self.register_buffer("cond", prompts["cond"])
        self.register_buffer("uncond", prompts["uncond"])
        self.register_buffer("control_scales", torch.ones(1, model.config.control_count), persistent=False)

    def forward(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, average: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """The mean squared error of the predicted noise, see `diffusion.losses`, and the perceptual loss."""
        del average
        latents, features = self.inputs.latents(batch, generator), self.inputs.features(batch)
        times = diffusion.random_times(len(latents), generator, self._recipe.times)
        noise = diffusion.normal(latents, generator)
        dropped = drop_mask(len(latents), self._recipe.drop_features, generator).to(latents.device)  # [B, 1, 1]
        x = diffusion.add_noise(latents, noise, times)
        own = 0  # the first items stand on the model's own path
        if self._recipe.own_path is not None:
            own = math.ceil(self._recipe.own_path.share * len(latents))
            times[:own] = diffusion.random_times(own, generator)  # sampling visits all of them
            dropped[:own] = False
            stops = diffusion.own_stops(times[:own], self._recipe.own_path.jumps, generator)
            x[:own] = self._own_path(stops, noise[:own], features[:own])
        condition = self.model.condition_encoder(features.masked_fill(dropped[..., None], 0.0))
        context = torch.where(dropped, self.uncond, self.cond)
        eps = self._predict(x, times.to(latents.device).float(), condition, context)
        x0 = diffusion.predicted_x0(x, eps, diffusion.signal_share(times).to(x))
        losses = {"loss": latents.new_zeros(())}
        if own < len(latents):
            losses = diffusion.losses(eps[own:], noise[own:], times[own:], self._recipe.weighting)
        if own:
            # The noise that would explain such latents grows without bounds as the time goes to zero; x0 does not.
            share, missed = own / len(latents), F.mse_loss(x0[:own].float(), latents[:own])
            losses |= {"loss": (1 - share) * losses["loss"] + share * missed, "own_path": missed.detach()}
        if self._perceptual is not None:
            # Dropped items are among them: what nothing tells of has no place in the features either.
            seen = self._perceptual(x0, latents)
            losses |= {"loss": losses["loss"] + seen, "perceptual": seen.detach()}
        return losses

    def reasons_against_shares(self, batch_size: int, processes: int) -> list[str]:
        """See `Objective`."""
        return uneven_parts(self._recipe.parts(), batch_size, processes)

    def show(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Decoded latents, and below them their reconstructions from the features."""
        latents, features = self.inputs.mean_latents(batch), self.inputs.features(batch)
        noise = diffusion.normal(latents, torch.Generator().manual_seed(0))
        table = samplers.build("ddim", PREVIEW_STEPS)
        condition = self.model.condition_encoder(features)
        made = diffusion.sample(table, lambda x, time: self._predict(x, time, condition, self.cond), noise)
        return torch.stack([self.inputs.autoencoder.decode(x) for x in (latents, made)])

    @torch.no_grad()
    def _own_path(self, stops: list[Tensor], x: Tensor, features: Tensor) -> Tensor:
        """Where DDIM leads from pure noise `x` [B, 4, h, w], from stop to stop, each times [B]."""
        condition = self.model.condition_encoder(features)
        for start, end in itertools.pairwise(stops):
            eps = self._predict(x, start.to(x.device).float(), condition, self.cond)
            x = diffusion.ddim_step(x, eps, *(diffusion.signal_share(t).to(x) for t in (start, end)))
        return x

    def _predict(self, x: Tensor, time: Tensor, condition: Tensor, context: Tensor) -> Tensor:
        return self.model.denoiser(x, condition, time, context, self.control_scales)

"""Training the KL autoencoder (arXiv 2112.10752)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from featinv_fast.models import Autoencoder
from featinv_fast.train import diffusion
from featinv_fast.train.data import Data, batch_of
from featinv_fast.train.images import to_signed
from featinv_fast.train.objective import Objective
from featinv_fast.train.perceptual import Perceptual
from featinv_fast.train.settings import AutoencoderRecipe

SCALED = 1024  # images whose latents say what the latent scale is


class AutoencoderObjective(Objective):
    """Pixels' differences, the divergence of the latents from N(0, 1), and differences of features.

    Args:
        autoencoder: learns.
        recipe: weights of the terms.
        data: the images.
        image_size: their edge in pixels.
        perceptual: the features that should be kept, or None.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        recipe: AutoencoderRecipe,
        data: Data,
        image_size: int,
        perceptual: Perceptual | None,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self._recipe = recipe
        self._data = data
        self._image_size = image_size
        self._perceptual = perceptual

    @property
    def length(self) -> int:
        """Number of different images."""
        return len(self._data)

    def load(self, draws: np.ndarray) -> dict[str, Tensor]:
        """The images of these draws."""
        return self.load_from(self._data, draws)

    def load_from(self, data: Data, draws: np.ndarray) -> dict[str, Tensor]:
        """Images of any data."""
        return {"images": torch.from_numpy(batch_of(data, draws)["images"])}

    def forward(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, average: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """The weighted sum of the terms, and each of them."""
        del average
        recipe = self._recipe
        image = to_signed(batch["images"], self._image_size)
        mean, log_variance = (t.float() for t in self.autoencoder.encoder(image))
        latents = mean + torch.exp(0.5 * log_variance) * diffusion.normal(mean, generator)
        decoded = self.autoencoder.decode(latents * self.autoencoder.decoder.latent_scale).float()
        terms = {
            "absolute": F.l1_loss(decoded, image),
            "square": F.mse_loss(decoded, image),
            # Of each latent value, in nats (arXiv 1312.6114, appendix B).
            "kl": 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean(),
        }
        loss = recipe.absolute_weight * terms["absolute"] + recipe.square_weight * terms["square"]
        loss = loss + recipe.kl_weight * terms["kl"]
        if self._perceptual is not None:
            terms["perceptual"] = self._perceptual(decoded, image)
            loss = loss + recipe.perceptual_weight * terms["perceptual"]
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def show(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The images, and below them what is left of them."""
        image = to_signed(batch["images"], self._image_size)
        mean, _ = self.autoencoder.encoder(image)
        return torch.stack([image, self.autoencoder.decode(mean * self.autoencoder.decoder.latent_scale)])

    @torch.no_grad()
    def measured_scale(self) -> float:
        """The factor that gives latents a standard deviation of 1 (arXiv 2112.10752, appendix G)."""
        generator = torch.Generator().manual_seed(0)
        parts = []
        for draws in np.array_split(np.arange(min(SCALED, self.length)), -(-min(SCALED, self.length) // 32)):
            images = self.load(draws)["images"].to(next(self.parameters()).device)
            mean, log_variance = self.autoencoder.encoder(to_signed(images, self._image_size))
            parts.append(mean + torch.exp(0.5 * log_variance) * diffusion.normal(mean, generator))
        return 1.0 / torch.cat(parts).double().std().item()

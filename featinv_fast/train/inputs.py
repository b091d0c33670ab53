"""From images to what diffusion models are trained on: latents and feature maps, computed now or kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featinv_fast.errors import ConfigError
from featinv_fast.features import weights_sha256
from featinv_fast.models import Autoencoder
from featinv_fast.train.cache import precompute, rows
from featinv_fast.train.data import Data, batch_of, identity, repeats
from featinv_fast.train.diffusion import normal
from featinv_fast.train.extractor import Extractor
from featinv_fast.train.images import to_bytes, to_signed
from featinv_fast.train.pairs import Pairs
from featinv_fast.train.settings import Cache, DataConfig
from featinv_kernels.packed_maps import by_location

SAMPLED = 256  # images whose features say how large features are


class Inputs(nn.Module):
    """Latents and features of images.

    Args:
        data: the images.
        config: says what is kept.
        autoencoder: frozen, on its device.
        image_size: edge in pixels of the images that it encodes.
        extractor: of the feature maps; None for models without, and where there is no backbone to make them.
        pairs: feature maps made elsewhere, which then count.
        folder: for files of what is kept; several runs may share it.
        progress: show a bar on stderr while computing what is kept.
        concepts: names of the codes that the data tell and `load` gives along.

    Raises:
        ConfigError: something is to be kept although every pass shows other pixels.
    """

    def __init__(
        self,
        data: Data,
        config: DataConfig,
        autoencoder: Autoencoder,
        *,
        image_size: int,
        extractor: Extractor | None,
        pairs: Pairs | None = None,
        folder: Path,
        progress: bool,
        concepts: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._concepts = tuple(concepts)
        self.autoencoder = autoencoder
        self._data = data
        self._judge = extractor
        self._extractor = None if pairs is not None else extractor
        self._pairs = pairs
        self._image_size = image_size
        self._kept: dict[str, np.ndarray] | None = None
        if config.cache is not Cache.NONE:
            if not repeats(data):
                raise ConfigError(
                    "random crops leave nothing to keep",
                    given=f"data.crop = '{config.crop}', data.cache = '{config.cache}'",
                    expected="cache = 'none', or crop = 'center'",
                    remedy="change one of them",
                )
            self._kept = precompute(
                self._computed,
                len(data),
                folder=folder if config.cache is Cache.DISK else None,
                identity=self._identity(config),
                progress=progress,
            )

    @property
    def length(self) -> int:
        """Number of different items."""
        return len(self._data)

    def load(self, draws: np.ndarray) -> dict[str, Tensor]:
        """The kept rows of these draws, or their images."""
        if self._kept is None:
            return self.load_from(self._data, draws)
        return rows(self._kept, draws % len(self._data)) | self._stored(self._data, draws)

    def load_from(self, data: Data, draws: np.ndarray) -> dict[str, Tensor]:
        """Images of any data, their concepts, and their maps where these were made elsewhere."""
        return self._shown(data, draws) | self._stored(data, draws)

    def latents(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """A sample of the posterior, scaled: [B, 4, h, w]."""
        mean, log_variance = self._moments(batch)
        scale = self.autoencoder.decoder.latent_scale
        return (mean + torch.exp(0.5 * log_variance) * normal(mean, generator)) * scale

    def mean_latents(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The posterior's mean, scaled: [B, 4, h, w]."""
        return self._moments(batch)[0] * self.autoencoder.decoder.latent_scale

    def features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Feature maps [B, C, h, w]."""
        if "features" in batch:
            return batch["features"]
        assert self._extractor is not None, "this model takes no features"
        return self._extractor(batch["images"])

    def likeness(self, images: Tensor, batch: Mapping[str, Tensor]) -> Tensor | None:
        """How near the backbone sees images [B, 3, H, W] in [-1, 1] to those of a batch: cosines [B], or None.

        Of the two vectors at each position, averaged over the positions. None where there is no backbone.
        """
        if self._judge is None:
            return None
        seen, features = self._judge(to_bytes(images)), self.features(batch)
        one, other = (by_location(maps.to(seen), self._judge.spec.packed_shapes) for maps in (seen, features))
        return torch.cosine_similarity(one, other, dim=1).flatten(1).mean(dim=1)

    def largest_feature(self) -> float:
        """The largest |value| in the features of the first images."""
        draws = np.arange(min(SAMPLED, self.length), dtype=np.int64)
        parts = np.array_split(draws, -(-len(draws) // 32))
        return max(self.features(self.load(part)).abs().max().item() for part in parts)

    @torch.no_grad()
    def _moments(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if "mean" in batch:
            return batch["mean"], batch["log_variance"]
        device = next(self.autoencoder.parameters()).device
        mean, log_variance = self.autoencoder.encoder(to_signed(batch["images"].to(device), self._image_size))
        return mean, log_variance

    @torch.no_grad()
    def _computed(self, indices: np.ndarray) -> dict[str, Tensor]:
        shown = self._shown(self._data, indices)
        images = shown.pop("images")
        mean, log_variance = self._moments({"images": images})
        features = {} if self._extractor is None else {"features": self._extractor(images)}
        return {"mean": mean, "log_variance": log_variance, **features, **shown}

    def _shown(self, data: Data, draws: np.ndarray) -> dict[str, Tensor]:
        batch = batch_of(data, draws)
        return {name: torch.from_numpy(batch[name]) for name in ("images", *self._concepts)}

    def _stored(self, data: Data, draws: np.ndarray) -> dict[str, Tensor]:
        return {} if self._pairs is None else {"features": self._pairs.maps(data, draws % len(data))}

    def _identity(self, config: DataConfig) -> dict[str, Any]:
        """What the kept values depend on."""
        return {
            "data": identity(self._data, config),
            "extractor": None if self._extractor is None else self._extractor.identity(),
            "image_size": self._image_size,
            "autoencoder": weights_sha256(self.autoencoder.encoder),
        } | ({"concepts": self._concepts} if self._concepts else {})

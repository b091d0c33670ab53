"""Differences of images in the features of a frozen backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from featinv_fast.config import FeatureLayout, FeatureSpec
from featinv_fast.errors import ConfigError
from featinv_fast.features import Backbone
from featinv_fast.models import Autoencoder
from featinv_fast.train.extractor import resolved_weights
from featinv_fast.train.settings import BackboneConfig, PerceptualConfig


class Perceptual:
    """Mean over stages and positions of |a / |a| - b / |b||^2, as in LPIPS (arXiv 1801.03924) without learned weights.

    Args:
        config: the backbone.
        layers: its stages that are compared.
        size: edge of the images in pixels.
        root: what relative paths of weights start from.
        device: where it runs.

    Raises:
        ConfigError: the backbone's stages are no maps [B, C, H, W].
    """

    def __init__(
        self, config: BackboneConfig, layers: Sequence[int], *, size: int, root: Path, device: torch.device
    ) -> None:
        spec = FeatureSpec(
            channels=1,  # unknown before the first map
            backbone=config.name,
            layer=str(layers[0]),
            input_size=config.input_size or size,
            mean=config.mean,
            std=config.std,
        )
        self._backbone = Backbone(spec, weights=resolved_weights(config.weights, root), device=device, run_code=True)
        if self._backbone.spec.layout is not FeatureLayout.NCHW:
            raise ConfigError(
                "the perceptual loss compares maps [B, C, H, W]",
                given=f"stages of {config.name} in layout {str(self._backbone.spec.layout)!r}",
                expected="a backbone whose library arranges its stages, as timm does for all of its own",
                remedy="leave [perceptual] out, or take the backbone from timm",
            )
        self._layers = [str(layer) for layer in layers]

    @property
    def weights_sha256(self) -> str:
        """Of the backbone."""
        return self._backbone.weights_sha256

    def __call__(self, decoded: Tensor, image: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1]; gradients flow into `decoded` alone."""
        with torch.no_grad():
            wanted = self._features(image)
        distances = [(a - b).square().sum(dim=1).mean() for a, b in zip(self._features(decoded), wanted, strict=True)]
        return torch.stack(distances).mean()

    def _features(self, image: Tensor) -> list[Tensor]:
        pixels = (image + 1) / 2
        size = self._backbone.input_size
        if pixels.shape[-1] != size:
            pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
        maps, _ = self._backbone.network.read(self._backbone.normalised(pixels), self._layers)
        return [F.normalize(features, dim=1) for features in maps]  # stages are [B, C, H, W]


class LatentPerceptual:
    """The same for latents: of a part of each batch, decoded, against the decoded latents that they should be.

    Args:
        perceptual: compares images.
        autoencoder: frozen; gradients flow through its decoder.
        config: which part, and the weight.
    """

    def __init__(self, perceptual: Perceptual, autoencoder: Autoencoder, config: PerceptualConfig) -> None:
        self._perceptual = perceptual
        self._autoencoder = autoencoder
        self._config = config

    def __call__(self, predicted: Tensor, latents: Tensor) -> Tensor:
        """Weighted difference of latents [B, 4, h, w]; gradients flow into `predicted` alone."""
        part = slice(math.ceil(self._config.share * len(latents)))
        with torch.no_grad():
            wanted = self._autoencoder.decode(latents[part])
        return self._config.weight * self._perceptual(self._autoencoder.decode(predicted[part]), wanted)

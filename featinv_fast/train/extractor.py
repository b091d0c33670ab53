"""Feature maps of training images: a frozen backbone on uint8 tensors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featinv_fast.config import FeatureLayout, to_dict
from featinv_fast.features import Backbone, asked_spec, normalise
from featinv_fast.train.images import to_pixels
from featinv_fast.train.settings import BackboneConfig


class Extractor:
    """A backbone, frozen, as the maps that condition encoders take.

    Args:
        config: the backbone.
        size: edge of the training images in pixels, where `config` names no other.
        root: what relative paths of weights start from.
        device: where it runs.

    Attributes:
        spec: complete, as the backbone found it, with the hash of its weights; `absolute_max` is still unknown.

    Raises:
        FeatInvError: the backbone cannot be opened, or is not what `config` says; see `Backbone`.
    """

    def __init__(self, config: BackboneConfig, *, size: int, root: Path, device: torch.device) -> None:
        stated = asked_spec(
            config.name,
            config.layers or [config.layer],
            layout=config.layout,
            input_size=config.input_size or size,
            mean=config.mean,
            std=config.std,
        )
        self._backbone = Backbone(stated, weights=resolved_weights(config.weights, root), device=device, run_code=True)
        self._pooled = config.pooled
        self._map = self._backbone.spec
        pooled = dataclasses.replace(self._map, layout=FeatureLayout.POOLED, height=1, width=1, prefix_tokens=None)
        self.spec = pooled if config.pooled else self._map

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> maps [B, C, h, w]; pooled, averages [B, C, 1, 1]; several layers packed."""
        maps = normalise(self._raw(images), self._map, layout=self._map.layout)
        return maps.mean(dim=(2, 3), keepdim=True) if self._pooled else maps

    def identity(self) -> dict[str, Any]:
        """What the features depend on, for the names of caches and for runs that go on."""
        return {"features": to_dict(self.spec), "weights": self._backbone.weights_sha256}

    def _raw(self, images: Tensor) -> Tensor:
        pixels = to_pixels(images.to(self._backbone.device), self._backbone.input_size)
        return self._backbone(self._backbone.normalised(pixels))


def resolved_weights(weights: str | None, root: Path) -> str | Path | None:
    """What `Backbone` takes: paths start from `root`, "random:SEED" and None stay."""
    if weights is None or weights.startswith("random:"):
        return weights
    return root / weights

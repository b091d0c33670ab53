"""The ControlNet: a second encoder whose activations steer the U-Net."""

from __future__ import annotations

from torch import Tensor, nn

from featinv_fast.config import ModelConfig
from featinv_fast.models.layers import TimeEmbedding, conv1x1, zero_
from featinv_fast.models.unet import Encoder


class ControlNet(nn.Module):
    """A trainable copy of the U-Net's encoder and middle with zero-initialised outputs (arXiv 2302.05543)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.time_embedding: nn.Module = TimeEmbedding(config.channels)
        self.encoder = Encoder(config)
        widths = [config.channels]
        for level, width in enumerate(config.level_channels):
            widths += [width] * (config.blocks_per_level + (level < len(config.level_channels) - 1))
        widths.append(config.level_channels[-1])  # the middle
        self.zero_convs = nn.ModuleList(zero_(conv1x1(width, width)) for width in widths)

    def forward(self, x: Tensor, condition: Tensor, time: Tensor, context: Tensor | None) -> list[Tensor]:
        """`x` [B, 4, h, w], `condition` [B, channels, h, w], `time` [1 or B], `context` [G, T, D] -> 13 residuals."""
        activations = self.encoder(x, self.time_embedding(time), context, condition)
        return [conv(a) for conv, a in zip(self.zero_convs, activations, strict=True)]

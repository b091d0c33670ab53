"""The condition encoder: feature maps to the map that is added to the ControlNet's first activation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from featinv_fast.config import ModelConfig
from featinv_fast.models.layers import conv3x3, zero_


class ConditionEncoder(nn.Module):
    """Bilinear resize to the latent's size, then three 3x3 convolutions, the last one starting at zero.

    The "input hint block" of FeatInv (arXiv 2505.21032, sec. 3). It sees neither time nor prompt,
    so one pass per image is enough.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.condition_hidden_channels
        self.size = (config.latent_size, config.latent_size)
        self.conv_in = conv3x3(config.feature_channels, hidden)
        self.conv_hidden = conv3x3(hidden, hidden)
        self.conv_out = zero_(conv3x3(hidden, config.channels))

    def forward(self, features: Tensor) -> Tensor:
        """`features` [B, C, H, W] -> condition [B, channels, latent_size, latent_size] in the dtype of `features`."""
        # Larger maps shrink without antialiasing, as in the official code.
        x = F.interpolate(features, self.size, mode="bilinear", align_corners=False).to(self.conv_in.weight.dtype)
        x = self.conv_hidden(F.silu(self.conv_in(x)))
        return self.conv_out(F.silu(x)).to(features.dtype)

"""The condition encoder: feature maps to the map that is added to the ControlNet's first activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featinv_fast.config import ModelConfig
from featinv_fast.models.layers import conv3x3, zero_
from featinv_kernels.packed_maps import unpack


class ConditionEncoder(nn.Module):
    """Bilinear resize to the latent's size, then three 3x3 convolutions, the last one starting at zero.

    The "input hint block" of FeatInv (arXiv 2505.21032, sec. 3). It sees neither time nor prompt,
    so one pass per image is enough. The maps of several layers are resized each and stand beside one another.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.condition_hidden_channels
        self.size = (config.latent_size, config.latent_size)
        self.shapes = config.feature_shapes
        self.conv_in = conv3x3(config.feature_channels, hidden)
        self.conv_hidden = conv3x3(hidden, hidden)
        self.conv_out = zero_(conv3x3(hidden, config.channels))

    def forward(self, features: Tensor) -> Tensor:
        """`features` [B, C, H, W], or those of several layers packed [B, K, 1, 1] -> condition, in their dtype.

        The condition is [B, channels, latent_size, latent_size].
        """
        # Larger maps shrink without antialiasing, as in the official code.
        resized = [
            F.interpolate(one, self.size, mode="bilinear", align_corners=False) for one in unpack(features, self.shapes)
        ]
        x = (resized[0] if len(resized) == 1 else torch.cat(resized, dim=1)).to(self.conv_in.weight.dtype)
        x = self.conv_hidden(F.silu(self.conv_in(x)))
        return self.conv_out(F.silu(x)).to(features.dtype)

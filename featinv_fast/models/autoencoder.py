"""The KL autoencoder between images and latents (arXiv 2112.10752)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featinv_fast.config import AutoencoderConfig
from featinv_fast.models.layers import (
    FINE_EPS,
    Conv2d,
    GroupNorm,
    ResidualBlock,
    SelfAttention,
    Upsample,
    conv1x1,
    conv3x3,
)


class Downsample(nn.Module):
    """Stride-2 convolution, padded at the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class MapAttention(nn.Module):
    """Single-head self-attention over the positions of a map, with a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, FINE_EPS)
        self.attention = SelfAttention(channels, heads=1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        tokens = self.attention(self.norm(x).flatten(2).transpose(1, 2))  # [B, H * W, C]
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class Middle(nn.Module):
    """residual, attention, residual at the latent's resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual_in = ResidualBlock(channels, channels)
        self.attention = MapAttention(channels)
        self.residual_out = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return self.residual_out(self.attention(self.residual_in(x)))


class Level(nn.Module):
    """The residual blocks of one resolution and the step to the next one, up or down."""

    def __init__(self, widths: Sequence[int], resample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(a, b) for a, b in itertools.pairwise(widths))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        for block in self.blocks:
            x = block(x)
        return self.resample(x)


class ImageEncoder(nn.Module):
    """Image to the mean and log-variance of its latent."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        self.conv_in = conv3x3(config.image_channels, config.channels)
        self.levels = nn.ModuleList()
        channels = config.channels
        for level, width in enumerate(widths):
            last = level == len(widths) - 1
            resample = nn.Identity() if last else Downsample(width)
            self.levels.append(Level([channels] + [width] * config.blocks_per_level, resample))
            channels = width
        self.middle = Middle(channels)
        self.norm_out = GroupNorm(channels, FINE_EPS, silu=True)
        self.conv_out = conv3x3(channels, 2 * config.latent_channels)
        self.quant_conv = conv1x1(2 * config.latent_channels, 2 * config.latent_channels)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """`image` [B, 3, H, W] in [-1, 1] -> mean and log-variance, [B, 4, H/8, W/8] each, not yet scaled."""
        x = self.conv_in(image.to(self.conv_in.weight.dtype))
        for level in self.levels:
            x = level(x)
        x = self.conv_out(self.norm_out(self.middle(x)))
        mean, log_variance = self.quant_conv(x).chunk(2, dim=1)
        return mean.to(image.dtype), log_variance.clamp(-30.0, 20.0).to(image.dtype)


class ImageDecoder(nn.Module):
    """Scaled latent to image."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        self.latent_scale = config.latent_scale
        channels = widths[-1]
        self.post_quant_conv = conv1x1(config.latent_channels, config.latent_channels)
        self.conv_in = conv3x3(config.latent_channels, channels)
        self.middle = Middle(channels)
        self.levels = nn.ModuleList()  # coarsest first
        for level, width in reversed(list(enumerate(widths))):
            resample = Upsample(width) if level else nn.Identity()
            self.levels.append(Level([channels] + [width] * (config.blocks_per_level + 1), resample))
            channels = width
        self.norm_out = GroupNorm(channels, FINE_EPS, silu=True)
        self.conv_out = conv3x3(channels, config.image_channels)

    def forward(self, latents: Tensor) -> Tensor:
        """`latents` [B, 4, h, w], scaled as the sampler leaves them -> image [B, 3, 8h, 8w], about [-1, 1]."""
        x = (latents / self.latent_scale).to(self.conv_in.weight.dtype)
        x = self.middle(self.conv_in(self.post_quant_conv(x)))
        for level in self.levels:
            x = level(x)
        return self.conv_out(self.norm_out(x)).to(latents.dtype)


class Autoencoder(nn.Module):
    """Encoder and decoder. Inference needs the decoder alone, training both."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.encoder = ImageEncoder(config)
        self.decoder = ImageDecoder(config)

    def encode(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A sample of the latent's posterior, scaled for the U-Net: [B, 3, H, W] -> [B, 4, H/8, W/8]."""
        mean, log_variance = self.encoder(image)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return (mean + torch.exp(0.5 * log_variance) * noise) * self.decoder.latent_scale

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [B, 4, h, w] -> images [B, 3, 8h, 8w]."""
        return self.decoder(latents)

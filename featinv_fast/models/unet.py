"""The Stable-Diffusion-1.x U-Net. Its encoder half is also the ControlNet's body."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from featinv_fast.config import ModelConfig
from featinv_fast.models.layers import (
    UNET_EPS,
    Conv2d,
    GroupNorm,
    ResidualBlock,
    TimeEmbedding,
    Transformer,
    Upsample,
    conv3x3,
)


class Block(nn.Module):
    """A residual block and, at the finer levels, a transformer."""

    def __init__(self, config: ModelConfig, in_channels: int, out_channels: int, *, attention: bool) -> None:
        super().__init__()
        self.residual = ResidualBlock(
            in_channels, out_channels, time_channels=config.time_embedding_channels, eps=UNET_EPS
        )
        self.transformer = Transformer(out_channels, config.context_channels, config.heads) if attention else None

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W]."""
        x = self.residual(x, time)
        return x if self.transformer is None else self.transformer(x, context)


class EncoderLevel(nn.Module):
    """The blocks of one resolution and the stride-2 convolution to the next."""

    def __init__(self, blocks: Sequence[Block], downsample: Conv2d | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> list[Tensor]:
        """Every activation that the decoder concatenates; the last one goes on."""
        skips = []
        for block in self.blocks:
            x = block(x, time, context)
            skips.append(x)
        return skips if self.downsample is None else [*skips, self.downsample(x)]


class Middle(nn.Module):
    """residual, transformer, residual at the coarsest level."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        self.block_in = Block(config, channels, channels, attention=True)
        self.block_out = Block(config, channels, channels, attention=False)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return self.block_out(self.block_in(x, time, context), time, context)


class Encoder(nn.Module):
    """Encoder and middle of the U-Net."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.conv_in = conv3x3(config.latent_channels, config.channels)
        self.levels = nn.ModuleList()
        channels = config.channels
        for level, width in enumerate(config.level_channels):
            blocks = []
            for _ in range(config.blocks_per_level):
                blocks.append(Block(config, channels, width, attention=level in config.attention_levels))
                channels = width
            last = level == len(config.level_channels) - 1
            self.levels.append(EncoderLevel(blocks, None if last else conv3x3(width, width, stride=2)))
        self.middle = Middle(config, channels)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None, condition: Tensor | None = None) -> list[Tensor]:
        """The 13 activations of an encoder: 12 skips, finest first, and the middle's output."""
        x = self.conv_in(x)
        if condition is not None:
            x = x + condition
        activations = [x]
        for level in self.levels:
            activations += level(activations[-1], time, context)
        return [*activations, self.middle(activations[-1], time, context)]


class DecoderLevel(nn.Module):
    """The blocks of one resolution on the way up, each fed with one skip, and the step to the next."""

    def __init__(self, blocks: Sequence[Block], upsample: Upsample | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.upsample = upsample

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, context: Tensor | None) -> Tensor:
        """Consumes its skips from the end of `skips`."""
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), time, context)
        return x if self.upsample is None else self.upsample(x)


class Decoder(nn.Module):
    """The way up, coarsest level first."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = config.level_channels
        skip_channels = [config.channels]  # what Encoder.forward returns, without the middle
        for level, width in enumerate(widths):
            skip_channels += [width] * (config.blocks_per_level + (level < len(widths) - 1))
        self.levels = nn.ModuleList()
        channels = widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            blocks = []
            for _ in range(config.blocks_per_level + 1):
                attention = level in config.attention_levels
                blocks.append(Block(config, channels + skip_channels.pop(), width, attention=attention))
                channels = width
            self.levels.append(DecoderLevel(blocks, Upsample(width) if level else None))

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, context: Tensor | None) -> Tensor:
        """The middle's output and 12 skips, finest first -> [B, channels, h, w]."""
        skips = list(skips)
        for level in self.levels:
            x = level(x, skips, time, context)
        return x


class UNet(nn.Module):
    """Noise prediction from a latent, a time and a prompt (arXiv 2112.10752)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.time_embedding: nn.Module = TimeEmbedding(config.channels, config.guidance_embedding_channels)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.norm_out = GroupNorm(config.channels, UNET_EPS, silu=True)
        self.conv_out = conv3x3(config.channels, config.latent_channels)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        context: Tensor | None,
        residuals: Sequence[Tensor] | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """`x` [B, 4, h, w], `time` [1 or B], `context` [G, T, D], 13 `residuals` -> eps [B, 4, h, w].

        `residuals` are the ControlNet's, in the order of `Encoder.forward`; `guidance` [1 or B] is for LCM U-Nets.
        """
        embedded = self.time_embedding(time, guidance)
        activations = self.encoder(x, embedded, context)
        return self.decode(activations, embedded, context, residuals)

    def decode(
        self,
        activations: Sequence[Tensor],
        embedded: Tensor,
        context: Tensor | None,
        residuals: Sequence[Tensor] | None,
    ) -> Tensor:
        """The second half: what `encoder` gave, the embedded time and 13 `residuals` -> eps [B, 4, h, w]."""
        if residuals is not None:
            activations = [a + r for a, r in zip(activations, residuals, strict=True)]
        *skips, middle = activations
        h = self.decoder(middle, skips, embedded, context)
        return self.conv_out(self.norm_out(h))

"""Building blocks of the U-Net, the ControlNet and the autoencoder.

Every block works in the dtype of its weights; norm statistics are taken in fp32 where that dtype is half precision.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32  # of every GroupNorm in Stable Diffusion 1.x
UNET_EPS = 1e-5  # GroupNorm epsilon in the U-Net's residual blocks
FINE_EPS = 1e-6  # GroupNorm epsilon in transformers and in the autoencoder


def _in_fp32(x: Tensor) -> Tensor:
    """Half precision is too coarse for norm statistics; fp32 and float64 stay what they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class Linear(nn.Linear):
    """A linear layer that works in the dtype of its weights and answers in the dtype of its input.

    A layer whose weights do not fit half precision can thus stay in fp32 inside a half-precision network.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C']."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class Conv2d(nn.Conv2d):
    """A 2-D convolution with the dtype rule of `Linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class GroupNorm(nn.GroupNorm):
    """GroupNorm with 32 groups whose statistics are taken in fp32 at least; `silu` adds the activation behind it."""

    def __init__(self, channels: int, eps: float, *, silu: bool = False) -> None:
        super().__init__(GROUPS, channels, eps)
        self.silu = silu

    def forward(self, x: Tensor, channel_bias: Tensor | None = None) -> Tensor:
        """`x` [B, C, H, W]; `channel_bias` [1 or B, C] is added before the norm -> [B, C, H, W]."""
        if channel_bias is not None:
            x = x + channel_bias.to(x.dtype)[:, :, None, None]
        y = F.group_norm(_in_fp32(x), self.num_groups, _in_fp32(self.weight), _in_fp32(self.bias), self.eps)
        y = y.to(x.dtype)
        return F.silu(y) if self.silu else y


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis whose statistics are taken in fp32 at least."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        y = F.layer_norm(_in_fp32(x), self.normalized_shape, _in_fp32(self.weight), _in_fp32(self.bias), self.eps)
        return y.to(x.dtype)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> Conv2d:
    """A 3x3 convolution that keeps the size (or halves it with stride 2)."""
    return Conv2d(in_channels, out_channels, 3, stride, padding=1)


def conv1x1(in_channels: int, out_channels: int) -> Conv2d:
    """A 1x1 convolution."""
    return Conv2d(in_channels, out_channels, 1)


def zero_(module: Conv2d) -> Conv2d:
    """Zero a convolution's weights: training then starts from the unchanged base model (arXiv 2302.05543, sec. 3.1)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def sinusoid(values: Tensor, half: int, step: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of `values` [S] at `half` frequencies exp(-i * step): two [S, half] in fp32 at least."""
    values = _in_fp32(values)
    frequencies = torch.exp(torch.arange(half, device=values.device, dtype=values.dtype) * -step)
    angles = values[:, None] * frequencies
    return angles.cos(), angles.sin()


def embed_timesteps(timesteps: Tensor, channels: int) -> Tensor:
    """Sinusoidal time embedding, cosines first: [S] -> [S, channels]."""
    half = channels // 2
    return torch.cat(sinusoid(timesteps, half, math.log(10_000.0) / half), dim=1)


def embed_guidance(scale: Tensor, channels: int) -> Tensor:
    """Embedding of a guidance scale for LCM U-Nets (arXiv 2310.04378, sec. 4.2): [S] -> [S, channels].

    Sines first and one frequency step wider than the time embedding's, as those models were trained.
    """
    half = channels // 2
    cosines, sines = sinusoid((scale - 1.0) * 1000.0, half, math.log(10_000.0) / (half - 1))
    return torch.cat([sines, cosines], dim=1)


class TimeEmbedding(nn.Module):
    """Timesteps to the (activated) vector that every residual block projects: [S] -> [S, 4 * channels].

    `guidance` is the guidance scale that a full LCM U-Net takes as an input; a plain model has none.
    """

    def __init__(self, channels: int, guidance_channels: int = 0) -> None:
        super().__init__()
        self.channels = channels
        self.guidance_channels = guidance_channels
        self.linear_in = Linear(channels, 4 * channels)
        self.linear_out = Linear(4 * channels, 4 * channels)
        if guidance_channels:
            self.guidance_projection = Linear(guidance_channels, channels, bias=False)

    def forward(self, timesteps: Tensor, guidance: Tensor | None = None) -> Tensor:
        """Embed `timesteps` [S] (and `guidance` [S]) -> [S, 4 * channels], SiLU applied."""
        x = embed_timesteps(timesteps, self.channels)  # [S, channels]
        if guidance is not None:
            x = x + self.guidance_projection(embed_guidance(guidance, self.guidance_channels))
        return F.silu(self.linear_out(F.silu(self.linear_in(x))))


class ResidualBlock(nn.Module):
    """norm, SiLU, conv (+ time bias), norm, SiLU, conv, with a skip that is a 1x1 conv where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, *, time_channels: int = 0, eps: float = FINE_EPS) -> None:
        super().__init__()
        self.norm_in = GroupNorm(in_channels, eps, silu=True)
        self.conv_in = conv3x3(in_channels, out_channels)
        self.time_projection: nn.Module | None = Linear(time_channels, out_channels) if time_channels else None
        self.norm_out = GroupNorm(out_channels, eps, silu=True)
        self.conv_out = conv3x3(out_channels, out_channels)
        self.skip = conv1x1(in_channels, out_channels) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """`x` [B, C, H, W], `time` [1 or B, 4 * channels] -> [B, C', H, W]."""
        h = self.conv_in(self.norm_in(x))
        time_bias = None if self.time_projection is None else self.time_projection(time)
        return self.skip(x) + self.conv_out(self.norm_out(h, time_bias))


def split_heads(x: Tensor, groups: int, heads: int) -> Tensor:
    """[G * B, N, C] -> [G, heads, B * N, C / heads]: the items of a group are queries of one attention."""
    return x.reshape(groups, -1, heads, x.shape[-1] // heads).transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head attention among the positions of each item."""

    def __init__(self, channels: int, heads: int, *, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(channels, channels, bias=bias)
        self.key = Linear(channels, channels, bias=bias)
        self.value = Linear(channels, channels, bias=bias)
        self.out = Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ContextProjection(nn.Module):
    """Keys and values of a prompt: [G, T, D] -> two [G, heads, T, C / heads]."""

    def __init__(self, channels: int, context_channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.key = Linear(context_channels, channels, bias=False)
        self.value = Linear(context_channels, channels, bias=False)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Project `context` [G, T, D]."""
        groups = context.shape[0]
        return split_heads(self.key(context), groups, self.heads), split_heads(self.value(context), groups, self.heads)


class CrossAttention(nn.Module):
    """Attention from positions to a prompt. The batch is G equal groups, each with a prompt of its own.

    G is 2 for a guided batch (all conditional items, then all unconditional ones) and the batch size in training.
    """

    def __init__(self, channels: int, context_channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(channels, channels, bias=False)
        self.context: nn.Module = ContextProjection(channels, context_channels, heads)
        self.out = Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """`x` [G * B, N, C], `context` [G, T, D] (unused where the prompts are constants) -> [G * B, N, C]."""
        k, v = (t.to(x.dtype) for t in self.context(context))  # [G, heads, T, d]
        q = split_heads(self.query(x), k.shape[0], self.heads)  # [G, heads, B * N, d]
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class FeedForward(nn.Module):
    """GEGLU feed-forward of four times the width (arXiv 2002.05202)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear_in = Linear(channels, 8 * channels)
        self.linear_out = Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        value, gate = self.linear_in(x).chunk(2, dim=-1)
        return self.linear_out(value * F.gelu(gate))


class Transformer(nn.Module):
    """Self-attention, cross-attention and feed-forward over the positions of a map, with a skip around all."""

    def __init__(self, channels: int, context_channels: int, heads: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, FINE_EPS)
        self.proj_in = conv1x1(channels, channels)
        self.norm_self = LayerNorm(channels)
        self.self_attention = SelfAttention(channels, heads)
        self.norm_cross = LayerNorm(channels)
        self.cross_attention = CrossAttention(channels, context_channels, heads)
        self.norm_feed_forward = LayerNorm(channels)
        self.feed_forward = FeedForward(channels)
        self.proj_out = conv1x1(channels, channels)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """`x` [G * B, C, H, W], `context` [G, T, D] -> [G * B, C, H, W]."""
        return self.with_prompt(x, self.before_prompt(x), context)

    def before_prompt(self, x: Tensor) -> Tensor:
        """What no prompt has a part in: `x` [B, C, H, W] -> [B, H * W, C]."""
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        return h + self.self_attention(self.norm_self(h))

    def with_prompt(self, x: Tensor, h: Tensor, context: Tensor | None) -> Tensor:
        """The rest: `h` [G * B, H * W, C] and the skip `x` [G * B, C, H, W] -> [G * B, C, H, W]."""
        h = h + self.cross_attention(self.norm_cross(h), context)
        h = h + self.feed_forward(self.norm_feed_forward(h))
        return x + self.proj_out(torch.unflatten(h.transpose(1, 2), 2, x.shape[2:]))


class Upsample(nn.Module):
    """Nearest-neighbour doubling followed by a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))

"""Layers that call fused operations, for maps with the channels last; `fused_ops.py` puts them in their places."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featinv_fast.checkpoints import half_precision_exceptions
from featinv_fast.models.condition_encoder import ConditionEncoder
from featinv_fast.models.layers import (
    Conv2d,
    CrossAttention,
    FeedForward,
    GroupNorm,
    LayerNorm,
    Linear,
    SelfAttention,
    Upsample,
)
from featinv_fast.rewrites.shared_prefix import Fork, take_children
from featinv_fast.rewrites.upsample_products import UpsampleProducts
from featinv_kernels import attention, geglu, group_norm_silu, phase_weights, resize_conv, tap_weights, upsample_conv
from featinv_kernels.packed_maps import unpack


class FusedGroupNorm(nn.Module):
    """`GroupNorm` with the bias before it and the activation behind it in one operation."""

    def __init__(self, norm: GroupNorm, provider: str) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, norm.silu
        self.provider = provider

    def forward(self, x: Tensor, channel_bias: Tensor | None = None) -> Tensor:
        """`x` [B, C, H, W]; `channel_bias` [1 or B, C] is added before the norm -> [B, C, H, W], channels last."""
        if channel_bias is not None and len(channel_bias) == 1:
            channel_bias = channel_bias[0]
        y = group_norm_silu(
            x.permute(0, 2, 3, 1),
            self.weight,
            self.bias,
            channel_bias,
            groups=self.groups,
            eps=self.eps,
            silu=self.silu,
            provider=self.provider,
        )
        return y.permute(0, 3, 1, 2)


class PointwiseConv(nn.Module):
    """A 1x1 convolution as one matrix product, which adds the bias as it goes; a convolution does so afterwards."""

    def __init__(self, conv: Conv2d) -> None:
        super().__init__()
        self.weight = constant(conv.weight[:, :, 0, 0].contiguous())  # [C', C]
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W], channels last."""
        positions = x.permute(0, 2, 3, 1)
        # Two axes: with more, torch may add the bias in a kernel of its own.
        y = F.linear(positions.flatten(0, 2).to(self.weight.dtype), self.weight, self.bias)
        return y.reshape(*positions.shape[:3], -1).permute(0, 3, 1, 2).to(x.dtype)


class FusedLayerNorm(LayerNorm):
    """`LayerNorm` in one kernel of torch's, which takes its statistics in fp32 for half precision too."""

    def __init__(self, norm: LayerNorm) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = norm.weight, norm.bias
        self.normalized_shape, self.eps = norm.normalized_shape, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        if self.weight.dtype != x.dtype:  # weights that do not fit half precision
            return super().forward(x)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class FusedSelfAttention(nn.Module):
    """`SelfAttention` with one product for queries, keys and values, which are taken as it leaves them."""

    def __init__(self, layer: SelfAttention, provider: str) -> None:
        super().__init__()
        parts = (layer.query, layer.key, layer.value)
        self.heads = layer.heads
        self.projection = Linear(layer.query.in_features, 3 * layer.query.out_features, bias=False, device="meta")
        self.projection.weight = constant(torch.cat([part.weight for part in parts]))
        if layer.query.bias is not None:
            self.projection.bias = constant(torch.cat([part.bias for part in parts]))
        self.out = layer.out
        self.provider = provider

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        q, k, v = self.projection(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # [B, N, heads, d]
        return self.out(attention(q, k, v, provider=self.provider).flatten(2))


class FusedCrossAttention(nn.Module):
    """`CrossAttention` without transposes."""

    query: Linear
    context: nn.Module
    out: Linear

    def __init__(self, layer: CrossAttention, provider: str) -> None:
        super().__init__()
        take_children(self, layer)
        self.heads = layer.heads
        self.provider = provider

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """`x` [G * B, N, C], `context` [G, T, D] (unused where the prompts are constants) -> [G * B, N, C]."""
        k, v = (t.to(x.dtype).transpose(1, 2) for t in self.context(context))  # [G, T, heads, d]
        q = self.query(x).unflatten(-1, (self.heads, -1))  # [G * B, N, heads, d]
        return self.out(attention(q, k, v, provider=self.provider).flatten(2))


class FusedFeedForward(nn.Module):
    """`FeedForward` with its activation in one operation."""

    linear_in: Linear
    linear_out: Linear

    def __init__(self, layer: FeedForward, provider: str) -> None:
        super().__init__()
        take_children(self, layer)
        self.provider = provider

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        return self.linear_out(geglu(self.linear_in(x), provider=self.provider))


def plain_upsample(layer: UpsampleProducts) -> Upsample:
    """The layer that `layer` was made of, in the dtype of its bias."""
    assert layer.kernel is not None
    weight = _rounded(layer.kernel, layer.bias.dtype)
    with torch.device("meta"):
        upsample = Upsample(weight.shape[0])
    upsample.conv.weight = constant(weight)
    upsample.conv.bias = constant(layer.bias.to(weight.dtype))
    return upsample


def _rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` in `dtype`, or as it is where its values do not fit that."""
    return weight if half_precision_exceptions({"weight": weight}, dtype) else weight.to(dtype)


class FusedUpsample(nn.Module):
    """`Upsample` as four convolutions of the small map, one for each parity: in the dtype of the bias."""

    def __init__(self, layer: UpsampleProducts, provider: str) -> None:
        super().__init__()
        assert layer.kernel is not None
        # Rounded after they were added up, once.
        self.weight = constant(_rounded(phase_weights(layer.kernel), layer.bias.dtype))
        self.bias = constant(layer.bias.to(self.weight.dtype))
        self.provider = provider

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', 2H, 2W], channels last."""
        small = x.permute(0, 2, 3, 1).to(self.weight.dtype)
        return upsample_conv(small, self.weight, self.bias, provider=self.provider).permute(0, 3, 1, 2).to(x.dtype)


class FusedConditionEncoder(nn.Module):
    """`ConditionEncoder` with its resize, first convolution and activation in one operation.

    Of several layers each is convolved at its own size; the convolution of what stands beside one another is a sum.
    """

    def __init__(self, encoder: ConditionEncoder, provider: str) -> None:
        super().__init__()
        self.size, self.shapes = encoder.size, encoder.shapes
        weight = encoder.conv_in.weight
        ends = list(itertools.accumulate(shape[0] for shape in self.shapes)) or [weight.shape[1]]
        parts = [weight[:, start:end] for start, end in zip([0, *ends], ends, strict=False)]
        self.weights = nn.ParameterList(constant(tap_weights(part)) for part in parts)
        assert encoder.conv_in.bias is not None
        self.bias = encoder.conv_in.bias
        self.no_bias = constant(torch.zeros_like(self.bias))
        self.conv_hidden, self.conv_out = encoder.conv_hidden, encoder.conv_out
        self.provider = provider

    def forward(self, features: Tensor) -> Tensor:
        """See `ConditionEncoder`."""
        first, *others = unpack(features, self.shapes)
        x = self._convolved(first, self.weights[0], self.bias, silu=not others)
        for one, weight in zip(others, self.weights[1:], strict=True):
            x = x + self._convolved(one, weight, self.no_bias, silu=False)
        x = F.silu(x) if others else x
        return self.conv_out(F.silu(self.conv_hidden(x.permute(0, 3, 1, 2)))).to(features.dtype)

    def _convolved(self, one: Tensor, weight: Tensor, bias: Tensor, *, silu: bool) -> Tensor:
        """A map [B, C, h, w] resized and convolved: [B, H, W, C']."""
        x = one.permute(0, 2, 3, 1).to(weight.dtype)
        return resize_conv(x, weight, bias, *self.size, silu=silu, provider=self.provider)


class ChannelsLastFork(Fork):
    """`Fork` in the layout of its input; `repeat` would bring the channels to the front."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [groups * B, ...]."""
        return x if self.groups == 1 else torch.cat([x] * self.groups)


def constant(tensor: Tensor) -> nn.Parameter:
    """A parameter that is not trained."""
    return nn.Parameter(tensor, requires_grad=False)

"""Exact: the layers call fused operations and keep the channels last, as an NVIDIA GPU wants it.

A network is taken as `EngineModel` has it, weights loaded, and changed in place: what `featinv_kernels` has an
operation for calls it. The operation chooses a provider by device, dtype and shape, or uses the one that is named.
Networks that were not changed run as before: on a CPU, in training and in exports.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featinv_fast.errors import ArgumentError
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
from featinv_kernels import (
    OPS,
    Request,
    attention,
    geglu,
    group_norm_silu,
    not_supported_reasons,
    phase_weights,
    resize_conv,
    tap_weights,
    upsample_conv,
)
from featinv_kernels.ops.attention.op import LARGEST_HEAD

AUTO = "auto"
# The operations that layers call.
LAYER_OPS = ("attention", "geglu", "group_norm_silu", "resize_conv", "upsample_conv")
# `UpsampleProducts` stores a kernel (a, b, c) as (-a, a + b + c, c); this brings it back: [tap, product].
_TAPS = torch.tensor([[-1, 0, 0], [1, 1, -1], [0, 0, 1]], dtype=torch.float64)


def layer_providers(kernels: str | Mapping[str, str]) -> dict[str, str]:
    """The provider of each of `LAYER_OPS`.

    Args:
        kernels: a provider's name for all operations, or names for some, and "auto" for the others.

    Raises:
        ArgumentError: there is no such operation or provider.
    """
    named = dict.fromkeys(LAYER_OPS, kernels) if isinstance(kernels, str) else kernels
    given = {**dict.fromkeys(LAYER_OPS, AUTO), **named}
    for op, provider in given.items():
        if op not in LAYER_OPS:
            raise ArgumentError(
                "the layers call no such operation",
                given=repr(op),
                expected=list(LAYER_OPS),
                remedy="name one of these",
            )
        names = [AUTO, *(p.name for p in OPS[op].providers)]
        if provider not in names:
            raise ArgumentError(
                f"{op} has no provider of this name",
                given=repr(provider),
                expected=names,
                remedy="name one of these; `featinv doctor` lists what runs here",
            )
    return given


def provider_problems(providers: Mapping[str, str], device: torch.device, dtype: torch.dtype) -> list[str]:
    """Why the providers that are named cannot serve on `device` in `dtype`; empty when they can."""
    problems = []
    for op, provider in providers.items():
        if provider != AUTO:
            shape = OPS[op].cases[0].shape
            reasons = not_supported_reasons(op, provider, Request(device=device, dtype=dtype, shape=shape))
            problems += [f"{op} by {provider}: {reason}" for reason in reasons]
    return problems


@torch.no_grad()
def fuse_ops(network: nn.Module, providers: Mapping[str, str]) -> dict[str, int]:
    """Let the layers of `network`, in place, call fused operations, and lay out its maps with the channels last.

    Args:
        network: an `EngineModel` or a part of it, weights loaded.
        providers: for each of `LAYER_OPS` its provider's name, or "auto".

    Returns:
        How many layers of each kind were changed: by operation, and "layer_norm", "fork" and "convolution", whose
        arithmetic stays torch's.
    """
    counts: collections.Counter[str] = collections.Counter()
    for name, child in network.named_children():
        kind, fused = _fused(child, providers)
        if kind is not None:
            setattr(network, name, fused)
            counts[kind] += 1
        counts.update(fuse_ops(fused, providers))
    return dict(counts)


def _fused(layer: nn.Module, providers: Mapping[str, str]) -> tuple[str | None, nn.Module]:
    """What takes the place of one layer, by kind; the layer itself where nothing does."""
    # Exact types: what was changed before is left alone.
    if type(layer) is GroupNorm:
        return "group_norm_silu", FusedGroupNorm(layer, providers["group_norm_silu"])
    if type(layer) is LayerNorm:
        return "layer_norm", FusedLayerNorm(layer)
    if type(layer) is SelfAttention and layer.query.out_features // layer.heads <= LARGEST_HEAD:
        return "attention", FusedSelfAttention(layer, providers["attention"])
    if type(layer) is CrossAttention and layer.query.out_features // layer.heads <= LARGEST_HEAD:
        return "attention", FusedCrossAttention(layer, providers["attention"])
    if type(layer) is FeedForward:
        return "geglu", FusedFeedForward(layer, providers["geglu"])
    if type(layer) is UpsampleProducts:
        # Of its own accord no provider is ahead of torch's 3x3 convolution, which reads 9 weights where phases read 16.
        provider, upsample = providers["upsample_conv"], plain_upsample(layer)
        return "upsample_conv", upsample if provider == AUTO else FusedUpsample(upsample, provider)
    if type(layer) is ConditionEncoder:
        return "resize_conv", FusedConditionEncoder(layer, providers["resize_conv"])
    if type(layer) is Fork:
        return "fork", ChannelsLastFork(layer.groups)
    if isinstance(layer, nn.Conv2d) and not layer.weight.is_contiguous(memory_format=torch.channels_last):
        # Convolutions answer in the layout of their weights.
        layer.weight = _constant(layer.weight.contiguous(memory_format=torch.channels_last))
        return "convolution", layer
    return None, layer


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
        self.projection.weight = _constant(torch.cat([part.weight for part in parts]))
        if layer.query.bias is not None:
            self.projection.bias = _constant(torch.cat([part.bias for part in parts]))
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


def _products(layer: UpsampleProducts) -> list[Conv2d]:
    """The nine convolutions."""
    return [product for product in layer.products if isinstance(product, Conv2d)]


def plain_upsample(layer: UpsampleProducts) -> Upsample:
    """The layer that `layer` was made of; weights in half precision come back with up to three roundings."""
    stacked = torch.stack([product.weight[:, :, 0, 0] for product in _products(layer)])  # [9, C', C]
    products = stacked.reshape(3, 3, *stacked.shape[1:])
    taps = _TAPS.to(products.device)
    weight = torch.einsum("iv,jh,vhoc->ocij", taps, taps, products.double()).to(products.dtype)
    with torch.device("meta"):
        upsample = Upsample(weight.shape[0])
    upsample.conv.weight = _constant(weight)
    upsample.conv.bias = _products(layer)[4].bias
    return upsample


class FusedUpsample(nn.Module):
    """`Upsample` as four convolutions of the small map, one for each parity."""

    def __init__(self, layer: Upsample, provider: str) -> None:
        super().__init__()
        self.weight = _constant(phase_weights(layer.conv.weight))
        assert layer.conv.bias is not None
        self.bias = layer.conv.bias
        self.provider = provider

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', 2H, 2W], channels last."""
        small = x.permute(0, 2, 3, 1).to(self.weight.dtype)
        return upsample_conv(small, self.weight, self.bias, provider=self.provider).permute(0, 3, 1, 2).to(x.dtype)


class FusedConditionEncoder(nn.Module):
    """`ConditionEncoder` with its resize, first convolution and activation in one operation."""

    def __init__(self, encoder: ConditionEncoder, provider: str) -> None:
        super().__init__()
        self.size = encoder.size
        self.weight = _constant(tap_weights(encoder.conv_in.weight))
        assert encoder.conv_in.bias is not None
        self.bias = encoder.conv_in.bias
        self.conv_hidden, self.conv_out = encoder.conv_hidden, encoder.conv_out
        self.provider = provider

    def forward(self, features: Tensor) -> Tensor:
        """`features` [B, C, H, W] -> condition [B, channels, latent_size, latent_size] in the dtype of `features`."""
        x = features.permute(0, 2, 3, 1).to(self.weight.dtype)
        x = resize_conv(x, self.weight, self.bias, *self.size, provider=self.provider).permute(0, 3, 1, 2)
        return self.conv_out(F.silu(self.conv_hidden(x))).to(features.dtype)


class ChannelsLastFork(Fork):
    """`Fork` in the layout of its input; `repeat` would bring the channels to the front."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [groups * B, ...]."""
        return x if self.groups == 1 else torch.cat([x] * self.groups)


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)

"""Exact: the layers call fused operations and keep the channels last, as an NVIDIA GPU wants it.

A network is taken as `EngineModel` has it, weights loaded, and changed in place: what `featinv_kernels` has an
operation for calls it. The operation chooses a provider by device, dtype and shape, or uses the one that is named.
Networks that were not changed run as before: on a CPU, in training and in exports.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping

import torch
from torch import nn

from featinv_fast.checks.options import AUTO
from featinv_fast.models.condition_encoder import ConditionEncoder
from featinv_fast.models.layers import Conv2d, CrossAttention, FeedForward, GroupNorm, LayerNorm, SelfAttention
from featinv_fast.rewrites.fused_layers import (
    ChannelsLastFork,
    FusedConditionEncoder,
    FusedCrossAttention,
    FusedFeedForward,
    FusedGroupNorm,
    FusedLayerNorm,
    FusedSelfAttention,
    FusedUpsample,
    PointwiseConv,
    constant,
    plain_upsample,
)
from featinv_fast.rewrites.shared_prefix import Fork
from featinv_fast.rewrites.upsample_products import UpsampleProducts
from featinv_kernels import OPS, Request, not_supported_reasons
from featinv_kernels.ops.attention.op import LARGEST_HEAD


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
        How many layers of each kind were changed: by operation, and "layer_norm", "pointwise", "convolution" and
        "fork", whose arithmetic stays torch's.
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
        provider = providers["upsample_conv"]
        return "upsample_conv", plain_upsample(layer) if provider == AUTO else FusedUpsample(layer, provider)
    if type(layer) is ConditionEncoder:
        return "resize_conv", FusedConditionEncoder(layer, providers["resize_conv"])
    if type(layer) is Fork:
        return "fork", ChannelsLastFork(layer.groups)
    if type(layer) is Conv2d and (layer.kernel_size, layer.stride) == ((1, 1), (1, 1)):
        return "pointwise", PointwiseConv(layer)
    if type(layer) is Conv2d and not layer.weight.is_contiguous(memory_format=torch.channels_last):
        # Convolutions answer in the layout of their weights.
        layer.weight = constant(layer.weight.contiguous(memory_format=torch.channels_last))
        return "convolution", layer
    return None, layer

"""Attention: the maths in plain torch with fp32 inside, torch's own op, and that of xformers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from featinv_kernels.arguments import compute_dtype


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(q k^T scale) v with the softmax written out; `op.attention` says the rest."""
    dtype = compute_dtype(q.dtype)
    queries = _by_group(q, k).to(dtype)  # [G, N, H, d]
    scores = torch.einsum("gnhd,gmhd->ghnm", queries, k.to(dtype)) * scale
    weights = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return torch.einsum("ghnm,gmhd->gnhd", weights, v.to(dtype)).to(q.dtype).contiguous().view(q.shape)


def attention_of_torch(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The same with `F.scaled_dot_product_attention`, which wants the heads second: its arguments are views."""
    q_, k_, v_ = (t.transpose(1, 2) for t in (_by_group(q, k), k, v))
    y = F.scaled_dot_product_attention(q_, k_, v_, scale=scale)  # [G, H, N, d]
    return y.transpose(1, 2).contiguous().view(q.shape)


def load_attention_of_xformers() -> Callable[..., Any]:
    """The same with xformers, which takes this layout as it is."""
    memory_efficient_attention = importlib.import_module("xformers.ops").memory_efficient_attention

    def attention_of_xformers(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        y: Tensor = memory_efficient_attention(_by_group(q, k), k, v, scale=scale)
        return y.contiguous().view(q.shape)

    return attention_of_xformers


def _by_group(q: Tensor, k: Tensor) -> Tensor:
    """[B, N, H, d] -> [G, B / G * N, H, d]: all items that share keys become queries of one attention."""
    groups = k.shape[0]
    return q.reshape(groups, q.shape[0] // groups * q.shape[1], *q.shape[2:])

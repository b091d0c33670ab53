"""GEGLU: the maths in plain torch with fp32 inside, and torch's own ops in the argument's dtype."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from featinv_kernels.arguments import compute_dtype


def geglu(x: Tensor) -> Tensor:
    """[..., 2 D] -> [..., D], with the error function written out; `op.geglu` says the rest."""
    value, gate = x.to(compute_dtype(x.dtype)).chunk(2, dim=-1)
    return (value * (0.5 * gate * (1.0 + torch.erf(gate * math.sqrt(0.5))))).to(x.dtype)


def geglu_of_torch(x: Tensor) -> Tensor:
    """The same with `F.gelu`."""
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)

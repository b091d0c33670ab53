"""The sampler step in plain torch. All maths in fp32, one rounding per operation, terms added from left to right."""

from __future__ import annotations

import torch
from torch import Tensor


def sampler_step(
    latents: Tensor, eps: Tensor, coefficients: Tensor, noise: Tensor | None, history: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute x' = A x + B eps + C z + D h and h' = P x + Q eps; `op.sampler_step` says what each tensor is."""
    A, B, C, D, P, Q = coefficients.unbind()  # each []
    eps = eps.to(torch.float32)
    new_latents = A * latents + B * eps
    # An absent term is left out, not multiplied by zero: its coefficient may be anything.
    if noise is not None:
        new_latents = new_latents + C * noise
    if history is not None:
        new_latents = new_latents + D * history
    return new_latents, P * latents + Q * eps

"""Distances between the judge's class probabilities."""

from __future__ import annotations

from torch import Tensor

from featinv_fast.evaluate.measures.base import Measure, of_logits


def kl_divergence(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Sum p log(p / q) in nats of each pair of logits [B, K]: p of the original, q of the reconstruction."""
    p, q = (logits.double().log_softmax(dim=1) for logits in (originals, reconstructions))
    return (p.exp() * (p - q)).sum(dim=1)


def total_variation(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Sum |p - q| / 2 of each pair of logits [B, K], from 0 to 1."""
    p, q = (logits.double().softmax(dim=1) for logits in (originals, reconstructions))
    return (p - q).abs().sum(dim=1) / 2


KL_DIVERGENCE = Measure(
    name="kl_divergence", title="KL of classes (nats)", form=".4f", compute=of_logits(kl_divergence)
)
TOTAL_VARIATION = Measure(
    name="total_variation", title="total variation of classes", form=".4f", compute=of_logits(total_variation)
)

"""Whether the original's top class is among the reconstruction's first ones."""

from __future__ import annotations

import torch
from torch import Tensor

from featinv_fast.evaluate.measures.base import Measure, of_logits


def places(logits: Tensor, classes: Tensor) -> Tensor:
    """The place [B] of a class [B] among the logits [B, K], 0 for the first.

    Of equal logits the class of the lower number comes first.
    """
    classes = classes[:, None]
    logit = logits.gather(1, classes)
    number = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > logit) | ((logits == logit) & (number < classes))
    return ahead.sum(dim=1)


def _match(k: int) -> Measure:
    def matches(originals: Tensor, reconstructions: Tensor) -> Tensor | None:
        if originals.shape[1] <= k:  # certain
            return None
        return (places(reconstructions, originals.argmax(dim=1)) < k).double()

    return Measure(name=f"top{k}", title=f"top-{k}", form=".1%", compute=of_logits(matches))


TOP1, TOP5 = _match(1), _match(5)

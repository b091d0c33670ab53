"""Whether a class is among the first ones that the judge sees: the original's top class, or the true one."""

from __future__ import annotations

import torch
from torch import Tensor

from featinv_fast.evaluate.measures.base import Measure, Seen, of_logits


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


def accuracy(logits: Tensor, targets: Tensor, k: int) -> Tensor:
    """Whether the true class [B] is among the first `k` of logits [B, K], as 0 or 1; NaN where it is -1."""
    return torch.where(targets >= 0, (places(logits, targets.clamp(min=0)) < k).double(), torch.nan)


def _accuracy(k: int, *, of_originals: bool) -> Measure:
    def compute(originals: Seen, reconstructions: Seen) -> Tensor | None:
        logits = originals.logits if of_originals else reconstructions.logits
        if originals.targets is None or logits is None or logits.shape[1] <= k:
            return None
        return accuracy(logits, originals.targets.to(logits.device), k)

    name, title = f"accuracy_top{k}", f"true class in top-{k}"
    if of_originals:
        name, title = f"original_{name}", f"{title} of originals"
    return Measure(name=name, title=title, form=".1%", compute=compute)


TOP1, TOP5 = _match(1), _match(5)
ACCURACIES = tuple(_accuracy(k, of_originals=whose) for k in (1, 5) for whose in (False, True))

"""What a measure is: one number for each pair of an original and its reconstruction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """A batch of originals and their reconstructions, side by side.

    Attributes:
        images: the originals, uint8 [B, s, s, 3], and the reconstructions likewise; None where no pixels are known.
        maps: what the judge sees in both, [B, C, H, W] each.
        logits: its class logits of both, [B, K] each; None for a judge without classes.
    """

    images: tuple[Tensor, Tensor] | None
    maps: tuple[Tensor, Tensor]
    logits: tuple[Tensor, Tensor] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure by its name in reports.

    Attributes:
        name: key in rows and items, such as "ssim".
        title: in tables.
        form: how its values are written there, as for `format`.
        compute: the values [B] in float64, NaN where a pair has none; None where nothing of the kind is known.
    """

    name: str
    title: str
    form: str
    compute: Callable[[Pairs], Tensor | None]

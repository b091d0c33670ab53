"""Checks of values, not shapes: items that are not finite, and items unlike those of training."""

from __future__ import annotations

import warnings

import torch

from featinv_fast.config import FeatureSpec
from featinv_fast.features.places import Place, place_of

# Features of unusual images exceed the training maximum a little; a missing or doubled normalisation by far.
OUTLIER_FACTOR = 4.0


class FeatureStatisticsWarning(UserWarning):
    """Feature maps look unlike those that the engine was trained on; the images may be meaningless.

    Attributes:
        zero_items: the items that are zero everywhere, by their numbers in the call or as `items_at` says.
        outlying_items: the items with values beyond `limit`, likewise.
        largest: the largest |value| of all finite items.
        limit: the largest |value| that raises no warning, or None where the engine has no statistics.
    """

    def __init__(
        self,
        *,
        zero_items: tuple[Place, ...],
        outlying_items: tuple[Place, ...],
        largest: float,
        limit: float | None,
    ) -> None:
        self.zero_items = zero_items
        self.outlying_items = outlying_items
        self.largest = largest
        self.limit = limit
        parts = []
        if zero_items:
            parts.append(f"all values are zero in item(s) {_listed(zero_items)}")
        if outlying_items:
            parts.append(
                f"values reach {largest:.4g} where {limit:.4g} ({OUTLIER_FACTOR:g} times the training maximum) "
                f"is the limit, in item(s) {_listed(outlying_items)}"
            )
        super().__init__("unusual features: " + "; ".join(parts) + ". Check the backbone, layer and normalisation.")


def non_finite_items(maps: torch.Tensor) -> list[int]:
    """Indices of the items of `maps` [B, C, H, W] that hold a NaN or an infinity."""
    finite = torch.isfinite(maps).flatten(1).all(dim=1)  # [B]
    return torch.nonzero(~finite).flatten().tolist()


def check_statistics(maps: torch.Tensor, spec: FeatureSpec, *, stacklevel: int = 2) -> None:
    """Warn once if items of `maps` [B, C, H, W] are zero everywhere or far outside `spec.absolute_max`.

    Items that are not finite are left to `non_finite_items`. `stacklevel` is that of `warnings.warn`.
    """
    peaks = torch.linalg.vector_norm(maps, ord=float("inf"), dim=(1, 2, 3)).cpu()  # [B], max |value|
    finite = torch.isfinite(peaks)
    limit = None if spec.absolute_max is None else OUTLIER_FACTOR * spec.absolute_max
    zero_items = _places(peaks == 0)
    outlying_items = () if limit is None else _places(finite & (peaks > limit))
    if zero_items or outlying_items:
        warning = FeatureStatisticsWarning(
            zero_items=zero_items, outlying_items=outlying_items, largest=float(peaks[finite].max()), limit=limit
        )
        warnings.warn(warning, stacklevel=stacklevel)


def _places(chosen: torch.Tensor) -> tuple[Place, ...]:
    """The items at which `chosen` [B] holds."""
    return tuple(place_of(item) for item in torch.nonzero(chosen).flatten().tolist())


def _listed(items: tuple[Place, ...]) -> str:
    shown = ", ".join(map(str, items[:10]))
    return shown if len(items) <= 10 else f"{shown} and {len(items) - 10} more"

"""What form a timm model's map has, found by looking: the layout, its size, and tokens that are no positions.

What `forward_features` returns is each architecture's own affair: [B, C, H, W], [B, H, W, C], or tokens behind any
number of class, register and distillation tokens. `forward_intermediates` gives the same numbers as [B, C, H, W], so
that the arrangement of a random image's map that equals it is the right one, whatever the shapes suggest.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from featinv_fast.config import FeatureLayout
from featinv_fast.errors import ArgumentError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapForm:
    """The form of a map, without the batch."""

    layout: FeatureLayout
    channels: int
    height: int
    width: int
    prefix_tokens: int | None = None  # of tokens alone


def stage_form(model: Any, stage: int, pixels: Tensor) -> MapForm:
    """The form of a stage's map, which timm always gives as [B, C, H, W].

    Raises:
        ArgumentError: this stage gives no map.
    """
    (stage_map,) = model.forward_intermediates(pixels, indices=[stage], stop_early=True, intermediates_only=True)
    if not isinstance(stage_map, Tensor) or stage_map.ndim != 4:
        raise _no_map(f"layer {stage}: {_described(stage_map)}")
    return MapForm(
        layout=FeatureLayout.NCHW, channels=stage_map.shape[1], height=stage_map.shape[2], width=stage_map.shape[3]
    )


def final_form(model: Any, pixels: Tensor) -> MapForm:
    """The form of what `model.forward_features` returns.

    Args:
        model: a timm model in evaluation mode.
        pixels: a random image [1, 3, S, S]: of a plain one, all positions would look alike.

    Raises:
        ArgumentError: it is no spatial map, or its positions stand in no order that is known.
    """
    final = model.forward_features(pixels)
    if not isinstance(final, Tensor) or final.ndim not in (3, 4):
        raise _no_map(f"layer final: {_described(final)}")
    channels = getattr(model, "num_features", None)
    if final.ndim == 4 and (final.shape[1] == channels) != (final.shape[3] == channels):
        return _form(final, FeatureLayout.NCHW if final.shape[1] == channels else FeatureLayout.NHWC)
    same = _as_intermediate(model, pixels)
    if same is not None:
        if final.ndim == 4:
            for layout, arranged in ((FeatureLayout.NCHW, final), (FeatureLayout.NHWC, final.permute(0, 3, 1, 2))):
                if _close(arranged, same):
                    return _form(final, layout)
        else:
            height, width = same.shape[2:]
            prefix = final.shape[1] - height * width
            if prefix >= 0 and _close(final[:, prefix:].transpose(1, 2).reshape(1, -1, height, width), same):
                return MapForm(
                    layout=FeatureLayout.TOKENS,
                    channels=final.shape[2],
                    height=height,
                    width=width,
                    prefix_tokens=prefix,
                )
    raise ArgumentError(
        "in which order this backbone's final map holds its positions cannot be told",
        given=f"layer final: {_described(final)}",
        expected="[B, C, H, W], [B, H, W, C] or [B, tokens, C] row by row",
        remedy="take a stage instead, which timm brings into order: the last one is "
        f"layer {len(getattr(model, 'feature_info', ())) - 1}",
    )


def _as_intermediate(model: Any, pixels: Tensor) -> Tensor | None:
    """The final map as timm arranges it, [1, C, H, W], where the model can tell."""
    for norm in (True, False):
        try:
            (found,) = model.forward_intermediates(pixels, indices=1, norm=norm, intermediates_only=True)
        except Exception:  # noqa: BLE001, S112 -- models without this method, without a norm, or with maps of other kinds
            continue
        if isinstance(found, Tensor) and found.ndim == 4:
            return found
    return None


def _form(final: Tensor, layout: FeatureLayout) -> MapForm:
    _, *edges = final.shape
    channels, height, width = edges if layout is FeatureLayout.NCHW else (edges[2], edges[0], edges[1])
    return MapForm(layout=layout, channels=channels, height=height, width=width)


def _close(given: Tensor, expected: Tensor) -> bool:
    """Whether the two are the same numbers, up to the order of sums on a device of reduced precision."""
    if given.shape != expected.shape:
        return False
    return bool((given - expected).norm() <= 1e-2 * expected.norm())


def _no_map(given: str) -> ArgumentError:
    return ArgumentError(
        "this backbone gives no spatial map",
        given=given,
        expected="one tensor [B, C, H, W], [B, H, W, C] or [B, tokens, C]",
        remedy="name another layer or another backbone",
    )


def _described(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__

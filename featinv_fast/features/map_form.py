"""What form a network's map has, found by looking: the layout, its size, and tokens that are no positions.

What a layer gives is each architecture's own affair: [B, C, H, W], [B, H, W, C], or tokens behind any number of class,
register and distillation tokens, on a grid of any shape. Where the library itself arranges the same numbers as
[B, C, H, W], the arrangement that equals it is the right one. Elsewhere a map is recognised by what makes it one: where
a part of the image changes, it changes most at the position of that part.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from featinv_fast.config import FeatureLayout
from featinv_fast.errors import ArgumentError
from featinv_fast.features.sources import Network

# Parts of the image that are changed, one in each of so many copies.
PARTS = 12
# In a map, the position of the part changes more than nearly all others; in another order, more than half of them on
# average, with a standard error of 0.08 for so many ranks.
SEEN = 0.85


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapForm:
    """The form of a map, without the batch."""

    layout: FeatureLayout
    channels: int
    height: int
    width: int
    prefix_tokens: int | None = None  # of tokens alone

    def arrange(self, given: Tensor) -> Tensor:
        """What a layer gives as [B, C, H, W]."""
        match self.layout:
            case FeatureLayout.NHWC:
                return given.permute(0, 3, 1, 2)
            case FeatureLayout.TOKENS:
                positions = given[:, self.prefix_tokens :].transpose(1, 2)
                return positions.reshape(len(given), self.channels, self.height, self.width)
        return given


def map_form(network: Network, layer: str, pixels: Tensor) -> MapForm:
    """The form of what `network` gives as `layer`.

    Args:
        network: it has looked at its modules.
        layer: as `Network.read` takes it.
        pixels: a random image [1, 3, S, S]: of a plain one, all positions would look alike.

    Raises:
        ArgumentError: it is no spatial map, or its positions stand in no order that is known.
    """
    (given,), _ = network.read(pixels, [layer])
    if not isinstance(given, Tensor) or given.ndim not in (3, 4) or len(given) != 1:
        raise _no_map(network, layer, given)
    same = network.arranged(layer, pixels) if layer in network.counted else []
    forms = _forms(given.shape, [*(one.shape for one in same), *(one.shape for one in network.seen)])
    for form in forms:
        if any(_close(form.arrange(given), one) for one in same):
            return form
    # What has an edge of tokens is of attention, and no map.
    tokens = {one.shape[1] for one in network.seen if len(one.shape) == 3}
    forms = [form for form in forms if form.height == form.width or not {form.height, form.width} & tokens]
    # Images are square, and so are nearly all maps of them.
    square = [form for form in forms if given.ndim == 4 and form.height == form.width]
    if len(square) == 1 and square[0].height not in tokens:
        return square[0]
    if forms:
        scores = locality(network, layer, pixels, forms)
        best = max(range(len(forms)), key=scores.__getitem__)
        if scores[best] >= SEEN:
            return forms[best]
    raise ArgumentError(
        "in which order this backbone's map holds its positions cannot be told",
        given=f"layer {layer} of {network.name}: {_described(given)}",
        expected="[B, C, H, W], [B, H, W, C] or [B, tokens, C] row by row",
        remedy="take another layer",
    )


def locality(network: Network, layer: str, pixels: Tensor, forms: Sequence[MapForm]) -> list[float]:
    """How well a map in each of `forms` shows where the image was changed: 1 for where it changes most, 0.5 by chance.

    Args:
        network: see `map_form`.
        layer: see `map_form`.
        pixels: see `map_form`.
        forms: of the same numbers.
    """
    size = pixels.shape[-1]
    generator = torch.Generator("cpu").manual_seed(0)
    changed = pixels.repeat(1 + PARTS, 1, 1, 1)
    edge = max(1, size // 16)
    corners = torch.randint(0, size - edge + 1, (PARTS, 2), generator=generator).tolist()
    for copy, (top, left) in enumerate(corners, start=1):
        part = torch.randn(3, edge, edge, generator=generator, dtype=torch.float32, device="cpu")
        changed[copy, :, top : top + edge, left : left + edge] = part.to(pixels)
    (given,), _ = network.read(changed, [layer])
    scores = []
    for form in forms:
        maps = form.arrange(given)
        differences = (maps[1:] - maps[:1]).norm(dim=1)  # [PARTS, H, W]
        ranks = []
        for difference, corner in zip(differences, corners, strict=True):
            row, column = (
                int((start + edge / 2) * cells / size)
                for start, cells in zip(corner, (form.height, form.width), strict=True)
            )
            own = difference[row, column]
            below, equal = (difference < own).sum(), (difference == own).sum() - 1
            ranks.append(float(below + equal / 2) / max(1, difference.numel() - 1))
        scores.append(sum(ranks) / PARTS)
    return scores


def _forms(shape: Sequence[int], others: Sequence[Sequence[int]]) -> list[MapForm]:
    """Every way to read what a layer gives; `others` are shapes that the same image has elsewhere in the network."""
    _, *edges = shape
    if len(edges) == 3:
        first, second, third = edges
        return [
            MapForm(layout=FeatureLayout.NCHW, channels=first, height=second, width=third),
            MapForm(layout=FeatureLayout.NHWC, channels=third, height=first, width=second),
        ]
    tokens, channels = edges
    edge = math.isqrt(tokens)
    grids = [(edge, edge)]
    for other in others:
        if len(other) == 4:
            grids += [(other[2], other[3]), (other[1], other[2])]
    return [
        MapForm(
            layout=FeatureLayout.TOKENS,
            channels=channels,
            height=height,
            width=width,
            prefix_tokens=tokens - height * width,
        )
        for height, width in dict.fromkeys(grids)
        if 1 < height * width <= tokens
    ]


def _close(given: Tensor, expected: Tensor) -> bool:
    """Whether the two are the same numbers, up to the order of sums on a device of reduced precision."""
    if given.shape != expected.shape:
        return False
    return bool((given - expected).norm() <= 1e-2 * expected.norm())


def _no_map(network: Network, layer: str, given: object) -> ArgumentError:
    return ArgumentError(
        "this backbone gives no spatial map",
        given=f"layer {layer} of {network.name}: {_described(given)}",
        expected="one tensor [B, C, H, W], [B, H, W, C] or [B, tokens, C]",
        remedy="name another layer or another backbone",
    )


def _described(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__

"""Feature maps in any layout -> [B, C, H, W].

A shape is read in every way that its rank allows, and the readings that contradict the engine's feature spec are
dropped. One left: it is taken. None: the shape is wrong. Several: only the caller knows, and `layout=` says so.
The engine's own layout breaks no tie: a [B, C, H, W] map of a Swin engine whose C equals W would be turned silently.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from featinv_fast.checks import choice
from featinv_fast.config import FeatureLayout, FeatureSpec
from featinv_fast.errors import FeatureLayoutError, FeatureShapeError
from featinv_fast.features.arrays import to_float_tensor
from featinv_fast.features.known import KNOWN_BACKBONES
from featinv_kernels.packed_maps import pack


@dataclasses.dataclass(frozen=True)
class _Reading:
    """One way to read a shape: the layout, and the map that it would then describe."""

    layout: FeatureLayout
    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"layout={str(self.layout)!r} ({self.channels}x{self.height}x{self.width})"


def normalise(features: Any, spec: FeatureSpec, *, layout: FeatureLayout | str | None = None) -> torch.Tensor:
    """Feature maps of any accepted kind as one batch.

    Accepted are [C, H, W], [B, C, H, W], [H, W, C], [B, H, W, C], tokens [B, P+N, C] (the P prefix tokens that the spec
    names, or else one class token, are dropped, the rest filled row by row into the spec's size, or a square), [P+N, C]
    where the engine's own layout is tokens or `layout="tokens"`, pooled vectors [B, C] or [C] where the engine was
    trained on those (copied to every position), and lists or tuples of these, whose items follow one another.

    Of an engine of several layers: the maps by the layers' names, `{"1": maps, "final": maps}`, or as a backbone of
    these layers gives them, packed in one array [B, K] or [B, K, 1, 1] (see `featinv_kernels.packed_maps`).

    Args:
        features: numpy arrays or torch tensors of a floating-point type. No items: `[]`, shape (0,) or (0, C, H, W).
        spec: what the engine takes.
        layout: how `features` are laid out, where the shape leaves a choice.

    Returns:
        [B, C, H, W] float32, contiguous and detached, on the device of the first item; it may share memory with
        `features`. Of several layers [B, K, 1, 1].

    Raises:
        ArgumentTypeError: something other than floating-point arrays.
        ArgumentError: an unknown layout.
        FeatureLayoutError: the shape can be read in several ways, or pooled vectors are named for an engine of maps.
        FeatureShapeError: the rank, channels or size are wrong, or the items of a list differ in size.
    """
    if spec.more_layers:
        return _packed(features, spec, layout)
    named = _named_layout(layout, spec)
    if not isinstance(features, list | tuple):
        return _normalise_array(features, spec, named, "features")
    batches = [_normalise_array(item, spec, named, f"features[{i}]") for i, item in enumerate(features)]
    filled = [batch for batch in batches if len(batch)]
    if not filled:
        return batches[0] if batches else _empty(spec)
    sizes = {tuple(batch.shape[1:]) for batch in filled}
    if len(sizes) > 1:
        raise FeatureShapeError(
            "the maps of one list differ in size",
            given=sorted(sizes),
            expected="maps of one size",
            remedy="invert each size by itself",
        )
    return torch.cat([batch.to(filled[0].device) for batch in filled])


def _packed(features: Any, spec: FeatureSpec, layout: FeatureLayout | str | None) -> torch.Tensor:
    """Maps of several layers, by their names or packed already."""
    if isinstance(features, list | tuple):
        batches = [_packed(item, spec, layout) for item in features]
        return torch.cat(batches) if batches else _empty(spec)
    if not isinstance(features, Mapping):
        tensor, size = to_float_tensor(features, "features"), spec.map_shape[0]
        if tensor.shape == (0,):
            return _empty(spec).to(tensor.device)
        if tuple(tensor.shape[-3:]) == (size, 1, 1) and tensor.ndim in (3, 4):
            tensor = tensor.flatten(-3)
        if tensor.ndim not in (1, 2) or tensor.shape[-1] != size:
            raise _not_packed(f"shape {_written(tuple(tensor.shape))}", spec)
        return tensor.reshape(-1, size, 1, 1).contiguous()
    if set(features) != {layer.layer for layer in spec.layers}:
        raise _not_packed(f"maps of {', '.join(map(str, features)) or 'no layer'}", spec)
    maps = []
    for layer in spec.layers:
        one = FeatureSpec(
            backbone=spec.backbone, layer=layer.layer, channels=layer.channels, height=layer.height, width=layer.width
        )
        maps.append(normalise(features[layer.layer], one, layout=layout))
    if len({len(one) for one in maps}) > 1:
        counts = {layer.layer: len(one) for layer, one in zip(spec.layers, maps, strict=True)}
        raise _not_packed(f"numbers of maps: {counts}", spec)
    return pack([one.to(maps[0].device) for one in maps])


def _not_packed(given: str, spec: FeatureSpec) -> FeatureShapeError:
    names = [layer.layer for layer in spec.layers]
    return FeatureShapeError(
        "these are not the maps of the layers that the engine takes",
        given=given,
        expected=_described(spec),
        remedy=f"pass a map of each layer by its name, {{{', '.join(f'{name!r}: maps' for name in names)}}}, or what a "
        "backbone of these layers gives",
        command_remedy="make the file by `featinv features` with these layers, or pass --images",
    )


def _named_layout(layout: FeatureLayout | str | None, spec: FeatureSpec) -> FeatureLayout | None:
    if layout is None:
        return None
    named = choice("the layout", layout, FeatureLayout)
    if named is FeatureLayout.POOLED and spec.layout is not FeatureLayout.POOLED:
        raise FeatureLayoutError(
            "this engine was not trained on pooled features",
            given="layout pooled",
            expected=_described(spec),
            remedy="pass the spatial map, or use an engine trained on pooled features",
        )
    return named


def _normalise_array(features: Any, spec: FeatureSpec, layout: FeatureLayout | None, name: str) -> torch.Tensor:
    tensor = to_float_tensor(features, name)
    shape = tuple(tensor.shape)
    if shape == (0,):
        return _empty(spec).to(tensor.device)
    readings = _readings(shape, spec, layout)
    if not readings:
        raise _shape_error(shape, spec, layout, name)
    if len(readings) > 1 and shape[0] > 0:
        raise FeatureLayoutError(
            f"the layout of {name} is ambiguous",
            given=f"shape {_written(shape)}",
            expected=f"one of {', '.join(map(str, readings))} for {_described(spec)}",
            remedy="name it with layout=",
            command_remedy="name it with --layout",
        )
    return _arranged(tensor, readings[0], spec)


def _arranged(tensor: torch.Tensor, reading: _Reading, spec: FeatureSpec) -> torch.Tensor:
    """`tensor` as [B, C, H, W], read as `reading` says."""
    match reading.layout:
        case FeatureLayout.NCHW:
            maps = tensor
        case FeatureLayout.NHWC:
            maps = tensor.movedim(-1, -3)
        case FeatureLayout.TOKENS:  # [..., P+N, C]
            maps = tensor[..., _prefix_tokens(spec) :, :].transpose(-1, -2)
            maps = maps.reshape(*maps.shape[:-1], reading.height, reading.width)
        case FeatureLayout.POOLED:  # [..., C]
            maps = tensor[..., None, None]
    maps = maps if maps.ndim == 4 else maps[None]
    if spec.layout is FeatureLayout.POOLED:
        maps = maps.expand(-1, -1, spec.height or 1, spec.width or 1)
    return maps.contiguous()


def _readings(shape: Sequence[int], spec: FeatureSpec, layout: FeatureLayout | None) -> list[_Reading]:
    """Every way to read `shape` that agrees with `spec` and, where given, with `layout`."""
    pooled_engine = spec.layout is FeatureLayout.POOLED
    height, width = (1, 1) if pooled_engine else (spec.height, spec.width)
    found: list[_Reading] = []
    match tuple(shape):
        case (_, a, b, c) | (a, b, c):
            found = [_Reading(FeatureLayout.NCHW, a, b, c), _Reading(FeatureLayout.NHWC, c, a, b)]
            if len(shape) == 3 and not pooled_engine:
                found += _token_readings(b, c, spec)
        # [B, C] and [P+N, C] look alike: the first is read for engines of pooled vectors, the second when declared.
        case (a, b) if pooled_engine:
            found = [_Reading(FeatureLayout.POOLED, b, 1, 1)]
        case (a, b) if FeatureLayout.TOKENS in (spec.layout, layout):
            found = _token_readings(a, b, spec)
        case (a,) if pooled_engine:
            found = [_Reading(FeatureLayout.POOLED, a, 1, 1)]
    return [
        reading
        for reading in found
        if reading.channels == spec.channels
        and min(reading.height, reading.width) >= 1
        and height in (None, reading.height)
        and width in (None, reading.width)
        and layout in (None, reading.layout)
    ]


def _token_readings(length: int, channels: int, spec: FeatureSpec) -> list[_Reading]:
    """Prefix tokens and cells: the spec's size where they fill it, else a square, else no reading."""
    cells = length - _prefix_tokens(spec)
    if spec.height and spec.width and cells == spec.height * spec.width:
        return [_Reading(FeatureLayout.TOKENS, channels, spec.height, spec.width)]
    edge = math.isqrt(max(cells, 0))
    return [_Reading(FeatureLayout.TOKENS, channels, edge, edge)] if edge * edge == cells else []


def _prefix_tokens(spec: FeatureSpec) -> int:
    """Tokens before those of the positions; FeatInv's own code knows one, the class token."""
    return 1 if spec.prefix_tokens is None else spec.prefix_tokens


def _empty(spec: FeatureSpec) -> torch.Tensor:
    channels, height, width = spec.map_shape
    return torch.empty(0, channels, height or 1, width or 1)


def _shape_error(shape: Sequence[int], spec: FeatureSpec, layout: FeatureLayout | None, name: str) -> FeatureShapeError:
    own_size = (spec.channels, spec.height, spec.width)
    others = [
        known
        for known in KNOWN_BACKBONES
        if (known.channels, known.height, known.width) != own_size and _readings(shape, known, None)
    ]
    other_layouts = _readings(shape, spec, None) if layout else []
    if other_layouts:
        remedy = f"the shape fits {' or '.join(map(str, other_layouts))}"
    elif others:
        remedy = f"these look like features of {'; '.join(map(_described, others))}: use an engine for those"
    elif spec.layout is FeatureLayout.POOLED:
        remedy = "pool the map as in training and pass [B, C]"
    elif len(shape) < 3:
        remedy = "pass the spatial map, not a pooled vector or a part of it"
    else:
        remedy = "take the features from the backbone and layer that the engine was trained on"
    return FeatureShapeError(
        f"the shape of {name} does not fit this engine",
        given=f"shape {_written(shape)}" + (f" with layout={str(layout)!r}" if layout else ""),
        expected=_described(spec),
        remedy=remedy,
    )


def _described(spec: FeatureSpec) -> str:
    if spec.more_layers:
        layers = [f"{one.layer}: {one.channels}x{one.height}x{one.width}" for one in spec.layers]
        return f"{spec.backbone or 'unknown backbone'}, layers {', '.join(layers)}, or packed [B, {spec.map_shape[0]}]"
    source = f"{spec.backbone or 'unknown backbone'}, layer {spec.layer or 'unknown'}"
    if spec.layout is FeatureLayout.POOLED:
        return f"{source}: pooled vectors of {spec.channels} channels"
    size = f"{spec.channels}x{spec.height or 'H'}x{spec.width or 'W'} (channels x height x width)"
    if spec.layout is FeatureLayout.TOKENS:
        size += f", or its tokens behind {_prefix_tokens(spec)} of a prefix"
    return f"{source}: {size}"


def _written(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"

"""From what a checkpoint, an engine or a file says of its features, and what its user says, to the backbone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from featinv_fast.config import FINAL, FeatureLayout, FeatureSpec, LayerSpec, from_dict
from featinv_fast.errors import ArgumentError, FeatureShapeError
from featinv_fast.features import small_backbones
from featinv_fast.features.backbones import Backbone
from featinv_fast.features.known import KNOWN_BACKBONES, is_named, official
from featinv_fast.features.sources import source_of


def open_backbone(
    spec: FeatureSpec | Mapping[str, Any] | str,
    *,
    backbone: str | None = None,
    layer: str | Sequence[str] | None = None,
    image_size: int | None = None,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> Backbone:
    """The vision model that computes the features of an engine, a checkpoint or a feature file, or one by its name.

    Args:
        spec: `Runtime.info["features"]`, a manifest's or a file's spec; or the name of a backbone, see `Backbone`.
        backbone: its name where `spec` names none, or to insist on it. `module:function` runs only where it is named
            here or as `spec`; a network in a folder of this machine may be named in another one.
        layer: likewise. Several layers of one pass: a list of them, or their names with commas between.
        image_size: edge in pixels of the images, likewise.
        weights: see `Backbone`. Those of the built-in backbone come with the package.
        device: where the model runs.

    Raises:
        ArgumentError: nobody names a backbone, or what is said contradicts `spec`.
        FeatureShapeError: the backbone gives other maps than `spec` describes.
        FeatInvError: the model or its weights cannot be had, or are not those that `spec` names; see `Backbone`.
    """
    if isinstance(spec, str):
        asked = asked_spec(spec, layer_names(layer), input_size=image_size)
        weights = small_backbones.WEIGHTS.get(spec) if weights is None else weights
        return Backbone(asked, weights=weights, device=device, run_code=True)
    if isinstance(spec, Mapping):
        spec = from_dict(FeatureSpec, spec, where="features")
    named = named_spec(spec, backbone=backbone, layer=layer, image_size=image_size)
    assert named.backbone is not None
    if weights is None and named.weights_sha256 is not None:
        weights = small_backbones.WEIGHTS.get(named.backbone)
    opened = Backbone(named, weights=weights, device=device, run_code=backbone is not None)
    stated, found = ([(one.channels, one.height, one.width) for one in known.layers] for known in (named, opened.spec))
    edges = zip(itertools.chain(*stated), itertools.chain(*found), strict=True)
    if any(edge not in (None, other) for edge, other in edges):
        raise FeatureShapeError(
            "the backbone gives other maps than the engine takes",
            given=f"{named.backbone}, layer {named.layer_names}, at {opened.input_size} pixels: {_sizes(found)}",
            expected=_sizes(stated),
            remedy="name the backbone, layer and size of images that it was trained on; where the engine names them "
            "itself, export its checkpoint again with the right ones",
        )
    return opened


def layer_names(layer: str | Sequence[str] | None) -> list[str]:
    """The names of one or several layers, as they are written: a list, or with commas between; none of None."""
    if layer is None:
        return []
    return layer.split(",") if isinstance(layer, str) else list(layer)


def asked_spec(backbone: str, layers: Sequence[str], **stated: Any) -> FeatureSpec:
    """What is asked of a backbone where nothing but its layers is known: channels and sizes it says itself."""
    first, *others = layers or [FINAL]
    more = tuple(LayerSpec(layer=name, channels=1) for name in others)
    return FeatureSpec(channels=1, backbone=backbone, layer=first, more_layers=more, **stated)


def named_spec(
    stated: FeatureSpec,
    *,
    backbone: str | None = None,
    layer: str | Sequence[str] | None = None,
    image_size: int | None = None,
    owner: str = "engine",
) -> FeatureSpec:
    """`stated` with what a user says of its backbone, and with what is known of the official ones.

    Args:
        stated: what an engine or a checkpoint says.
        backbone: its name, in full or without the tag after the dot.
        layer: its layer.
        image_size: edge in pixels of its images.
        owner: what `stated` is of, for messages.

    Raises:
        ArgumentError: nobody names a backbone, or the two contradict one another.
    """
    if backbone is None and stated.backbone is None:
        raise ArgumentError(
            f"the {owner} does not say which backbone its features come from",
            given="a layer or a size of images alone" if layer or image_size else "no backbone",
            expected="the backbone that the checkpoint was trained on",
            remedy="name it: backbone='convnext_base'",
            command_remedy="name it: --backbone convnext_base",
        )
    name = stated.backbone if backbone is None else _full_name(stated, backbone)
    if stated.backbone is not None and _are_places(stated.backbone, name):
        stated = dataclasses.replace(stated, backbone=name)
    names = layer_names(layer)
    if len(names) > 1 or stated.more_layers:
        _require_layers(stated, names, owner)
        names = []  # all is said
    said = {"backbone": name, "layer": names[0] if names else None, "input_size": image_size}
    spec = completed(stated, said, owner=owner)
    spec = dataclasses.replace(spec, layer=spec.layer or FINAL)
    known = official(spec)
    if known is None or spec.layout is FeatureLayout.POOLED or spec.more_layers:
        return spec
    facts = ("channels", "height", "width", "input_size", *(() if stated.backbone else ("layout",)))
    return completed(spec, {fact: getattr(known, fact) for fact in facts}, owner=owner)


def require_same_features(given: FeatureSpec, expected: FeatureSpec, *, owner: str, taker: str) -> None:
    """Refuse maps of another network, layer, size or preprocessing than those that are taken.

    Args:
        given: what is said of the maps; what it leaves open is not compared.
        expected: what is taken, likewise.
        owner: what has the maps, for messages.
        taker: what takes them.

    Raises:
        ArgumentError: they are others.
    """
    compared = [
        "layer", "input_size", "mean", "std", "weights_sha256", "channels", "height", "width", "prefix_tokens",
        "more_layers",
    ]  # fmt: skip
    alike = given.backbone is not None and (
        is_named(expected, given.backbone) or _are_places(given.backbone, expected.backbone)
    )
    pairs = {name: (getattr(given, name), getattr(expected, name)) for name in compared}
    if not alike:
        pairs = {"backbone": (given.backbone, expected.backbone), **pairs}
    differing = {name: pair for name, pair in pairs.items() if None not in pair and pair[0] != pair[1]}
    if differing:
        raise ArgumentError(
            f"the maps of {owner} are others than {taker} takes",
            given={name: one for name, (one, _) in differing.items()},
            expected={name: other for name, (_, other) in differing.items()},
            remedy=f"make the maps as {taker} takes them: `featinv features` with this backbone, layer and size",
        )


def completed(stated: FeatureSpec, added: Mapping[str, Any], *, owner: str) -> FeatureSpec:
    """`stated` with what it leaves open taken from `added`, fields by their names; `None` adds nothing.

    Raises:
        ArgumentError: the two contradict one another.
    """
    old = {name: getattr(stated, name) for name in added}
    differing = [name for name, new in added.items() if None not in (old[name], new) and old[name] != new]
    if differing:
        raise ArgumentError(
            f"what is said of the features contradicts the {owner}",
            given={name: added[name] for name in differing},
            expected={name: old[name] for name in differing},
            remedy=f"leave it out, or take the {owner} that belongs to it",
            command_remedy="leave out --backbone, --layer, --image-size or --feature-size, or take the "
            f"{owner} that belongs to them",
        )
    return dataclasses.replace(stated, **{name: new for name, new in added.items() if old[name] is None})


def _require_layers(stated: FeatureSpec, names: Sequence[str], owner: str) -> None:
    """Refuse other layers than the several that are stated: only a checkpoint that records them takes several."""
    known = [one.layer for one in stated.layers]
    if names and list(names) != known:
        raise ArgumentError(
            f"these are not the layers that the {owner} takes",
            given=", ".join(names),
            expected=", ".join(known) if stated.layer or stated.more_layers else "one layer",
            remedy="leave the layers out",
            command_remedy="leave out --layer",
        )


def _sizes(maps: Sequence[tuple[int | None, ...]]) -> str:
    return " + ".join("x".join(str(edge or "any") for edge in one) for one in maps)


def _full_name(stated: FeatureSpec, backbone: str) -> str:
    """The name that `backbone` is short for: the stated one, or that of an official backbone."""
    for spec in (stated, *KNOWN_BACKBONES):
        if is_named(spec, backbone):
            return str(spec.backbone)
    return backbone


def _are_places(*names: str | None) -> bool:
    """Whether these are folders of this or another machine, where one network may lie; its weights tell which it is."""
    return all(name is not None and source_of(name).is_place(name) for name in names)

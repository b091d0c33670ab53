"""A second network that looks at reconstructions: one that had no part in the engine."""

from __future__ import annotations

from featinv_fast.commands.evaluate_options import JudgeOptions
from featinv_fast.errors import ArgumentError
from featinv_fast.features import Backbone, open_backbone


def open_judge(options: JudgeOptions, source: Backbone) -> Backbone:
    """The network that `options` name.

    Args:
        options: its words, those of `featinv features`.
        source: the backbone of the engine.

    Raises:
        ArgumentError: it is the source, with the same layer.
        FeatInvError: it cannot be opened; see `open_backbone`.
    """
    judge = open_backbone(
        options.name, layer=options.layer, image_size=options.image_size, weights=options.weights, device=source.device
    )
    if (judge.weights_sha256, judge.spec.layer) == (source.weights_sha256, source.spec.layer):
        raise ArgumentError(
            "the judge is the backbone that the engine's features come from",
            given=f"{judge.spec.backbone}, layer {judge.spec.layer}, with the same weights",
            expected="another network, or another layer of this one",
            remedy="name another --judge or --judge-layer; the backbone's own figures are there without it",
        )
    return judge

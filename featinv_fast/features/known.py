"""The backbones of the official models."""

from __future__ import annotations

from featinv_fast.config import FINAL, FeatureLayout, FeatureSpec
from featinv_fast.errors import ArgumentError

_CONVNEXT = "convnext_base.fb_in22k_ft_in1k"


def _imagenet(backbone: str, layer: str, channels: int, edge: int | None, layout: str, size: int | None) -> FeatureSpec:
    return FeatureSpec(
        backbone=backbone,
        layer=layer,
        channels=channels,
        height=edge,
        width=edge,
        layout=FeatureLayout(layout),
        input_size=size,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


# arXiv 2505.21032 and its code. The timm tag of the ResNet50 and its image size are not published; its final map is
# the output of layer4.
KNOWN_BACKBONES: tuple[FeatureSpec, ...] = (
    _imagenet(_CONVNEXT, FINAL, 1024, 9, "nchw", 288),
    _imagenet(_CONVNEXT, "0", 128, 72, "nchw", 288),
    _imagenet(_CONVNEXT, "1", 256, 36, "nchw", 288),
    _imagenet(_CONVNEXT, "2", 512, 18, "nchw", 288),
    _imagenet(_CONVNEXT, "3", 1024, 9, "nchw", 288),
    _imagenet("swinv2_base_window12to24_192to384.ms_in22k_ft_in1k", FINAL, 1024, 12, "nhwc", 384),
    _imagenet("resnet50", FINAL, 2048, None, "nchw", None),
)


def known_spec(name: str, layer: str = FINAL) -> FeatureSpec:
    """The spec of an official backbone by its timm name, with or without the tag after the dot.

    Raises:
        ArgumentError: the table has no such backbone or layer.
    """
    for spec in KNOWN_BACKBONES:
        if is_named(spec, name) and spec.layer == layer:
            return spec
    raise ArgumentError(
        "no official backbone has this name and layer",
        given=f"{name!r}, layer {layer!r}",
        expected=", ".join(f"{spec.backbone} layer {spec.layer}" for spec in KNOWN_BACKBONES),
        remedy="open_backbone(name) asks the model itself",
        command_remedy="`featinv features --backbone NAME` asks the model itself",
    )


def official(spec: FeatureSpec) -> FeatureSpec | None:
    """What is published of the backbone, layer and size of images that `spec` names in full."""
    for row in KNOWN_BACKBONES:
        same = (row.backbone, row.layer) == (spec.backbone, spec.layer)
        if same and (None in (row.input_size, spec.input_size) or row.input_size == spec.input_size):
            return row
    return None


def is_named(spec: FeatureSpec, name: str) -> bool:
    """Whether `name` is that of the spec's backbone, with or without the tag after the dot."""
    return spec.backbone is not None and name in (spec.backbone, spec.backbone.partition(".")[0])

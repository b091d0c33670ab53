"""Small backbones for images of 64 pixels, one for each kind of layout and one to judge the others, as timm models.

They are timm's own architectures in sizes that timm does not list, under names that start with `featinv_`.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

# Where the weights of those are that come with the package.
_SHIPPED = Path(__file__).parents[1] / "demo" / "engine"
WEIGHTS = {"featinv_convnext": _SHIPPED / "backbone.safetensors", "featinv_resnet": _SHIPPED / "judge.safetensors"}

# What timm wants to know of a model without published weights.
_CONFIG = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 64, 64),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def featinv_convnext(pretrained: bool = False, **options: Any) -> Any:
    """ConvNeXt (arXiv 2201.03545): maps of 16, 8, 4 and again 4 cells, the last 256x4x4."""
    return _build(
        "convnext.ConvNeXt",
        "featinv_convnext",
        pretrained,
        # Layer scale from 1e-6 is for deep networks; this one learns faster without it.
        {"patch_size": 2, "output_stride": 16, "depths": (1, 1, 3, 1), "dims": (32, 64, 128, 256)}
        | {"ls_init_value": None}
        | options,
        {"out_indices": (0, 1, 2, 3), "flatten_sequential": True},
    )


def featinv_swin(pretrained: bool = False, **options: Any) -> Any:
    """Swin (arXiv 2103.14030), NHWC: maps of 32, 16, 8 and 4 cells, the last 4x4x256."""
    return _build(
        "swin_transformer.SwinTransformer",
        "featinv_swin",
        pretrained,
        {
            "img_size": 64,
            "patch_size": 2,
            "window_size": 4,
            "embed_dim": 32,
            "depths": (1, 1, 2, 1),
            "num_heads": (1, 2, 4, 8),
        }
        | options,
        {"out_indices": (0, 1, 2, 3), "flatten_sequential": True},
    )


def featinv_vit(pretrained: bool = False, **options: Any) -> Any:
    """ViT (arXiv 2010.11929), a class token and 8x8 cells of 128 channels."""
    return _build(
        "vision_transformer.VisionTransformer",
        "featinv_vit",
        pretrained,
        {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4} | options,
        {"out_indices": 3, "feature_cls": "getter"},
    )


def featinv_resnet(pretrained: bool = False, **options: Any) -> Any:
    """ResNet (arXiv 1512.03385): maps of 16, 8, 4 and again 4 cells, the last 192x4x4."""
    block = importlib.import_module("timm.models.resnet").BasicBlock
    return _build(
        "resnet.ResNet",
        "featinv_resnet",
        pretrained,
        {"block": block, "layers": (1, 1, 1, 1), "channels": (32, 64, 128, 192), "output_stride": 16} | options,
        {"out_indices": (1, 2, 3, 4)},
    )


@functools.cache
def register() -> None:
    """Make the names known to timm, which must be installed."""
    registry = importlib.import_module("timm.models")
    for model in (featinv_convnext, featinv_swin, featinv_vit, featinv_resnet):
        registry.register_model(model)


# timm looks here when a model is registered.
default_cfgs = {
    "featinv_convnext": {**_CONFIG, "first_conv": "stem.0", "classifier": "head.fc"},
    "featinv_swin": {**_CONFIG, "first_conv": "patch_embed.proj", "classifier": "head.fc"},
    "featinv_vit": {**_CONFIG, "first_conv": "patch_embed.proj", "classifier": "head"},
    "featinv_resnet": {**_CONFIG, "first_conv": "conv1", "classifier": "fc"},
}


def _build(architecture: str, name: str, pretrained: bool, options: dict[str, Any], features: dict[str, Any]) -> Any:
    module, _, cls = architecture.partition(".")
    models = importlib.import_module("timm.models")
    network = getattr(importlib.import_module(f"timm.models.{module}"), cls)
    return models.build_model_with_cfg(network, name, pretrained, feature_cfg=features, **options)

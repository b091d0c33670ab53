"""A recipe's backbone as it is: what the recipe leaves out is the model's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from featinv_fast.errors import ArgumentError, FeatureLayoutError
from featinv_fast.features.sources.timm_ import new_model
from featinv_fast.train.extractor import Extractor
from featinv_fast.train.settings import BackboneConfig


def extractor(name, size, **stated):
    config = BackboneConfig(name=name, weights="random:0", **stated)
    return Extractor(config, size=size, root=Path(), device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "size", "layout", "prefix", "shape"),
    [
        ("featinv_swin", 64, "nhwc", None, (256, 4, 4)),
        ("test_vit", 96, "tokens", 1, (64, 6, 6)),
        ("test_convnext", 64, "nchw", None, (64, 2, 2)),
    ],
)
def test_what_the_recipe_leaves_out_is_the_models_own(name, size, layout, prefix, shape):
    given = extractor(name, size)
    spec, own = given.spec, timm.get_pretrained_cfg(name)
    assert (spec.layout, spec.prefix_tokens, (spec.channels, spec.height, spec.width)) == (layout, prefix, shape)
    assert (spec.mean, spec.std, spec.input_size) == (own.mean, own.std, size)
    assert len(spec.weights_sha256) == 64
    images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(own.mean).view(3, 1, 1)) / torch.tensor(own.std).view(
        3, 1, 1
    )
    model = given._backbone.model
    (expected,) = model.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)
    torch.testing.assert_close(given(images), expected, atol=1e-4, rtol=1e-4)


def test_a_wrong_layout_ends_the_training_before_it_begins():
    with pytest.raises(FeatureLayoutError, match="layout 'nhwc'"):
        extractor("featinv_swin", 64, layout="nchw")


def test_sizes_that_a_model_cannot_take_end_the_training_before_it_begins():
    with pytest.raises(ArgumentError, match=r"7 pixels.*\n.*expected: .*pixels"):
        extractor("test_vit", 7)
    with pytest.raises(ArgumentError, match=r"7 pixels.*\n.*expected: .*pixels"):
        new_model("test_vit", 7, num_classes=3)
    assert new_model("test_vit", 96, num_classes=3)(torch.zeros(1, 3, 96, 96)).shape == (1, 3)

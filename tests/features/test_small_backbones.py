"""The small backbones: one for each layout, and weights of models with other classes than timm's."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from featinv_fast.config import FeatureLayout, FeatureSpec
from featinv_fast.errors import CheckpointMismatchError
from featinv_fast.features import Backbone, normalise, small_backbones

SPECS = [
    FeatureSpec(channels=256, height=4, width=4, backbone="featinv_convnext", layer="final"),
    FeatureSpec(channels=256, height=4, width=4, backbone="featinv_swin", layer="final", layout=FeatureLayout.NHWC),
    FeatureSpec(channels=128, height=8, width=8, backbone="featinv_vit", layer="final", layout=FeatureLayout.TOKENS),
    FeatureSpec(channels=64, height=8, width=8, backbone="featinv_convnext", layer="1"),
]


@pytest.fixture(scope="module", autouse=True)
def _registered():
    small_backbones.register()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.backbone}-{spec.layer}")
def test_maps_of_64_pixels(spec):
    backbone = Backbone(spec, weights="random:0")
    maps = normalise(backbone(torch.rand(2, 3, 64, 64)), spec, layout=spec.layout)
    assert maps.shape == (2, spec.channels, spec.height, spec.width)
    assert backbone.input_size == 64


@pytest.mark.parametrize("name", ["featinv_convnext", "featinv_swin", "featinv_vit", "test_convnext"])
def test_weights_with_another_number_of_classes(name, tmp_path):
    model = timm.create_model(name, num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    spec = FeatureSpec(channels=1, backbone=name, layer="final", input_size=64)
    backbone = Backbone(spec, weights=tmp_path / "weights.safetensors")
    pixels = torch.rand(1, 3, 64, 64)
    _, logits = backbone.features_and_logits(pixels)
    torch.testing.assert_close(logits, model(pixels))
    assert logits.shape == (1, 7)


def test_weights_of_another_model_are_refused(tmp_path):
    model = timm.create_model("featinv_vit", num_classes=7)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointMismatchError, match="do not fit"):
        Backbone(SPECS[0], weights=tmp_path / "weights.safetensors")


def test_gradients_reach_the_input_of_the_model():
    pixels = torch.rand(1, 3, 64, 64, requires_grad=True)
    Backbone(SPECS[0], weights="random:0").model.forward_features(pixels).sum().backward()
    assert pixels.grad.abs().max() > 0

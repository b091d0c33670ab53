"""What a spec leaves open is the model's own; what it states otherwise is refused, or warned of."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from featinv_fast.config import FeatureLayout, FeatureSpec
from featinv_fast.errors import ArgumentError, CheckpointMismatchError, ConfigError, FeatureLayoutError
from featinv_fast.features import Backbone, BackboneNormalisationWarning, normalise
from featinv_fast.features.map_form import map_form
from featinv_fast.features.sources.timm_ import TimmNetwork

# Of timm's models: name, edge of the images, layout, prefix tokens, map.
FORMS = [
    ("test_convnext", 64, "nchw", None, (64, 2, 2)),
    ("test_mambaout", 64, "nhwc", None, (64, 2, 2)),
    ("featinv_swin", 96, "nhwc", None, (256, 6, 6)),
    ("test_vit", 80, "tokens", 1, (64, 5, 5)),
    ("test_vit_relpos", 160, "tokens", 0, (96, 10, 10)),
    ("deit_tiny_distilled_patch16_224", 96, "tokens", 2, (192, 6, 6)),
    ("vit_tiny_patch16_dinov3_qkvb", 64, "tokens", 5, (192, 4, 4)),  # a class token and four registers
]


def spec_of(name, **stated):
    return FeatureSpec(**{"backbone": name, "layer": "final", "channels": 1, **stated})


@pytest.mark.parametrize(("name", "size", "layout", "prefix", "shape"), FORMS, ids=str)
def test_layout_size_and_prefix_tokens_are_found_by_looking(name, size, layout, prefix, shape):
    backbone = Backbone(spec_of(name, input_size=size), weights="random:0")
    spec = backbone.spec
    assert (spec.layout, spec.prefix_tokens, (spec.channels, spec.height, spec.width)) == (layout, prefix, shape)
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    maps = normalise(backbone(pixels), spec, layout=spec.layout)
    # timm's own arrangement of the same numbers.
    (expected,) = backbone.model.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)
    torch.testing.assert_close(maps, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "stated", "message"),
    [
        ("featinv_swin", 64, {"layout": FeatureLayout.NCHW}, "layout 'nhwc'"),
        ("test_convnext", 64, {"layout": FeatureLayout.NHWC}, "layout 'nchw'"),
        ("test_convnext", 64, {"layout": FeatureLayout.TOKENS}, "layout 'nchw'"),
        ("test_vit", 160, {"layout": FeatureLayout.NCHW}, "layout 'tokens' with prefix_tokens = 1"),
        ("test_vit", 160, {"prefix_tokens": 0}, "prefix_tokens = 1"),
    ],
)
def test_a_stated_layout_that_the_model_does_not_have_is_refused(name, size, stated, message):
    with pytest.raises(FeatureLayoutError, match=message):
        Backbone(spec_of(name, input_size=size, **stated), weights="random:0")


def test_maps_whose_order_cannot_be_told_are_refused():
    network = TimmNetwork("test_vit", timm.create_model("test_vit"), size=160)
    pixels = torch.randn(1, 3, 160, 160)
    network.look(pixels)
    plain = network.model.forward_features
    network.model.forward_features = lambda pixels: plain(pixels).flip(1)
    with pytest.raises(ArgumentError, match="order"):
        map_form(network, "final", pixels)
    network.model.forward_features = lambda pixels: [plain(pixels)]
    with pytest.raises(ArgumentError, match="no spatial map"):
        map_form(network, "final", pixels)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_mambaout"])
def test_normalisation_is_the_models_own_where_none_is_stated(name):
    own = timm.get_pretrained_cfg(name)
    backbone = Backbone(spec_of(name), weights="random:0")
    assert (backbone.spec.mean, backbone.spec.std) == (own.mean, own.std)
    assert backbone.input_size == backbone.spec.input_size == (own.test_input_size or own.input_size)[-1]
    grey = backbone.preprocess([Image.new("L", (200, 200), 102)])
    expected = (0.4 - torch.tensor(own.mean)) / torch.tensor(own.std)
    torch.testing.assert_close(grey[0, :, 7, 9], expected)


def test_another_normalisation_than_the_models_is_used_with_a_warning():
    stated = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    with pytest.warns(BackboneNormalisationWarning, match=r"0\.485.*test_convnext.*0\.5"):
        backbone = Backbone(spec_of("test_convnext", input_size=64, **stated), weights="random:0")
    assert (backbone.spec.mean, backbone.spec.std) == tuple(stated.values())


@pytest.mark.parametrize("stated", [{"mean": (0.5, 0.5)}, {"std": (0.2, 0.2, 0.0)}, {"input_size": 0}])
def test_numbers_that_no_backbone_has_are_refused(stated):
    with pytest.raises(ConfigError):
        spec_of("test_vit", **stated)


def test_weights_are_those_that_the_spec_names(tmp_path):
    paths = {}
    for seed in (0, 1):
        torch.manual_seed(seed)
        paths[seed] = tmp_path / f"{seed}.safetensors"
        save_file(timm.create_model("test_convnext").state_dict(), paths[seed])
    spec = spec_of("test_convnext", input_size=64)
    hashes = {seed: Backbone(spec, weights=path).weights_sha256 for seed, path in paths.items()}
    named = dataclasses.replace(spec, weights_sha256=hashes[0])
    assert Backbone(named, weights=paths[0]).spec.weights_sha256 == hashes[0]
    with pytest.raises(CheckpointMismatchError, match="--backbone-weights FILE") as caught:
        Backbone(named, weights=paths[1])
    assert hashes[0] in str(caught.value)
    assert hashes[1] in str(caught.value)


@pytest.mark.parametrize(
    ("name", "size", "possible"),
    [("test_vit", 7, "160 or 16 or 32"), ("featinv_swin", 1, "64 or")],
)
def test_a_size_that_the_model_cannot_take_is_refused_with_those_that_it_can(name, size, possible):
    with pytest.raises(ArgumentError, match=rf"(?s){size} pixels.*expected: .*{possible}.*input_size"):
        Backbone(spec_of(name, input_size=size), weights="random:0")


def test_weights_for_another_size_are_interpolated_as_timm_does(tmp_path):
    model = timm.create_model("test_vit").eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    pixels = torch.randn(1, 3, 96, 96)
    backbone = Backbone(spec_of("test_vit", input_size=96), weights=tmp_path / "w.safetensors")
    model.set_input_size(img_size=96)
    torch.testing.assert_close(backbone(pixels), model.forward_features(pixels))

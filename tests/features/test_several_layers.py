"""The maps of several layers: packed, by name, from one pass of a backbone, and what becomes of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from featinv_fast.config import FeatureSpec, LayerSpec, ModelConfig
from featinv_fast.errors import ArgumentError, ConfigError, FeatureShapeError
from featinv_fast.evaluate import PooledFeatures
from featinv_fast.features import normalise, open_backbone
from featinv_fast.models import ConditionEncoder
from featinv_fast.rewrites.fused_layers import FusedConditionEncoder
from featinv_kernels.packed_maps import by_location, pack, unpack

SHAPES = ((64, 2, 2), (32, 8, 8))  # of the recipe's backbone at 64 pixels: its final map and stage 1
SPEC = FeatureSpec(
    channels=64,
    height=2,
    width=2,
    layer="final",
    more_layers=(LayerSpec(layer="1", channels=32, height=8, width=8),),
)


@pytest.fixture(scope="module")
def maps() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, *shape, generator=generator) for shape in SHAPES]


def test_packing_loses_nothing(maps):
    packed = pack(maps)
    assert packed.shape == (3, 64 * 4 + 32 * 64, 1, 1) == (3, *SPEC.map_shape)
    for one, other in zip(unpack(packed, SHAPES), maps, strict=True):
        assert torch.equal(one, other)
    cosines = F.cosine_similarity(by_location(packed, SHAPES), by_location(packed.flip(0), SHAPES), dim=1)  # [3, L, 1]
    own = [F.cosine_similarity(one, one.flip(0), dim=1).flatten(1) for one in maps]
    torch.testing.assert_close(cosines[..., 0], torch.cat(own, dim=1))
    assert pack(maps[:1]) is maps[0]
    assert unpack(maps[0], ())[0] is maps[0]


def test_maps_by_name_or_packed(maps):
    packed = pack(maps)
    by_name = {"1": maps[1].numpy(), "final": maps[0]}
    for given in (by_name, packed, packed.flatten(1), [by_name], [packed[:1], packed[1:]], packed.numpy()):
        assert torch.equal(normalise(given, SPEC), packed)
    assert torch.equal(normalise(packed[1, :, 0, 0], SPEC), packed[1:2])
    assert normalise([], SPEC).shape == (0, *SPEC.map_shape)


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (lambda maps: {"final": maps[0]}, "maps of final"),
        (lambda maps: {"final": maps[0], "2": maps[1]}, "maps of final, 2"),
        (lambda maps: {"final": maps[0], "1": maps[1][:2]}, "'final': 3, '1': 2"),
        (lambda maps: {"final": maps[1], "1": maps[1]}, r"shape \[3, 32, 8, 8\]"),
        (lambda maps: maps[0], r"shape \[3, 64, 2, 2\]"),
        (lambda maps: pack(maps)[:, 1:], r"shape \[3, 2303, 1, 1\]"),
    ],
)
def test_other_maps_are_refused(maps, change, given):
    with pytest.raises(FeatureShapeError, match=rf"(?s){given}.*"):
        normalise(change(maps), SPEC)


def test_the_condition_of_several_layers(tiny_config, maps):
    """Each map is resized by itself, their channels stand in the order of the layers; fused it is a sum."""
    config = dataclasses.replace(tiny_config, feature_channels=96, feature_shapes=SHAPES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = ConditionEncoder(config)
        torch.nn.init.normal_(encoder.conv_out.weight, std=0.1)
    size = (config.latent_size, config.latent_size)
    resized = [F.interpolate(one, size, mode="bilinear", align_corners=False) for one in maps]
    x = F.silu(encoder.conv_in(torch.cat(resized, dim=1)))
    expected = encoder.conv_out(F.silu(encoder.conv_hidden(x)))
    with torch.no_grad():
        torch.testing.assert_close(encoder(pack(maps)), expected)
        for provider in ("reference", "torch"):
            fused = FusedConditionEncoder(encoder, provider)(pack(maps))
            torch.testing.assert_close(fused, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shapes", [((96, 2, 2),), ((64, 2, 2), (31, 8, 8)), ((64, 2, 2), (32, 0, 8))])
def test_shapes_that_no_model_has_are_refused(shapes):
    with pytest.raises(ConfigError, match="feature_shapes"):
        ModelConfig(feature_channels=96, feature_shapes=shapes)


def test_a_backbone_gives_several_layers_of_one_pass():
    several = open_backbone("test_convnext", layer=["final", "1"], image_size=64, weights="random:0")
    assert several.spec.layers == SPEC.layers
    assert several.spec.layer_names == "final, 1"
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    alone = [open_backbone("test_convnext", layer=one, image_size=64, weights="random:0") for one in ("final", "1")]
    assert torch.equal(several(pixels), pack([one(pixels) for one in alone]))
    same = open_backbone("test_convnext", layer="final,1", image_size=64, weights="random:0")
    assert same.spec == several.spec
    pooled = PooledFeatures(several, name="both")(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    assert pooled.shape == (1, pooled.shape[1]) == (1, 96)
    with pytest.raises(ArgumentError, match="named twice"):
        open_backbone("test_convnext", layer="1,1", image_size=64, weights="random:0")

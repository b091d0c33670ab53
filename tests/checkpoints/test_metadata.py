"""What a checkpoint says of itself: taken where it adds to the tensors, refused where it contradicts them."""

from __future__ import annotations

import dataclasses
import json

import pytest
from safetensors.torch import save_file

from featinv_fast.checkpoints import load
from featinv_fast.checkpoints.metadata import build, parse
from featinv_fast.config import FeatureLayout, FeatureSpec, LayerSpec, ModelConfig, SamplingConfig, to_dict
from featinv_fast.errors import CheckpointMismatchError

CONFIG = ModelConfig()


def test_b6_without_metadata_everything_is_derived(tmp_path, tiny, tiny_tensors):
    save_file(tiny_tensors, tmp_path / "x.safetensors")
    loaded = load(tmp_path / "x.safetensors")
    # Shapes tell neither heads nor the latent's size: the official values stand.
    assert loaded.config == dataclasses.replace(tiny.config, heads=8, latent_size=32)
    assert loaded.features == FeatureSpec(channels=6)
    assert loaded.sampling == SamplingConfig()
    assert loaded.adaptations == ()


def test_metadata_are_read(tiny):
    assert tiny.config.heads == 4
    assert tiny.config.latent_size == 8
    assert tiny.config.context_tokens == 7
    assert tiny.features == FeatureSpec(
        channels=6,
        height=3,
        width=4,
        layout=FeatureLayout.NHWC,
        backbone="some_backbone",
        layer="final",
        input_size=288,
        absolute_max=7.5,
    )
    assert tiny.sampling == SamplingConfig(steps=20)
    assert tiny.metadata["featinv.steps"] == "20"


def test_what_is_built_is_parsed():
    features = FeatureSpec(
        channels=1024, height=9, width=9, backbone="b", layer="2", input_size=288, std=(1.0, 2.0, 3.0)
    )
    sampling = SamplingConfig(sampler="lcm", steps=4, guidance_scale=1.0, unconditional_strength=0.0)
    config = dataclasses.replace(CONFIG, heads=5, autoencoder=dataclasses.replace(CONFIG.autoencoder, latent_scale=0.5))
    metadata = build(config, features, sampling, ("a", "b"), {"featinv.backbone": "old", "featinv.info.x": "y"})
    assert metadata["featinv.info.x"] == "y"
    stated = parse(metadata, CONFIG)
    assert stated.config == config
    assert stated.features == features
    assert stated.sampling == sampling
    assert stated.adaptations == ("a", "b")


@pytest.mark.parametrize("text", ["1024x9x12", "[1024, 9, 12]"])
def test_the_feature_shape_in_both_spellings(text):
    features = parse({"featinv.feature_shape": text}, CONFIG).features
    assert (features.channels, features.height, features.width) == (1024, 9, 12)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("feature_shape", "512x9x9"),
        ("feature_shape", "[1024, 9]"),
        ("feature_shape", "9x9"),
        ("feature_shape", '[1024, "9", 9]'),
        ("feature_shape", f"{'9' * 5000}x9x9"),
        ("absolute_max", f"1{'0' * 400}"),
        ("steps", f"1{'0' * 30}"),
        ("layout", "chwn"),
        ("steps", "fifty"),
        ("steps", "2.5"),
        ("mean", "[0.5, null]"),
        ("input_size", "true"),
        ("adaptations", '"text"'),
        ("adaptations", "[1]"),
        ("model", "{}]"),
        ("model", "[" * 100_000),
        ("model", "[]"),
        ("model", '{"channels": "320"}'),
        ("model", '{"target": "os.system"}'),
        ("backbnoe", "typo"),
        ("weights_sha256", "0F" * 32),
        ("weights_sha256", "0f"),
        ("prefix_tokens", "-1"),
        ("prefix_tokens", "2.0"),
        ("more_layers", '[{"layer": "3", "channels": 1024}]'),
        ("more_layers", '[{"channels": 4}]'),
    ],
)
def test_b6_entries_that_are_unknown_malformed_or_contradict_the_shapes(key, text):
    with pytest.raises(CheckpointMismatchError, match="metadata") as caught:
        parse({f"featinv.{key}": text}, CONFIG)
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 64},
        {"channel_multipliers": (1, 2, 4)},
        {"attention_levels": (0, 1)},
        {"feature_channels": 768},
        {"guidance_embedding_channels": 256},
        {"autoencoder": dataclasses.replace(CONFIG.autoencoder, channels=64)},
    ],
)
def test_b6_a_stated_model_that_contradicts_the_shapes(change):
    stated = json.dumps(to_dict(dataclasses.replace(CONFIG, **change)))
    with pytest.raises(CheckpointMismatchError) as caught:
        parse({"featinv.model": stated}, CONFIG)
    assert next(iter(change)) in str(caught.value)


def test_b6_a_contradiction_stops_loading(tmp_path, tiny, tiny_tensors):
    save_file(tiny_tensors, tmp_path / "x.safetensors", {"featinv.feature_shape": "48x9x9"})
    with pytest.raises(CheckpointMismatchError, match="feature_shape"):
        load(tmp_path / "x.safetensors")
    longer = dataclasses.replace(tiny.config, context_tokens=77)
    save_file(tiny_tensors, tmp_path / "x.safetensors", {"featinv.model": json.dumps(to_dict(longer))})
    with pytest.raises(CheckpointMismatchError, match=r"featinv\.prompt\.cond"):
        load(tmp_path / "x.safetensors")


def test_the_backbones_weights_and_prefix_tokens_are_written_and_read():
    features = FeatureSpec(channels=1024, backbone="b", weights_sha256="0f" * 32, prefix_tokens=5)
    metadata = build(CONFIG, features, SamplingConfig(), (), {})
    assert metadata["featinv.weights_sha256"] == "0f" * 32
    assert metadata["featinv.prefix_tokens"] == "5"
    assert parse(metadata, CONFIG).features == features


def test_several_layers_are_written_and_read():
    second = LayerSpec(layer="3", channels=256, height=9, width=9)
    features = FeatureSpec(channels=768, height=18, width=18, layer="2", more_layers=(second,))
    metadata = build(CONFIG, features, SamplingConfig(), (), {})
    assert metadata["featinv.feature_shape"] == "[768, 18, 18]"
    assert parse(metadata, CONFIG).features == features
    assert "featinv.more_layers" not in build(CONFIG, FeatureSpec(channels=1024), SamplingConfig(), (), {})
    with pytest.raises(CheckpointMismatchError, match="feature_shape"):
        parse(metadata | {"featinv.feature_shape": "[1024, 18, 18]"}, CONFIG)

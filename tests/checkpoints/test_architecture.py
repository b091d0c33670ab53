"""The table of names and shapes against the networks."""

from __future__ import annotations

import dataclasses

import torch

from featinv_fast.checkpoints.architecture import model_shapes
from featinv_fast.config import ModelConfig
from featinv_fast.models import FeatInv


def state_dict_shapes(config):
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in FeatInv(config).state_dict().items()}


def test_the_tiny_model(tiny_config):
    assert model_shapes(tiny_config) == state_dict_shapes(tiny_config)


def test_the_golden_model(golden):
    assert model_shapes(golden.config) == state_dict_shapes(golden.config)
    assert golden.config == dataclasses.replace(
        ModelConfig(), channels=32, context_channels=64, feature_channels=48, autoencoder=golden.config.autoencoder
    )
    assert golden.config.autoencoder == dataclasses.replace(ModelConfig().autoencoder, channels=32)


def test_the_official_model_with_a_guidance_embedding():
    config = dataclasses.replace(ModelConfig(), guidance_embedding_channels=256)
    assert model_shapes(config) == state_dict_shapes(config)

"""A tiny checkpoint with everything a checkpoint may hold."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from featinv_fast.checkpoints import Checkpoint, load
from featinv_fast.checkpoints.architecture import PROMPTS, TEXT_ENCODER, text_encoder_shapes
from featinv_fast.checkpoints.ldm import LAYOUT
from featinv_fast.checkpoints.recipe import Recipe
from featinv_fast.config import to_dict


@pytest.fixture(scope="session")
def tiny_ldm(make_model, tiny_config, tmp_path_factory):
    """Path of a file in the official layout: model, prompts, CLIP text encoder, metadata. Do not change it."""
    config = dataclasses.replace(tiny_config, context_channels=64, context_tokens=7, heads=4)
    generator = torch.Generator().manual_seed(5)
    text = text_encoder_shapes(layers=2, width=64, hidden=128, vocabulary=99, tokens=7)
    extras = dict.fromkeys(PROMPTS, (1, 7, 64)) | {TEXT_ENCODER + name: shape for name, shape in text.items()}
    tensors = make_model(config, seed=3).state_dict()
    tensors |= {name: torch.randn(shape, generator=generator) for name, shape in extras.items()}
    metadata = {
        "featinv.model": json.dumps(to_dict(config)),
        "featinv.backbone": "some_backbone",
        "featinv.layer": "final",
        "featinv.layout": "nhwc",
        "featinv.feature_shape": "6x3x4",
        "featinv.input_size": "288",
        "featinv.absolute_max": "7.5",
        "featinv.steps": "20",
        "featinv.info.trained_by": "a test",
        "somebody": "else",
    }
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_file(Recipe.make(LAYOUT, config, extras).write(tensors), path, metadata)
    return path


@pytest.fixture(scope="session")
def tiny(tiny_ldm) -> Checkpoint:
    """The same, loaded."""
    return load(tiny_ldm)


@pytest.fixture(scope="session")
def tiny_tensors(tiny):
    """Its tensors in the official layout."""
    extras = {n: tuple(t.shape) for n, t in tiny.named_tensors().items() if n.startswith(("featinv.", TEXT_ENCODER))}
    return Recipe.make(LAYOUT, tiny.config, extras).write(tiny.named_tensors())

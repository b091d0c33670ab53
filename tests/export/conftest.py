"""Tiny checkpoints in our own layout, and engines exported from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from featinv_export.exporter import export
from featinv_export.options import ExportOptions
from featinv_fast.checkpoints import Checkpoint, save
from featinv_fast.config import FeatureSpec, Precision, SamplingConfig


@pytest.fixture(scope="session")
def tiny(tiny_config, make_model) -> Checkpoint:
    """A checkpoint of the smallest architecture, with stored prompts. Do not change it."""
    generator = torch.Generator().manual_seed(7)
    prompts = torch.randn(2, 1, tiny_config.context_tokens, tiny_config.context_channels, generator=generator)
    return Checkpoint(
        config=tiny_config,
        tensors=make_model(tiny_config).state_dict(),
        prompts={"cond": prompts[0], "uncond": prompts[1]},
        text_encoder={},
        features=FeatureSpec(channels=tiny_config.feature_channels),
        sampling=SamplingConfig(steps=20),
        metadata={},
        adaptations=(),
        layout="featinv",
        path=Path("tiny.safetensors"),
    )


@pytest.fixture
def checkpoint_file(tiny: Checkpoint, tmp_path: Path) -> Callable[..., Path]:
    """`checkpoint_file(**changes)`: a file of the tiny checkpoint with other fields, in the folder `tmp_path`."""

    def write(**changes: object) -> Path:
        return save(dataclasses.replace(tiny, **changes), tmp_path / "tiny.safetensors")

    return write


@pytest.fixture(scope="session")
def tiny_fp16_engine(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as an engine in fp16 with ONNX graphs. Do not change it.

    One of the ControlNet's zero convolutions has only begun to learn: its weight is too small for fp16.
    """
    folder = tmp_path_factory.mktemp("fp16")
    name = "denoiser.controlnet.zero_convs.0.weight"
    tensors = {**tiny.tensors, name: tiny.tensors[name] * 1e-6}
    checkpoint = save(dataclasses.replace(tiny, tensors=tensors), folder / "tiny.safetensors")
    return export(
        ExportOptions(checkpoint=checkpoint, out=folder / "engine", onnx=True, precision=Precision.FP16, max_batch=8)
    )


@pytest.fixture(scope="session")
def tiny_bf16_engine(make_engine: Callable[..., Path]) -> Path:
    """The smallest architecture as an engine in bf16 with ONNX graphs. Do not change it."""
    return make_engine(metadata={"feature_shape": "6x5x5"}, precision=Precision.BF16, onnx=True, unchecked=True)

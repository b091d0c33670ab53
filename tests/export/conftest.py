"""Tiny checkpoints in our own layout, and engines exported from them."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from featinv_export.parity import Candidate
from featinv_export.targets.onnx_ import write_graphs
from featinv_export.weights import write_weights
from featinv_fast import demo
from featinv_fast.backends.torch_ import WEIGHT_FILE
from featinv_fast.checkpoints import Checkpoint, save
from featinv_fast.config import FeatureSpec, Precision, SamplingConfig
from featinv_fast.rewrites.engine_model import EngineModel, storage_dtypes


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
def tiny_fp16_engine(
    tiny: Checkpoint, shared_engine: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny checkpoint as an engine in fp16 with ONNX graphs. Do not change it.

    One of the ControlNet's zero convolutions has only begun to learn: its weight is too small for fp16.
    """
    name = "denoiser.controlnet.zero_convs.0.weight"
    tensors = {**tiny.tensors, name: tiny.tensors[name] * 1e-6}
    checkpoint = save(dataclasses.replace(tiny, tensors=tensors), tmp_path_factory.mktemp("fp16") / "tiny.safetensors")
    return shared_engine(checkpoint, onnx=True, precision=Precision.FP16, max_batch=8)


@pytest.fixture(scope="session")
def tiny_bf16_engine(make_engine: Callable[..., Path]) -> Path:
    """The smallest architecture as an engine in bf16 with ONNX graphs. Do not change it."""
    return make_engine(metadata={"feature_shape": "6x5x5"}, precision=Precision.BF16, onnx=True, unchecked=True)


@pytest.fixture(scope="session")
def built_in_graphs(made_once: Callable[..., Path]) -> Callable[[Precision], Path]:
    """`built_in_graphs(precision)`: a folder with the graphs of the built-in engines, and the weights of the first.

    The engines have one architecture, so that the graphs are those of both. Do not change it.
    """
    found = demo.load_engine(demo.ENGINES[0])
    manifest = found.manifest

    def copy(folder: Path) -> None:
        for path in (*found.path.glob("*.onnx"), found.path / WEIGHT_FILE):
            shutil.copyfile(path, folder / path.name)

    def write(folder: Path, precision: Precision) -> None:
        dtypes = storage_dtypes(EngineModel.empty(manifest.model), precision, manifest.kept_fp32)
        write_weights(load_file(found.path / WEIGHT_FILE), dtypes, folder)
        candidate = Candidate.of_engine(dataclasses.replace(manifest, precision=precision, storage=None), folder)
        write_graphs(candidate, lambda _: None)

    def find(precision: Precision) -> Path:
        make = copy if precision is manifest.precision else functools.partial(write, precision=precision)
        return made_once(f"built-in graphs, {precision}", make)

    return find

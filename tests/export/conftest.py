"""Tiny checkpoints in our own layout, and engines exported from them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import onnx_ir
import pytest
import torch

from featinv_export.exporter import export
from featinv_export.onnx_graphs import export_graph
from featinv_export.options import ExportOptions
from featinv_export.weights import StoredTensor
from featinv_fast.checkpoints import Checkpoint, save
from featinv_fast.config import FeatureSpec, Precision, SamplingConfig
from featinv_fast.engine import graph_specs
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
def graph_file(tiny_config, golden, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`graph_file(checkpoint, precision, graph)`: a graph of the "tiny" or "golden" model, without weights."""
    configs = {"tiny": tiny_config, "golden": golden.config}
    spelled = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}

    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root  # parallel processes share the files

    def make(checkpoint: str, precision: Precision, graph: str) -> Path:
        path = root / f"{checkpoint}.{precision}" / f"{graph}.onnx"
        if path.exists():
            return path
        config = configs[checkpoint]
        structure = EngineModel.empty(config)
        dtypes = storage_dtypes(structure, precision)
        for name, parameter in structure.named_parameters():
            parameter.data = parameter.data.to(dtypes[name])
        index = {
            name: StoredTensor(0, tensor.nbytes, spelled[tensor.dtype], tuple(tensor.shape))
            for name, tensor in structure.state_dict().items()
        }
        features = FeatureSpec(channels=config.feature_channels)
        specs = graph_specs(config, features, time_bias_size=structure.time_embedding.size, max_batch=8)
        path.parent.mkdir(exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.onnx")
        onnx_ir.save(export_graph(structure.graphs()[graph], specs[graph], index), unfinished)
        return unfinished.replace(path)

    return make

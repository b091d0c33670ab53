"""The decoder that the example writes is one of optimum's: names, types, axes, scale and configuration.

optimum-onnx 0.1 needs transformers < 4.58 and with it huggingface_hub < 1, diffusers 0.42.1 a later one, so that it
cannot be installed beside what we are tested with. Its layout stands here as data, copied from what it declares
(`VaeDecoderOnnxConfig`) and from a folder that it wrote. Where its packages have been fetched into a folder of their
own, its classes load and run the decoder too, and its declaration is compared with the data.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import separate_packages
import torch
from torch import Tensor

from featinv_fast.checkpoints import load, save
from featinv_fast.checkpoints.diffusers_configs import component_configs
from featinv_fast.text import OFFICIAL_PROMPT, encode_prompt, prompt_ids

EXAMPLE = Path(__file__).parents[2] / "examples" / "optimum_decoder.py"
# Tensor -> dynamic axis -> its name, with "8" for the factor between latents and images.
DECLARED = [
    {"latent_sample": {"0": "batch_size", "2": "latent_height", "3": "latent_width"}},
    {"sample": {"0": "batch_size", "2": "latent_height * 8", "3": "latent_width * 8"}},
]
# What ORTVaeDecoder and the pipelines around it read of config.json.
READ_BY_PIPELINES = ("scaling_factor", "block_out_channels", "latent_channels", "sample_size", "up_block_types")

needs_optimum = pytest.mark.skipif(
    separate_packages.missing("optimum") is not None, reason=str(separate_packages.missing("optimum"))
)


def run_with_optimum(script: str, *arguments: Path) -> str:
    """What a script beside this file prints, in a process that imports optimum's packages."""
    packages = separate_packages.folder("optimum")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def make_folder(run_alone, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """`make_folder(engine)`: what the example writes for an engine."""

    def make(engine: Path) -> Path:
        folder = tmp_path_factory.mktemp("optimum") / "folder"
        run_alone(EXAMPLE.name, engine, folder)
        return folder

    return make


@pytest.fixture(scope="module")
def folder(make_folder, golden_engine: Path) -> Path:
    """The decoder of the golden engine. Do not change it."""
    return make_folder(golden_engine)


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "vae_decoder" / "config.json").read_text())


def decode(folder: Path, latents: Tensor) -> Tensor:
    """As optimum's pipelines do it, with plain onnxruntime."""
    session = onnxruntime.InferenceSession(folder / "vae_decoder" / "model.onnx", providers=["CPUExecutionProvider"])
    scaled = latents / read_config(folder)["scaling_factor"]
    return torch.from_numpy(session.run(["sample"], {"latent_sample": scaled.numpy()})[0])


def check_interface(folder: Path, edge: int, factor: int) -> None:
    """Optimum's names and types; of its axes the batch is dynamic, the size is the engine's own."""
    session = onnxruntime.InferenceSession(folder / "vae_decoder" / "model.onnx", providers=["CPUExecutionProvider"])
    sizes = {"batch_size": "batch_size", "latent_height": edge, "latent_width": edge}
    sizes |= {f"{name} * 8": sizes[name] * factor for name in ("latent_height", "latent_width")}
    for given, declared, channels in zip((session.get_inputs(), session.get_outputs()), DECLARED, (4, 3), strict=True):
        ((name, axes),) = declared.items()
        shape = [sizes[axes[str(axis)]] if str(axis) in axes else channels for axis in range(4)]
        assert [(tensor.name, tensor.type, tensor.shape) for tensor in given] == [(name, "tensor(float)", shape)]


def test_the_folder_is_optimums(folder: Path):
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"vae_decoder/model.onnx", "vae_decoder/config.json"}
    check_interface(folder, edge=32, factor=8)


def test_a_half_precision_decoder_has_the_same_interface(make_folder, golden_fp16_engine: Path, golden, relative_norm):
    folder = make_folder(golden_fp16_engine)
    check_interface(folder, edge=32, factor=8)
    assert relative_norm(decode(folder, golden.inputs["in.decode"]), golden.expected["decode.image"]) <= 1e-2


def test_another_architecture(make_folder, tiny_engine: Path):
    check_interface(make_folder(tiny_engine), edge=8, factor=2)


def test_the_graph_is_whole_and_says_nothing_of_our_names(folder: Path):
    model = onnx.load(folder / "vae_decoder" / "model.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}
    assert not names & {"latents", "image"}
    assert {tensor.name for tensor in model.graph.initializer} <= names


def test_the_configuration_is_the_autoencoders(folder: Path, golden):
    config = read_config(folder)
    assert config == component_configs(golden.config)["vae"]
    assert config.keys() >= set(READ_BY_PIPELINES)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_it_decodes_what_the_model_decodes(folder: Path, golden_model, relative_norm, batch: int):
    latents = torch.randn(batch, 4, 32, 32, generator=torch.Generator().manual_seed(batch))
    assert relative_norm(decode(folder, latents), golden_model.autoencoder.decode(latents)) <= 2e-5


def test_it_decodes_what_the_official_code_decoded(folder: Path, golden, relative_norm):
    assert relative_norm(decode(folder, golden.inputs["in.decode"]), golden.expected["decode.image"]) <= 2e-5


def test_a_decoder_that_does_not_begin_with_the_scale_is_refused(golden_engine: Path, tmp_path: Path):
    model = onnx.load(golden_engine / "decoder.onnx")
    (divide,) = (node for node in model.graph.node if "latents" in node.input)
    divide.op_type = "Mul"
    onnx.save(model, tmp_path / "decoder.onnx")
    command = [sys.executable, str(EXAMPLE), str(tmp_path), str(tmp_path / "folder")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "begins with Mul, expected a division by the latent scale" in done.stderr
    assert not (tmp_path / "folder").exists()


@needs_optimum
def test_optimum_runs_it_and_declares_this_layout(folder: Path, golden_model, relative_norm, tmp_path: Path):
    latents = {str(batch): torch.randn(batch, 4, 32, 32) for batch in (1, 3)}
    inputs, outputs = tmp_path / "inputs.npz", tmp_path / "outputs.npz"
    np.savez(inputs, **{name: x.numpy() for name, x in latents.items()})
    assert json.loads(run_with_optimum("run_in_optimum.py", folder, inputs, outputs)) == DECLARED
    with np.load(outputs) as images:
        for name, x in latents.items():
            assert relative_norm(torch.from_numpy(images[name]), golden_model.autoencoder.decode(x)) <= 2e-5


def random_text_encoder(width: int, layers: int) -> dict[str, Tensor]:
    """A CLIP text encoder's tensors, with its whole vocabulary and 77 positions."""
    generator = torch.Generator().manual_seed(3)

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + 0.1 * torch.randn(width, generator=generator), f"{name}.bias": torch.zeros(width)}

    def linear(name: str, outputs: int, inputs: int) -> dict[str, Tensor]:
        weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        return {f"{name}.weight": weight, f"{name}.bias": 0.1 * torch.randn(outputs, generator=generator)}

    state = {
        "embeddings.token_embedding.weight": torch.randn(49408, width, generator=generator),
        "embeddings.position_embedding.weight": torch.randn(77, width, generator=generator),
        **norm("final_layer_norm"),
    }
    for layer in (f"encoder.layers.{i}" for i in range(layers)):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state |= linear(f"{layer}.self_attn.{part}", width, width)
        state |= linear(f"{layer}.mlp.fc1", 2 * width, width) | linear(f"{layer}.mlp.fc2", width, 2 * width)
        state |= norm(f"{layer}.layer_norm1") | norm(f"{layer}.layer_norm2")
    return state


@needs_optimum
def test_optimum_exports_the_text_encoder_of_a_converted_checkpoint(golden_checkpoint, relative_norm, tmp_path: Path):
    """An engine has none: what it stores of a prompt is what optimum's text encoder gives as its last hidden state."""
    text_encoder = random_text_encoder(width=64, layers=2)
    save(dataclasses.replace(load(golden_checkpoint), text_encoder=text_encoder), tmp_path / "folder", "diffusers")
    run_with_optimum("export_by_optimum.py", tmp_path / "folder", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(x.name, x.type) for x in session.get_inputs()] == [("input_ids", "tensor(int64)")]
    ids = np.array([prompt_ids(OFFICIAL_PROMPT)])
    (hidden,) = session.run(["last_hidden_state"], {"input_ids": ids})
    assert relative_norm(torch.from_numpy(hidden), encode_prompt(OFFICIAL_PROMPT, text_encoder)) <= 2e-5

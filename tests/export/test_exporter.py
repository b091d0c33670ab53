"""What an export writes."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from featinv_export.exporter import export
from featinv_export.options import ExportOptions
from featinv_fast.backends import Request, load
from featinv_fast.config import FeatureLayout, FeatureSpec, Precision, SamplingConfig
from featinv_fast.engine import Exactness, ParityStatus, PromptInfo, open_engine
from featinv_fast.errors import ArgumentError
from featinv_fast.rewrites.engine_model import EngineModel
from featinv_fast.rewrites.upsample_products import is_kernel
from featinv_fast.runtime import Runtime


def test_golden_manifest(golden, golden_checkpoint: Path, golden_engine: Path):
    manifest = open_engine(golden_engine).manifest
    assert manifest.name == "golden"
    assert manifest.model == golden.config
    assert manifest.features == FeatureSpec(channels=48)
    assert manifest.sampling == SamplingConfig()
    assert manifest.precision is Precision.FP32
    assert manifest.kept_fp32 == ()
    assert manifest.prompts == PromptInfo(source="checkpoint")
    assert (manifest.max_batch, manifest.optimal_batch) == (64, 1)
    assert manifest.adaptations == ()
    assert manifest.source.file_name == "golden.safetensors"
    assert manifest.source.layout == "ldm"
    assert manifest.source.sha256 == hashlib.sha256(golden_checkpoint.read_bytes()).hexdigest()
    assert manifest.tools["torch"] == importlib.metadata.version("torch")
    assert set(manifest.tools) == {"python", "featinv-fast", "torch", "onnx", "onnxscript"}
    age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(manifest.created)
    assert dt.timedelta(0) <= age < dt.timedelta(hours=1)
    graphs = {f"{name}.onnx" for name in manifest.graph_specs()}
    assert set(manifest.files) == {"weights.safetensors", "README.md", *graphs}


def test_golden_rewrites_are_exact_and_say_how_much_they_changed(golden_engine: Path):
    rewrites = {option.name: option for option in open_engine(golden_engine).manifest.rewrites}
    assert all(option.exactness is Exactness.EXACT for option in rewrites.values())
    assert "23 cross-attentions" in rewrites["constant prompts"].note
    assert "32 residual blocks" in rewrites["time rows"].note
    assert "3 layers of the U-Net and 3 of the decoder" in rewrites["upsample products"].note
    assert "shared prefix" in rewrites


def test_golden_parity_covers_each_graph_on_each_backend_at_two_batch_sizes(golden_engine: Path):
    manifest = open_engine(golden_engine).manifest
    graphs = manifest.graph_specs()
    wanted = {(graph, backend, batch) for graph in graphs for backend in ("torch", "onnxruntime") for batch in (1, 2)}
    assert {(info.graph, info.backend, info.batch) for info in manifest.parity} == wanted
    assert len(manifest.parity) == len(wanted)
    for info in manifest.parity:
        assert info.status is ParityStatus.PASSED
        assert info.relative <= info.tolerance == 2e-5
        assert info.max_abs < 1e-4


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_golden_engine_computes_what_the_official_code_computed(golden, golden_engine, relative_norm, backend: str):
    session = load(Request(engine=open_engine(golden_engine), device=torch.device("cpu")), backend)
    condition = session.run("condition_encoder", golden.inputs["in.features"])
    assert relative_norm(condition, golden.expected["condition.nchw"]) < 2e-5
    (row,) = session.run("time_embedding", torch.tensor([481.0]))
    scales = torch.ones(2, golden.config.control_count)
    eps = session.run("denoiser", golden.inputs["in.latent"], condition, row, torch.tensor(1.75), scales)
    cond, uncond = golden.expected["eps.t481.cond"], golden.expected["eps.t481.uncond"]
    assert relative_norm(eps, uncond + 1.75 * (cond - uncond)) < 2e-5
    eps = session.run("denoiser_unguided", golden.inputs["in.latent"], condition, row, scales[:1])
    assert relative_norm(eps, cond) < 2e-5
    image = session.run("decoder", golden.inputs["in.decode"])
    assert relative_norm(image, golden.expected["decode.image"]) < 2e-5


def test_golden_model_card(golden_engine: Path):
    card = (golden_engine / "README.md").read_text()
    assert card.startswith("# golden\n")
    assert "[B, 48, H, W] -> uint8 [B, 256, 256, 3]" in card
    assert "| sampler | ddim, 50 steps |" in card
    assert "constant prompts (exact)" in card
    assert "| `denoiser.onnx` |" in card
    manifest = open_engine(golden_engine).manifest
    assert card.count("| onnxruntime |") == card.count("| torch |") == 10
    assert manifest.source.sha256 in card
    assert str(golden_engine.parent) not in card


def test_weights_are_those_of_the_rewritten_model(tiny, make_model, checkpoint_file, tmp_path: Path):
    engine = export(ExportOptions(checkpoint=checkpoint_file(), out=tmp_path / "engine"))
    prompts = torch.cat([tiny.prompts["cond"], tiny.prompts["uncond"]])
    expected = EngineModel(make_model(tiny.config), prompts).state_dict()
    stored = load_file(engine / "weights.safetensors")
    assert set(stored) == set(expected)
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_without_onnx_there_are_weights_and_the_card_alone(checkpoint_file, tmp_path: Path):
    engine = open_engine(export(ExportOptions(checkpoint=checkpoint_file(), out=tmp_path / "engine")))
    assert set(engine.manifest.files) == {"weights.safetensors", "README.md"}
    assert {info.backend for info in engine.manifest.parity} == {"torch"}
    assert set(engine.manifest.tools) == {"python", "featinv-fast", "torch"}


def test_the_same_checkpoint_gives_the_same_weight_file(checkpoint_file, tmp_path: Path):
    checkpoint = checkpoint_file()
    hashes = [
        open_engine(export(ExportOptions(checkpoint=checkpoint, out=tmp_path / name))).manifest.files
        for name in ("first", "second")
    ]
    assert hashes[0]["weights.safetensors"] == hashes[1]["weights.safetensors"]


def test_options_reach_the_manifest(checkpoint_file, tmp_path: Path):
    options = ExportOptions(
        checkpoint=checkpoint_file(),
        out=tmp_path / "engine",
        name="An engine | of `mine`",
        max_batch=7,
        optimal_batch=3,
        feature_size=(9, 12),
        sampler="dpm++2m",
        steps=10,
        guidance_scale=1.5,
    )
    engine = open_engine(export(options))
    manifest = engine.manifest
    assert manifest.name == "An engine | of `mine`"
    assert (manifest.max_batch, manifest.optimal_batch) == (7, 3)
    assert (manifest.features.height, manifest.features.width) == (9, 12)
    assert manifest.sampling == SamplingConfig(sampler="dpm++2m", steps=10, guidance_scale=1.5)
    assert engine.graph_specs()["condition_encoder"].profile("max")["features"] == (7, 6, 9, 12)
    assert (engine.path / "README.md").read_text().startswith("# An engine / of 'mine'\n")


def test_what_the_checkpoint_says_reaches_the_manifest(checkpoint_file, tmp_path: Path):
    features = FeatureSpec(
        channels=6, height=5, width=4, backbone="some.net", layer="2", layout=FeatureLayout.NHWC, absolute_max=3.5
    )
    checkpoint = checkpoint_file(features=features, adaptations=("LoRA fused",))
    engine = open_engine(export(ExportOptions(checkpoint=checkpoint, out=tmp_path / "engine")))
    assert engine.manifest.features == features
    assert engine.manifest.sampling == SamplingConfig(steps=20)
    assert engine.manifest.adaptations == ("LoRA fused",)
    card = (engine.path / "README.md").read_text()
    assert "| backbone | some.net |" in card
    assert "- LoRA fused" in card
    assert "[B, 6, 5, 4] -> uint8 [B, 16, 16, 3]" in card


def test_fp16_engine(tiny, tiny_fp16_engine: Path):
    manifest = open_engine(tiny_fp16_engine).manifest
    assert manifest.precision is Precision.FP16
    # Either torch computes in fp16 here, or the stored weights are checked in fp32; onnxruntime always runs.
    ran = {info.backend for info in manifest.parity if info.status is ParityStatus.PASSED}
    assert "onnxruntime" in ran
    assert ran & {"torch", "torch in fp32"}
    for info in manifest.parity:
        if info.status is ParityStatus.PASSED:
            assert info.relative <= info.tolerance == (2e-5 if info.graph == "time_embedding" else 1e-2)
    size = manifest.files["weights.safetensors"].size
    assert size < 0.6 * sum(4 * t.numel() for n, t in tiny.tensors.items() if not n.startswith("autoencoder.encoder"))


def test_bf16_without_onnx(checkpoint_file, tmp_path: Path):
    options = ExportOptions(checkpoint=checkpoint_file(), out=tmp_path / "engine", precision=Precision.BF16)
    engine = open_engine(export(options))
    weights = load_file(engine.path / "weights.safetensors")
    for name, tensor in weights.items():
        in_fp32 = name.startswith("time_embedding.") or is_kernel(name)
        assert tensor.dtype is (torch.float32 if in_fp32 else torch.bfloat16)


def test_a_checkpoint_in_half_precision_exports_in_fp32(tiny, checkpoint_file, tmp_path: Path):
    halves = {name: tensor.half() for name, tensor in tiny.tensors.items()}
    engine = export(ExportOptions(checkpoint=checkpoint_file(tensors=halves), out=tmp_path / "engine"))
    stored = load_file(engine / "weights.safetensors")
    name = "denoiser.unet.conv_out.weight"
    torch.testing.assert_close(stored[name], halves[name].float(), rtol=0, atol=0)
    assert {info.status for info in open_engine(engine).manifest.parity} == {ParityStatus.PASSED}


def test_an_untrained_controlnet_exports(tiny, checkpoint_file, tmp_path: Path):
    tensors = {
        name: torch.zeros_like(tensor) if name.startswith("condition_encoder.conv_out") else tensor
        for name, tensor in tiny.tensors.items()
    }
    engine = export(ExportOptions(checkpoint=checkpoint_file(tensors=tensors), out=tmp_path / "engine"))
    (info,) = (i for i in open_engine(engine).manifest.parity if i.graph == "condition_encoder" and i.batch == 1)
    assert info.relative == info.max_abs == 0.0


def test_a_unet_with_a_guidance_embedding_exports(tiny, make_model, checkpoint_file, tmp_path: Path):
    config = dataclasses.replace(tiny.config, guidance_embedding_channels=8)
    path = checkpoint_file(config=config, tensors=make_model(config).state_dict())
    engine = open_engine(export(ExportOptions(checkpoint=path, out=tmp_path / "engine")))
    assert engine.graph_specs()["time_embedding"].input_names == ("timesteps", "guidance")
    assert len(engine.manifest.parity) == 10
    assert {info.status for info in engine.manifest.parity} == {ParityStatus.PASSED}


def test_progress_counts_to_the_end(checkpoint_file, tmp_path: Path):
    calls: list[tuple[str, int, int]] = []
    export(ExportOptions(checkpoint=checkpoint_file(), out=tmp_path / "engine"), lambda *call: calls.append(call))
    assert [done for _, done, _ in calls] == list(range(len(calls)))
    assert calls[-1] == ("done", 6, 6)
    assert {total for _, _, total in calls} == {6}


def test_the_default_destination_is_named_after_the_checkpoint(checkpoint_file, tmp_path: Path, monkeypatch):
    checkpoint = checkpoint_file()
    monkeypatch.chdir(tmp_path)
    assert export(ExportOptions(checkpoint=checkpoint)) == (tmp_path / "tiny.engine").resolve()


def test_weights_stored_in_half_precision_are_computed_with_in_fp32(tiny, checkpoint_file, tmp_path: Path, tiny_maps):
    folder = export(
        ExportOptions(checkpoint=checkpoint_file(), out=tmp_path / "engine", storage=Precision.FP16, onnx=True)
    )
    manifest = open_engine(folder).manifest
    assert (manifest.precision, manifest.storage) == (Precision.FP32, Precision.FP16)
    for name, tensor in load_file(folder / "weights.safetensors").items():
        kept = name.startswith("time_embedding.") or is_kernel(name) or name in manifest.kept_fp32
        assert tensor.dtype is (torch.float32 if kept else torch.float16), name
    # Both backends ran in fp32 and compute the same; what they lose against the checkpoint is told.
    assert {(info.backend, info.status) for info in manifest.parity} == {
        ("torch", ParityStatus.PASSED),
        ("onnxruntime", ParityStatus.PASSED),
    }
    assert all(1e-5 < info.relative < 2e-3 for info in manifest.parity if info.graph == "denoiser")
    assert [option.name for option in manifest.rewrites if option.exactness == "lossy"] == ["half-precision storage"]
    assert "fp32, weights stored in fp16" in (folder / "README.md").read_text()
    latents = [
        Runtime(folder, backend=backend, threads=1).invert(tiny_maps[:2], steps=2, output_type="latent").images
        for backend in ("torch", "onnxruntime")
    ]
    difference = np.linalg.norm(latents[0] - latents[1]) / np.linalg.norm(latents[0])
    assert difference < 2e-5


def test_storage_in_the_precision_of_the_arithmetic_is_nothing_special(checkpoint_file, tmp_path: Path):
    options = ExportOptions(
        checkpoint=checkpoint_file(), out=tmp_path / "engine", precision=Precision.BF16, storage=Precision.BF16
    )
    assert open_engine(export(options)).manifest.storage is None
    with pytest.raises(ArgumentError, match="another half precision"):
        dataclasses.replace(options, storage=Precision.FP16)

"""Exports that must fail: with what message, and leaving what behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from featinv_export import exporter
from featinv_export.exporter import export
from featinv_export.options import ExportOptions
from featinv_export.weights import exceptions_in_fp32
from featinv_fast.checkpoints import save
from featinv_fast.config import FeatureSpec, Precision
from featinv_fast.engine import install, open_engine
from featinv_fast.errors import (
    ArgumentError,
    CheckpointCorruptError,
    CheckpointMismatchError,
    EngineExistsError,
    EngineNotFoundError,
    ExportError,
    MissingPackageError,
)
from featinv_fast.rewrites.engine_model import EngineModel, storage_dtypes

WEIGHT = "denoiser.unet.encoder.levels.0.blocks.0.residual.conv_in.weight"


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def changed(tensors: dict[str, torch.Tensor], name: str, value: float) -> dict[str, torch.Tensor]:
    """`tensors` with one element of one tensor set to `value`."""
    tensor = tensors[name].clone()
    tensor.view(-1)[1] = value
    return {**tensors, name: tensor}


@pytest.mark.parametrize("missing", ["denoiser.unet.conv_out.weight", "autoencoder.decoder.conv_out.bias"])
def test_b4_missing_tensor(checkpoint_file, tmp_path: Path, missing: str):
    path = checkpoint_file()
    tensors = load_file(path)
    del tensors[missing]
    save_file(tensors, path)
    with pytest.raises(CheckpointMismatchError, match=missing.replace(".", r"\.")):
        export(ExportOptions(checkpoint=path, out=tmp_path / "engine"))
    assert entries(tmp_path) == ["tiny.safetensors"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", list(Precision))
def test_b5_weights_that_are_not_finite_are_refused(tiny, checkpoint_file, tmp_path: Path, value, precision):
    path = checkpoint_file(tensors=changed(tiny.tensors, WEIGHT, value))
    with pytest.raises(CheckpointCorruptError, match=WEIGHT.replace(".", r"\.")):
        export(ExportOptions(checkpoint=path, out=tmp_path / "engine", precision=precision))
    assert entries(tmp_path) == ["tiny.safetensors"]


def test_b5_prompts_that_are_not_finite_are_refused(tiny, checkpoint_file, tmp_path: Path):
    path = checkpoint_file(prompts=changed(tiny.prompts, "uncond", float("nan")))
    with pytest.raises(CheckpointCorruptError, match="prompt"):
        export(ExportOptions(checkpoint=path, out=tmp_path / "engine"))


@pytest.mark.parametrize(("value", "fits"), [(6e4, True), (7e4, False), (-7e4, False)])
def test_b5_weights_beyond_fp16_stay_in_fp32_with_their_layer(tiny_config, make_model, value: float, fits: bool):
    layer = "denoiser.unet.encoder.levels.0.blocks.0.residual.conv_in"
    structure = EngineModel.empty(tiny_config)
    prompts = torch.zeros(2, tiny_config.context_tokens, tiny_config.context_channels)
    tensors = EngineModel(make_model(tiny_config), prompts).state_dict()
    tensors = changed(tensors, f"{layer}.weight", value)
    # A tensor that is in fp32 anyway is not listed.
    tensors = changed(tensors, "time_embedding.unet.projection.weight", 7e4)
    kept = exceptions_in_fp32(tensors, storage_dtypes(structure, Precision.FP16))
    assert set(kept) == (set() if fits else {f"{layer}.weight", f"{layer}.bias"})
    assert exceptions_in_fp32(tensors, storage_dtypes(structure, Precision.BF16)) == ()
    assert exceptions_in_fp32(tensors, storage_dtypes(structure, Precision.FP32)) == ()


def test_b5_what_was_kept_is_listed_stored_and_run_in_fp32(tiny, tiny_fp16_engine: Path):
    engine = open_engine(tiny_fp16_engine)
    layer = "denoiser.controlnet.zero_convs.0"
    assert set(engine.manifest.kept_fp32) == {f"{layer}.weight", f"{layer}.bias"}
    stored = load_file(engine.path / "weights.safetensors")
    assert stored[f"{layer}.weight"].dtype is stored[f"{layer}.bias"].dtype is torch.float32
    torch.testing.assert_close(stored[f"{layer}.weight"], tiny.tensors[f"{layer}.weight"] * 1e-6, rtol=0, atol=0)
    assert f"`{layer}.weight`" in (engine.path / "README.md").read_text()


def test_b6_a_backbone_that_contradicts_the_shapes_is_refused(checkpoint_file, tmp_path: Path):
    with pytest.raises(ArgumentError, match="contradict") as caught:
        export(ExportOptions(checkpoint=checkpoint_file(), out=tmp_path / "engine", backbone="convnext_base"))
    assert caught.value.given == {"channels": 1024}
    assert caught.value.expected == {"channels": 6}
    assert entries(tmp_path) == ["tiny.safetensors"]


def test_b6_a_feature_size_that_contradicts_the_checkpoint_is_refused(checkpoint_file, tmp_path: Path):
    path = checkpoint_file(features=FeatureSpec(channels=6, height=9, width=9))
    with pytest.raises(ArgumentError, match="contradict"):
        export(ExportOptions(checkpoint=path, out=tmp_path / "engine", feature_size=(9, 12)))


def test_b8_an_existing_engine_is_replaced_only_with_force(checkpoint_file, tmp_path: Path):
    path, out = checkpoint_file(), tmp_path / "engine"
    export(ExportOptions(checkpoint=path, out=out, name="old"))
    with pytest.raises(EngineExistsError, match="force=True"):
        export(ExportOptions(checkpoint=path, out=out, name="new"))
    assert open_engine(out).manifest.name == "old"
    export(ExportOptions(checkpoint=path, out=out, name="new", force=True))
    assert open_engine(out).manifest.name == "new"
    assert entries(tmp_path) == ["engine", "tiny.safetensors"]


def test_b8_a_folder_that_is_no_engine_is_never_replaced(checkpoint_file, tmp_path: Path):
    out = tmp_path / "pictures"
    out.mkdir()
    (out / "cat.png").write_bytes(b"cat")
    with pytest.raises(EngineExistsError, match="not an engine"):
        export(ExportOptions(checkpoint=checkpoint_file(), out=out, force=True))
    assert entries(out) == ["cat.png"]


def test_b8_space_is_checked_before_anything_is_written(checkpoint_file, tmp_path: Path, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(install, "_require_space", lambda *arguments: asked.append(arguments[-1]))
    engine = export(ExportOptions(checkpoint=checkpoint_file(), out=tmp_path / "engine"))
    written = sum(file.stat().st_size for file in engine.iterdir())
    assert written < asked[0] < written + 64 * 2**20


def test_b8_too_little_space(checkpoint_file, tmp_path: Path, monkeypatch):
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr(install.shutil, "disk_usage", lambda *_: usage)
    with pytest.raises(ExportError, match="too little space"):
        export(ExportOptions(checkpoint=checkpoint_file(), out=tmp_path / "engine"))
    assert entries(tmp_path) == ["tiny.safetensors"]


@pytest.mark.parametrize("name", ["with blank", "ünïcödé 写真", "a'b\"c", "-dash", "a.b.c", "new\nline", "percent%20"])
def test_b8_odd_names(tiny, tmp_path: Path, name: str):
    path = save(tiny, tmp_path / f"{name}.safetensors")
    engine = export(ExportOptions(checkpoint=path, out=tmp_path / name))
    assert engine == tmp_path / name
    manifest = open_engine(engine).manifest
    assert manifest.name == name
    assert (engine / "README.md").read_text(encoding="utf-8").count("\n# ") == 0


def test_b9_killed_in_the_middle(checkpoint_file, tmp_path: Path):
    """Killed when the weights are there and the graphs are being written."""
    path, out = checkpoint_file(), tmp_path / "engine"
    command = [sys.executable, "-m", "featinv_export", "--ckpt", str(path), "--out", str(out), "--onnx"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not list(tmp_path.glob(".engine.*partial/condition_encoder.onnx")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert not out.exists()
    (partial,) = tmp_path.glob(".engine.*partial")
    for folder in (out, partial):
        with pytest.raises(EngineNotFoundError):
            open_engine(folder)
    export(ExportOptions(checkpoint=path, out=out))
    open_engine(out)
    assert entries(tmp_path) == ["engine", "tiny.safetensors"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_b9_whatever_stops_an_export_leaves_the_old_engine_alone(checkpoint_file, tmp_path: Path, monkeypatch, error):
    path, out = checkpoint_file(), tmp_path / "engine"
    export(ExportOptions(checkpoint=path, out=out, name="old"))

    def stop(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(exporter, "model_card", stop)
    with pytest.raises(error):
        export(ExportOptions(checkpoint=path, out=out, force=True))
    assert open_engine(out).manifest.name == "old"
    assert entries(tmp_path) == ["engine", "tiny.safetensors"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_onnx_without_its_packages(checkpoint_file, tmp_path: Path, monkeypatch, package: str):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"pip install 'featinv-fast\[export\]'"):
        export(ExportOptions(checkpoint=checkpoint_file(), out=tmp_path / "engine", onnx=True))
    assert entries(tmp_path) == ["tiny.safetensors"]


def test_peak_memory_has_no_copy_of_fp32_weights(checkpoint_file, tiny, tmp_path: Path, monkeypatch):
    """Weights stored in fp32 reach the weight file as views of the mapped checkpoint."""
    written: dict[str, torch.Tensor] = {}
    write = exporter.write_weights
    monkeypatch.setattr(exporter, "write_weights", lambda t, d, f: (written.update(t), write(t, d, f)))
    opened: list[dict[str, torch.Tensor]] = []
    read = exporter.source.load
    monkeypatch.setattr(exporter.source, "load", lambda path: opened.append(read(path)) or opened[-1])
    export(ExportOptions(checkpoint=checkpoint_file(), out=tmp_path / "engine"))
    mapped = {tensor.data_ptr() for tensor in opened[0].tensors.values()}
    shared = [name for name, tensor in written.items() if tensor.data_ptr() in mapped]
    rewritten = [name for name in written if name not in shared]
    # What rewrites compute anew: keys and values of the prompts, time projections, convolutions of doubled maps.
    parts = (".context.", ".products.")
    assert all(n.startswith("time_embedding.") or any(part in n for part in parts) for n in rewritten)
    assert len(shared) > 0.8 * len(written)

"""Another checkpoint in an engine with plans: what is refitted, what needs no refitting, and what is left out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from featinv_export.from_onnx import add_plans
from featinv_export.options import ExportOptions
from featinv_export.refit import refit
from featinv_export.tensorrt_.options import PlanOptions
from featinv_fast import Runtime
from featinv_fast.backends import Request, reasons_against
from featinv_fast.engine import ParityStatus, open_engine
from featinv_fast.engine.plans import PlanWeights
from featinv_fast.errors import ExportError


@pytest.fixture
def engine(simulation, tiny_engine, restage, tmp_path):
    """`engine(weights)`: the tiny engine with plans."""

    def make(weights: PlanWeights) -> Path:
        folder = restage(tiny_engine, tmp_path / "tiny.engine")
        return add_plans(folder, PlanOptions(max_batch=8, weights=weights))

    return make


@pytest.fixture
def other(tiny_engine, tmp_path) -> Path:
    """A checkpoint of the tiny engine's architecture with other weights."""
    path = tiny_engine.parent / "tiny.safetensors"
    tensors = {
        name: tensor if name.startswith("featinv.prompt") else tensor * 1.02 for name, tensor in load_file(path).items()
    }
    save_file(tensors, tmp_path / "other.safetensors", {"featinv.feature_shape": "6x5x5", **model(path)})
    return tmp_path / "other.safetensors"


def model(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {"featinv.model": file.metadata()["featinv.model"]}


@pytest.mark.parametrize("weights", [PlanWeights.REFITTABLE, PlanWeights.STRIPPED])
def test_plans_compute_with_the_new_weights(simulation, engine, other, tiny_maps, weights):
    folder = engine(weights)
    before = open_engine(folder).manifest
    builds = list(simulation.builds)
    refit(folder, ExportOptions(checkpoint=other))
    assert simulation.builds == builds  # nothing is built again
    after = open_engine(folder).manifest
    same = weights is PlanWeights.STRIPPED
    assert (after.files["denoiser.plan"] == before.files["denoiser.plan"]) is same
    assert len(after.plans) == 5
    assert {plan.weights_sha256 for plan in after.plans} == {after.files["weights.safetensors"].sha256}
    rows = [info for info in after.parity if info.backend == "tensorrt"]
    assert len(rows) == 10
    assert all(info.status is ParityStatus.PASSED and info.relative <= 2e-5 for info in rows)
    latents = [
        Runtime(folder, backend=backend, device="cpu", threads=None if backend == "tensorrt" else 1)
        .invert(tiny_maps[:1], steps=2, output_type="latent")
        .images
        for backend in ("tensorrt", "torch")
    ]
    assert np.linalg.norm(latents[0] - latents[1]) / np.linalg.norm(latents[0]) < 2e-5
    if weights is PlanWeights.REFITTABLE:  # and it stays so
        chosen = simulation.recorder.arguments("ISerializationConfig.set_flag")
        assert {call["flag"].name for call in chosen} == {"INCLUDE_REFIT"}


def test_plans_with_fixed_weights_are_left_out_with_the_reason(engine, other, caplog):
    folder = engine(PlanWeights.FIXED)
    refit(folder, ExportOptions(checkpoint=other))
    assert "denoiser.plan is left out: it was not built with --refittable or --stripped" in caplog.text
    after = open_engine(folder)
    assert after.manifest.plans == ()
    assert not [name for name in after.manifest.files if name.endswith(".plan")]
    reasons = reasons_against(Request(engine=after, device=torch.device("cpu")))["tensorrt"]
    assert reasons[0].startswith("the engine has no TensorRT plans")


def test_without_tensorrt_stripped_plans_are_kept_and_refittable_ones_are_not(
    engine, other, caplog, monkeypatch, tmp_path
):
    folder = engine(PlanWeights.STRIPPED)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ExportError, match="TensorRT plans: "):
        refit(folder, ExportOptions(checkpoint=other))
    refit(folder, ExportOptions(checkpoint=other, unchecked=True))
    manifest = open_engine(folder).manifest
    assert len(manifest.plans) == 5
    rows = [info for info in manifest.parity if info.backend == "tensorrt"]
    assert {info.status for info in rows} == {ParityStatus.NOT_RUN}
    assert "tensorrt cannot be imported" in rows[0].reason


def test_c3_a_plan_that_was_not_built_here_is_not_run_to_refit_it(engine, other, caplog, monkeypatch, tmp_path):
    folder = engine(PlanWeights.REFITTABLE)
    monkeypatch.setenv("FEATINV_CACHE", str(tmp_path / "another user"))
    refit(folder, ExportOptions(checkpoint=other))
    assert "denoiser.plan is left out: not built here" in caplog.text
    assert open_engine(folder).manifest.plans == ()


def test_c3_a_stripped_plan_that_was_not_built_here_is_kept_and_not_run(
    simulation, engine, other, monkeypatch, tmp_path
):
    folder = engine(PlanWeights.STRIPPED)
    monkeypatch.setenv("FEATINV_CACHE", str(tmp_path / "another user"))
    simulation.recorder.calls.clear()
    with pytest.raises(ExportError, match="TensorRT plans: "):
        refit(folder, ExportOptions(checkpoint=other))
    refit(folder, ExportOptions(checkpoint=other, unchecked=True))
    assert simulation.recorder.arguments("Runtime.deserialize_cuda_engine") == []
    manifest = open_engine(folder).manifest
    assert len(manifest.plans) == 5
    rows = [info for info in manifest.parity if info.backend == "tensorrt"]
    assert {info.status for info in rows} == {ParityStatus.NOT_RUN}
    assert "not built here: condition_encoder.plan, " in rows[0].reason


def test_c4_a_stripped_plan_for_another_gpu_is_kept_and_not_run(simulation, engine, other, monkeypatch):
    folder = engine(PlanWeights.STRIPPED)
    properties = type("Properties", (), {"name": "Another GPU", "major": 9, "minor": 0})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    simulation.recorder.calls.clear()
    with pytest.raises(ExportError, match="TensorRT plans: "):
        refit(folder, ExportOptions(checkpoint=other))
    refit(folder, ExportOptions(checkpoint=other, unchecked=True))
    assert simulation.recorder.arguments("Runtime.deserialize_cuda_engine") == []
    rows = [info for info in open_engine(folder).manifest.parity if info.backend == "tensorrt"]
    assert {info.status for info in rows} == {ParityStatus.NOT_RUN}
    assert "denoiser.plan: it is for the GPU Simulated H100, this is Another GPU" in rows[0].reason

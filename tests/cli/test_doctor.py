"""`featinv doctor`: what is installed, and which backends can serve and why the others cannot."""

from __future__ import annotations

import importlib.metadata
import sys

import onnxruntime
import pytest
import torch

from featinv_fast.backends import BACKENDS
from featinv_fast.commands.doctor import can_serve


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """Whatever this machine has, the report is that of one without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])


def test_without_an_engine(featinv):
    answer = featinv("doctor", "--json")
    assert (answer.code, answer.err) == (0, "")
    report = answer.json
    assert report["packages"]["torch"] == importlib.metadata.version("torch")
    assert report["packages"]["onnxruntime-gpu"] is None
    assert report["gpus"] == []
    assert report["backends"]["cpu"]["torch"] == report["backends"]["cpu"]["onnxruntime"] == []
    assert set(report["backends"]["cpu"]) == set(report["backends"]["cuda"]) == set(BACKENDS)
    assert report["backends"]["cuda"]["aoti"] == ["this build of torch has no CUDA"]
    assert "automatic" not in report
    assert report["backends"]["cuda"]["torch"] == ["this build of torch has no CUDA"]
    assert "onnxruntime-gpu" in report["backends"]["cuda"]["onnxruntime"][0]
    assert {row["op"] for row in report["kernels"]} >= {"sampler_step", "to_uint8"}
    assert "engine" not in report


def test_as_text(featinv):
    answer = featinv("doctor")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert "no NVIDIA GPU" in lines
    assert any(line.split() == ["cpu", "torch", "ready"] for line in lines)
    assert any(line.startswith("  cuda  torch") and "no: this build of torch has no CUDA" in line for line in lines)
    assert any(line.split()[:3] == ["cpu", "to_uint8", "reference"] for line in lines)


def test_with_an_engine(featinv, tiny_engine):
    report = featinv("doctor", "--engine", tiny_engine, "--json").json
    assert report["engine"]["name"] == "tiny"
    assert report["engine"]["precision"] == "fp32"
    sizes = {path.name: path.stat().st_size for path in tiny_engine.iterdir() if not path.name.startswith("manifest")}
    assert report["engine"]["files"] == sizes
    assert report["backends"]["cpu"]["torch"] == report["backends"]["cpu"]["onnxruntime"] == []
    assert report["backends"]["cpu"]["aoti"] == ["the engine has no AOTInductor packages: export it with --aoti"]
    assert report["automatic"] == {"cpu": "onnxruntime", "cuda": None}
    text = featinv("doctor", "--engine", tiny_engine).out
    assert f"engine {tiny_engine}" in text
    assert "every byte as exported" in text
    ready = [line.split() for line in text.splitlines() if "ready" in line]
    assert ["cpu", "torch", "ready"] in ready
    assert ["cpu", "onnxruntime", "ready", "(taken", "where", "none", "is", "named)"] in ready


def test_c6_every_reason_against_a_backend_is_listed(featinv, tiny_engine, restage, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    def drop(folder):
        (folder / "denoiser.onnx").unlink()

    engine = restage(tiny_engine, tmp_path / "bare.engine", drop)
    answer = featinv("doctor", "--engine", engine, "--json")
    assert answer.code == 0  # torch serves
    for device in ("cpu", "cuda"):
        reasons = answer.json["backends"][device]["onnxruntime"]
        assert "no ONNX graphs (denoiser)" in reasons[0]
        assert "onnxruntime cannot be imported" in reasons[1]


def test_c1_a_damaged_engine_is_a_failure(featinv, tiny_engine, restage, tmp_path):
    engine = restage(tiny_engine, tmp_path / "damaged.engine")
    with (engine / "decoder.onnx").open("ab") as file:
        file.write(b"x")
    answer = featinv("doctor", "--engine", engine)
    assert (answer.code, answer.out) == (1, "")
    assert "decoder.onnx has" in answer.err


def test_no_engine_is_wrong_usage(featinv, tmp_path):
    answer = featinv("doctor", "--engine", tmp_path)
    assert (answer.code, answer.out) == (2, "")
    assert "featinv-export" in answer.err


def test_nothing_that_serves_is_a_failure():
    assert can_serve({"backends": {"cpu": {"torch": ["broken"]}, "cuda": {"torch": [], "onnxruntime": ["x"]}}})
    assert not can_serve({"backends": {"cpu": {"torch": ["broken"]}, "cuda": {"torch": ["x"]}}})

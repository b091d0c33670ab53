"""The choice of a backend and a device: what is asked for is served or refused, with everybody's reasons."""

from __future__ import annotations

import dataclasses
import logging
import sys
from types import SimpleNamespace

import onnxruntime
import pytest
import torch

from featinv_fast import Runtime
from featinv_fast.backends import BACKENDS, Request, load, provider_problems, reasons_against, resolve_device
from featinv_fast.backends.select import PREFERENCE
from featinv_fast.config import Precision
from featinv_fast.engine import open_engine
from featinv_fast.errors import ArgumentError, BackendUnavailableError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def engine(tiny_engine):
    return open_engine(tiny_engine)


@pytest.fixture
def no_gpu(monkeypatch):
    """A machine without an NVIDIA GPU, whatever it really has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])


@pytest.fixture
def no_onnxruntime(monkeypatch):
    """A machine without onnxruntime: Python refuses to import it."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_c6_a_missing_device_is_refused_with_every_reason(no_gpu, engine, backend):
    with pytest.raises(BackendUnavailableError) as caught:
        Runtime(engine, backend=backend, device="cuda")
    assert isinstance(caught.value, RuntimeError)
    assert set(caught.value.reasons) == set(BACKENDS)
    assert caught.value.reasons["torch"] == ["this build of torch has no CUDA"]
    assert "no CUDAExecutionProvider" in caught.value.reasons["onnxruntime"][0]
    for why in caught.value.reasons.values():
        assert why[0] in str(caught.value)
    assert "featinv doctor" in caught.value.remedy


def test_c6_auto_takes_the_cpu_where_there_is_no_gpu_and_says_so(no_gpu, engine, caplog):
    with caplog.at_level(logging.INFO):
        runtime = Runtime(engine)
    assert (runtime.info["device"], runtime.info["backend"]) == ("cpu", PREFERENCE["cpu"][0])
    assert f"on cpu with {PREFERENCE['cpu'][0]}" in caplog.text


def test_c6_auto_goes_on_to_the_next_backend_and_an_explicit_request_does_not(no_onnxruntime, engine):
    runtime = Runtime(engine, device="cpu")
    assert runtime.info["backend"] == "torch"
    assert "onnxruntime cannot be imported" in runtime.info["reasons_against"]["onnxruntime"][0]
    with pytest.raises(BackendUnavailableError, match="the backend 'onnxruntime' cannot run") as caught:
        Runtime(engine, backend="onnxruntime", device="cpu")
    assert caught.value.reasons["torch"] == []
    assert caught.value.expected == "torch"
    assert "pip install 'featinv-fast[onnxruntime]'" in str(caught.value)


def test_c6_the_package_for_gpus_is_named_for_gpus(no_onnxruntime):
    assert "featinv-fast[onnxruntime-gpu]" in provider_problems(CUDA)[0]


def test_c6_a_cpu_session_in_place_of_a_gpu_session_is_refused(engine, monkeypatch):
    """onnxruntime itself answers so where CUDA cannot start."""

    class Session:
        def __init__(self, *_, **__): ...

        def get_providers(self):
            return ["CPUExecutionProvider"]

    session = BACKENDS["onnxruntime"].load(Request(engine=engine, device=CUDA))
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: SimpleNamespace(cuda_stream=1))
    with pytest.raises(BackendUnavailableError, match="it started CPUExecutionProvider instead"):
        session.run("time_embedding", torch.zeros(1))


def test_c6_several_reasons_are_all_listed(no_gpu, engine):
    request = Request(engine=engine, device=CUDA, precision=Precision.FP16)
    reasons = reasons_against(request)
    assert len(reasons["torch"]) == 1
    assert len(reasons["onnxruntime"]) == 2
    assert "the graphs are fp32, not fp16: export with --precision fp16" in reasons["onnxruntime"]
    with pytest.raises(BackendUnavailableError) as caught:
        load(request, "onnxruntime")
    assert caught.value.reasons == reasons
    assert "precision fp16" in caught.value.given


def test_c6_bf16_graphs_have_no_kernels_on_a_cpu(tiny_engine, restage, tmp_path):
    half = open_engine(restage(tiny_engine, tmp_path / "half.engine", precision=Precision.BF16))
    reasons = reasons_against(Request(engine=half, device=CPU))
    assert reasons["torch"] == []
    assert reasons["onnxruntime"] == ["onnxruntime has no bf16 kernels for the CPU"]
    assert reasons_against(Request(engine=half, device=CPU, precision=Precision.BF16)) == reasons


@pytest.mark.parametrize("device", ["mps", "meta", "xpu:0"])
def test_c6_devices_of_other_kinds(engine, device):
    with pytest.raises(BackendUnavailableError, match="not supported") as caught:
        Runtime(engine, device=device)
    assert all(why for why in caught.value.reasons.values())


def test_c6_a_gpu_that_is_not_there(engine, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert reasons_against(Request(engine=engine, device=torch.device("cuda:1")))["torch"] == []
    reasons = reasons_against(Request(engine=engine, device=torch.device("cuda:2")))
    assert reasons["torch"] == ["torch sees 2 GPUs, not one numbered 2"]


def test_c6_a_driver_that_is_not_there(engine, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reasons = reasons_against(Request(engine=engine, device=CUDA))
    assert reasons["torch"] == ["torch sees no NVIDIA GPU and driver"]


def test_devices_by_name(monkeypatch):
    assert resolve_device("cpu") == CPU
    assert resolve_device("cuda:3") == torch.device("cuda:3")
    for available, device in ((False, CPU), (True, CUDA)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert resolve_device("auto") == device
    for name in ("gpu", "", "cpu:x", None, 1.5):
        with pytest.raises(ArgumentError, match="cuda:N"):
            resolve_device(name)


def test_backends_by_name(engine):
    for name in ("torch", "onnxruntime"):
        assert load(Request(engine=engine, device=CPU), name).backend == name
    with pytest.raises(ArgumentError, match="onnxruntime"):
        load(Request(engine=engine, device=CPU), "openvino")


def test_every_preference_is_a_backend_and_packages_run_only_where_they_are_named():
    for names in PREFERENCE.values():
        assert {"torch", "onnxruntime"} <= set(names) <= set(BACKENDS) - {"aoti"}


def test_an_engine_without_what_a_backend_needs(tiny_engine, engine):
    bare = dataclasses.replace(engine, manifest=dataclasses.replace(engine.manifest, files={}))
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors"):
        load(Request(engine=bare, device=CPU), "torch")

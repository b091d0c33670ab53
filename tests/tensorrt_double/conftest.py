"""A simulated machine with TensorRT and a GPU, made from the vendor's real bindings of each release."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for bindings, double and simulation

import bindings
import simulation as simulated

from featinv_export import exporter, from_onnx, refit
from featinv_export.tensorrt_ import plans
from featinv_fast.backends import tensorrt_, tensorrt_plan
from featinv_fast.engine.trust import CACHE_VARIABLE

REASON = bindings.missing()


@pytest.fixture(scope="session", params=bindings.RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    """A release of the bindings, "10.16" or "11.4"."""
    if REASON is not None:
        pytest.skip(REASON)
    return request.param


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the stub libraries."""
    return tmp_path_factory.mktemp("stubs")


@pytest.fixture(scope="session")
def description(release: str, stubs: Path) -> dict[str, Any]:
    """What the real bindings have."""
    return bindings.describe(release, stubs)


@pytest.fixture
def simulation(description: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> simulated.Simulation:
    """A machine with TensorRT and a GPU. Device memory is the CPU's."""
    made = simulated.Simulation(description)
    monkeypatch.setitem(sys.modules, "tensorrt", made.recorder.module)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    properties = type("Properties", (), {"name": simulated.GPU, "major": 9, "minor": 0})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(tensorrt_plan, "device_problems", lambda _: [])
    monkeypatch.setattr(tensorrt_plan, "is_gpu", lambda _: True)
    for module in (plans, exporter, from_onnx, refit):
        monkeypatch.setattr(module, "GPU", torch.device("cpu"))
    monkeypatch.setattr(tensorrt_, "CudaLauncher", simulated.Launcher)
    monkeypatch.setattr(tensorrt_, "on_gpu", lambda _: contextlib.nullcontext())
    return made

"""A simulated machine with TensorRT and a GPU, made from the vendor's real bindings of each release."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for bindings, double and simulation

import bindings
import simulation as simulated

from featinv_export import from_onnx
from featinv_export.tensorrt_ import plans
from featinv_export.tensorrt_.options import PlanOptions
from featinv_fast.backends import tensorrt_, tensorrt_plan
from featinv_fast.engine import EngineFolder, open_engine
from featinv_fast.engine.trust import CACHE_VARIABLE, note_built_here

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
def simulation(
    description: dict[str, Any], machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> simulated.Simulation:
    """A machine with TensorRT and a GPU. Device memory is the CPU's, by a GPU's rules."""
    made = simulated.Simulation(description, machine)
    monkeypatch.setitem(sys.modules, "tensorrt", made.recorder.module)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    properties = type("Properties", (), {"name": simulated.GPU, "major": 9, "minor": 0})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(tensorrt_plan, "device_problems", lambda _: [])
    monkeypatch.setattr(tensorrt_plan, "is_gpu", lambda _: True)
    monkeypatch.setattr(plans, "GPU", torch.device("cpu"))
    monkeypatch.setattr(tensorrt_, "on_gpu", lambda _: contextlib.nullcontext())
    return made


@pytest.fixture(scope="session")
def planned(release: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Engines with plans by the options they were built with: the same for every test of a release."""
    return {"": tmp_path_factory.mktemp(f"planned-{release}")}


@pytest.fixture
def make_plans(
    simulation: simulated.Simulation,
    tiny_engine: Path,
    tmp_path: Path,
    planned: dict[str, Path],
    restage: Callable[..., Path],
) -> Callable[..., EngineFolder]:
    """`make_plans(**options)`: an engine with plans that counts as built here. Each test gets a copy."""

    def make(**options: Any) -> EngineFolder:
        wanted = PlanOptions(**{"max_batch": 8} | options)
        if str(wanted) not in planned:
            folder = restage(tiny_engine, planned[""] / f"{len(planned)}.engine")
            planned[str(wanted)] = from_onnx.add_plans(folder, wanted)
        engine = open_engine(shutil.copytree(planned[str(wanted)], tmp_path / "planned.engine"))
        note_built_here(engine.manifest.files[plan.file_name].sha256 for plan in engine.manifest.plans)
        simulation.contexts.clear()
        simulation.recorder.calls.clear()
        return engine

    return make

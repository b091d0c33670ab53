"""TensorRT for RTX on the double made of its real classes: the loop, kernels that are kept, and what is refused."""

from __future__ import annotations

import ast
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bindings
import numpy as np
import pytest
import simulation as simulated
import torch
from contract import names_used, unknown_names

from featinv_export import from_onnx, verify
from featinv_export.tensorrt_ import builder, monitor, plans, rtx_builder
from featinv_export.tensorrt_.options import RtxOptions
from featinv_fast import Runtime
from featinv_fast.backends import Request, load, reasons_against, tensorrt_, tensorrt_plan, tensorrt_rtx
from featinv_fast.checks.options import SPECIALIZATIONS
from featinv_fast.engine import EngineFolder, ParityStatus, open_engine
from featinv_fast.engine.plans import RtxPlanInfo
from featinv_fast.engine.trust import CACHE_VARIABLE
from featinv_fast.errors import BackendUnavailableError, EngineIntegrityError, FeatInvError

pytest.importorskip("tensorrt_rtx", reason="it has packages for Linux and Windows alone")

CPU = torch.device("cpu")  # the memory of the simulated GPU
# Of TensorRT proper alone: what these sources do with plans that RTX does not build.
PROPER_ALONE = {"NetworkDefinitionCreationFlag.STRONGLY_TYPED"}


@pytest.fixture(scope="session")
def rtx_description() -> dict[str, Any]:
    """What the real bindings of TensorRT for RTX have."""
    return bindings.describe_rtx()


@pytest.fixture
def rtx(rtx_description, machine, monkeypatch, tmp_path) -> simulated.Simulation:
    """A machine with TensorRT for RTX and a GPU of its generations."""
    made = simulated.Simulation(rtx_description, machine)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", made.recorder.module)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    properties = type("Properties", (), {"name": "Simulated RTX 4090", "major": 8, "minor": 9})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    for module in (tensorrt_plan, plans):
        monkeypatch.setattr(module, "device_problems", lambda _: [])
    monkeypatch.setattr(tensorrt_plan, "is_gpu", lambda _: True)
    monkeypatch.setattr(plans, "GPU", CPU)
    monkeypatch.setattr(tensorrt_, "on_gpu", lambda _: contextlib.nullcontext())
    return made


@pytest.fixture
def engine(rtx, tiny_engine: Path, restage: Callable[..., Path], tmp_path: Path) -> EngineFolder:
    """An engine with plans, built and executed here."""
    folder = restage(tiny_engine, tmp_path / "tiny.engine")
    return open_engine(from_onnx.add_plans(folder, RtxOptions(max_batch=8)))


def request(engine: EngineFolder, **changes: Any) -> Request:
    return Request(**{"engine": engine, "device": CPU} | changes)


def reasons(engine: EngineFolder, **changes: Any) -> list[str]:
    return reasons_against(request(engine, **changes))["tensorrt-rtx"]


def kernel_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "rtx-kernels").glob("*"))


def test_every_name_in_our_sources_is_in_the_real_bindings(rtx_description):
    found = []
    for module in (builder, monitor, rtx_builder, tensorrt_plan, tensorrt_, tensorrt_rtx):
        source = Path(module.__file__).read_text()
        for name in ("tensorrt_rtx", "tensorrt"):
            renamed = ast.unparse(_Renamed(name).visit(ast.parse(source)))
            found += names_used(renamed)
            missing = set(unknown_names(renamed, rtx_description)) - (PROPER_ALONE if name == "tensorrt" else set())
            assert not missing, (module, missing)
    assert {"ComputeCapability", "CudaGraphStrategy.DISABLED", "IProgressMonitor", "OnnxParser"} <= set(found)


class _Renamed(ast.NodeTransformer):
    """One name in the place of `tensorrt`, and nothing else by that name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def visit_Name(self, node: ast.Name) -> ast.Name:
        node.id = "tensorrt" if node.id == self.name else "another" if node.id == "tensorrt" else node.id
        return node


def test_what_is_built_on_a_gpu_of_its_generations_is_for_it_and_runs_at_once(rtx, engine):
    manifest = engine.manifest
    assert {plan.capabilities for plan in manifest.rtx_plans} == {("8.9",)}
    rows = [info for info in manifest.parity if info.backend == "tensorrt-rtx"]
    assert {info.status for info in rows} == {ParityStatus.PASSED}
    assert len(rows) == 10
    assert manifest.unexecuted() == manifest.unchecked() == ()
    verify.verify(engine.path)


def test_the_whole_loop_computes_what_onnxruntime_computes(engine, tiny_maps):
    assert reasons(engine) == []
    for guidance_scale in (1.0, 1.75):
        ours, theirs = (
            Runtime(engine, backend=name, device="cpu", threads=threads)
            .invert(tiny_maps[:5], steps=2, output_type="latent", guidance_scale=guidance_scale, batch_size=3)
            .images
            for name, threads in (("tensorrt-rtx", None), ("onnxruntime", 1))
        )
        assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 2e-5


def test_kernels_are_compiled_once_for_a_machine(rtx, engine, tiny_maps, tmp_path):
    for path in kernel_files(tmp_path):
        path.unlink()
    rtx.compiled.clear()
    session = load(request(engine), "tensorrt-rtx")
    for maps in (tiny_maps[:1], tiny_maps[:1], tiny_maps[:1], tiny_maps[:3]):
        session.run("condition_encoder", maps)
    assert len(rtx.compiled) == 2  # one for each shape
    (file,) = kernel_files(tmp_path)
    kept = file.read_bytes()
    again = load(request(engine), "tensorrt-rtx")  # as another process would
    again.run("condition_encoder", tiny_maps[:3])
    assert len(rtx.compiled) == 2
    assert kernel_files(tmp_path) == [file]
    assert file.read_bytes() == kept
    if os.name != "nt":
        assert not file.parent.stat().st_mode & 0o077  # machine code, which nobody else may write


def test_kernels_that_do_not_fit_are_compiled_anew(rtx, engine, tiny_maps, tmp_path):
    load(request(engine), "tensorrt-rtx").run("condition_encoder", tiny_maps[:1])
    rtx.compiled.clear()
    for content in (b"", b"not kernels", b'["1.0.0", "any"]'):
        for path in kernel_files(tmp_path):
            path.write_bytes(content)
        load(request(engine), "tensorrt-rtx").run("condition_encoder", tiny_maps[:1])
    assert len(rtx.compiled) == 3


def test_files_of_kernels_are_bounded_and_those_used_least_go(rtx, engine, tiny_maps, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt_rtx, "KERNEL_FILES", 2)
    for path in kernel_files(tmp_path):
        path.unlink()
    session = load(request(engine), "tensorrt-rtx")
    session.run("condition_encoder", tiny_maps[:1])
    (first,) = kernel_files(tmp_path)
    os.utime(first, (1, 1))
    session.run("time_embedding", torch.tensor([481.0]))
    (second,) = set(kernel_files(tmp_path)) - {first}
    os.utime(second, (2, 2))
    load(request(engine), "tensorrt-rtx").run("condition_encoder", tiny_maps[:1])  # which uses the first again
    session.run("decoder", torch.zeros(1, 4, 8, 8))
    assert first in kernel_files(tmp_path)
    assert second not in kernel_files(tmp_path)
    assert len(kernel_files(tmp_path)) == 2


def test_where_kernels_cannot_be_kept_runs_go_on_and_say_so(engine, tiny_maps, tmp_path, monkeypatch, caplog):
    for path in kernel_files(tmp_path):
        path.unlink()
    monkeypatch.setattr(tensorrt_rtx.os, "fsync", _full)
    output = load(request(engine), "tensorrt-rtx").run("condition_encoder", tiny_maps[:1])
    assert len(output) == 1
    assert "compiled kernels are not kept" in caplog.text
    assert kernel_files(tmp_path) == []  # half a file neither


def _full(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_cache_that_is_refused_costs_time_alone(rtx, engine, tiny_maps, caplog):
    rtx.failures["cache"] = "no"
    assert len(load(request(engine), "tensorrt-rtx").run("condition_encoder", tiny_maps[:1])) == 1
    assert "takes no kernels of condition_encoder" in caplog.text


@pytest.mark.parametrize("specialization", SPECIALIZATIONS)
def test_when_kernels_are_compiled_can_be_chosen(rtx, engine, tiny_maps, specialization):
    session = load(request(engine, specialization=specialization), "tensorrt-rtx")
    session.run("condition_encoder", tiny_maps[:1])
    told = "eager" if specialization == "auto" else specialization
    strategies = "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy="
    assert rtx.recorder.arguments(strategies)[-1]["value"].name == told.upper()
    assert session.specialization == told
    graphs = rtx.recorder.arguments("IRuntimeConfig.cuda_graph_strategy=")
    assert {call["value"].name for call in graphs} == {"DISABLED"}


def test_threads_share_a_plan_and_its_kernels(rtx, engine, tiny_maps):
    session = load(request(engine), "tensorrt-rtx")
    expected = session.run("condition_encoder", tiny_maps[:2])
    found: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: found.append(session.run("condition_encoder", tiny_maps[:2])))
    thread.start()
    thread.join()
    assert torch.equal(found[0], expected)
    caches = {id(call["cache"]) for call in rtx.recorder.arguments("IRuntimeConfig.set_runtime_cache")[-2:]}
    assert len(caches) == 1


@pytest.mark.parametrize("fault", ["deserialize", "context", "shape", "address", "infer", "execute"])
def test_what_tensorrt_refuses_is_an_error_with_its_words(rtx, engine, tiny_maps, fault):
    rtx.failures[fault] = "planted"
    with pytest.raises(FeatInvError, match="TensorRT for RTX") as caught:
        load(request(engine), "tensorrt-rtx").run("condition_encoder", tiny_maps[:2])
    assert "planted" in caught.value.given


def test_a_plan_that_was_exchanged_is_not_loaded(engine, tiny_maps):
    session = load(request(engine), "tensorrt-rtx")
    (engine.path / "condition_encoder.rtxplan").write_bytes(b"others")
    with pytest.raises(EngineIntegrityError):
        session.run("condition_encoder", tiny_maps[:2])


def test_where_it_does_not_serve_it_says_why(rtx, engine, monkeypatch, tmp_path):
    def here(major: int, minor: int) -> list[str]:
        properties = type("Properties", (), {"name": "another", "major": major, "minor": minor})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        return reasons(engine)

    assert "it is for compute capability 8.9, this is 8.6; build plans with" in here(8, 6)[0]
    assert "this is 9.0, which TensorRT proper serves (--trt)" in here(9, 0)[0]
    assert here(8, 9) == []
    monkeypatch.setattr(rtx.recorder.module, "__version__", "1.8.0.1")
    assert f"it is for TensorRT for RTX {rtx.version}, this is 1.8.0.1" in reasons(engine)[0]
    monkeypatch.setattr(rtx.recorder.module, "__version__", "1.2.0.1")
    assert reasons(engine) == ["TensorRT for RTX 1.2.0.1 is too old: install 1.7 or newer"]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "pip install 'featinv-fast[tensorrt-rtx]'" in reasons(engine)[0]
    with pytest.raises(BackendUnavailableError, match="the backend 'tensorrt-rtx' cannot run this engine here"):
        Runtime(engine, backend="tensorrt-rtx", device="cpu")


def test_native_code_of_others_is_not_run_unasked(engine, monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "of another user"))
    assert "not built here: condition_encoder.rtxplan" in reasons(engine)[0]
    assert reasons(engine, trust_engine=True) == []


def test_plans_of_other_weights_or_graphs_are_stale():
    values = {"precision": "fp32", "graph_sha256": "0" * 64, "weights_sha256": "1" * 64}
    plan = RtxPlanInfo(graph="decoder", tensorrt_rtx="1.7.1.116", capabilities=("8.9",), profiles=(), **values)
    assert plan.staleness(**values) == []
    assert plan.staleness(**values | {"graph_sha256": None}) == []
    for name, reason in (("precision", "computes in"), ("graph_sha256", "graph"), ("weights_sha256", "weights")):
        (found,) = plan.staleness(**values | {name: "another"})
        assert reason in found

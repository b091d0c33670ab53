"""Running plans: the whole loop on the double, its contexts and profiles, and who may not run which plan."""

from __future__ import annotations

import argparse
import dataclasses
import os
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from featinv_fast import Runtime
from featinv_fast.backends import BACKENDS, Request, load, reasons_against, tensorrt_
from featinv_fast.backends.tensorrt_ import choose_profile
from featinv_fast.cli.shared import add_running_options, open_runtime
from featinv_fast.config import Precision
from featinv_fast.engine import EngineFolder, open_engine
from featinv_fast.engine.plans import BatchProfile, HardwareCompatibility, PlanInfo, PlanTarget, PlanWeights
from featinv_fast.engine.trust import CACHE_VARIABLE
from featinv_fast.errors import ArgumentError, BackendUnavailableError, EngineIntegrityError, OutOfMemoryError

CPU = torch.device("cpu")  # the memory of the simulated GPU
TWO_PROFILES = (BatchProfile(minimum=1, optimum=1, maximum=1), BatchProfile(minimum=3, optimum=4, maximum=8))


@pytest.fixture
def invert(tiny_maps):
    """`invert(engine, backend, **options)`: latents of five maps."""

    def run(engine, backend: str, **options) -> np.ndarray:
        runtime = Runtime(engine, backend=backend, device="cpu", threads=None if backend == "tensorrt" else 1)
        inversion = runtime.invert(tiny_maps[:5], steps=2, output_type="latent", **options)
        assert inversion.flags.backend == backend
        return inversion.images

    return run


def request(engine: EngineFolder, **changes) -> Request:
    return Request(**{"engine": engine, "device": CPU} | changes)


def reasons(engine: EngineFolder, **changes) -> list[str]:
    return reasons_against(request(engine, **changes))["tensorrt"]


@pytest.mark.parametrize("options", [{}, {"profiles": TWO_PROFILES, "max_batch": None}, {"min_batch": 4}])
@pytest.mark.parametrize("weights", [PlanWeights.FIXED, PlanWeights.STRIPPED])
def test_the_whole_loop_computes_what_onnxruntime_computes(make_plans, invert, options, weights):
    engine = make_plans(weights=weights, **options)
    assert reasons(engine) == []
    for guidance_scale in (1.0, 1.75):
        ours = invert(engine, "tensorrt", guidance_scale=guidance_scale, batch_size=3)
        theirs = invert(engine, "onnxruntime", guidance_scale=guidance_scale, batch_size=3)
        assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 2e-5


def test_images_of_the_whole_loop(make_plans, tiny_maps):
    engine = make_plans()
    images = [
        Runtime(engine, backend=name, device="cpu", threads=None if name == "tensorrt" else 1)
        .invert(tiny_maps, steps=2)
        .images
        for name in ("tensorrt", "torch")
    ]
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1


def test_each_plan_has_one_context_and_fixed_buffers(simulation, machine, make_plans, invert):
    engine = make_plans()
    recorder = simulation.recorder
    invert(engine, "tensorrt", batch_size=5, guidance_scale=1.75)
    assert len(simulation.contexts) == len(recorder.arguments("Runtime.deserialize_cuda_engine")) == 3
    names = [name for name, _ in recorder.calls]
    assert names.count("IExecutionContext.execute_async_v3") == 4  # condition, time, two steps of the denoiser
    addresses = recorder.arguments("IExecutionContext.set_tensor_address")
    assert len(addresses) == len({call["memory"] for call in addresses}) == 10  # set once, though the loop has steps
    # On streams of their own, one for each plan.
    handles = [call["stream_handle"] for call in recorder.arguments("IExecutionContext.execute_async_v3")]
    assert len(set(handles)) == 3
    assert machine.default.cuda_stream not in handles


def test_threads_have_contexts_of_their_own_and_share_the_plan(simulation, make_plans, tiny_maps):
    session = load(request(make_plans()), "tensorrt")
    expected = session.run("condition_encoder", tiny_maps[:2])
    results: dict[int, torch.Tensor] = {}

    def work(number: int) -> None:
        for _ in range(3):
            results[number] = session.run("condition_encoder", tiny_maps[: number + 1])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(simulation.contexts) == 4
    assert len(simulation.recorder.arguments("Runtime.deserialize_cuda_engine")) == 1
    assert torch.equal(results[1], expected)
    assert [len(results[number]) for number in range(3)] == [1, 2, 3]


def test_outputs_are_not_overwritten(make_plans, tiny_maps):
    session = load(request(make_plans()), "tensorrt")
    first = session.run("condition_encoder", tiny_maps[:2])
    kept = first.clone()
    session.run("condition_encoder", tiny_maps[2:4])
    assert torch.equal(first, kept)


def test_a_profile_is_chosen_by_the_batch(simulation, make_plans, tiny_maps):
    session = load(request(make_plans(profiles=TWO_PROFILES, max_batch=None)), "tensorrt")
    single = session.run("condition_encoder", tiny_maps[:1])
    # Two fit no profile: the second one runs with a row of zeros that nobody sees.
    pair = session.run("condition_encoder", tiny_maps[:2])
    assert len(pair) == 2
    torch.testing.assert_close(pair[:1], single)
    chosen = simulation.recorder.arguments("IExecutionContext.set_optimization_profile_async")
    assert [call["profile_index"] for call in chosen] == [1]
    shapes = [call["shape"] for call in simulation.recorder.arguments("IExecutionContext.set_input_shape")]
    assert shapes == [(1, 6, 5, 5), (3, 6, 5, 5)]


def test_profiles():
    large = TWO_PROFILES[1]
    assert choose_profile(TWO_PROFILES, 1) == (0, 1)
    assert choose_profile(TWO_PROFILES, 2) == (1, 3)
    assert choose_profile(TWO_PROFILES, 8) == (1, 8)
    wide = BatchProfile(minimum=1, optimum=64, maximum=64)
    assert choose_profile((wide, large), 5) == (1, 5)
    assert choose_profile((large, wide), 40) == (1, 40)
    with pytest.raises(ArgumentError, match="at most 8"):
        choose_profile(TWO_PROFILES, 9)


def test_a_version_compatible_plan_may_use_the_runtime_that_it_brings(simulation, make_plans, invert):
    invert(make_plans(version_compatible=True), "tensorrt")
    allowed = simulation.recorder.arguments("Runtime.engine_host_code_allowed=")
    assert allowed
    assert {call["value"] for call in allowed} == {True}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tensorrt": "10.99.0"}, "it is for TensorRT {tensorrt}, this is 10.99.0"),
        ({"cuda": "12.9"}, "it is for CUDA 13.0, this is 12.9"),
        ({"gpu": "A100"}, "it is for the GPU Simulated H100, this is A100"),
        ({"compute_capability": "8.0"}, "it is for compute capability 9.0, this is 8.0"),
    ],
)
def test_c4_a_plan_for_another_machine_names_what_differs(make_plans, simulation, monkeypatch, change, reason):
    engine = make_plans()
    here = tensorrt_.plan_target(CPU)
    monkeypatch.setattr(tensorrt_, "plan_target", lambda _: dataclasses.replace(here, **change))
    found = reasons(engine)
    assert len(found) == 5
    assert found[0].startswith(
        f"condition_encoder.plan: {reason.format(tensorrt=simulation.version)}; build plans here"
    )
    with pytest.raises(BackendUnavailableError, match="the backend 'tensorrt' cannot run this engine here"):
        Runtime(engine, backend="tensorrt", device="cpu")
    assert Runtime(engine, device="cpu").info["backend"] == "onnxruntime"


def target(**changes: str) -> PlanTarget:
    values = {"tensorrt": "10.16.1.11", "cuda": "13.0", "gpu": "H100", "compute_capability": "9.0"}
    return PlanTarget(**values | changes)


@pytest.mark.parametrize(
    ("built", "moved", "runs"),
    [
        ({}, {}, True),
        ({}, {"cuda": "13.2"}, True),
        ({"version_compatible": True}, {"tensorrt": "10.17.0"}, True),
        ({"version_compatible": True}, {"tensorrt": "11.4.0.106"}, True),
        ({"version_compatible": True}, {"tensorrt": "10.15.9"}, False),
        ({"hardware": HardwareCompatibility.SAME_COMPUTE_CAPABILITY}, {"gpu": "H200"}, True),
        ({"hardware": HardwareCompatibility.SAME_COMPUTE_CAPABILITY}, {"compute_capability": "10.0"}, False),
        ({"hardware": HardwareCompatibility.AMPERE_PLUS}, {"gpu": "B200", "compute_capability": "10.0"}, True),
        ({"hardware": HardwareCompatibility.AMPERE_PLUS}, {"gpu": "T4", "compute_capability": "7.5"}, False),
        ({"hardware": HardwareCompatibility.AMPERE_PLUS}, {"tensorrt": "10.16.1.12"}, False),
    ],
)
def test_c4_compatible_plans_run_where_they_promise_to(built, moved, runs):
    info = PlanInfo(
        graph="decoder",
        target=target(),
        precision=Precision.FP32,
        profiles=(),
        graph_sha256="0" * 64,
        weights_sha256="1" * 64,
        **built,
    )
    assert (info.problems_on(target(**moved)) == []) is runs


@pytest.mark.parametrize("weights", PlanWeights)
@pytest.mark.parametrize(("release", "wrong"), [("11.3.0.99", True), ("11.3.1.2", False), ("11.4.0.106", False)])
def test_a_release_that_loses_biases_runs_no_plans_whose_weights_can_be_replaced(weights, release, wrong):
    there = target(tensorrt=release)
    values = {"precision": Precision.FP32, "profiles": (), "graph_sha256": "0" * 64, "weights_sha256": "1" * 64}
    info = PlanInfo(graph="decoder", target=there, weights=weights, **values)
    found = info.problems_on(there)
    assert bool(found) is (wrong and weights is not PlanWeights.FIXED)
    assert all("may lose biases" in reason for reason in found)


def test_c4_a_plan_of_other_weights_or_another_graph(make_plans, restage, tmp_path):
    planned = make_plans()
    for field, reason in (("weights_sha256", "other weights"), ("graph_sha256", "another graph")):
        plans = tuple(dataclasses.replace(plan, **{field: "f" * 64}) for plan in planned.manifest.plans)
        engine = open_engine(restage(planned.path, tmp_path / f"{field}.engine", plans=plans))
        found = reasons(engine)
        assert len(found) == 5
        assert all(f"it was built from {reason}" in text for text in found)


def test_c4_a_plan_in_another_precision(make_plans):
    (reason,) = reasons(make_plans(), precision=Precision.FP16)
    assert reason == "the plans are fp32, not fp16: export with --precision fp16"


def test_c3_a_plan_that_was_not_built_here_needs_trust(make_plans, invert, monkeypatch, tmp_path):
    engine = make_plans()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "another user"))
    (reason,) = reasons(engine)
    assert reason.startswith("not built here: condition_encoder.plan, ")
    assert "native code" in reason
    assert "--trust-engine" in reason
    with pytest.raises(BackendUnavailableError, match="native code"):
        invert(engine, "tensorrt")
    assert reasons(engine, trust_engine=True) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("what", ["folder", "plan"])
def test_c3_a_folder_or_plan_that_others_may_write_to_needs_trust(make_plans, what):
    engine = make_plans()
    path = engine.path if what == "folder" else engine.path / "decoder.plan"
    path.chmod(path.stat().st_mode | 0o002)
    (reason,) = reasons(engine)
    assert reason == f"others than the owner may write to {path.name}: change the permissions"
    assert reasons(engine, trust_engine=True) == []


def test_c1_a_changed_plan_never_reaches_tensorrt(simulation, make_plans):
    engine = make_plans()
    sound = (engine.path / "decoder.plan").read_bytes()
    for damaged in (sound[:100] + b"!" + sound[101:], sound + b"!", sound[:-1]):
        (engine.path / "decoder.plan").write_bytes(damaged)
        with pytest.raises(EngineIntegrityError, match=r"decoder\.plan"):
            Runtime(engine.path, backend="tensorrt", device="cpu")
    assert simulation.recorder.calls == []


def test_c1_a_plan_that_changes_after_the_engine_was_opened(simulation, make_plans):
    engine = make_plans()
    session = load(request(engine), "tensorrt")
    (engine.path / "decoder.plan").write_bytes(b"other")
    with pytest.raises(EngineIntegrityError, match=r"decoder\.plan was changed"):
        session.run("decoder", torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize("weights", list(PlanWeights))
def test_c8_nothing_opens_a_socket(make_plans, monkeypatch, tiny_maps, weights):
    engine = make_plans(weights=weights)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    runtime = Runtime(engine, backend="tensorrt", device="cpu")
    assert runtime.invert(tiny_maps[:2], steps=1).ok.all()


def test_c1_the_graph_of_a_stripped_plan_that_changes_after_the_engine_was_opened(simulation, make_plans):
    engine = make_plans(weights=PlanWeights.STRIPPED)
    session = load(request(engine), "tensorrt")
    with (engine.path / "decoder.onnx").open("ab") as file:
        file.write(b"!")
    with pytest.raises(EngineIntegrityError, match=r"decoder\.onnx was changed"):
        session.run("decoder", torch.zeros(1, 4, 8, 8))
    assert simulation.recorder.arguments("OnnxParserRefitter.refit_from_file") == []


def test_c5_a_plan_that_tensorrt_refuses(simulation, make_plans):
    session = load(request(make_plans()), "tensorrt")
    simulation.failures["deserialize"] = "Error Code 1: Serialization (version tag does not match)"
    with pytest.raises(EngineIntegrityError, match=r"TensorRT refuses decoder\.plan") as caught:
        session.run("decoder", torch.zeros(1, 4, 8, 8))
    assert "version tag" in caught.value.given
    assert "--from-onnx" in caught.value.remedy


def test_c6_no_plans_no_gpu_no_tensorrt(tiny_engine, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    engine = open_engine(tiny_engine)
    missing, cpu = reasons(engine)
    assert missing.startswith("the engine has no TensorRT plans (condition_encoder, ")
    assert missing.endswith("`featinv-export --from-onnx DIR --trt`")
    assert cpu == "TensorRT runs on NVIDIA GPUs, not on cpu"
    _, package, driver = reasons(engine, device=torch.device("cuda"))
    assert "pip install 'tensorrt>=10.12'" in package
    assert driver == "torch sees no NVIDIA GPU and driver"
    assert BACKENDS["tensorrt"].problems_here(CPU) == [cpu]


def test_a8_memory_that_runs_out_halves_the_batch(simulation, make_plans, tiny_maps):
    runtime = Runtime(make_plans(), backend="tensorrt", device="cpu")
    simulation.failures["context"] = "Error Code 2: OutOfMemory (Requested size was 1 bytes.)"
    with pytest.raises(OutOfMemoryError):
        runtime.invert(tiny_maps[:1], steps=1)
    del simulation.failures["context"]
    assert runtime.invert(tiny_maps[:1], steps=1).ok.all()


def test_a_run_that_fails_says_why(simulation, make_plans):
    session = load(request(make_plans()), "tensorrt")
    simulation.failures["execute"] = "Error Code 1: Cask (no kernel image)"
    with pytest.raises(RuntimeError, match="no kernel image"):
        session.run("decoder", torch.zeros(1, 4, 8, 8))
    with pytest.raises(ArgumentError, match="latents has 3 axes"):
        session.run("decoder", torch.zeros(4, 8, 8))


def test_the_manifest_keeps_what_plans_were_built_for(make_plans):
    engine = make_plans(profiles=TWO_PROFILES, max_batch=None, workspace_mib=64)
    again = type(engine.manifest).from_json(engine.manifest.to_json())
    assert again == engine.manifest
    assert {plan.workspace_mib for plan in again.plans} == {64}
    assert Path(engine.path / again.plans[0].file_name).is_file()


def test_c3_trust_reaches_the_backend(make_plans, monkeypatch, tmp_path, tiny_maps):
    engine = make_plans()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "another user"))
    runtime = Runtime(engine, backend="tensorrt", device="cpu", trust_engine=True)
    assert runtime.invert(tiny_maps[:1], steps=1).flags.backend == "tensorrt"
    parser = argparse.ArgumentParser()
    add_running_options(parser)
    options = parser.parse_args(["--backend", "tensorrt", "--device", "cpu"])
    with pytest.raises(BackendUnavailableError, match="--trust-engine"):
        open_runtime(options, engine)
    options = parser.parse_args(["--backend", "tensorrt", "--device", "cpu", "--trust-engine"])
    assert open_runtime(options, engine).info["backend"] == "tensorrt"

"""Building plans: what the builder is asked for, the cache of plans, and exports with plans."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from featinv_export import cli, exporter, from_onnx
from featinv_export.from_onnx import add_plans
from featinv_export.targets import onnx_
from featinv_export.tensorrt_.builder import build_plan, shape_profiles
from featinv_export.tensorrt_.cache import PlanCache, plan_key
from featinv_export.tensorrt_.options import PlanOptions
from featinv_fast.backends import tensorrt_plan
from featinv_fast.config import FeatureSpec, ModelConfig, Precision
from featinv_fast.engine import ParityStatus, graph_specs, open_engine
from featinv_fast.engine.lock import exclusive_lock
from featinv_fast.engine.plans import BatchProfile, HardwareCompatibility, PlanInfo, PlanTarget, PlanWeights
from featinv_fast.errors import (
    ArgumentError,
    BackendUnavailableError,
    EngineIntegrityError,
    ExportError,
    OutOfMemoryError,
    ParityError,
)

SMALL = BatchProfile(minimum=1, optimum=1, maximum=1)
LARGE = BatchProfile(minimum=2, optimum=4, maximum=8)


@pytest.fixture
def plan_info(simulation) -> PlanInfo:
    """A plan of the decoder with two profiles."""
    return PlanInfo(
        graph="decoder",
        target=PlanTarget(tensorrt=simulation.version, cuda="13.0", gpu="Simulated H100", compute_capability="9.0"),
        precision=Precision.FP32,
        profiles=(SMALL, LARGE),
        graph_sha256="0" * 64,
        weights_sha256="1" * 64,
    )


@pytest.fixture
def build(simulation, plan_info, tiny_engine):
    """`build(**changes)`: a plan of the tiny decoder."""
    spec = open_engine(tiny_engine).graph_specs()["decoder"]

    def run(report=lambda _: None, timing_cache=b"", **changes):
        info = dataclasses.replace(plan_info, **changes)
        return build_plan(tiny_engine / "decoder.onnx", spec, info, timing_cache=timing_cache, report=report)

    return run


@pytest.fixture
def engine(simulation, tiny_engine, tmp_path) -> Path:
    """A copy of the tiny engine, without plans."""
    return Path(shutil.copytree(tiny_engine, tmp_path / "work" / "tiny.engine"))


def flags(recorder) -> dict[str, list[str]]:
    return {
        what: [arguments["flag"].name for arguments in recorder.arguments(f"IBuilderConfig.{what}_flag")]
        for what in ("set", "clear")
    }


def test_networks_are_strongly_typed_and_fp32_is_not_rounded(simulation, release, build):
    build()
    recorder = simulation.recorder
    assert recorder.arguments("Builder.create_network") == [{"flags": 2 if release == "10.16" else 0}]
    assert flags(recorder) == {"set": [], "clear": ["TF32"]}
    assert recorder.arguments("IBuilderConfig.builder_optimization_level=") == [{"value": 3}]
    assert recorder.arguments("IBuilderConfig.set_memory_pool_limit") == []
    (level,) = recorder.arguments("IBuilderConfig.hardware_compatibility_level=")
    assert level["value"] is recorder.module.HardwareCompatibilityLevel.NONE


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"weights": PlanWeights.REFITTABLE}, ["REFIT"]),
        ({"weights": PlanWeights.STRIPPED}, ["REFIT", "STRIP_PLAN"]),
        ({"version_compatible": True}, ["VERSION_COMPATIBLE"]),
    ],
)
def test_flags(simulation, build, changes, expected):
    build(**changes)
    assert flags(simulation.recorder)["set"] == expected


def test_b11_a_graph_is_read_by_its_path_beside_its_weights(simulation, build, tiny_engine):
    """What is beyond 2 GiB cannot be handed over as bytes; the parser finds the weight file by the graph's path."""
    build()
    (parsed,) = simulation.recorder.arguments("OnnxParser.parse_from_file")
    assert list(parsed.values()) == [str(tiny_engine / "decoder.onnx")]
    assert simulation.recorder.arguments("OnnxParser.parse") == []
    assert (tiny_engine / "weights.safetensors").is_file()


def test_numbers_and_levels(simulation, build):
    build(workspace_mib=256, optimization_level=5, hardware=HardwareCompatibility.SAME_COMPUTE_CAPABILITY)
    recorder, module = simulation.recorder, simulation.recorder.module
    assert recorder.arguments("IBuilderConfig.set_memory_pool_limit") == [
        {"pool": module.MemoryPoolType.WORKSPACE, "pool_size": 256 * 2**20}
    ]
    assert recorder.arguments("IBuilderConfig.builder_optimization_level=") == [{"value": 5}]
    (level,) = recorder.arguments("IBuilderConfig.hardware_compatibility_level=")
    assert level["value"] is module.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY


def test_a_profile_for_each_range_of_batches(simulation, build):
    build()
    assert simulation.recorder.arguments("IOptimizationProfile.set_shape") == [
        {"input": "latents", "min": (1, 4, 8, 8), "opt": (1, 4, 8, 8), "max": (1, 4, 8, 8)},
        {"input": "latents", "min": (2, 4, 8, 8), "opt": (4, 4, 8, 8), "max": (8, 4, 8, 8)},
    ]
    assert len(simulation.recorder.arguments("IBuilderConfig.add_optimization_profile")) == 2


def test_profiles_of_every_graph_come_from_its_spec():
    specs = graph_specs(ModelConfig(), FeatureSpec(channels=1024), time_bias_size=9, max_batch=8)
    profiles = {name: shape_profiles(spec, (SMALL, LARGE)) for name, spec in specs.items()}
    assert profiles["time_embedding"] == [{"timesteps": ((1,), (50,), (1000,))}]
    small, large = profiles["condition_encoder"]
    assert small == {"features": ((1, 1024, 1, 1), (1, 1024, 16, 16), (1, 1024, 128, 128))}
    assert large["features"][2] == (8, 1024, 128, 128)
    for name in ("denoiser", "denoiser_unguided"):
        assert [sorted(ranges) for ranges in profiles[name]] == [["condition", "latents"]] * 2


def test_kernel_times_are_used_again(simulation, build, caplog):
    first = build()
    assert first.timing_cache == f"{simulation.version} decoder".encode()
    build(timing_cache=first.timing_cache)
    caches = simulation.recorder.arguments("IBuilderConfig.create_timing_cache")
    assert [bytes(arguments["serialized_timing_cache"]) for arguments in caches] == [b"", first.timing_cache]
    assert not caplog.records
    build(timing_cache=b"8.6 other")
    assert "another GPU or version" in caplog.text
    assert simulation.recorder.arguments("IBuilderConfig.create_timing_cache")[-1] == {"serialized_timing_cache": b""}


def test_progress_is_told(simulation, build):
    lines: list[str] = []
    build(report=lines.append)
    assert lines == ["Building 0/2", "Building 1/2", "Building 2/2"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_b9_what_stops_a_build_does_not_pass_through_tensorrt(simulation, build, error):
    def stop(line: str) -> None:
        if line == "Building 1/2":
            raise error

    with pytest.raises(error):
        build(report=stop)
    assert simulation.builds == []


def test_b9_what_stops_the_log_does_not_pass_through_tensorrt(simulation, build, monkeypatch):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt_plan.logger, "log", interrupt)
    simulation.failures["build"] = "a line of the log"
    with pytest.raises(KeyboardInterrupt):
        build()


def test_a_build_that_fails_says_why(simulation, build):
    simulation.failures["build"] = "Error Code 10: no implementation"
    with pytest.raises(ExportError, match=r"cannot build decoder\.plan") as caught:
        build()
    assert "no implementation" in caught.value.given
    simulation.failures["build"] = "Error Code 2: OutOfMemory (Requested size was 1 bytes.)"
    with pytest.raises(OutOfMemoryError, match="OutOfMemory"):
        build()


def test_a_graph_with_another_interface_is_refused(simulation, plan_info, tiny_engine):
    spec = open_engine(tiny_engine).graph_specs()["decoder"]
    with pytest.raises(ExportError, match="another interface"):
        build_plan(tiny_engine / "condition_encoder.onnx", spec, plan_info)


CHANGES = {
    "weights_sha256": "2" * 64,
    "graph_sha256": "3" * 64,
    "profiles": (LARGE,),
    "precision": Precision.FP16,
    "optimization_level": 5,
    "workspace_mib": 64,
    "weights": PlanWeights.REFITTABLE,
    "hardware": HardwareCompatibility.AMPERE_PLUS,
    "version_compatible": True,
}
MOVES = {"tensorrt": "10.99", "cuda": "12.9", "gpu": "Another GPU", "compute_capability": "8.0"}


@pytest.mark.parametrize("field", [*CHANGES, *MOVES])
def test_c4_each_field_is_part_of_the_key_and_named_when_it_differs(plan_info, tmp_path, field):
    cache = PlanCache(tmp_path)
    cache.store(plan_info, ["shapes"], b"plan")
    if field in CHANGES:
        other = dataclasses.replace(plan_info, **{field: CHANGES[field]})
    else:
        other = dataclasses.replace(plan_info, target=dataclasses.replace(plan_info.target, **{field: MOVES[field]}))
    assert cache.fetch(plan_info, ["shapes"], tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"plan"
    assert not cache.fetch(other, ["shapes"], tmp_path / "copy")
    reason = cache.why_missing(other)
    assert reason.startswith(f"the nearest plan of decoder in the cache has {field} ")
    assert " instead of " in reason


def test_c4_other_shapes_and_other_graphs_miss(plan_info, tmp_path):
    cache = PlanCache(tmp_path)
    assert cache.why_missing(plan_info) == "no plan of decoder in the cache"
    cache.store(plan_info, [1], b"plan")
    assert not cache.fetch(plan_info, [2], tmp_path / "copy")
    assert cache.why_missing(plan_info).endswith("other shapes")
    assert cache.why_missing(dataclasses.replace(plan_info, graph="denoiser")) == "no plan of denoiser in the cache"


def test_a_stripped_plan_does_not_depend_on_the_weights(plan_info):
    stripped = dataclasses.replace(plan_info, weights=PlanWeights.STRIPPED)
    assert plan_key(stripped, []) == plan_key(dataclasses.replace(stripped, weights_sha256="2" * 64), [])


@pytest.mark.parametrize("damage", [b"pla", b"plan+", b"PLAN", None])
def test_c5_a_damaged_plan_is_set_aside_and_built_again(plan_info, tmp_path, caplog, damage):
    cache = PlanCache(tmp_path)
    cache.store(plan_info, [], b"plan")
    (stored,) = tmp_path.glob("plans/*/plan")
    stored.unlink()
    if damage is not None:
        stored.write_bytes(damage)
    assert not cache.fetch(plan_info, [], tmp_path / "copy")
    assert "damaged" in caplog.text
    assert len(list(tmp_path.glob("plans/.*.damaged-*"))) == 1
    cache.store(plan_info, [], b"plan")
    assert cache.fetch(plan_info, [], tmp_path / "copy")


def test_c5_what_a_killed_build_leaves_is_no_plan(plan_info, tmp_path):
    cache = PlanCache(tmp_path)
    partial = tmp_path / "plans" / f".{plan_key(plan_info, [])}.partial"
    partial.mkdir(parents=True)
    (partial / "plan").write_bytes(b"pl")
    assert not cache.fetch(plan_info, [], tmp_path / "copy")
    cache.store(plan_info, [], b"plan")
    assert cache.fetch(plan_info, [], tmp_path / "copy")
    assert [path.name for path in (tmp_path / "plans").iterdir()] == [plan_key(plan_info, [])]


def test_from_onnx_builds_checks_and_records(simulation, engine, capsys):
    before = open_engine(engine).manifest
    assert cli.main(["--from-onnx", str(engine), "--trt", "--max-batch", "8", "--opt-batch", "4"]) == 0
    assert capsys.readouterr().out == f"{engine}\n"
    manifest = open_engine(engine).manifest
    graphs = list(manifest.graph_specs())
    assert simulation.builds == graphs
    assert [plan.graph for plan in manifest.plans] == graphs
    assert {f"{name}.plan" for name in graphs} == set(manifest.files) - set(before.files)
    assert (manifest.max_batch, manifest.optimal_batch) == (8, 4)
    for plan in manifest.plans:
        profiles = () if plan.graph == "time_embedding" else (BatchProfile(minimum=1, optimum=4, maximum=8),)
        assert plan.profiles == profiles
        assert plan.target == PlanTarget(
            tensorrt=simulation.version, cuda="13.0", gpu="Simulated H100", compute_capability="9.0"
        )
        assert plan.graph_sha256 == manifest.files[f"{plan.graph}.onnx"].sha256
        assert plan.weights_sha256 == manifest.files["weights.safetensors"].sha256
    rows = [info for info in manifest.parity if info.backend == "tensorrt"]
    assert {(info.graph, info.batch) for info in rows} == {(graph, batch) for graph in graphs for batch in (1, 2)}
    assert all(info.status is ParityStatus.PASSED and info.relative < 2e-5 for info in rows)
    assert [info for info in manifest.parity if info.backend != "tensorrt"] == list(before.parity)
    assert manifest.tools["tensorrt"] == simulation.version
    assert "| `denoiser.plan` |" in (engine / "README.md").read_text()


def test_from_onnx_takes_plans_that_were_built_before(simulation, engine, tmp_path):
    options = PlanOptions(max_batch=8)
    add_plans(engine, options)
    first = open_engine(engine).manifest
    add_plans(engine, dataclasses.replace(options, build=False))
    assert len(simulation.builds) == 5
    again = open_engine(engine).manifest
    assert (again.plans, again.files["denoiser.plan"]) == (first.plans, first.files["denoiser.plan"])
    with pytest.raises(ExportError, match="would have to be built") as caught:
        add_plans(engine, PlanOptions(max_batch=4, build=False))
    assert "profiles 1:1:8 instead of 1:1:4" in caught.value.given
    assert open_engine(engine).manifest == again


def test_b12_a_plan_that_computes_something_else_is_not_installed(simulation, engine):
    before = open_engine(engine).manifest
    simulation.changed = lambda output: output * 1.001
    with pytest.raises(ParityError, match="nothing was installed"):
        add_plans(engine, PlanOptions())
    assert open_engine(engine).manifest == before
    report = json.loads(engine.with_name("tiny.engine.parity.json").read_text())
    assert {row["backend"] for row in report} == {"tensorrt"}


def test_b13_a_plan_that_takes_the_batch_for_a_constant_is_not_installed(simulation, engine):
    before = open_engine(engine).manifest
    simulation.changed = lambda output: np.repeat(output[:1], len(output), axis=0)  # every item is the first
    with pytest.raises(ParityError, match="nothing was installed"):
        add_plans(engine, PlanOptions())
    assert open_engine(engine).manifest == before
    report = json.loads(engine.with_name("tiny.engine.parity.json").read_text())
    assert {row["batch"]: row["status"] for row in report} == {1: "passed", 2: "failed"}


def test_b9_a_build_that_is_stopped_leaves_the_engine_as_it_was(simulation, engine, monkeypatch, capsys):
    before = open_engine(engine).manifest
    simulation.phases = [("Building", None, 2)]

    def interrupt(what: str, *_: object) -> None:
        if "Building 1/2" in what:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        add_plans(engine, PlanOptions(), interrupt)
    assert open_engine(engine).manifest == before
    assert [path.name for path in engine.parent.iterdir()] == ["tiny.engine"]


def test_a_release_that_loses_biases_builds_no_plans_whose_weights_can_be_replaced(simulation, engine, monkeypatch):
    monkeypatch.setattr(simulation.recorder.module, "__version__", "11.3.0.99")
    for weights in (PlanWeights.REFITTABLE, PlanWeights.STRIPPED):
        with pytest.raises(ExportError, match="builds no plans whose weights can be replaced") as caught:
            add_plans(engine, PlanOptions(weights=weights))
        assert "11.3.0.99: TensorRT 11.3.0 may lose biases" in caught.value.given
    assert simulation.builds == []


def test_b10_two_at_once(simulation, engine, capsys):
    with exclusive_lock(engine.with_name(".tiny.engine.featinv-lock")):
        assert cli.main(["--from-onnx", str(engine), "--trt"]) == 1
    assert "another export is writing this engine" in capsys.readouterr().err


def test_b8_too_little_space_is_found_before_a_build(simulation, engine, monkeypatch):
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr(shutil, "disk_usage", lambda *_: usage)
    with pytest.raises(ExportError, match="too little space"):
        add_plans(engine, PlanOptions())
    assert simulation.builds == []


def test_c1_a_damaged_engine_gets_no_plans(simulation, engine):
    with (engine / "denoiser.onnx").open("r+b") as file:
        file.write(b"\xff")
    with pytest.raises(EngineIntegrityError, match=r"denoiser\.onnx was changed"):
        add_plans(engine, PlanOptions())
    assert simulation.builds == []


def test_an_engine_without_graphs_gets_no_plans(simulation, engine, restage, tmp_path):
    bare = restage(engine, tmp_path / "bare.engine", lambda folder: [path.unlink() for path in folder.glob("*.onnx")])
    with pytest.raises(ArgumentError, match="no ONNX graphs"):
        add_plans(bare, PlanOptions())


def test_a_cache_that_cannot_be_written_costs_no_build(simulation, engine, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        add_plans(engine, PlanOptions(cache=tmp_path / "file"))
    assert "denoiser.plan is not kept" in caplog.text
    assert len(open_engine(engine).manifest.plans) == 5


@pytest.mark.parametrize("command", [["--ckpt", "x.safetensors"], ["--from-onnx", "x.engine"]])
def test_c6_without_tensorrt_nothing_is_begun(monkeypatch, tiny_engine, tmp_path, capsys, command):
    monkeypatch.chdir(tmp_path)
    given = Path(command[1])
    if given.suffix == ".engine":
        shutil.copytree(tiny_engine, given)
    else:
        shutil.copyfile(tiny_engine.parent / "tiny.safetensors", given)
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main([*command, "--trt"]) == 1
    error = capsys.readouterr().err
    assert "TensorRT plans cannot be built on this machine" in error
    assert "tensorrt cannot be imported" in error
    # From a checkpoint: "export with --onnx now, and run ... later"; an engine with graphs goes there as it is.
    assert "run `featinv-export --from-onnx x.engine --trt`" in error
    assert list(Path().iterdir()) == [given]


def test_c6_an_old_tensorrt_is_refused(simulation, tmp_path):
    simulation.recorder.module.__version__ = "10.3.0"
    with pytest.raises(BackendUnavailableError, match=r"10\.3\.0 is too old: install 10\.12"):
        add_plans(tmp_path / "x.engine", PlanOptions())


def test_an_export_with_plans(simulation, tiny_engine, tmp_path, monkeypatch):
    """The exporter's own part: the order of its steps, what it records, and the plans' own profiles."""
    checkpoint = tiny_engine.parent / "tiny.safetensors"

    def same_graphs(candidate, report) -> None:
        """Those of the tiny engine, which took a while to make."""
        for name in candidate.specs:
            report(f"writing {name}.onnx")
            shutil.copyfile(tiny_engine / f"{name}.onnx", candidate.folder / f"{name}.onnx")

    monkeypatch.setattr(onnx_, "write_graphs", same_graphs)
    calls: list[tuple[str, int, int]] = []
    options = exporter.ExportOptions(
        checkpoint=checkpoint,
        out=tmp_path / "new.engine",
        onnx=True,
        max_batch=8,
        trt=PlanOptions(profiles=(SMALL, LARGE), weights=PlanWeights.STRIPPED),
    )
    folder = exporter.export(options, lambda *call: calls.append(call))
    manifest = open_engine(folder).manifest
    assert {plan.profiles for plan in manifest.plans} == {(SMALL, LARGE), ()}
    assert {plan.weights for plan in manifest.plans} == {PlanWeights.STRIPPED}
    assert sum(info.backend == "tensorrt" and info.relative <= 2e-5 for info in manifest.parity) == 10
    assert (folder / "denoiser.plan").stat().st_size < (folder / "weights.safetensors").stat().st_size / 10
    assert calls[-1][1] == calls[-1][2]
    assert any(what.startswith("building denoiser.plan: Building 1/2") for what, *_ in calls)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt", "x", "--workspace", "64"], "without plans"),
        (["--from-onnx", "x"], "nothing to make of the engine"),
        (["--from-onnx", "x", "--trt", "--onnx"], "no effect with --from-onnx"),
        (["--from-onnx", "x", "--trt", "--steps", "4"], "no effect with --from-onnx"),
        (["--ckpt", "x", "--trt", "--opt-level", "9"], "0 to 5"),
        (["--ckpt", "x", "--trt", "--workspace", "0"], "MiB"),
        (["--ckpt", "x", "--trt", "--profile", "1:2:4"], "largest batch"),
        (["--ckpt", "x", "--trt", "--profile", "1:2:64", "--min-batch", "2"], "twice"),
        (["--from-onnx", "ENGINE", "--trt", "--min-batch", "9", "--max-batch", "8"], "cannot be built"),
    ],
)
def test_plan_options_that_contradict_each_other_are_wrong_usage(monkeypatch, capsys, tiny_engine, arguments, message):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    code = cli.main([str(tiny_engine) if argument == "ENGINE" else argument for argument in arguments])
    assert code == (1 if message == "cannot be built" else 2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ckpt", "x", "--from-onnx", "y", "--trt"],
        ["--ckpt", "x", "--trt", "--refittable", "--stripped"],
        ["--ckpt", "x", "--trt", "--profile", "4:2:1"],
        ["--ckpt", "x", "--trt", "--profile", "4"],
        ["--ckpt", "x", "--trt", "--hardware-compatible", "none"],
    ],
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_every_plan_option_reaches_the_builder(monkeypatch, tiny_engine, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_engine, "e")
    given: list[tuple[Path, PlanOptions]] = []
    monkeypatch.setattr(
        from_onnx, "add_files", lambda folder, target, _: given.append((folder, target.options)) or folder
    )
    arguments = (
        "--from-onnx e --trt --profile 1:1:1 --profile 2:4:8 --workspace 64 --opt-level 4 --refittable "
        "--hardware-compatible --version-compatible --timing-cache t --plan-cache c"
    )
    assert cli.main(arguments.split()) == 0
    expected = PlanOptions(
        profiles=(SMALL, LARGE),
        workspace_mib=64,
        optimization_level=4,
        weights=PlanWeights.REFITTABLE,
        hardware=HardwareCompatibility.AMPERE_PLUS,
        version_compatible=True,
        timing_cache=Path("t"),
        cache=Path("c"),
    )
    assert given == [(Path("e"), expected)]
    arguments = "--from-onnx e --trt --min-batch 2 --opt-batch 4 --max-batch 8 --stripped --no-build"
    assert cli.main(arguments.split()) == 0
    stripped = PlanOptions(min_batch=2, optimal_batch=4, max_batch=8, weights=PlanWeights.STRIPPED, build=False)
    assert given[1][1] == stripped
    assert given[1][1].batch_profiles(1, 64) == (LARGE,)

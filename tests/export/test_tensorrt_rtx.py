"""Plans of TensorRT for RTX by NVIDIA's own parser and builder, which need no GPU and no driver."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper
from safetensors.torch import load_file

from featinv_export import cli
from featinv_export.exporter import export
from featinv_export.from_onnx import add_plans
from featinv_export.inspect_engine import as_data, as_text
from featinv_export.options import ExportOptions
from featinv_export.parity import Candidate
from featinv_export.progress import Steps
from featinv_export.refit import refit
from featinv_export.tensorrt_ import builder, plans
from featinv_export.tensorrt_.options import RtxOptions
from featinv_export.tensorrt_.rtx_builder import build_rtx_plan
from featinv_export.trt_parser_support_table import TYPES
from featinv_export.verify import verify
from featinv_export.weights import write_weights
from featinv_fast import demo
from featinv_fast.backends import Request, reasons_against
from featinv_fast.backends.torch_ import WEIGHT_FILE
from featinv_fast.commands.doctor import describe, doctor
from featinv_fast.config import Precision
from featinv_fast.engine import GraphSpec, ParityStatus, install, open_engine
from featinv_fast.engine.plans import RTX_CAPABILITIES, BatchProfile, RtxPlanInfo
from featinv_fast.engine.trust import CACHE_VARIABLE
from featinv_fast.errors import ArgumentError, ExportError, MissingPackageError
from featinv_fast.rewrites.engine_model import EngineModel, storage_dtypes

trt = pytest.importorskip("tensorrt_rtx", reason="it has packages for Linux and Windows alone")

GRAPHS = ("condition_encoder", "time_embedding", "denoiser", "denoiser_unguided", "decoder")
THREE = ("8.6", "8.9", "12.0")
ONE_PROFILE = (BatchProfile(minimum=1, optimum=2, maximum=4),)
# Operators that TensorRT proper reads by a plugin, which TensorRT for RTX does not have.
REFUSED_BY_RTX = {"DeformConv"}
# Operators that the table leaves out: quantised types, recurrent networks, and what newer parsers read beyond the lists
# of the releases that the table covers. None of our graphs has them.
READ_BY_RTX = {
    *("QuantizeLinear", "DequantizeLinear", "GRU", "LSTM", "RNN", "Scatter"),
    *("BlackmanWindow", "HammingWindow", "HannWindow", "STFT"),
    *("CausalConvWithState", "LinearAttention", "TensorScatter"),
}
TWO_PROFILES = (BatchProfile(minimum=1, optimum=1, maximum=1), BatchProfile(minimum=2, optimum=4, maximum=8))


def rtx_info(spec: GraphSpec, **changes: object) -> RtxPlanInfo:
    """A plan of the graph that is declared so."""
    values: dict[str, object] = {
        "graph": spec.name,
        "tensorrt_rtx": trt.__version__,
        "capabilities": ("8.9",),
        "precision": Precision.FP32,
        "profiles": builder.graph_profiles(spec, ONE_PROFILE),
        "graph_sha256": "0" * 64,
        "weights_sha256": "1" * 64,
    }
    return RtxPlanInfo(**values | changes)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of the test's own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def engine(tiny_engine: Path, restage: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of the tiny engine, which has graphs."""
    return restage(tiny_engine, tmp_path / "tiny.engine")


@pytest.mark.parametrize("name", ["tiny_engine", "tiny_fp16_engine", "tiny_bf16_engine"])
def test_every_graph_of_a_small_engine_is_built_for_three_generations(name, request):
    folder = request.getfixturevalue(name)
    found = open_engine(folder)
    for graph, spec in found.graph_specs().items():
        info = rtx_info(spec, capabilities=THREE, precision=found.manifest.precision)
        assert len(build_rtx_plan(folder / f"{graph}.onnx", spec, info)) > 2**16


@pytest.fixture(scope="module", params=Precision)
def built_in(request: pytest.FixtureRequest, built_in_graphs, tmp_path_factory) -> tuple[Precision, Path]:
    """A precision, and a folder with the graphs of both built-in engines in it: their architecture is one."""
    folder = tmp_path_factory.mktemp("built_in") / str(request.param)
    return request.param, Path(shutil.copytree(built_in_graphs(request.param), folder))


def _store(name: str, precision: Precision, folder: Path) -> None:
    """Write the weights of a built-in engine as an engine in `precision` has them."""
    found = demo.load_engine(name)
    if precision is found.manifest.precision:
        shutil.copyfile(found.path / WEIGHT_FILE, folder / WEIGHT_FILE)
        return
    dtypes = storage_dtypes(EngineModel.empty(found.manifest.model), precision, found.manifest.kept_fp32)
    write_weights(load_file(found.path / WEIGHT_FILE), dtypes, folder)


@pytest.mark.parametrize("name", demo.ENGINES)
def test_every_graph_of_the_built_in_engines_is_built(built_in, name):
    precision, folder = built_in
    _store(name, precision, folder)
    for graph, spec in demo.load_engine(name).graph_specs().items():
        info = rtx_info(spec, capabilities=THREE, precision=precision)
        assert len(build_rtx_plan(folder / f"{graph}.onnx", spec, info)) > 2**16


@pytest.mark.parametrize("capability", RTX_CAPABILITIES)
@pytest.mark.parametrize("name", ["tiny_fp16_engine", "tiny_bf16_engine"])
def test_every_generation_alone_and_two_profiles(capability, name, request):
    folder = request.getfixturevalue(name)
    found = open_engine(folder)
    for graph in ("condition_encoder", "time_embedding", "decoder"):
        spec = found.graph_specs()[graph]
        profiles = builder.graph_profiles(spec, TWO_PROFILES)
        info = rtx_info(spec, capabilities=(capability,), precision=found.manifest.precision, profiles=profiles)
        assert build_rtx_plan(folder / f"{graph}.onnx", spec, info)


def test_turing_has_no_fp32_products(tiny_fp16_engine):
    """Why 7.5 is not among the generations; the day this builds, it can be."""
    spec = open_engine(tiny_fp16_engine).graph_specs()["time_embedding"]
    info = rtx_info(spec)
    object.__setattr__(info, "capabilities", ("7.5",))
    with pytest.raises(ExportError, match="FP32 GEMM is not supported"):
        build_rtx_plan(tiny_fp16_engine / "time_embedding.onnx", spec, info)


def test_phases_are_reported_and_ctrl_c_stops_a_build(tiny_engine):
    spec = open_engine(tiny_engine).graph_specs()["decoder"]
    said: list[str] = []
    build_rtx_plan(tiny_engine / "decoder.onnx", spec, rtx_info(spec), report=said.append)
    assert said[0] == "Building engine 0/6"
    assert len(said) > 4

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_rtx_plan(tiny_engine / "decoder.onnx", spec, rtx_info(spec), report=interrupt)


# -- from a checkpoint to an engine


@pytest.fixture(scope="module")
def exported(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine with plans, made by the command of a small checkpoint."""
    folder = tmp_path_factory.mktemp("rtx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder / "cache"))
        checkpoint = str(tiny_engine.parent / "tiny.safetensors")
        arguments = ["--ckpt", checkpoint, "--out", str(folder / "tiny.engine"), "--max-batch", "8"]
        assert cli.main([*arguments, "--trt-rtx", "--sm", "120,86"]) == 0
    return folder / "tiny.engine"


def test_plans_are_built_of_the_graphs_that_passed(exported):
    manifest = open_engine(exported).manifest
    assert [plan.graph for plan in manifest.rtx_plans] == list(GRAPHS)
    passed = {info.graph for info in manifest.parity if (info.backend, info.status) == ("onnxruntime", "passed")}
    for plan in manifest.rtx_plans:
        assert plan.graph in passed
        assert plan.graph_sha256 == manifest.files[f"{plan.graph}.onnx"].sha256
        assert plan.weights_sha256 == manifest.files["weights.safetensors"].sha256
        assert plan.capabilities == ("8.6", "12.0")
        assert plan.tensorrt_rtx == trt.__version__ == manifest.tools["tensorrt-rtx"]
        assert plan.profiles == (() if plan.graph == "time_embedding" else (_profile(1, 1, 8),))
    assert manifest.aoti is None
    assert manifest.plans == ()


def _profile(minimum: int, optimum: int, maximum: int) -> BatchProfile:
    return BatchProfile(minimum=minimum, optimum=optimum, maximum=maximum)


def test_what_did_not_run_is_said_everywhere(exported):
    found = open_engine(exported)
    names = {f"{graph}.rtxplan" for graph in GRAPHS}
    rows = [info for info in found.manifest.parity if info.backend == "tensorrt-rtx"]
    assert {(info.graph, info.batch) for info in rows} == {(graph, batch) for graph in GRAPHS for batch in (1, 2)}
    assert all(info.status is ParityStatus.NOT_RUN for info in rows)
    assert {info.reason for info in rows} == {"built, not executed: torch sees no NVIDIA GPU and driver"}
    assert found.manifest.unchecked() == ()
    assert set(found.manifest.unexecuted()) == set(as_data(found)["unexecuted"]) == names
    card = (exported / "README.md").read_text()
    assert "**Built, not executed**: `condition_encoder.rtxplan`" in card
    assert "(TensorRT for RTX: code for the GPUs" in card
    text = as_text(found)
    for name in names:
        assert f"{name} is for TensorRT for RTX {trt.__version__} on compute capability 8.6, 12.0 (built, not" in text
        assert f"built, not executed: {name}" in describe(doctor(found))


def test_the_backend_says_why_it_does_not_serve(exported, tiny_engine):
    def reasons(folder: Path, device: str) -> str:
        request = Request(engine=open_engine(folder), device=torch.device(device), trust_engine=True)
        return "; ".join(reasons_against(request)["tensorrt-rtx"])

    assert reasons(exported, "cpu") == "TensorRT for RTX runs on NVIDIA GPUs, not on cpu"
    assert "torch sees no NVIDIA GPU" in reasons(exported, "cuda")
    assert "the engine has no TensorRT for RTX plans (condition_encoder" in reasons(tiny_engine, "cuda")


def test_a_refit_leaves_plans_out_and_verifying_keeps_them(exported, tiny_engine, restage, tmp_path, caplog):
    engine = restage(exported, tmp_path / "refitted.engine")
    verify(engine)
    assert len(open_engine(engine).manifest.unexecuted()) == len(GRAPHS)
    checkpoint = tmp_path / "same.safetensors"
    shutil.copyfile(tiny_engine.parent / "tiny.safetensors", checkpoint)
    with caplog.at_level(logging.WARNING):
        refit(engine, ExportOptions(checkpoint=checkpoint))
    assert "decoder.rtxplan are left out, because they hold the old weights" in caplog.text
    manifest = open_engine(engine).manifest
    assert manifest.rtx_plans == ()
    assert not [name for name in manifest.files if name.endswith(".rtxplan")]


def test_plans_are_added_to_an_engine_and_replaced(engine, monkeypatch):
    add_plans(engine, RtxOptions(capabilities=("8.9",), max_batch=4))
    manifest = open_engine(engine).manifest
    assert {plan.capabilities for plan in manifest.rtx_plans} == {("8.9",)}
    assert manifest.max_batch == 4
    built: list[str] = []
    monkeypatch.setattr(plans, "build_rtx_plan", lambda graph, *_, **__: built.append(graph.name) or b"a plan")
    add_plans(engine, RtxOptions(capabilities=("8.9",), max_batch=4))  # of the same graphs: from the cache
    assert built == []
    assert open_engine(engine).manifest.rtx_plans == manifest.rtx_plans
    with pytest.raises(ExportError, match="would have to be built") as caught:
        add_plans(engine, RtxOptions(capabilities=("8.6",), max_batch=4, build=False))
    assert "capabilities ('8.9',) instead of ('8.6',)" in caught.value.given
    add_plans(engine, RtxOptions(capabilities=("8.6",), max_batch=4))
    assert len(built) == len(GRAPHS)
    assert {plan.capabilities for plan in open_engine(engine).manifest.rtx_plans} == {("8.6",)}


def test_the_generations_are_those_of_the_gpu_here_or_the_usual_ones(engine, monkeypatch):
    monkeypatch.setattr(plans, "build_rtx_plan", lambda *_, **__: b"a plan")
    candidate = Candidate.of_engine(open_engine(engine).manifest, engine)

    def capabilities() -> set[tuple[str, ...]]:
        options = RtxOptions()
        return {plan.capabilities for plan in plans.write_rtx_plans(candidate, options, ONE_PROFILE, Steps(5))}

    assert capabilities() == {THREE}
    monkeypatch.setattr(plans, "device_problems", lambda _: [])
    for here, expected in (("8.9", ("8.9",)), ("9.0", THREE)):
        monkeypatch.setattr(plans, "compute_capability", lambda _, here=here: here)
        assert capabilities() == {expected}


# -- what is refused


def test_gpus_that_it_does_not_serve_are_refused_with_what_does():
    for name, reason in (("9.0", "H100 and H200 are served by TensorRT proper"), ("10.0", "B200"), ("7.5", "Turing")):
        with pytest.raises(ArgumentError, match="has no plans for these GPUs") as caught:
            RtxOptions(capabilities=("8.9", name))
        assert reason in caught.value.given
        assert "--trt" in caught.value.remedy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trt-rtx", "--sm", "90"], "H100 and H200 are served by TensorRT proper (--trt)"),
        (["--sm", "89"], "--trt or --trt-rtx as well"),
        (["--trt", "--sm", "89"], "a plan of TensorRT proper is for the GPU that it is built on"),
        (["--trt-rtx", "--refittable"], "its compiler wants the GPU"),
        (["--trt-rtx", "--stripped"], "its compiler wants the GPU"),
        (["--trt-rtx", "--version-compatible"], "without a GPU it builds no others"),
        (["--trt-rtx", "--hardware-compatible"], "its plans are for the GPUs that --sm names"),
        (["--trt-rtx", "--timing-cache", "x"], "it times nothing while it builds"),
        (["--trt-rtx", "--opt-level", "3"], "it searches when a plan first runs"),
        (["--trt-rtx", "--workspace", "3"], "it chooses kernels when a plan first runs"),
    ],
)
def test_what_has_no_effect_is_refused_with_its_reason(tiny_engine, tmp_path, capsys, options, message):
    checkpoint = tiny_engine.parent / "tiny.safetensors"
    assert cli.main(["--ckpt", str(checkpoint), "--out", str(tmp_path / "x.engine"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.engine"))


def test_capabilities_are_numbers_without_a_point(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--ckpt", "x", "--trt-rtx", "--sm", "8.9"])
    assert "'8.9' are not compute capabilities such as 86,89,120" in capsys.readouterr().err


def test_a_refit_takes_no_plans(engine, capsys):
    arguments = ["--ckpt", str(engine), "--refit", str(engine), "--trt-rtx"]
    assert cli.main(arguments) == 2
    assert "--trt-rtx" in capsys.readouterr().err


def test_without_the_package_nothing_is_begun(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    options = ExportOptions(checkpoint=tmp_path / "none", onnx=True, trt_rtx=RtxOptions())
    with pytest.raises(MissingPackageError, match="cannot be built without it") as caught:
        export(options)
    assert "featinv-fast[tensorrt-rtx]" in caught.value.remedy


def test_where_tensorrt_proper_is_missing_its_neighbour_is_named(tiny_engine, tmp_path, capsys):
    checkpoint = tiny_engine.parent / "tiny.safetensors"
    assert cli.main(["--ckpt", str(checkpoint), "--out", str(tmp_path / "x.engine"), "--trt"]) == 1
    said = capsys.readouterr().err
    assert "--trt-rtx, for GPUs such as RTX 30 to 50" in said
    assert "--from-onnx" in said


# -- faults


def _strange(path: Path) -> None:
    """A node of an operator that no parser knows."""
    model = onnx.load(path, load_external_data=False)
    node = model.graph.node[-1]
    model.graph.node.append(helper.make_node("Strange", [node.output[0]], ["strange"], name="a_strange_node"))
    model.graph.node[-1].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.output[0].name = "strange"
    onnx.save(model, path)


def test_a_node_that_the_parser_does_not_know_is_named(engine):
    spec = open_engine(engine).graph_specs()["decoder"]
    _strange(engine / "decoder.onnx")
    with pytest.raises(ExportError, match=r"TensorRT for RTX cannot read decoder\.onnx") as caught:
        build_rtx_plan(engine / "decoder.onnx", spec, rtx_info(spec))
    assert "Strange" in caught.value.given


def test_a_profile_that_the_graph_cannot_have_is_refused(engine):
    spec = open_engine(engine).graph_specs()["decoder"]
    fixed = dataclasses.replace(
        spec, inputs=tuple(dataclasses.replace(x, shape=(x.shape[0], 7, *x.shape[2:])) for x in spec.inputs)
    )
    with pytest.raises(ExportError, match=r"(refuses a profile|cannot build)") as caught:
        build_rtx_plan(engine / "decoder.onnx", fixed, rtx_info(fixed))
    assert "profile" in str(caught.value).lower()


def test_weights_that_are_cut_short_are_refused(engine):
    spec = open_engine(engine).graph_specs()["decoder"]
    weights = engine / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(ExportError, match=r"TensorRT for RTX cannot read decoder\.onnx"):
        build_rtx_plan(engine / "decoder.onnx", spec, rtx_info(spec))


def test_too_little_space_is_said_before_any_work(engine, monkeypatch):
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr(install.shutil, "disk_usage", lambda *_: usage)
    monkeypatch.setattr(plans, "build_rtx_plan", lambda *_, **__: pytest.fail("a plan was built"))
    with pytest.raises(ExportError, match="too little space"):
        add_plans(engine, RtxOptions(capabilities=("8.9",)))
    assert open_engine(engine).manifest.rtx_plans == ()


def test_a_disk_that_fills_up_leaves_the_engine_as_it_was(engine, monkeypatch):
    before = {path.name: path.read_bytes() for path in engine.iterdir()}

    def full(*_: object, **__: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plans, "build_rtx_plan", full)
    with pytest.raises(ExportError, match="No space left"):
        add_plans(engine, RtxOptions(capabilities=("8.9",)))
    assert {path.name: path.read_bytes() for path in engine.iterdir()} == before
    assert [path.name for path in engine.parent.glob("*.engine*")] == [engine.name]


# -- NVIDIA's own tools, and the parser against the table


@pytest.mark.parametrize("name", ["tiny_engine", "tiny_fp16_engine", "tiny_bf16_engine", "built-in"])
def test_polygraphy_finds_nothing_and_reads_every_graph(name, request):
    folder = demo.engine_path() if name == "built-in" else request.getfixturevalue(name)
    for graph, spec in open_engine(folder).graph_specs().items():
        file = folder / f"{graph}.onnx"
        shown = _polygraphy("inspect", "model", file)
        assert f"Name: {graph}" in shown
        assert all(f"{x.name} [dtype=float32" in shown for x in (*spec.inputs, spec.output))
        if name != "tiny_bf16_engine":  # it runs the graph with onnxruntime, which has no bf16 on a CPU
            assert "PASSED" in _polygraphy("check", "lint", file)


def _polygraphy(*arguments: object) -> str:
    program = Path(sysconfig.get_path("scripts")) / "polygraphy"
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_operators_of_the_table_are_those_of_the_parser():
    network = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    refused = {name for name in TYPES if not parser.supports_operator(name)}
    assert refused == REFUSED_BY_RTX
    standard = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain in ("", "ai.onnx")}
    beyond = {name for name in standard - set(TYPES) if parser.supports_operator(name)}
    assert beyond == READ_BY_RTX

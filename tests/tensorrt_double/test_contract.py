"""Our code against the vendor's real bindings: what it names is there, and what is not there is found."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import bindings
import double
import pytest

import featinv_export.tensorrt_ as exporter
import featinv_fast.backends as backends
from featinv_export.tensorrt_ import builder
from featinv_export.tensorrt_.builder import build_plan
from featinv_fast.config import Precision
from featinv_fast.engine import open_engine
from featinv_fast.engine.plans import BatchProfile, HardwareCompatibility, PlanInfo, PlanTarget, PlanWeights
from featinv_fast.errors import ExportError

SOURCES = [
    *sorted(Path(exporter.__file__).parent.glob("*.py")),
    *sorted(Path(backends.__file__).parent.glob("tensorrt_*.py")),
]
TARGET = PlanTarget(tensorrt="10.16.1.11", cuda="13.0", gpu="Simulated H100", compute_capability="9.0")


def names_used(source: str) -> Iterator[str]:
    """`tensorrt.A` and `tensorrt.A.B` wherever they stand in a source, without the `tensorrt`."""
    for node in ast.walk(ast.parse(source)):
        path = []
        while isinstance(node, ast.Attribute):
            path.append(node.attr)
            node = node.value
        if path and isinstance(node, ast.Name) and node.id == "tensorrt":
            yield ".".join(reversed(path))


def unknown_names(source: str, description: dict) -> list[str]:
    """The names of a source that the bindings do not have."""

    def is_known(name: str) -> bool:
        owner, _, member = name.rpartition(".")
        classes = description["classes"]
        inside = classes.get(owner, {})
        return name in classes or any(member in inside.get(k, ()) for k in ("enum", "methods"))

    return [name for name in names_used(source) if "__" not in name and not is_known(name)]


def info(spec, **changes) -> PlanInfo:
    profiles = (BatchProfile(minimum=1, optimum=2, maximum=4),) if spec.name != "time_embedding" else ()
    values = {
        "graph": spec.name,
        "target": TARGET,
        "precision": Precision.FP32,
        "profiles": profiles,
        "graph_sha256": "0" * 64,
        "weights_sha256": "1" * 64,
    }
    return PlanInfo(**values | changes)


def everything(spec) -> PlanInfo:
    """A plan that needs every flag of the builder."""
    return info(
        spec,
        weights=PlanWeights.STRIPPED,
        hardware=HardwareCompatibility.AMPERE_PLUS,
        version_compatible=True,
        workspace_mib=256,
        optimization_level=5,
    )


def test_the_bindings_are_those_of_the_release(description, release):
    assert description["version"].startswith(release)
    assert {"Builder", "ICudaEngine", "ILogger.Severity", "OnnxParserRefitter"} <= set(description["classes"])
    assert len(description["classes"]) > 190


def test_every_name_in_our_sources_is_in_the_bindings(description):
    used = [name for path in SOURCES for name in names_used(path.read_text())]
    assert {"Builder", "BuilderFlag.STRIP_PLAN", "SerializationFlag.INCLUDE_REFIT", "IProgressMonitor"} <= set(used)
    assert len(set(used)) > 25
    for path in SOURCES:
        assert unknown_names(path.read_text(), description) == [], path


def test_only_these_sources_import_tensorrt():
    root = Path(backends.__file__).parents[2]
    importing = {
        path
        for folder in ("featinv_fast", "export", "kernels")
        for path in (root / folder).rglob("*.py")
        if "import tensorrt\n" in path.read_text()
    }
    assert importing <= set(SOURCES)
    assert importing


def test_our_subclasses_are_those_that_the_real_bindings_take(release, stubs):
    assert bindings.run(release, "use_callbacks.py", stubs) == "done\n"


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("BuilderFlag.STRIP_PLAN", "BuilderFlag.STRIP_PLANS"),
        ("BuilderFlag.TF32", "BuilderFlag.TF_32"),
        ("HardwareCompatibilityLevel.AMPERE_PLUS", "HardwareCompatibilityLevel.AMPERE"),
        ("tensorrt.OnnxParser(", "tensorrt.OnnxPaser("),
    ],
)
def test_a_misspelt_name_is_found_in_the_source(description, right, wrong):
    source = Path(builder.__file__).read_text()
    assert right in source
    assert unknown_names(source.replace(right, wrong), description) == [wrong.removeprefix("tensorrt.").strip("(")]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("BuilderFlag.REFIT", "BuilderFlag.REFITTABLE"),
        ("BuilderFlag.STRIP_PLAN", "BuilderFlag.STRIP_PLANS"),
        ("BuilderFlag.VERSION_COMPATIBLE", "BuilderFlag.VERSION_COMPATIBILITY"),
        ("config.builder_optimization_level", "config.builder_optimisation_level"),
        ("config.progress_monitor", "config.progress_monitors"),
        ("config.set_memory_pool_limit", "config.set_memory_limit"),
        ("ignore_mismatch=False", "ignore_mismatches=False"),
        ("parse_from_file(str(graph_file))", "parse_from_file(graph_file)"),
        ("profile.set_shape(name, minimum, optimum, maximum)", "profile.set_shape(name, minimum, maximum)"),
        ("network.num_outputs", "network.number_of_outputs"),
        ("build_serialized_network(network, config)", "build_serialized_network(config, network)"),
        ("info.workspace_mib * 2**20", "str(info.workspace_mib)"),
        ("tensorrt.HardwareCompatibilityLevel.AMPERE_PLUS", "2"),
    ],
)
def test_a_planted_mistake_fails_the_build(simulation, tiny_engine, right, wrong):
    """The same build succeeds without the mistake, so it is the mistake that fails."""
    spec = open_engine(tiny_engine).graph_specs()["decoder"]
    graph = tiny_engine / "decoder.onnx"
    build_plan(graph, spec, everything(spec))
    source = Path(builder.__file__).read_text()
    assert right in source
    module = type(sys)("mistaken")
    sys.modules["mistaken"] = module
    try:
        exec(compile(source.replace(right, wrong), "mistaken.py", "exec"), module.__dict__)
        with pytest.raises((AttributeError, TypeError)):
            module.build_plan(graph, spec, everything(spec))
    finally:
        del sys.modules["mistaken"]


def test_the_double_is_as_strict_as_the_bindings(simulation):
    tensorrt = simulation.recorder.module
    with pytest.raises(AttributeError):
        _ = tensorrt.Bilder
    with pytest.raises(TypeError, match="No constructor defined"):
        tensorrt.IBuilderConfig()
    with pytest.raises(TypeError, match="incompatible function arguments"):
        tensorrt.Builder("logger")

    class Forgetful(tensorrt.ILogger):
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match="incompatible function arguments"):
        tensorrt.Builder(Forgetful())
    config = simulation.recorder.make("IBuilderConfig")
    with pytest.raises(AttributeError):
        config.num_optimization_profiles = 3
    with pytest.raises(AttributeError):
        config.optimization = 3
    with pytest.raises(TypeError):
        config.builder_optimization_level = "3"
    with pytest.raises(TypeError):
        config.set_flag(tensorrt.HardwareCompatibilityLevel.NONE)
    with pytest.raises(AssertionError, match="does not play"):
        config.reset()


def test_signatures_are_parsed():
    text = "self: a.B, name: str, level: a.C = <C.NONE: 0>, sizes: list[tuple[int, str]] = None"
    assert double.parse(text) == [
        ("self", "a.B", None),
        ("name", "str", None),
        ("level", "a.C", "<C.NONE: 0>"),
        ("sizes", "list[tuple[int, str]]", "None"),
    ]
    assert double.plain("nvonnxparser::IParserError") == "ParserError"


def test_a_graph_that_tensorrt_refuses_fails_with_its_reasons(simulation, tiny_engine):
    simulation.failures["parse"] = "In node 7: UNSUPPORTED_NODE"
    spec = open_engine(tiny_engine).graph_specs()["decoder"]
    with pytest.raises(ExportError, match=r"cannot read decoder\.onnx") as caught:
        build_plan(tiny_engine / "decoder.onnx", spec, info(spec))
    assert "Strange denoiser/Strange_1: no importer is registered" in caught.value.given
    assert "In node 7: UNSUPPORTED_NODE" in caught.value.given

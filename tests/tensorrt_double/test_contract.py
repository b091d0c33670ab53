"""Our code against the vendor's real bindings: what it names is there, and what is not there is found."""

from __future__ import annotations

from pathlib import Path

import bindings
import double
import pytest
from contract import SOURCES, names_used, plan_info, unknown_names

from featinv_export.tensorrt_.builder import build_plan
from featinv_fast import backends
from featinv_fast.engine import open_engine
from featinv_fast.errors import ExportError


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
        build_plan(tiny_engine / "decoder.onnx", spec, plan_info(spec))
    assert "Strange denoiser/Strange_1: no importer is registered" in caught.value.given
    assert "In node 7: UNSUPPORTED_NODE" in caught.value.given

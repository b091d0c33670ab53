"""The contract tests can fail: every name of TensorRT that our code uses is misspelt once, and found by both releases.

A mistake is planted in the source of one of our modules. Either the contract finds a name there that the bindings lack,
or all that we do with TensorRT is done with the module that comes out, and fails at a class of the bindings.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import types
from collections.abc import Callable, Iterator

import pytest
import torch
from contract import names_used, plan_info, unknown_names
from double import Recorder

from featinv_export.tensorrt_ import builder, monitor
from featinv_fast.backends import tensorrt_, tensorrt_plan
from featinv_fast.config import Precision
from featinv_fast.engine import open_engine
from featinv_fast.engine.plans import BatchProfile, PlanWeights
from featinv_fast.errors import EngineIntegrityError, ExportError

MODULES = (builder, monitor, tensorrt_plan, tensorrt_)
GRAPH = "condition_encoder"
PROFILES = (BatchProfile(minimum=1, optimum=1, maximum=1), BatchProfile(minimum=2, optimum=2, maximum=4))


def misspelt(name: str) -> str:
    """BuilderFlag.REFITS, config.set_flags."""
    return name + ("S" if name.isupper() else "s")


def misspellings(source: str, names: set[str]) -> Iterator[tuple[str, str]]:
    """Each of `names`, and the source with one of the places misspelt where an attribute is called so."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names:
            name, node.attr = node.attr, misspelt(node.attr)
            yield name, ast.unparse(tree)
            node.attr = name


def replace(patch: pytest.MonkeyPatch, module: types.ModuleType, source: str) -> None:
    """Put what `source` defines in the place of what `module` defines, wherever our modules have imported it."""
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    made = types.ModuleType(module.__name__)
    exec(compile(source, f"{module.__name__} with a mistake", "exec"), vars(made))
    # What a test put into the module stays there.
    vars(made).update({name: value for name, value in vars(module).items() if name not in own})
    for name, value in own.items():
        for user in MODULES:
            if vars(user).get(name) is value:
                patch.setattr(user, name, vars(made)[name])


def belongs_to(recorder: Recorder, thing: object) -> bool:
    """Whether `thing` is the module, a class or an object of TensorRT."""
    return thing is recorder.module or thing in recorder.types.values() or type(thing) in recorder.types.values()


@pytest.fixture
def use_everything(simulation, tiny_engine, tmp_path) -> Callable[[], None]:
    """Calls all of our code that calls TensorRT: builds, refits and runs plans, and meets what TensorRT refuses."""
    spec = open_engine(tiny_engine).graph_specs()[GRAPH]
    graph = tiny_engine / f"{GRAPH}.onnx"

    def build(weights: PlanWeights):
        info = plan_info(spec, profiles=PROFILES, weights=weights, version_compatible=True, workspace_mib=64)
        return info, builder.build_plan(graph, spec, info, timing_cache=f"{simulation.version} known".encode()).plan

    def run() -> None:
        simulation.failures.clear()
        build(PlanWeights.STRIPPED)
        info, plan = build(PlanWeights.REFITTABLE)
        plan = builder.refitted_plan(plan, graph, info)
        (tmp_path / info.file_name).write_bytes(plan)
        session = tensorrt_.TensorrtSession(
            tmp_path,
            {GRAPH: info},
            {GRAPH: spec},
            {GRAPH: hashlib.sha256(plan).hexdigest()},
            device=torch.device("cpu"),
            precision=Precision.FP32,
        )
        for batch in (1, 2):
            assert len(session.run(GRAPH, torch.zeros(batch, 6, 5, 5))) == batch
        simulation.failures["refit"] = "not all weights are there"
        with pytest.raises(EngineIntegrityError, match="not all weights are there"):
            builder.refitted_plan(plan, graph, info)
        simulation.failures["parse"] = "In node 7: UNSUPPORTED_NODE"
        with pytest.raises(ExportError, match="In node 7: UNSUPPORTED_NODE"):
            build(PlanWeights.FIXED)

    return run


def test_every_name_that_is_misspelt_is_found(simulation, description, use_everything):
    use_everything()
    called = {name.rpartition(".")[2].rstrip("=") for name, _ in simulation.recorder.calls} - {"__init__"}
    sources = {module: inspect.getsource(module) for module in MODULES}
    written = {part for source in sources.values() for name in names_used(source) for part in name.split(".")}
    names = called | written | {"WARNING", "INFO", "VERBOSE"}  # of an enum that has a short name in our source
    found: set[str] = set()
    for module, source in sources.items():
        for name, mistaken in misspellings(source, names):
            if unknown_names(mistaken, description):
                found.add(name)
                continue
            with pytest.MonkeyPatch.context() as patch:
                replace(patch, module, mistaken)
                try:
                    use_everything()
                except AttributeError as error:
                    if belongs_to(simulation.recorder, error.obj) and misspelt(name) in str(error):
                        found.add(name)
    assert len(names) > 60
    assert found == names


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
    source = inspect.getsource(builder)
    assert right in source
    assert unknown_names(source.replace(right, wrong), description) == [wrong.removeprefix("tensorrt.").strip("(")]


UNKNOWN, UNFIT = "has no attribute", "incompatible function arguments|expected "


@pytest.mark.parametrize(
    ("module", "right", "wrong", "message"),
    [
        (builder, "BuilderFlag.REFIT", "BuilderFlag.REFITTABLE", UNKNOWN),
        (builder, "BuilderFlag.VERSION_COMPATIBLE", "BuilderFlag.VERSION_COMPATIBILITY", UNKNOWN),
        (builder, "config.builder_optimization_level", "config.builder_optimisation_level", UNKNOWN),
        (builder, "config.set_memory_pool_limit", "config.set_memory_limit", UNKNOWN),
        (builder, "ignore_mismatch=False", "ignore_mismatches=False", UNFIT),
        (builder, "parse_from_file(str(graph_file))", "parse_from_file(graph_file)", UNFIT),
        (builder, "profile.set_shape(name, minimum, optimum, maximum)", "profile.set_shape(name, minimum)", UNFIT),
        (builder, "build_serialized_network(network, config)", "build_serialized_network(config, network)", UNFIT),
        (builder, "info.workspace_mib * 2**20", "str(info.workspace_mib)", UNFIT),
        (builder, "tensorrt.HardwareCompatibilityLevel.NONE", "0", UNFIT),
        (builder, "set_flag(tensorrt.BuilderFlag.REFIT)", "set_flag(tensorrt.DataType.FLOAT)", UNFIT),
        (monitor, "tensorrt.IProgressMonitor.__init__(self)", "pass", UNFIT),
        (monitor, "def phase_start", "def phase_started", "IProgressMonitor.phase_start"),
        (monitor, "def step_complete", "def step_completed", "does not play IProgressMonitor.step_complete"),
        (tensorrt_plan, "tensorrt.ILogger.__init__(self)", "pass", UNFIT),
        (tensorrt_plan, "def log(", "def logs(", "does not play ILogger.log"),
        (tensorrt_plan, "engine_host_code_allowed = ", "engine_host_code_alowed = ", UNKNOWN),
        (tensorrt_plan, "Refitter(engine, messages.sink)", "Refitter(messages.sink, engine)", UNFIT),
        (tensorrt_, "set_tensor_address(name, buffer.data_ptr())", "set_tensor_address(name, name)", UNFIT),
        (tensorrt_, "set_optimization_profile_async(profile, self", "set_optimization_profile_async(self", UNFIT),
        (tensorrt_, "execute_async_v3(stream)", "execute_async_v3()", UNFIT),
    ],
)
def test_a_planted_mistake_is_found(use_everything, monkeypatch, module, right, wrong, message):
    """The same without the mistake succeeds, so it is the mistake that fails."""
    use_everything()
    source = inspect.getsource(module)
    assert right in source
    replace(monkeypatch, module, source.replace(right, wrong))
    with pytest.raises((AttributeError, TypeError, AssertionError), match=message):
        use_everything()

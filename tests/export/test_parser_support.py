"""The lint against TensorRT's ONNX parser: our graphs pass it, and what the parser does not read does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from featinv_export import trt_parser_support_table as table
from featinv_export.trt_parser_support import ParserProblem, check_graphs, reading_releases, require_supported
from featinv_fast.errors import ArgumentError, ExportError

GRAPHS = ("condition_encoder", "time_embedding", "denoiser", "denoiser_unguided", "decoder")
# The oldest and the newest release, and the two that the TensorRT backend is held against.
RELEASES = ("10.0.1.6", "10.16.1.11", "11.4")
# ONNX has convolutions in bf16 from opset 22 on, which TensorRT reads from 10.6 on.
BF16_RELEASES = ("10.6", "10.16.1.11", "11.4")


@pytest.mark.parametrize("release", RELEASES)
def test_golden_graphs_in_fp32_are_read(golden_engine: Path, release: str):
    assert check_graphs([golden_engine / f"{graph}.onnx" for graph in GRAPHS], release) == []


@pytest.mark.parametrize("release", RELEASES)
def test_golden_graphs_in_fp16_are_read(golden_fp16_engine: Path, release: str):
    assert check_graphs([golden_fp16_engine / f"{graph}.onnx" for graph in GRAPHS], release) == []


@pytest.mark.parametrize("release", BF16_RELEASES)
def test_graphs_in_bf16_are_read(tiny_bf16_engine: Path, release: str):
    assert check_graphs([tiny_bf16_engine / f"{graph}.onnx" for graph in GRAPHS], release) == []


@pytest.mark.parametrize("release", RELEASES)
def test_tiny_graphs_in_fp32_are_read(tiny_engine: Path, release: str):
    assert check_graphs([tiny_engine / f"{graph}.onnx" for graph in GRAPHS], release) == []


def test_fp16_weights_that_are_kept_in_fp32_are_read(tiny_fp16_engine: Path):
    assert check_graphs(sorted(tiny_fp16_engine.glob("*.onnx")), "10.16") == []


def test_bf16_needs_a_parser_that_knows_its_opset(tiny_bf16_engine: Path):
    (problem,) = check_graphs([tiny_bf16_engine / "decoder.onnx"], "10.5")
    assert str(problem) == "decoder.onnx: opset 22 is not among 9 to 20 by the ONNX parser of TensorRT 10.5"


def test_the_releases_that_read_graphs_in_words(tiny_fp16_engine: Path, tiny_bf16_engine: Path, tmp_path: Path):
    half, brain = (engine / "decoder.onnx" for engine in (tiny_fp16_engine, tiny_bf16_engine))
    assert reading_releases([half]) == "10.0 and newer"
    assert reading_releases([half, brain]) == "10.6 and newer"
    model = onnx.load(half, load_external_data=False)
    model.opset_import[0].version = 30
    onnx.save(model, tmp_path / "future.onnx")
    assert reading_releases([half, tmp_path / "future.onnx"]) == "none"


@pytest.fixture
def lint(tmp_path: Path) -> Callable[..., list[str]]:
    """`lint(nodes, dtype, release)`: problems of a graph x [2, 3, 4, 4] -> y."""

    def check(
        nodes: Sequence[Any],
        dtype: int = TensorProto.FLOAT,
        release: str = "10.16",
        opset: int = 20,
        out: int | None = None,
        initializers: Sequence[Any] = (),
    ) -> list[str]:
        graph = helper.make_graph(
            list(nodes),
            "planted",
            [helper.make_tensor_value_info("x", dtype, [2, 3, 4, 4])],
            [helper.make_tensor_value_info("y", dtype if out is None else out, None)],
            list(initializers),
        )
        imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)]
        path = tmp_path / "planted.onnx"
        onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
        return [
            problem.reason.removesuffix(f" by the ONNX parser of TensorRT {release}")
            for problem in check_graphs([path], release)
        ]

    return check


def node(operator: str, inputs: str = "x", outputs: str = "y", **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(" ") if inputs else [], outputs.split(" "), **attributes)


def integers(name: str, values: Sequence[int]) -> Any:
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def test_a_sound_graph_has_no_problem(lint):
    assert lint([node("Relu")]) == []


@pytest.mark.parametrize("engine", ["tiny_engine", "tiny_fp16_engine", "tiny_bf16_engine"])
def test_an_unsupported_operator_is_found_in_our_own_graphs(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest
):
    model = onnx.load(request.getfixturevalue(engine) / "decoder.onnx", load_external_data=False)
    planted = next(n for n in model.graph.node if n.op_type == "Sigmoid")
    planted.op_type = "Bernoulli"  # of the same shapes and types
    onnx.save(model, tmp_path / "decoder.onnx")
    for release in BF16_RELEASES:
        (problem,) = check_graphs([tmp_path / "decoder.onnx"], release)
        assert problem.node == planted.name
        assert problem.reason.startswith("Bernoulli is not supported")


@pytest.mark.parametrize("operator", ["Bernoulli", "Unique"])
def test_an_unsupported_operator_is_named_with_its_node(lint, operator: str):
    assert lint([node(operator, name="planted")]) == [f"{operator} is not supported"]


def test_operators_of_other_domains_are_not_read(lint):
    problems = lint([node("FusedThing", outputs="h", domain="com.example"), node("Identity")])
    assert problems == ["com.example.FusedThing is no operator of the ONNX standard"]


def test_operators_that_came_later_are_not_read_before(lint):
    nodes = [node("RMSNormalization", "x s")]
    scale = helper.make_tensor("s", TensorProto.FLOAT, [4], [1.0] * 4)
    assert lint(nodes, release="10.15", opset=23, initializers=[scale]) == []
    (problem,) = lint(nodes, release="10.14", opset=22, initializers=[scale])
    assert "RMSNormalization" in problem


@pytest.mark.parametrize(
    ("operator", "dtype"),
    [("Sigmoid", TensorProto.DOUBLE), ("Relu", TensorProto.INT8), ("Identity", TensorProto.UINT16)],
)
def test_a_type_that_an_operator_does_not_take_is_found(lint, operator: str, dtype: int):
    name = TensorProto.DataType.Name(dtype)
    problems = lint([node(operator)], dtype)
    assert any(problem.startswith(f"{operator} is not supported in {name}") for problem in problems)


def test_the_type_of_a_boundary_is_checked(lint):
    problems = lint([node("Cast", to=TensorProto.FLOAT)], TensorProto.INT8, out=TensorProto.FLOAT)
    assert problems == ["INT8 is no type of an input or output", "Cast is not supported in INT8 (input)"]


def test_types_of_values_inside_the_graph_are_inferred_and_not_believed(lint):
    nodes = [node("Cast", "x", "d", to=TensorProto.DOUBLE), node("Mul", "d d", "m"), node("Cast", "m", to=1)]
    assert lint(nodes) == [
        "Cast is not supported in DOUBLE (output)",
        "Mul is not supported in DOUBLE (A)",
        "Cast is not supported in DOUBLE (input)",
    ]


def test_types_of_conditions_and_indices_are_not_those_of_the_data(lint):
    nodes = [
        node("Constant", "", "z", value=helper.make_tensor("z", TensorProto.FLOAT, [], [0.0])),
        node("Greater", "x z", "c"),
        node("Where", "c x z", "w"),
        node("Shape", "w", "s"),
        node("Reshape", "w s"),
    ]
    assert lint(nodes) == []


def test_values_of_attributes_are_checked(lint):
    scales = helper.make_tensor("s", TensorProto.FLOAT, [4], [1.0, 1.0, 2.0, 2.0])
    assert lint([node("Resize", "x  s", mode="linear")], initializers=[scales]) == []
    assert lint([node("Resize", "x  s", mode="cubic")], initializers=[scales]) == [
        "Resize is not supported with mode cubic"
    ]
    assert lint([node("Resize", "x  s", mode="linear", antialias=1)], initializers=[scales]) == [
        "Resize is not supported with antialias 1"
    ]


def test_outputs_beyond_those_that_are_read_are_found(lint):
    scale = helper.make_tensor("s", TensorProto.FLOAT, [4], [1.0] * 4)
    assert lint([node("LayerNormalization", "x s", "y mean")], initializers=[scale]) == [
        "LayerNormalization is not supported with more than 1 output"
    ]


def test_inputs_that_must_be_constant_are_checked(lint):
    axes = integers("one", [1])
    assert lint([node("Unsqueeze", "x one")], initializers=[axes]) == []
    nodes = [node("Shape", "x", "s", start=1, end=2), node("Sub", "s one", "a"), node("Unsqueeze", "x a")]
    assert lint(nodes, initializers=[axes]) == ["Unsqueeze is not supported with an input 1 that is not constant"]


def test_graphs_inside_nodes_are_checked(lint):
    branch = helper.make_graph(
        [node("Det", "x", "inner", name="hidden")],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    problems = lint([node("If", "c", then_branch=branch, else_branch=branch)], initializers=[condition])
    assert problems.count("Det is not supported") == 2


def test_a_graph_that_is_not_valid_is_a_problem(lint):
    half = helper.make_tensor("h", TensorProto.FLOAT16, [1], [1.0])
    (problem,) = lint([node("Add", "x h")], initializers=[half])
    assert problem.startswith("not a valid graph")


def test_refusals_list_their_reasons(tiny_bf16_engine: Path):
    path = tiny_bf16_engine / "decoder.onnx"
    require_supported([path], "10.6")
    with pytest.raises(ExportError, match="opset 22") as caught:
        require_supported([path, path], "10.0")
    assert caught.value.given.count("decoder.onnx") == 2
    assert caught.value.remedy


@pytest.mark.parametrize("version", ["9.3", "8.6.1", "ten", "10", ""])
def test_versions_that_are_none_or_too_old_are_refused(version: str):
    with pytest.raises(ArgumentError):
        check_graphs([], version)


def test_a_newer_release_is_held_against_the_newest_that_is_known(tiny_engine: Path):
    assert check_graphs([tiny_engine / "decoder.onnx"], "12.1.0") == []


def test_a_problem_says_where_it_is():
    assert str(ParserProblem("decoder.onnx", "a/Det_1", "no")) == "decoder.onnx: a/Det_1: no"


def test_the_table_speaks_of_operators_and_types_that_exist():
    schemas = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    assert set(table.TYPES) <= schemas
    named = {*table.SINCE, *table.ATTRIBUTES, *table.OUTPUTS, *table.CONSTANT_INPUTS}
    assert named <= set(table.TYPES)
    assert set().union(*table.TYPES.values()) <= set(TensorProto.DataType.keys())
    for operator, limits in table.ATTRIBUTES.items():
        assert set(limits) <= set(onnx.defs.get_schema(operator).attributes)

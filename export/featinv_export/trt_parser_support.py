"""Whether TensorRT's ONNX parser reads a graph: a lint that needs neither TensorRT nor a GPU.

Every node is held against the table of operators, types and restrictions, so that a graph which the parser refuses is
found where it is made and not where it is built.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from featinv_export.trt_parser_support_table import (
    ANY,
    ATTRIBUTES,
    BOUNDARY,
    CONSTANT_INPUTS,
    MAXIMUM_OPSET,
    MINIMUM_OPSET,
    NEWEST,
    OLDEST,
    OUTPUTS,
    SINCE,
    TYPES,
)
from featinv_fast.errors import ArgumentError, ExportError

Release = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class ParserProblem:
    """Something in a graph that a release's parser does not read.

    Attributes:
        graph: the file's name.
        node: the node's name, or that of an input or output of the graph; "" for the graph as a whole.
        reason: why it is not read.
    """

    graph: str
    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.graph}: {self.node}: {self.reason}" if self.node else f"{self.graph}: {self.reason}"


def check_graphs(paths: Sequence[Path], tensorrt_version: str) -> list[ParserProblem]:
    """What in these ONNX files the parser of a TensorRT release does not read; empty where it reads all.

    Args:
        paths: `.onnx` files. Their weights are not read.
        tensorrt_version: as `tensorrt.__version__` says it, e.g. "10.16.1.11"; two numbers are enough. A release newer
            than the table is held against the newest that the table knows.

    Raises:
        ArgumentError: not a version, or one older than 10.0.
    """
    release = _release(tensorrt_version)
    return [problem for path in paths for problem in _Linter(path).problems(release)]


def reading_releases(paths: Sequence[Path]) -> str:
    """Which releases' parsers read all of these ONNX files, in words, for people: "10.6 and newer"."""
    linters = [_Linter(path) for path in paths]
    known = sorted({OLDEST, NEWEST, *MAXIMUM_OPSET, *SINCE.values()})
    reading = [release for release in known if not any(any(linter.problems(release)) for linter in linters)]
    if NEWEST in reading:
        return f"{_spelled(reading[0])} and newer"
    return f"{_spelled(reading[0])} to {_spelled(reading[-1])}" if reading else "none"


def require_supported(paths: Sequence[Path], tensorrt_version: str) -> None:
    """Refuse graphs that the parser of a TensorRT release does not read; see `check_graphs`.

    Raises:
        ExportError: there are such graphs; the first ten reasons are listed.
        ArgumentError: not a version, or one older than 10.0.
    """
    problems = check_graphs(paths, tensorrt_version)
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ExportError(
            f"the ONNX parser of TensorRT {tensorrt_version} does not read these graphs",
            given="; ".join(str(problem) for problem in problems[:10]) + more,
            expected="operators and types of its support table",
            remedy="use a newer TensorRT, or another precision; where neither helps, please report it",
        )


def _release(version: str) -> Release:
    numbers = version.split(".")[:2]
    if len(numbers) < 2 or not all(number.isdecimal() for number in numbers):
        raise ArgumentError(
            "not a TensorRT version", given=repr(version), expected='"10.16" or longer', remedy="write it so"
        )
    release = (int(numbers[0]), int(numbers[1]))
    if release < OLDEST:
        raise ArgumentError(
            "this TensorRT is too old", given=version, expected=f"{_spelled(OLDEST)} or newer", remedy="upgrade it"
        )
    return min(release, NEWEST)


def _spelled(release: Release) -> str:
    return f"{release[0]}.{release[1]}"


class _Linter:
    """One file, held against one release at a time."""

    def __init__(self, path: Path) -> None:
        import onnx

        self.name = path.name
        self.release = NEWEST
        self.model = onnx.load(path, load_external_data=False)
        self.opset = next((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), 0)

    @functools.cached_property
    def graph(self) -> Any:
        """The graph with the types of all values. What a file states of the types inside it is not trusted.

        Raises:
            onnx.shape_inference.InferenceError: the graph is not valid.
        """
        import onnx

        return onnx.shape_inference.infer_shapes(self.model, check_type=True, strict_mode=True).graph

    def problems(self, release: Release) -> Iterator[ParserProblem]:
        """What the parser of `release` does not read."""
        import onnx

        self.release = release
        maximum = max(opset for since, opset in MAXIMUM_OPSET.items() if since <= self.release)
        if not MINIMUM_OPSET <= self.opset <= maximum:
            yield self._problem("", f"opset {self.opset} is not among {MINIMUM_OPSET} to {maximum}")
            return
        try:
            graph = self.graph
        except onnx.shape_inference.InferenceError as error:
            yield self._problem("", f"not a valid graph ({str(error).strip().splitlines()[0]}): refused")
            return
        for value in (*graph.input, *graph.output):
            dtype = _type_name(value.type.tensor_type.elem_type)
            if dtype not in BOUNDARY:
                yield self._problem(value.name, f"{dtype} is no type of an input or output")
        yield from self._graph_problems(graph, {}, frozenset())

    def _graph_problems(self, graph: Any, outer: dict[str, str], constants: frozenset[str]) -> Iterator[ParserProblem]:
        """Problems of `graph`, which sees the types and constants of the graph around it."""
        types = outer | {
            value.name: _type_name(value.type.tensor_type.elem_type)
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        types |= {tensor.name: _type_name(tensor.data_type) for tensor in graph.initializer}
        constants |= {tensor.name for tensor in graph.initializer}
        constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
        for node in graph.node:
            for reason in self._reasons(node, types, constants):
                yield self._problem(node.name or node.op_type, reason)
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    yield from self._graph_problems(inner, types, constants)

    def _reasons(self, node: Any, types: dict[str, str], constants: frozenset[str]) -> Iterator[str]:
        operator = node.op_type
        if node.domain not in ("", "ai.onnx"):
            yield f"{node.domain}.{operator} is no operator of the ONNX standard"
            return
        if operator not in TYPES or self.release < SINCE.get(operator, OLDEST):
            later = f" before {_spelled(SINCE[operator])}" if operator in SINCE else ""
            yield f"{operator} is not supported{later}"
            return
        yield from self._type_reasons(node, types)
        limits = ATTRIBUTES.get(operator, {})
        for attribute in node.attribute:
            values = _attribute_values(attribute)
            if attribute.name in limits and not values <= limits[attribute.name]:
                yield f"{operator} is not supported with {attribute.name} {_listing(values)}"
        if sum(map(bool, node.output)) > OUTPUTS.get(operator, len(node.output)):
            yield f"{operator} is not supported with more than {OUTPUTS[operator]} output"
        for index, since in CONSTANT_INPUTS.get(operator, {}).items():
            free = since is not None and self.release >= since
            if not free and len(node.input) > index and node.input[index] and node.input[index] not in constants:
                yield f"{operator} is not supported with an input {index} that is not constant"

    def _type_reasons(self, node: Any, types: dict[str, str]) -> Iterator[str]:
        """Types of data that the operator is not read in. Those of shapes, indices and conditions are given by ONNX."""
        import onnx

        schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        variables = {
            c.type_param_str: {_schema_type(text) for text in c.allowed_type_strs} for c in schema.type_constraints
        }
        supported = TYPES[node.op_type]
        values = [*_with_parameters(node.input, schema.inputs), *_with_parameters(node.output, schema.outputs)]
        bad: dict[str, str] = {}
        for name, parameter in values:
            # A parameter of one fixed type has no variable.
            allowed = variables.get(parameter.type_str, {_schema_type(parameter.type_str)})
            dtype = types.get(name, "UNDEFINED")
            if dtype not in (supported & allowed or ANY):
                bad.setdefault(dtype, f"{node.op_type} is not supported in {dtype} ({parameter.name})")
        yield from bad.values()

    def _problem(self, node: str, reason: str) -> ParserProblem:
        return ParserProblem(self.name, node, f"{reason} by the ONNX parser of TensorRT {_spelled(self.release)}")


def _with_parameters(names: Sequence[str], parameters: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Each value that a node reads or writes with its formal parameter. The last parameter may take any number."""
    for index, name in enumerate(names):
        if name:  # an optional one that was left out has an empty name
            yield name, parameters[min(index, len(parameters) - 1)]


def _attribute_values(attribute: Any) -> frozenset[object]:
    import onnx

    value = onnx.helper.get_attribute_value(attribute)
    values = value if isinstance(value, list | tuple) else [value]
    return frozenset(v.decode() if isinstance(v, bytes) else v for v in values if isinstance(v, bytes | int | float))


def _listing(values: frozenset[object]) -> str:
    return ", ".join(sorted(map(str, values)))


def _schema_type(text: str) -> str:
    """The name in onnx.TensorProto of a tensor's type: "tensor(float16)" is "FLOAT16". Others get none."""
    return text.removeprefix("tensor(").removesuffix(")").upper()


def _type_name(number: int) -> str:
    import onnx

    return str(onnx.TensorProto.DataType.Name(number))

"""Where a graph says that its weights are: in the engine's own weight file, or nobody reads them.

onnxruntime looks at this itself; TensorRT's parser follows a path wherever it leads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from featinv_fast.backends.torch_ import WEIGHT_FILE
from featinv_fast.errors import EngineIntegrityError


def require_own_weights(graph_file: Path) -> None:
    """Refuse a graph that has tensors anywhere but in itself and in the weight file beside it.

    Raises:
        EngineIntegrityError: it has.
    """
    import onnx

    model = onnx.load(graph_file, load_external_data=False)
    nodes = [node for function in model.functions for node in function.node]
    for tensor in (*_graph_tensors(model.graph), *_node_tensors(nodes)):
        locations = {entry.value for entry in tensor.external_data if entry.key == "location"}
        if tensor.data_location == onnx.TensorProto.EXTERNAL and locations != {WEIGHT_FILE}:
            raise EngineIntegrityError(
                f"{graph_file.name} has weights outside of the engine",
                given=f"{tensor.name} in {', '.join(sorted(map(repr, locations))) or 'no file'}",
                expected=f"{WEIGHT_FILE!r}, beside the graph",
                remedy="do not use this engine; export the checkpoint again",
            )


def _graph_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[Any]) -> Iterator[Any]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(graph)

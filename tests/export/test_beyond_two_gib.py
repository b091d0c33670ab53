"""Weights beyond 2 GiB, the most that one protobuf message holds: they lie in one file beside the graph."""

from __future__ import annotations

import dataclasses

import onnx
import onnx_ir
import onnxruntime
import torch

from featinv_export.onnx_graphs import export_graph
from featinv_export.weights import weight_index
from featinv_fast.backends import Request, load
from featinv_fast.engine import open_engine
from featinv_fast.rewrites.engine_model import EngineModel

GRAPH = "condition_encoder"
BEYOND = 2**31 + 2**12


def test_b11_weights_beyond_two_gib_are_read_where_they_are(tiny_engine, tiny_maps, relative_norm, tmp_path):
    """The graph of an engine whose weight file has a gap of 2 GiB before the first weight; the gap takes no space."""
    engine = open_engine(tiny_engine)
    index = {
        name: dataclasses.replace(stored, offset=stored.offset + BEYOND)
        for name, stored in weight_index(tiny_engine).items()
    }
    with (tmp_path / "weights.safetensors").open("wb") as file:
        file.seek(BEYOND)
        file.write((tiny_engine / "weights.safetensors").read_bytes())
    structure = EngineModel.empty(engine.manifest.model)
    path = tmp_path / f"{GRAPH}.onnx"
    onnx_ir.save(export_graph(structure.graphs()[GRAPH], engine.graph_specs()[GRAPH], index), path)

    onnx.checker.check_model(str(path), full_check=True)
    onnx.shape_inference.infer_shapes_path(str(path), str(tmp_path / "inferred.onnx"), strict_mode=True)
    places = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    assert {place["location"] for place in places} == {"weights.safetensors"}
    assert min(int(place["offset"]) for place in places) > 2**31
    (given,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"features": tiny_maps.numpy()}
    )
    expected = load(Request(engine=engine, device=torch.device("cpu")), "torch").run(GRAPH, tiny_maps)
    assert relative_norm(torch.from_numpy(given), expected) <= 1e-5

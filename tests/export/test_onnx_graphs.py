"""The ONNX files of an engine: where their weights are, what they say, and in which types they compute."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch

from featinv_export.onnx_graphs import export_graph
from featinv_export.weights import StoredTensor, weight_index
from featinv_fast.config import FeatureSpec, Precision
from featinv_fast.engine import graph_specs, open_engine
from featinv_fast.errors import ExportError
from featinv_fast.rewrites.engine_model import EngineModel, storage_dtypes

GRAPHS = ("condition_encoder", "time_embedding", "denoiser", "denoiser_unguided", "decoder")
FLOAT = onnx.TensorProto.FLOAT
# The products, which are what half precision is for.
PRODUCTS = ("Conv", "Gemm", "MatMul")
# Sums over many values, for which half precision is too coarse.
SUMS = ("InstanceNormalization", "LayerNormalization", "Softmax")


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_are_valid(golden_engine: Path, graph: str):
    onnx.checker.check_model(str(golden_engine / f"{graph}.onnx"), full_check=True)


@pytest.mark.parametrize("graph", GRAPHS)
def test_b11_all_weights_lie_in_the_one_weight_file(golden_engine: Path, graph: str):
    model = onnx.load(golden_engine / f"{graph}.onnx", load_external_data=False)
    index = weight_index(golden_engine)
    external = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert len(external) >= 6
    for tensor in external:
        place = {entry.key: entry.value for entry in tensor.external_data}
        stored = index[tensor.name]
        assert place["location"] == "weights.safetensors"
        assert (int(place["offset"]), int(place["length"])) == (stored.offset, stored.length)
        assert tuple(tensor.dims) == stored.shape
    inline = [tensor for tensor in model.graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    assert sum(len(tensor.SerializeToString()) for tensor in inline) < 50_000


def test_every_stored_weight_is_used_by_a_graph(golden_engine: Path):
    used: set[str] = set()
    for graph in GRAPHS:
        model = onnx.load(golden_engine / f"{graph}.onnx", load_external_data=False)
        used |= {t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    assert used == set(weight_index(golden_engine))


def test_graph_files_are_small(golden_engine: Path):
    sizes = {graph: (golden_engine / f"{graph}.onnx").stat().st_size for graph in GRAPHS}
    assert max(sizes.values()) < 2 * 2**20 < (golden_engine / "weights.safetensors").stat().st_size / 30


@pytest.mark.parametrize("graph", GRAPHS)
def test_inputs_and_output_are_named_as_the_spec_says(golden_engine: Path, graph: str):
    spec = open_engine(golden_engine).graph_specs()[graph]
    model = onnx.load(golden_engine / f"{graph}.onnx", load_external_data=False)
    for value, tensor in zip([*model.graph.input, *model.graph.output], [*spec.inputs, spec.output], strict=True):
        shape = tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
        assert (value.name, shape) == (tensor.name, tensor.shape)
        assert value.type.tensor_type.elem_type == FLOAT


@pytest.mark.parametrize("graph", GRAPHS)
def test_nothing_of_this_machine_is_in_the_files(golden_engine: Path, graph: str):
    content = (golden_engine / f"{graph}.onnx").read_bytes()
    for trace in (b".py", b"site-packages", b"stack_trace", b"Traceback", str(Path.home()).encode() + b"/", b"/tmp"):
        assert trace not in content
    model = onnx.load(golden_engine / f"{graph}.onnx", load_external_data=False)
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_nodes_are_named_after_the_modules_they_came_from(golden_engine: Path):
    model = onnx.load(golden_engine / "decoder.onnx", load_external_data=False)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert "decoder.levels.0.blocks.0.conv_in/Conv_1" in names


def computes_in(model: onnx.ModelProto, operators: tuple[str, ...]) -> dict[str, int]:
    """The type of what each node of these operators reads."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.value_info]}
    return {node.name: types[node.input[0]] for node in graph.node if node.op_type in operators}


@pytest.mark.parametrize("graph", GRAPHS)
def test_fp16_multiplies_in_fp16_and_sums_in_fp32(tiny_fp16_engine: Path, graph: str):
    model = onnx.load(tiny_fp16_engine / f"{graph}.onnx", load_external_data=False)
    products, sums = computes_in(model, PRODUCTS), computes_in(model, SUMS)
    assert set(sums.values()) <= {FLOAT}
    assert bool(sums) == (graph not in ("condition_encoder", "time_embedding"))
    assert products
    in_fp32 = {name for name, dtype in products.items() if dtype == FLOAT}
    assert set(products.values()) <= {FLOAT, onnx.TensorProto.FLOAT16}
    # The time embedding runs once per call and is kept in fp32; one layer's weight does not fit fp16.
    if graph == "time_embedding":
        assert in_fp32 == set(products)
    elif graph.startswith("denoiser"):
        assert {name.partition("/")[0] for name in in_fp32} == {"denoiser.controlnet.zero_convs.0"}
    else:
        assert in_fp32 == set()


def test_fp16_weights_are_stored_in_fp16(tiny_fp16_engine: Path):
    for name, stored in weight_index(tiny_fp16_engine).items():
        fp32 = name.startswith(("time_embedding.", "denoiser.controlnet.zero_convs.0."))
        assert stored.dtype == ("F32" if fp32 else "F16")


def test_bf16_multiplies_in_bf16_and_sums_in_fp32(tiny_config):
    structure = EngineModel.empty(tiny_config)
    dtypes = storage_dtypes(structure, Precision.BF16)
    for name, parameter in structure.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    spelled = {torch.bfloat16: "BF16", torch.float32: "F32"}
    index = {
        name: StoredTensor(0, 2 * tensor.numel(), spelled[tensor.dtype], tuple(tensor.shape))
        for name, tensor in structure.state_dict().items()
    }
    specs = graph_specs(tiny_config, FeatureSpec(channels=6), time_bias_size=structure.time_embedding.size, max_batch=8)
    model = ir.to_proto(export_graph(structure.graphs()["denoiser"], specs["denoiser"], index))
    assert set(computes_in(model, PRODUCTS).values()) == {onnx.TensorProto.BFLOAT16}
    assert set(computes_in(model, SUMS).values()) == {FLOAT}


def test_a_graph_whose_weights_are_not_those_of_the_file_is_refused(golden, golden_engine: Path):
    structure = EngineModel.empty(golden.config)
    specs = graph_specs(
        golden.config,
        open_engine(golden_engine).manifest.features,
        time_bias_size=structure.time_embedding.size,
        max_batch=8,
    )
    index = weight_index(golden_engine)
    name = "condition_encoder.conv_out.bias"
    del index[name]
    with pytest.raises(ExportError, match=name):
        export_graph(structure.graphs()["condition_encoder"], specs["condition_encoder"], index)


def test_weight_index_reads_what_json_says(golden_engine: Path):
    content = (golden_engine / "weights.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    stored = weight_index(golden_engine)["denoiser.unet.conv_out.bias"]
    begin, end = header["denoiser.unet.conv_out.bias"]["data_offsets"]
    assert (stored.offset, stored.length, stored.dtype, stored.shape) == (8 + length + begin, end - begin, "F32", (4,))

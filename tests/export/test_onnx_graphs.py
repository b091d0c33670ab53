"""The ONNX files of an engine: where their weights are, what they say, and in which types they compute."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from featinv_export import half_precision
from featinv_export.onnx_graphs import export_graph
from featinv_export.weights import weight_index
from featinv_fast.config import Precision
from featinv_fast.engine import graph_specs, open_engine
from featinv_fast.errors import ExportError
from featinv_fast.rewrites.engine_model import EngineModel
from featinv_fast.rewrites.upsample_products import is_kernel

GRAPHS = ("condition_encoder", "time_embedding", "denoiser", "denoiser_unguided", "decoder")
FLOAT = onnx.TensorProto.FLOAT
# The products, which are what half precision is for.
PRODUCTS = ("Conv", "Gemm", "MatMul")
# Sums over many values, for which half precision is too coarse.
SUMS = ("InstanceNormalization", "LayerNormalization", "Softmax")


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_are_valid(golden_engine: Path, graph: str):
    # By path: what works for files beyond 2 GB too, which do not fit into one protobuf message.
    onnx.checker.check_model(str(golden_engine / f"{graph}.onnx"), full_check=True)


@pytest.mark.parametrize("graph", GRAPHS)
def test_b11_shapes_are_inferred_by_path_and_all_known(golden_engine: Path, tmp_path: Path, graph: str):
    inferred = tmp_path / f"{graph}.onnx"
    path = str(golden_engine / f"{graph}.onnx")
    onnx.shape_inference.infer_shapes_path(path, str(inferred), check_type=True, strict_mode=True, data_prop=True)
    values = {
        value.name: value
        for model in (onnx.load(inferred, load_external_data=False), onnx.load(path, load_external_data=False))
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    }
    for node in onnx.load(path, load_external_data=False).graph.node:
        for name in node.output:
            assert values[name].type.tensor_type.elem_type
            assert values[name].type.tensor_type.HasField("shape"), node.name


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


def test_every_stored_weight_is_used_by_a_graph_but_the_kernels_beside_their_products(golden_engine: Path):
    used: set[str] = set()
    for graph in GRAPHS:
        model = onnx.load(golden_engine / f"{graph}.onnx", load_external_data=False)
        used |= {t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    stored = set(weight_index(golden_engine))
    kernels = {name for name in stored if is_kernel(name)}
    assert used == stored - kernels
    assert len(kernels) == 6


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
    assert {entry.key for entry in model.metadata_props} == {"featinv.graph", "featinv.precision"}
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_nodes_are_named_after_the_modules_they_came_from(golden_engine: Path):
    model = onnx.load(golden_engine / "decoder.onnx", load_external_data=False)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert all(name.startswith("decoder") for name in names)
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
        fp32 = name.startswith(("time_embedding.", "denoiser.controlnet.zero_convs.0.")) or is_kernel(name)
        assert stored.dtype == ("F32" if fp32 else "F16")


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("half_engine", ["golden_fp16_engine", "tiny_bf16_engine"])
def test_half_precision_node_by_node(half_engine: str, graph: str, request: pytest.FixtureRequest):
    """Every node computes in half precision or is in the model's own list of those in fp32, under the right reason."""
    engine = request.getfixturevalue(half_engine)
    precision = open_engine(engine).manifest.precision
    model = onnx.load(engine / f"{graph}.onnx", load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    listed = json.loads(metadata.get("featinv.nodes_in_fp32", "{}"))
    reasons = {name: reason for reason, names in listed.items() for name in names}
    assert half_precision.UNEXPLAINED not in listed
    assert metadata["featinv.graph"] == graph
    if graph == "time_embedding":
        assert metadata["featinv.precision"] == "fp32"
        assert {types[name] for node in inferred.node for name in node.output} == {FLOAT}
        return
    half = {Precision.FP16: onnx.TensorProto.FLOAT16, Precision.BF16: onnx.TensorProto.BFLOAT16}[precision]
    assert metadata["featinv.precision"] == precision
    for node in inferred.node:
        given, made = types[node.input[0]], types[node.output[0]]
        if node.op_type in SUMS:
            assert given == made == FLOAT
            assert reasons[node.name] in (half_precision.NORM, half_precision.SOFTMAX)
        elif node.op_type in PRODUCTS:
            assert {types[name] for name in node.input} == {made} == {half}
            assert node.name not in reasons
        elif node.op_type not in half_precision.MOVES:
            assert given == made == (FLOAT if node.name in reasons else half), node.name
    if graph == "denoiser":
        # Guidance is a sampler's arithmetic: u + s (c - u).
        assert sorted(name.split("/")[1].split("_")[0] for name in listed[half_precision.BOUNDARY]) == [
            "Add",
            "Mul",
            "Sub",
        ]


def test_weights_that_do_not_fit_fp16_are_listed_in_the_model(tiny_fp16_engine: Path):
    model = onnx.load(tiny_fp16_engine / "denoiser.onnx", load_external_data=False)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    listed = json.loads(metadata["featinv.nodes_in_fp32"])
    assert listed[half_precision.UNFIT] == ["denoiser.controlnet.zero_convs.0/Conv_2"]
    assert half_precision.UNEXPLAINED not in listed


def test_the_opset_is_one_in_which_the_types_exist(tiny_engine: Path, tiny_fp16_engine: Path, tiny_bf16_engine: Path):
    for engine, opset in ((tiny_engine, 20), (tiny_fp16_engine, 20), (tiny_bf16_engine, 22)):
        model = onnx.load(engine / "decoder.onnx", load_external_data=False)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    model.opset_import[0].version = 20
    with pytest.raises(onnx.shape_inference.InferenceError, match="bfloat16"):
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def test_inputs_and_output_say_what_they_are(golden_engine: Path):
    for graph in GRAPHS:
        model = onnx.load(golden_engine / f"{graph}.onnx", load_external_data=False)
        assert all(value.doc_string for value in (*model.graph.input, *model.graph.output))


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

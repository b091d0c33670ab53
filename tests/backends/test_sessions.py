"""The two backends run the same graphs: their sessions against the plain networks and against each other."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import onnx
import pytest
import torch

from featinv_fast import Runtime
from featinv_fast.backends import Request, Session, load
from featinv_fast.config import Precision
from featinv_fast.engine import open_engine
from featinv_fast.errors import EngineIntegrityError

CPU = torch.device("cpu")
BACKENDS = ("torch", "onnxruntime")
NAMES = ("torch", "onnxruntime")


@pytest.fixture(scope="module")
def engine(tiny_engine):
    return open_engine(tiny_engine)


@pytest.fixture(scope="module")
def sessions(engine) -> dict[str, Session]:
    return {name: load(Request(engine=engine, device=CPU, threads=1), name) for name in NAMES}


def _inputs(spec, batch):
    """Inputs of a graph in the order of its spec; sizes that are not the batch have odd values."""
    generator = torch.Generator().manual_seed(1)
    shapes = spec.input_shapes({dim.name: batch for dim in spec.dims})
    return tuple(torch.randn(shape, generator=generator) for shape in shapes.values())


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("graph", ["condition_encoder", "time_embedding", "denoiser", "denoiser_unguided", "decoder"])
def test_both_backends_compute_every_graph(engine, sessions, relative_norm, graph, batch):
    spec = engine.graph_specs()[graph]
    inputs = _inputs(spec, batch)
    shapes = dict(zip(spec.input_names, (tuple(x.shape) for x in inputs), strict=True))
    outputs = [session.run(graph, *inputs) for session in sessions.values()]
    for output in outputs:
        assert (output.dtype, output.device) == (torch.float32, CPU)
        assert tuple(output.shape) == spec.output_shape(shapes)
    assert relative_norm(outputs[0], outputs[1]) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_inputs_may_have_any_strides_and_outputs_are_not_overwritten(engine, sessions, relative_norm, name):
    latents, *_ = _inputs(engine.graph_specs()["decoder"], 3)
    session = sessions[name]
    first = session.run("decoder", latents)
    kept = first.clone()
    strided = latents.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert relative_norm(session.run("decoder", strided), kept) <= 1e-5
    session.run("decoder", latents + 1)
    assert torch.equal(first, kept)


def test_onnxruntime_loads_a_graph_when_it_is_first_run(engine):
    session = load(Request(engine=engine, device=CPU, threads=1), "onnxruntime")
    assert session._sessions == {}
    session.run("time_embedding", torch.ones(2))
    first = session._sessions["time_embedding"]
    session.run("time_embedding", torch.ones(3))
    assert session._sessions == {"time_embedding": first}
    assert first.get_session_options().intra_op_num_threads == 1


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_torch_casts_to_the_precision_that_is_asked_for(engine, precision):
    session = load(Request(engine=engine, device=CPU, precision=precision), "torch")
    assert session.precision is precision
    dtypes = {parameter.dtype for parameter in session.graphs["denoiser"].parameters()}
    assert dtypes == {{Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}[precision]}
    assert {parameter.dtype for parameter in session.graphs["time_embedding"].parameters()} == {torch.float32}
    assert session.run("decoder", torch.zeros(1, 4, 8, 8)).dtype == torch.float32


def test_torch_keeps_in_fp32_what_the_engine_says(engine):
    kept = ("decoder.conv_out.weight", "decoder.conv_out.bias")
    other = dataclasses.replace(engine, manifest=dataclasses.replace(engine.manifest, kept_fp32=kept))
    session = load(Request(engine=other, device=CPU, precision=Precision.FP16), "torch")
    dtypes = {name: p.dtype for name, p in session.graphs["decoder"].named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == set(kept)
    assert session.run("decoder", torch.zeros(1, 4, 8, 8)).isfinite().all()


def test_torch_shares_the_weights_of_its_graphs_and_of_the_file(sessions):
    graphs = sessions["torch"].graphs
    guided = {p.data_ptr() for p in graphs["denoiser"].parameters()}
    assert guided == {p.data_ptr() for p in graphs["denoiser_unguided"].parameters()}


@pytest.fixture
def with_location(tiny_engine, restage, tmp_path):
    """`with_location(location)`: an engine, sound by its manifest, one graph of which has its weights elsewhere."""

    def make(location: str) -> Path:
        def edit(folder):
            model = onnx.load(folder / "condition_encoder.onnx", load_external_data=False)
            tensors = [tensor for tensor in model.graph.initializer if tensor.external_data]
            assert tensors
            for tensor in tensors:
                for entry in tensor.external_data:
                    if entry.key == "location":
                        entry.value = location
            (folder / "condition_encoder.onnx").write_bytes(model.SerializeToString())

        return restage(tiny_engine, tmp_path / "elsewhere.engine", edit)

    return make


@pytest.mark.parametrize(
    "location",
    ["../outside.safetensors", "{absolute}", "{engine}", "sub/../weights.safetensors", "missing.safetensors", ""],
)
def test_c2_external_data_outside_the_engine_are_refused(with_location, tiny_engine, tiny_maps, tmp_path, location):
    outside = tmp_path / "outside.safetensors"
    shutil.copyfile(tiny_engine / "weights.safetensors", outside)
    named = location.format(absolute=outside, engine=tmp_path / "elsewhere.engine" / "weights.safetensors")
    runtime = Runtime(with_location(named), backend="onnxruntime")
    with pytest.raises(EngineIntegrityError, match=r"condition_encoder\.onnx") as caught:
        runtime.invert(tiny_maps[:1])
    assert caught.value.remedy


def test_c2_external_data_in_the_engines_own_weight_file_are_taken(with_location, tiny_maps):
    runtime = Runtime(with_location("weights.safetensors"), backend="onnxruntime")
    assert runtime.invert(tiny_maps[:1]).ok.all()


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no symbolic links")
def test_c2_a_linked_weight_file_is_refused(tiny_engine, tmp_path):
    engine = Path(shutil.copytree(tiny_engine, tmp_path / "linked.engine"))
    (engine / "weights.safetensors").rename(tmp_path / "weights.safetensors")
    (engine / "weights.safetensors").symlink_to(tmp_path / "weights.safetensors")
    with pytest.raises(EngineIntegrityError, match="symbolic link"):
        Runtime(engine)


def test_a_graph_that_is_no_graph_is_refused(tiny_engine, restage, tmp_path, tiny_maps):
    def edit(folder):
        (folder / "decoder.onnx").write_bytes(b"no protobuf")

    runtime = Runtime(restage(tiny_engine, tmp_path / "broken.engine", edit), backend="onnxruntime")
    with pytest.raises(EngineIntegrityError, match=r"decoder\.onnx") as caught:
        runtime.invert(tiny_maps[:1])
    assert "upgrade onnxruntime" in caught.value.remedy

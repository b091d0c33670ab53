"""What onnxruntime is asked for on a GPU, what is checked of its answer, and runs on torch's own memory.

There is no GPU here: options and answers are those of a stand-in, and binding and replay run on the CPU's memory with
the real library.
"""

from __future__ import annotations

import types
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

from featinv_fast.backends import Request, load, onnxruntime_, provider_problems
from featinv_fast.backends.onnxruntime_ import OnnxruntimeBackend, OnnxruntimeSession
from featinv_fast.backends.onnxruntime_providers import LOOP_GRAPHS, Variant, misplaced, provider_chain
from featinv_fast.config import Precision
from featinv_fast.engine import open_engine
from featinv_fast.errors import BackendUnavailableError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


@pytest.fixture(scope="module")
def engine(tiny_engine):
    return open_engine(tiny_engine)


@pytest.fixture(scope="module")
def specs(engine):
    return engine.graph_specs()


def chain(spec: Any, variant: Variant = Variant.STANDARD, precision: Precision = Precision.FP16) -> list[Any]:
    return provider_chain(variant, spec, device=CUDA, precision=precision, stream=123)


def test_cuda_runs_on_our_stream_and_device(specs):
    assert chain(specs["denoiser"]) == [("CUDAExecutionProvider", {"device_id": "1", "user_compute_stream": "123"})]


@pytest.mark.parametrize("graph", ["condition_encoder", "time_embedding", "decoder", *LOOP_GRAPHS])
def test_cuda_graphs_are_captured_for_the_loop_alone(specs, graph: str):
    ((_, options),) = chain(specs[graph], Variant.CUDA_GRAPHS)
    assert options.get("enable_cuda_graph") == ("1" if graph in LOOP_GRAPHS else None)


def test_tensorrt_gets_profiles_of_the_spec_and_leaves_the_rest_to_cuda(specs):
    (first, options), (second, _) = chain(specs["denoiser"], Variant.TENSORRT)
    assert (first, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert options["trt_profile_min_shapes"] == "latents:1x4x8x8,condition:1x32x8x8"
    assert options["trt_profile_max_shapes"] == "latents:64x4x8x8,condition:64x32x8x8"
    assert (options["user_compute_stream"], options["has_user_compute_stream"]) == ("123", "1")


@pytest.mark.parametrize("precision", Precision)
def test_tensorrt_is_told_the_precision(specs, precision: Precision):
    options = chain(specs["decoder"], Variant.TENSORRT, precision)[0][1]
    flags = (options["trt_fp16_enable"], options["trt_bf16_enable"])
    assert flags == {Precision.FP32: ("0", "0"), Precision.FP16: ("1", "0"), Precision.BF16: ("0", "1")}[precision]


def test_a_cpu_needs_no_options(specs):
    chain = provider_chain(Variant.STANDARD, specs["decoder"], device=CPU, precision=Precision.FP32, stream=0)
    assert chain == [("CPUExecutionProvider", {})]


@pytest.mark.parametrize("variant", [Variant.CUDA_GRAPHS, Variant.TENSORRT])
def test_c6_ways_of_a_gpu_are_refused_on_a_cpu(engine, variant: Variant):
    reasons = OnnxruntimeBackend(variant).not_supported_reasons(Request(engine=engine, device=CPU))
    assert reasons == ["devices of the kind 'cpu' are not supported: it needs an NVIDIA GPU"]


def test_c6_a_provider_that_this_onnxruntime_lacks_is_named(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert "has no TensorrtExecutionProvider" in provider_problems(CUDA, Variant.TENSORRT)[0]
    assert not any("ExecutionProvider" in reason for reason in provider_problems(CUDA, Variant.CUDA_GRAPHS))


def test_arithmetic_on_shapes_alone_may_run_on_the_cpu():
    nodes = [("CUDAExecutionProvider", "a", "Conv"), ("CPUExecutionProvider", "b", "Shape")]
    assert misplaced(nodes, ["CUDAExecutionProvider"]) == []
    assert misplaced([*nodes, ("CPUExecutionProvider", "c", "Conv")], ["CUDAExecutionProvider"]) == ["c"]
    tensorrt = ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert misplaced([("TensorrtExecutionProvider", "d", "Conv"), *nodes], tensorrt) == []


class FakeSession:
    """An InferenceSession that has the file's inputs and outputs, and says which nodes run where."""

    conv_on = "CUDAExecutionProvider"

    def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
        self.options, self.providers = options, providers
        graph = onnx.load(path, load_external_data=False).graph
        self.inputs, self.outputs = ([declared(value) for value in values] for values in (graph.input, graph.output))

    def get_inputs(self) -> list[Any]:
        return self.inputs

    def get_outputs(self) -> list[Any]:
        return self.outputs

    def get_providers(self) -> list[str]:
        return [name for name, _ in self.providers] + ["CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        places = {"Conv": self.conv_on, "Mul": "CUDAExecutionProvider", "Shape": "CPUExecutionProvider"}
        return [
            types.SimpleNamespace(
                ep_name=place, get_nodes=lambda op=op: [types.SimpleNamespace(name=f"a/{op}_1", op_type=op)]
            )
            for op, place in places.items()
        ]


def declared(value: onnx.ValueInfoProto) -> Any:
    """An input or output as onnxruntime describes it."""
    sizes = [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
    return types.SimpleNamespace(name=value.name, shape=sizes)


@pytest.fixture
def gpu_session(engine, monkeypatch) -> OnnxruntimeSession:
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: types.SimpleNamespace(cuda_stream=77, device=device))
    return OnnxruntimeBackend(Variant.CUDA_GRAPHS).load(Request(engine=engine, device=CUDA))


def test_what_runs_where_is_kept(gpu_session):
    fake = gpu_session._load("denoiser")
    assert gpu_session.backend == "onnxruntime-cuda-graphs"
    assert gpu_session.placements == {"denoiser": {"CUDAExecutionProvider": 2, "CPUExecutionProvider": 1}}
    assert fake.providers[0][1]["user_compute_stream"] == "77"
    assert fake.options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"


def test_all_graphs_share_one_stream(gpu_session):
    first, second = (gpu_session._load(graph) for graph in LOOP_GRAPHS)
    assert first.providers == second.providers


def test_c6_nodes_that_compute_on_the_cpu_in_secret_are_refused(gpu_session, monkeypatch):
    monkeypatch.setattr(FakeSession, "conv_on", "CPUExecutionProvider")
    with pytest.raises(BackendUnavailableError, match=r"leaves 1 nodes of denoiser to another: a/Conv_1"):
        gpu_session._load("denoiser")
    assert gpu_session.placements == {}


@pytest.fixture(scope="module")
def session(engine) -> OnnxruntimeSession:
    return load(Request(engine=engine, device=CPU, threads=1), "onnxruntime")


def inputs_of(spec: Any, batch: int, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = spec.input_shapes({dim.name: batch for dim in spec.dims})
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_the_cpu_provider_runs_every_node_of_the_file(session, specs):
    session.run("decoder", *inputs_of(specs["decoder"], 1).values())
    assert list(session.placements["decoder"]) == ["CPUExecutionProvider"]


@pytest.mark.parametrize("graph", ["condition_encoder", "time_embedding", "denoiser", "denoiser_unguided", "decoder"])
def test_bound_memory_gives_what_copies_give(session, specs, graph: str):
    for batch in (1, 3):
        given = inputs_of(specs[graph], batch)
        expected = session.run(graph, *given.values())
        torch.testing.assert_close(session._run_bound(graph, given), expected, rtol=0, atol=0)


def test_a_replay_reads_new_inputs_and_keeps_old_outputs(session, specs):
    spec = specs["denoiser"]
    results = []
    for batch, seed in ((2, 1), (3, 2), (2, 3)):
        given = inputs_of(spec, batch, seed)
        results.append((session._replay("denoiser", given), session.run("denoiser", *given.values())))
    for replayed, expected in results:
        torch.testing.assert_close(replayed, expected, rtol=0, atol=0)
    captures = [key for key in session._captures if key[0] == "denoiser"]
    assert len(captures) == 2  # one for each shape
    numbers = {session._captures[key].options.get_run_config_entry("gpu_graph_id") for key in captures}
    assert numbers == {"1", "2"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("variant", Variant)
def test_a_gpu_computes_what_the_cpu_computes(engine, session, specs, relative_norm, variant: Variant):
    reasons = provider_problems(torch.device("cuda"), variant)
    if reasons:
        pytest.skip("; ".join(reasons))
    gpu = OnnxruntimeBackend(variant).load(Request(engine=engine, device=torch.device("cuda")))
    for graph in LOOP_GRAPHS:
        for batch in (2, 3, 2):
            given = inputs_of(specs[graph], batch, seed=batch)
            output = gpu.run(graph, *(x.cuda() for x in given.values()))
            assert relative_norm(output.cpu(), session.run(graph, *given.values())) <= 1e-3  # TF32


def test_captured_graphs_are_bounded_and_keep_their_own_memory(monkeypatch):
    """onnxruntime gives no graph back, and replays each on the addresses that it was captured with."""
    runs: list[tuple[int, tuple[int, ...]]] = []

    class Binding:
        def __init__(self) -> None:
            self.addresses: list[int] = []
            self.bind_input = self.bind_output = lambda *arguments: self.addresses.append(arguments[-1])

    class Loaded:
        io_binding = Binding

        def run_with_iobinding(self, binding: Binding, options: dict[str, int]) -> None:
            runs.append((options["gpu_graph_id"], tuple(binding.addresses)))

    spec = types.SimpleNamespace(input_names=("latents",), output=types.SimpleNamespace(name="eps"))
    session = OnnxruntimeSession(
        {}, {"denoiser": spec}, device=CUDA, precision=Precision.FP32, variant=Variant.CUDA_GRAPHS
    )
    session._sessions["denoiser"] = Loaded()
    monkeypatch.setattr(onnxruntime_, "_run_options", lambda **entries: entries)
    monkeypatch.setattr(session, "_empty_output", lambda _, given: torch.empty_like(given["latents"]))
    most = onnxruntime_.MOST_CAPTURES
    for _ in range(2):
        for batch in range(1, most + 3):
            session.run("denoiser", torch.zeros(batch, 4))
    first, second = runs[: most + 2], runs[most + 2 :]
    assert [number for number, _ in first] == [*range(1, most + 1), -1, -1]
    assert first[:most] == second[:most]  # the same numbers on the same memory
    assert len({address for _, addresses in first[:most] for address in addresses}) == 2 * most
    assert [number for number, _ in second[most:]] == [-1, -1]

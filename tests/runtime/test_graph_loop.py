"""The loop as CUDA graphs, on a double that keeps CUDA's rules on the CPU: it records operations and repeats them."""

from __future__ import annotations

import concurrent.futures
import signal
import weakref

import numpy as np
import pytest
import torch

from featinv_fast import InversionInterrupted, Runtime
from featinv_fast.backends import Session, capture_thread
from featinv_fast.backends.torch_ import TorchSession
from featinv_fast.config import Precision
from featinv_fast.errors import ArgumentError, BackendUnavailableError
from featinv_fast.runtime.graph_loop import CudaGraphs, GraphLoop, bucket
from featinv_fast.runtime.sampling import aligned_rows
from featinv_kernels import ProviderUnavailableError

# A padded batch is summed in another order.
ROUNDING = 1e-4
NOISE = "noise in every step"
RUNS = {
    "guided": {"sampler": "ddim", "steps": 4, "guidance_scale": 1.75},
    "one branch, noise, a last step without": {"sampler": "lcm", "steps": 3, "guidance_scale": 1.0},
    "history": {"sampler": "dpm++2m", "steps": 4, "guidance_scale": 1.75},
    NOISE: {"sampler": "ddim", "steps": 3, "guidance_scale": 1.75, "eta": 1.0},
}


@pytest.fixture
def cuda(machine, monkeypatch):
    """The machine, for the torch backend on a CPU."""
    monkeypatch.setattr(TorchSession, "capture_problems", lambda _: [])
    return machine


@pytest.fixture(scope="module")
def plain(tiny_engine):
    """The tiny engine operation by operation."""
    return Runtime(tiny_engine, backend="torch", threads=1)


@pytest.fixture
def graphed(cuda, tiny_engine):
    """`graphed(mode)`: the tiny engine with its loop as graphs on the double."""
    return lambda mode: Runtime(tiny_engine, backend="torch", threads=1, cuda_graphs=mode)


def close(given, expected) -> bool:
    """Whether two inversions have the same images and latents but for rounding."""
    return np.allclose(given.images, expected.images, rtol=0, atol=ROUNDING) and torch.allclose(
        given.latents, expected.latents, rtol=0, atol=ROUNDING
    )


@pytest.mark.parametrize(("run", "mode"), [*((run, "step") for run in RUNS), ("history", "loop"), (NOISE, "loop")])
def test_the_same_images(graphed, plain, tiny_maps, run, mode):
    runtime = graphed(mode)
    options = {**RUNS[run], "output_type": "float", "seed": 3}
    # Five items in a bucket of six.
    given = runtime.invert(tiny_maps[2:], **options)
    assert not given.errors
    assert close(given, plain.invert(tiny_maps[2:], **options))


def test_captured_once_and_replayed_with_other_inputs(graphed, cuda, plain, tiny_maps):
    runtime = graphed("step")
    assert cuda.capture.call_count == 0  # nothing before it is needed
    runs = (
        {"seed": 1, "sampler": "ddim", "steps": 4, "guidance_scale": 1.75},
        {"seed": 8, "sampler": "dpm++2m", "steps": 3, "guidance_scale": 3.0, "strength": 0.5},
        {"seed": 1, "sampler": "lcm", "steps": 2, "guidance_scale": 1.75, "guess_mode": True},
        {"seed": 1, "sampler": "ddim", "steps": 2, "guidance_scale": 1.75, "eta": 1.0},
    )
    for number, options in enumerate(runs):
        maps = tiny_maps[number : number + 2]
        cuda.replay.reset_mock()
        given = runtime.invert(maps, output_type="float", **options)
        assert close(given, plain.invert(maps, output_type="float", **options))
        # One graph is replayed for every step and another one for the decoder: the same ones for all runs.
        replayed = [call.args[0] for call in cuda.replay.call_args_list]
        assert len(replayed) == options["steps"] + 1
        assert len(set(replayed)) == 2
        assert cuda.capture.call_count == 2
    captured = [{"batch": 2, "steps": 1, "decoder": False}, {"batch": 2, "steps": 0, "decoder": True}]
    assert runtime.info["cuda_graphs"] == {"mode": "step", "captured": captured, "reasons": []}


def test_another_bucket_or_number_of_branches_is_another_graph(graphed, cuda, tiny_maps):
    runtime = graphed("auto")
    expected = 0
    for count, options, new in (
        (1, {}, 2),
        (2, {}, 2),
        (2, {"guidance_scale": 1.0}, 1),  # the decoder's is there
        (2, {"eta": 1.0}, 0),
        (2, {"sampler": "dpm++2m", "steps": 3}, 0),
        (2, {"output_type": "latent"}, 0),
    ):
        runtime.invert(tiny_maps[:count], **{"sampler": "ddim", "steps": 2, "guidance_scale": 1.75, **options})
        expected += new
        assert cuda.capture.call_count == expected, (count, options)


def test_a_whole_loop_is_one_graph(graphed, cuda, plain, tiny_maps):
    runtime = graphed("loop")
    for seed in (0, 1):
        given = runtime.invert(tiny_maps[:2], steps=4, seed=seed, output_type="float")
        assert close(given, plain.invert(tiny_maps[:2], steps=4, seed=seed, output_type="float"))
    assert (cuda.capture.call_count, cuda.replay.call_count) == (1, 2)
    runtime.invert(tiny_maps[:2], steps=2)  # another number of steps
    assert cuda.capture.call_count == 2


@pytest.mark.parametrize(("mode", "captures"), [("step", 2), ("loop", 1)])
def test_a_warm_up_captures_what_the_next_call_needs(graphed, cuda, tiny_maps, mode, captures):
    runtime = graphed(mode)
    runtime.warmup(3)
    assert cuda.capture.call_count == captures
    runtime.invert(tiny_maps[:3])
    assert cuda.capture.call_count == captures


def test_where_a_capture_fails_auto_goes_on_without_and_says_why(graphed, cuda, plain, tiny_maps, caplog):
    runtime = graphed("auto")
    cuda.fail = RuntimeError("operation not permitted when stream is capturing\nmore")
    options = {**RUNS[NOISE], "output_type": "float", "seed": 3}
    for _ in range(2):
        given = runtime.invert(tiny_maps[:3], **options)
        # The very same: no noise was drawn for a loop that then did not run.
        assert np.array_equal(given.images, plain.invert(tiny_maps[:3], **options).images)
    assert cuda.capture.call_count == 1  # not tried again
    assert caplog.text.count("no CUDA graphs") == 1
    reasons = ["a capture failed: operation not permitted when stream is capturing"]
    assert runtime.info["cuda_graphs"] == {"mode": "off", "captured": [], "reasons": reasons}


def test_two_streams_are_part_of_a_graph(cuda, tiny_engine, plain, tiny_maps, monkeypatch):
    monkeypatch.setattr("featinv_fast.backends.torch_.stream_problems", lambda _: [])
    runtime = Runtime(tiny_engine, backend="torch", threads=1, cuda_graphs="step", two_streams=True)
    options = {**RUNS["guided"], "output_type": "float", "seed": 3}
    assert close(runtime.invert(tiny_maps[:2], **options), plain.invert(tiny_maps[:2], **options))
    info = runtime.info
    assert (info["two_streams"], info["cuda_graphs"]["mode"], cuda.capture.call_count) == (True, "step", 2)


@pytest.mark.parametrize("outcome", ["captured", "refused"])
@pytest.mark.parametrize("users", [False, True])
def test_algorithms_are_timed_before_and_in_a_capture_alone(graphed, cuda, tiny_maps, monkeypatch, outcome, users):
    """What cuDNN is told holds for the whole process, so that nothing of it may be left."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", users)
    runtime = graphed("auto")
    seen: list = []
    run = runtime._executor.session.run

    def watched(graph, *inputs):
        seen.append((graph, cuda.capture.call_count, torch.backends.cudnn.benchmark))
        return run(graph, *inputs)

    monkeypatch.setattr(runtime._executor.session, "run", watched)
    cuda.fail = RuntimeError("not permitted") if outcome == "refused" else None
    runtime.invert(tiny_maps[:2], steps=2)
    assert torch.backends.cudnn.benchmark is users
    # Warmed up before, then captured; where that is refused, the steps go on as they would without.
    denoiser = [(captures, timed) for graph, captures, timed in seen if graph == "denoiser"]
    assert denoiser == [(0, True), (1, True), *([(1, users)] * 2 if outcome == "refused" else [])]
    assert all(timed is users for graph, _, timed in seen if graph in ("condition_encoder", "time_embedding"))


@pytest.fixture
def algorithms(cuda, monkeypatch):
    """Which algorithms cuDNN's convolutions run by: timed ones or not."""
    from cudnn_algorithms import Algorithms

    made = Algorithms()
    made.install(monkeypatch)
    # As in a new process: what this thread and the one of captures ran before is forgotten.
    monkeypatch.setattr(
        capture_thread, "_thread", concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="captures")
    )
    yield made
    capture_thread._thread.shutdown()


def test_graphs_have_timed_algorithms_though_their_shapes_ran_before(graphed, algorithms, plain, tiny_maps):
    plain.invert(tiny_maps[:2], steps=2)  # torch keeps what it chose untimed, for this thread
    assert not algorithms.timings
    for mode in ("step", "loop", "step"):  # of several engines in one process
        graphed(mode).invert(tiny_maps[:2], steps=2)
        assert algorithms.captured
        assert all(timed for _, timed in algorithms.captured)
    assert len(algorithms.timings) == len(set(algorithms.timings))  # each of them once
    known = len(algorithms.timings)
    plain.invert(tiny_maps[:5], steps=1)  # without graphs, shapes that come and go are not worth a timing
    assert len(algorithms.timings) == known


@pytest.fixture
def kernels(cuda, monkeypatch):
    """Triton's kernels where they are not compiled: what is not loaded cannot be loaded within a capture."""
    from triton_launches import LoadedKernels

    made = LoadedKernels()
    made.install(monkeypatch)
    return made


@pytest.mark.parametrize(("run", "mode"), [("history", "step"), ("guided", "loop"), (NOISE, "loop")])
def test_every_kernel_of_a_graph_was_loaded_before_its_capture(kernels, tiny_engine, plain, tiny_maps, run, mode):
    # The layers call operations, which launch here what Triton's would.
    runtime = Runtime(tiny_engine, backend="torch", threads=1, kernels="reference", cuda_graphs=mode)
    options = {**RUNS[run], "output_type": "float", "seed": 3}
    assert close(runtime.invert(tiny_maps[:2], **options), plain.invert(tiny_maps[:2], **options))
    assert {"sampler_step_kernel", "geglu_kernel", "attention_kernel"} <= {name for name, *_ in kernels.loaded}


@pytest.mark.parametrize("shape", [(5, 6), (3, 7), (4, 2, 3, 5, 1), (2, 4), (0, 6), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_begin_where_one_kernel_serves_all(shape, dtype):
    values = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    rows = aligned_rows(values)
    assert torch.equal(rows, values)
    assert all(row.data_ptr() % 16 == 0 and row.is_contiguous() for row in rows)


def test_graphs_are_bounded_and_those_not_used_for_longest_go_with_their_memory(graphed, cuda, plain, tiny_maps):
    runtime = graphed("step")
    graphs = runtime._loop._graphs
    graphs.largest = 4
    owned = {}

    def invert(count: int) -> None:
        options = {"steps": 2, "seed": count, "output_type": "float"}
        assert close(runtime.invert(tiny_maps[:count], **options), plain.invert(tiny_maps[:count], **options))
        owned.setdefault(count, [weakref.ref(graph.latents) for graph in graphs if graph.batch == count])

    for count in (1, 2, 1, 3):
        invert(count)
    assert {graph.batch for graph in graphs} == {1, 3}
    assert [len(graphs) for graphs in owned.values()] == [2, 2, 2]
    assert not any(tensor() for tensor in owned[2])
    assert all(tensor() is not None for tensor in (*owned[1], *owned[3]))
    assert sum(cuda.pools.values()) == 4  # CUDA's own graphs went too
    captures = cuda.capture.call_count
    invert(1)
    assert cuda.capture.call_count == captures
    invert(2)  # in the place of 3
    assert {graph.batch for graph in graphs} == {1, 2}


def test_a_loop_beyond_the_bound_is_the_only_graph(graphed, cuda, tiny_maps):
    runtime = graphed("loop")
    runtime._loop._graphs.largest = 6
    for steps in (2, 4, 5, 2, 8):
        assert runtime.invert(tiny_maps[:1], steps=steps).ok.all()
    # A step and the decoder each count; eight steps fit beside nothing.
    assert runtime.info["cuda_graphs"]["captured"] == [{"batch": 1, "steps": 8, "decoder": True}]
    assert sum(cuda.pools.values()) == 1


def test_memory_that_graphs_gave_back_is_not_asked_for_again(graphed, cuda, tiny_maps):
    """Torch's allocator refuses a pool that no graph holds any more."""
    runtime = graphed("step")
    runtime._loop._graphs.largest = 1
    for _ in range(2):
        assert runtime.invert(tiny_maps[:2], steps=2).ok.all()
    assert sum(cuda.pools.values()) == 1


def test_a12_ctrl_c_in_a_capture_is_heard_when_it_is_done(graphed, cuda, plain, tiny_maps):
    runtime = graphed("step")

    def interrupt(_: int) -> None:
        signal.raise_signal(signal.SIGINT)  # to the main thread, which waits

    cuda.capture.side_effect = interrupt
    with pytest.raises(InversionInterrupted):
        runtime.invert(tiny_maps[:2], steps=2)
    assert (cuda.capture.call_count, cuda.captures_underway) == (1, [])
    cuda.capture.side_effect = None
    given = runtime.invert(tiny_maps[:2], steps=2, output_type="float")
    assert close(given, plain.invert(tiny_maps[:2], steps=2, output_type="float"))


@pytest.mark.parametrize("mode", ["step", "loop"])
def test_where_a_capture_fails_an_explicit_request_fails(graphed, cuda, tiny_maps, mode):
    runtime = graphed(mode)
    cuda.fail = RuntimeError("operation not permitted when stream is capturing")
    for _ in range(2):  # the second time too: nothing else runs in its place
        with pytest.raises(BackendUnavailableError, match="a capture failed: operation not permitted") as caught:
            runtime.invert(tiny_maps[:3])
        assert "cuda_graphs='auto'" in caught.value.remedy
        assert mode in caught.value.given
    cuda.fail = None
    assert runtime.invert(tiny_maps[:3]).ok.all()


def test_a8_memory_that_runs_out_in_a_capture_halves_the_batch(graphed, cuda, plain, tiny_maps):
    runtime = graphed("step")
    cuda.capture.side_effect = [None, None, torch.OutOfMemoryError("CUDA out of memory"), *[None] * 9]
    runtime.invert(tiny_maps[:2], steps=2)
    given = runtime.invert(tiny_maps[:6], steps=2, output_type="float")
    assert given.flags.batch_size == 3
    assert close(given, plain.invert(tiny_maps[:6], steps=2, output_type="float"))
    # The graphs of the first call were given back.
    assert {graph["batch"] for graph in runtime.info["cuda_graphs"]["captured"]} == {3}


def test_a12_ctrl_c_is_heard_after_a_step(graphed, cuda, tiny_maps):
    runtime = graphed("step")
    runtime.warmup(2)
    cuda.replay.reset_mock()
    cuda.event.synchronize.side_effect = [None, KeyboardInterrupt]
    with pytest.raises(InversionInterrupted, match="0 of 2"):
        runtime.invert(tiny_maps[:2], sampler="ddim", steps=10)
    assert cuda.replay.call_count == 3  # the one that was waited for, and the one that keeps the GPU busy meanwhile


def test_an_error_before_the_capture_is_raised_as_it_is(tiny_engine, cuda, tiny_maps, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    runtime = Runtime(tiny_engine, backend="torch", cuda_graphs="auto", kernels="reference")
    session = runtime._executor.session
    for module in session.graphs["decoder"].modules():
        if hasattr(module, "provider"):
            module.provider = "triton"
    with pytest.raises(ProviderUnavailableError, match="it needs CUDA tensors"):
        runtime.invert(tiny_maps[:2])


class Foreign(Session):
    """A session that is not made of torch's operations."""

    backend, device, precision = "foreign", torch.device("cuda"), Precision.FP16

    def run(self, graph, *inputs):
        raise NotImplementedError


def test_on_a_cpu_and_on_other_backends_there_are_no_graphs(tiny_engine, plain):
    assert plain.info["cuda_graphs"]["mode"] == "off"
    assert "NVIDIA" in plain.info["cuda_graphs"]["reasons"][0]
    for mode in ("step", "loop"):
        with pytest.raises(BackendUnavailableError, match="NVIDIA GPU") as caught:
            Runtime(tiny_engine, backend="torch", cuda_graphs=mode)
        assert "'off'" in caught.value.remedy
    with pytest.raises(BackendUnavailableError, match="launches its work itself"):
        GraphLoop(Foreign(), CudaGraphs.STEP, 8)
    with pytest.raises(ArgumentError, match="cuda_graphs"):
        Runtime(tiny_engine, cuda_graphs="always")
    assert Runtime(tiny_engine, backend="torch", cuda_graphs="off").info["cuda_graphs"]["reasons"] == []


def test_buckets_waste_little():
    sizes = [bucket(count, 64) for count in range(1, 65)]
    assert sorted(set(sizes)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert all(count <= size <= 1.5 * count for count, size in enumerate(sizes, start=1))
    assert bucket(7, 7) == 7  # never beyond what fits
    assert bucket(9, 8) == 9

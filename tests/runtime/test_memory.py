"""Batches beyond memory. What runs out of it here is a session that pretends to, with the libraries' own words."""

from __future__ import annotations

import logging
import weakref

import numpy as np
import pytest
import torch

from featinv_fast import Runtime
from featinv_fast.errors import OutOfMemoryError
from featinv_fast.runtime import batching
from featinv_fast.runtime.batching import run_in_batches

CPU = torch.device("cpu")


class _NativeError(Exception):
    """onnxruntime's exceptions have no common class but `Exception`."""


ERRORS = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "torch on a CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    "onnxruntime": _NativeError(
        "[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of size 9"
    ),
    "python": MemoryError(),
}


@pytest.fixture
def limited(own_runtime, watch):
    """`limited(graph, rows, error)`: a runtime on which `graph` runs out of memory with more than `rows` rows.

    Returns the runtime and the list of the batches that this graph was asked for.
    """

    def make(graph: str, rows: int, error: Exception = ERRORS["torch"]) -> tuple[Runtime, list[int]]:
        batches = []

        def before(name, inputs):
            if name == graph:
                batches.append(len(inputs[0]))
                if len(inputs[0]) > rows:
                    raise error

        watch(own_runtime, before)
        return own_runtime, batches

    return make


@pytest.mark.parametrize("graph", ["condition_encoder", "denoiser_unguided", "decoder"])
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_a8_a_batch_beyond_memory_is_halved(limited, runtimes, tiny_maps, caplog, graph, error):
    runtime, batches = limited(graph, 2, error)
    with caplog.at_level(logging.WARNING):
        inversion = runtime.invert(tiny_maps, seed=3, steps=1, guidance_scale=1.0, eta=0.5, output_type="float")
    # 7 and 3 are too many. The rest keeps to what fitted, in order and each row once.
    assert batches == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert "out of memory with 7 images at once; going on with 3" in caplog.text
    assert inversion.flags.batch_size == 1
    expected = runtimes["torch"].invert(tiny_maps, seed=3, steps=1, guidance_scale=1.0, eta=0.5, output_type="float")
    assert np.abs(inversion.images - expected.images).max() <= 1e-5


def test_a8_what_fitted_is_remembered(limited, tiny_maps):
    runtime, batches = limited("denoiser_unguided", 4)
    runtime.invert(tiny_maps, steps=1, guidance_scale=1.0)
    assert batches == [7, 3, 3, 1]
    assert runtime.info["max_batch"] == 3
    batches.clear()
    runtime.invert(tiny_maps, steps=1, guidance_scale=1.0, batch_size=64)
    assert batches == [3, 3, 1]


def test_a8_a_batch_beyond_the_profile_is_split(tiny_engine, restage, tmp_path, watch, tiny_maps):
    runtime = Runtime(restage(tiny_engine, tmp_path / "narrow.engine", max_batch=3))
    batches = []
    watch(runtime, lambda graph, inputs: batches.append((graph, len(inputs[0]))))
    inversion = runtime.invert(tiny_maps, batch_size=64, steps=1, guidance_scale=1.0)
    assert [rows for graph, rows in batches if graph == "denoiser_unguided"] == [3, 3, 1]
    assert inversion.ok.all()
    batches.clear()
    runtime.decode(inversion.latents)
    assert [rows for _, rows in batches] == [3, 3, 1]


def test_a8_the_usual_batch_is_not_everything(own_runtime, watch):
    batches = []
    watch(own_runtime, lambda _, inputs: batches.append(len(inputs[0])))
    own_runtime.decode(torch.zeros(11, 4, 8, 8))
    assert batches == [8, 3]


def test_a8_not_even_one_fits(limited, tiny_maps):
    runtime, batches = limited("decoder", 0)
    with pytest.raises(OutOfMemoryError, match="MiB") as caught:
        runtime.invert(tiny_maps)
    assert isinstance(caught.value, MemoryError)
    assert "Tried to allocate 20.00 MiB" in caught.value.given
    assert batches == [7, 3, 1]
    assert len(caught.value.finished) == 7
    assert not caught.value.finished.ok.any()


def test_a8_rows_done_before_memory_ran_out_are_kept(own_runtime, watch, tiny_maps):
    calls = []

    def before(graph, inputs):
        calls.append(graph)
        if calls.count("decoder") > 3:
            raise ERRORS["torch"]

    watch(own_runtime, before)
    with pytest.raises(OutOfMemoryError) as caught:
        own_runtime.invert(tiny_maps, batch_size=1, steps=1, guidance_scale=1.0, output_type="pil")
    finished = caught.value.finished
    assert finished.ok.tolist() == [True] * 3 + [False] * 4
    assert [image is None for image in finished.images] == [False] * 3 + [True] * 4
    assert finished.latents[:3].isfinite().all()


@pytest.mark.parametrize("call", ["encode_condition", "decode"])
def test_a8_the_single_graphs_split_too(limited, runtimes, tiny_maps, call):
    graph = {"encode_condition": "condition_encoder", "decode": "decoder"}[call]
    inputs = tiny_maps if call == "encode_condition" else torch.full((7, 4, 8, 8), 0.5)
    runtime, batches = limited(graph, 4)
    result = getattr(runtime, call)(inputs)
    assert batches == [7, 3, 3, 1]
    assert np.abs(np.asarray(result) - np.asarray(getattr(runtimes["torch"], call)(inputs))).max() <= 1


def test_a8_an_engine_that_does_not_fit(tiny_engine, monkeypatch):
    def exhausted(*_, **__):
        raise ERRORS["torch"]

    monkeypatch.setattr("featinv_fast.runtime.batching.load", exhausted)
    with pytest.raises(OutOfMemoryError, match="the engine does not fit"):
        Runtime(tiny_engine)


def test_a8_no_memory_to_repair_an_overflow(tiny_engine, tiny_maps, monkeypatch):
    """The rows that did not overflow are kept."""
    runtime = Runtime(tiny_engine, backend="torch", precision="fp16")

    def exhausted(*_, **__):
        raise ERRORS["torch"]

    monkeypatch.setattr("featinv_fast.runtime.batching.load", exhausted)
    maps = tiny_maps[:3].clone()
    maps[1] *= 1e5
    with pytest.raises(OutOfMemoryError, match="once more in fp32") as caught:
        runtime.invert(maps, errors="return")
    assert caught.value.finished.ok.tolist() == [True, False, True]


@pytest.fixture
def repaired(tiny_engine, watch, watched, monkeypatch):
    """A runtime in fp16, the batches of its denoiser, and those of each fp32 session, which bears so many rows."""

    def make(rows: int) -> tuple[Runtime, list[int], list[list[int]]]:
        runtime = Runtime(tiny_engine, backend="torch", precision="fp16", threads=1)
        batches: list[int] = []
        repairs: list[list[int]] = []
        watch(runtime, lambda graph, inputs: batches.append(len(inputs[0])) if graph == "denoiser_unguided" else None)
        load = batching.load

        def load_watched(*arguments):
            own: list[int] = []
            repairs.append(own)

            def before(graph, inputs):
                if graph == "denoiser_unguided":
                    own.append(len(inputs[0]))
                    if len(inputs[0]) > rows:
                        raise ERRORS["torch"]

            return watched(load(*arguments), before)

        monkeypatch.setattr(batching, "load", load_watched)
        return runtime, batches, repairs

    return make


def test_a8_what_fits_in_fp32_says_nothing_of_half_precision(repaired, tiny_maps):
    runtime, batches, repairs = repaired(1)
    before = runtime.info["max_batch"]
    options = {"steps": 1, "guidance_scale": 1.0}
    for _ in range(2):
        inversion = runtime.invert(tiny_maps * 1e5, **options)
        assert inversion.flags.recomputed == tuple(range(7))
        assert inversion.flags.batch_size == runtime._executor.usual_batch
    assert batches == [7, 7]
    assert runtime.info["max_batch"] == before
    # One fp32 session for both calls, which remembers what fits.
    assert repairs == [[7, 3, *[1] * 7, *[1] * 7]]


def test_a8_the_fp32_session_is_given_back_before_batches_are_halved(repaired, watch, tiny_maps):
    runtime, _, repairs = repaired(7)
    options = {"steps": 1, "guidance_scale": 1.0}
    runtime.invert(tiny_maps * 1e5, **options)
    session = weakref.ref(runtime._executor._repair)
    batches = []

    def before(graph, inputs):
        if graph == "denoiser_unguided":
            batches.append(len(inputs[0]))
            if session() is not None:
                raise torch.OutOfMemoryError("CUDA out of memory")

    watch(runtime, before)
    assert runtime.invert(tiny_maps, **options).ok.all()
    assert batches == [7, 7]
    assert runtime.invert(tiny_maps[:1] * 1e5, **options).flags.recomputed == (0,)
    assert len(repairs) == 2


def test_a8_a_graph_that_does_not_fit(limited, tiny_maps):
    runtime, _ = limited("time_embedding", 0)
    with pytest.raises(OutOfMemoryError, match="a graph of the engine") as caught:
        runtime.invert(tiny_maps)
    assert not caught.value.finished.ok.any()


def test_other_errors_of_a_device_are_not_taken_for_exhausted_memory(own_runtime, watch, tiny_maps):
    error = RuntimeError("CUDA error: an illegal memory access was encountered")

    def before(graph, inputs):
        raise error

    watch(own_runtime, before)
    with pytest.raises(RuntimeError) as caught:
        own_runtime.invert(tiny_maps)
    assert caught.value is error


def test_the_failed_batch_is_let_go_before_the_next_is_tried():
    """Otherwise the exception's traceback would keep the very memory that is missing."""
    alive = []

    class Tensor:
        def __init__(self):
            alive.append(self)

        def __del__(self):
            gone.append(True)

    gone = []

    def work(batch):
        if len(batch) > 1:
            big = Tensor()
            alive.clear()
            raise MemoryError(id(big))
        assert gone == [True]

    assert run_in_batches([0, 1], 2, CPU, work) == 1

"""Graphs compiled by `torch.compile`: the same images, few codes, never uncompiled in silence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featinv_fast import Runtime
from featinv_fast.backends import Request, load, torch_compile
from featinv_fast.backends.torch_compile import COMPILED_GRAPHS, CompiledGraph
from featinv_fast.checks.options import LAYER_OPS
from featinv_fast.engine import open_engine
from featinv_fast.errors import BackendUnavailableError

MOST_CODES = torch._dynamo.config.recompile_limit  # of one function
CPU = torch.device("cpu")
ROUNDING = 1e-4
GUIDED = {"sampler": "ddim", "steps": 2, "guidance_scale": 1.75, "output_type": "float"}


@pytest.fixture
def codes(monkeypatch):
    """A compiler that runs what it is given, and the list of what that was."""
    found = []

    def compiler(graph, _inputs):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch_compile, "COMPILER", compiler)
    return found


@pytest.fixture(scope="module")
def plain(tiny_engine):
    """The tiny engine, layer by layer."""
    return Runtime(tiny_engine, backend="torch", threads=1)


def test_compiled_images_are_the_same_and_nothing_is_said(tiny_engine, plain, tmp_path, monkeypatch, capfd):
    """With torch's own compiler. The decoder alone: the denoiser takes four times as long and has the same layers."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    runtime = Runtime(tiny_engine, compiled=True, threads=1)
    assert (runtime.info["backend"], runtime.info["compiled"]) == ("torch", list(COMPILED_GRAPHS))
    assert plain.info["compiled"] == []
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    for count in (3, 5):
        given, expected = (r.decode(latents[:count], "float") for r in (runtime, plain))
        assert not np.array_equal(given, expected)  # something else did run
        assert np.abs(given - expected).max() <= ROUNDING
    assert list(tmp_path.rglob("*.so"))
    assert capfd.readouterr() == ("", "")


def test_few_codes_serve_all_batches(tiny_engine, plain, tiny_maps, codes):
    runtime = Runtime(tiny_engine, compiled=True, threads=1)
    assert codes == []
    expected = 0
    # Of the denoiser and of the decoder: one for several items, one for a single one.
    for count, new in ((3, 2), (2, 0), (1, 2), (7, 0), (1, 0), (5, 0)):
        given = runtime.invert(tiny_maps[:count], **GUIDED)
        expected += new
        assert len(codes) == expected, count
        assert np.abs(given.images - plain.invert(tiny_maps[:count], **GUIDED).images).max() <= ROUNDING


def test_another_engine_has_codes_of_its_own(tiny_engine, tiny_maps, codes):
    """Torch counts the codes of a class together, and would leave the last engines uncompiled."""
    limit = 3  # a lower one than torch's own, so that fewer engines go beyond it
    with torch._dynamo.config.patch(recompile_limit=limit):
        for number in range(1, limit + 2):
            Runtime(tiny_engine, compiled=True, threads=1).decode(torch.zeros(2, 4, 8, 8))
            assert len(codes) == number


def test_with_fused_operations(tiny_engine, plain, tiny_maps, codes):
    runtime = Runtime(tiny_engine, compiled=True, kernels="reference", threads=1)
    assert runtime.info["kernels"] == dict.fromkeys(LAYER_OPS, "reference")
    given = runtime.invert(tiny_maps[:2], **GUIDED)
    assert np.abs(given.images - plain.invert(tiny_maps[:2], **GUIDED).images).max() <= ROUNDING
    called = {str(node.target) for graph in codes for node in graph.graph.nodes if node.op == "call_function"}
    assert {"featinv.attention.default", "featinv.geglu.default", "featinv.group_norm_silu.default"} <= called


def test_a6_rows_that_overflow_are_computed_again_without_a_compiler(tiny_engine, tiny_maps, codes):
    runtime = Runtime(tiny_engine, compiled=True, precision="fp16", threads=1)
    maps = tiny_maps[:2] * torch.tensor([1.0, 1e5])[:, None, None, None]
    given = runtime.invert(maps, **{**GUIDED, "steps": 1})
    assert given.flags.recomputed == (1,)
    assert len(codes) == 2  # of fp16
    assert runtime.info["compiled"]


def test_c6_without_a_compiler_it_is_refused_and_not_left_out(tiny_engine):
    from torch._inductor import config

    with config.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(BackendUnavailableError) as caught:
        Runtime(tiny_engine, compiled=True)
    assert "torch finds no C++ compiler" in caught.value.reasons["torch"][0]
    assert "torch.compile has no part in it" in caught.value.reasons["onnxruntime"][0]


def test_what_fails_to_compile_is_an_error(tiny_engine, monkeypatch):
    def broken(_graph, _inputs):
        raise ValueError("no such instruction\nmore")

    monkeypatch.setattr(torch_compile, "COMPILER", broken)
    runtime = Runtime(tiny_engine, compiled=True, threads=1)
    for _ in range(2):
        with pytest.raises(BackendUnavailableError, match="cannot compile the graph decoder") as caught:
            runtime.decode(torch.zeros(2, 4, 8, 8))
        assert caught.value.reasons == {"torch": ["ValueError: no such instruction"]}
        assert "leave out compiled" in caught.value.remedy
        assert "leave out --compiled" in caught.value.message(command_line=True)


def test_a8_memory_that_runs_out_while_compiling_is_that(tiny_engine, monkeypatch):
    def exhausted(_graph, _inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch_compile, "COMPILER", exhausted)
    session = load(Request(engine=open_engine(tiny_engine), device=CPU, compiled=True), "torch")
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        session.run("decoder", torch.zeros(2, 4, 8, 8))


def test_more_codes_than_there_should_be_are_an_error(codes):
    graph = CompiledGraph("decoder", torch.relu)
    for edge in range(2, MOST_CODES + 2):  # one after the other, what is not the batch changes
        graph(torch.zeros(2, 4, edge, edge))
    with pytest.raises(BackendUnavailableError, match="cannot compile the graph decoder"):
        graph(torch.zeros(2, 4, 90, 90))


def test_marks_stay_ours(codes):
    x = torch.zeros(2, 4, 3, 3)
    CompiledGraph("decoder", torch.relu)(x)
    assert not hasattr(x, "_dynamo_dynamic_indices")

"""Options on how a backend runs, and the engine that is taken where none is named: the same on every command."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
from PIL import Image

from featinv_fast import Runtime
from featinv_fast.checks.options import LAYER_OPS
from featinv_fast.cli import shared
from featinv_fast.commands.bench import Bench
from featinv_fast.commands.bench_options import BenchOptions
from featinv_fast.engine import open_engine
from featinv_fast.errors import ArgumentError

FAST = ("--threads", 1, "--quiet")


@pytest.fixture
def maps(tmp_path, tiny_maps):
    """Two feature maps for the tiny engine in a file."""
    np.save(tmp_path / "maps.npy", tiny_maps[:2].numpy())
    return tmp_path / "maps.npy"


@pytest.fixture
def runtimes(monkeypatch):
    """Every Runtime that a command makes, with what it was asked for."""
    made, init = [], Runtime.__init__

    def noted(self, *args, **options):
        init(self, *args, **options)
        made.append((self, options))

    monkeypatch.setattr(Runtime, "__init__", noted)
    return made


def commands(tiny_engine, maps, pictures, out) -> dict[str, tuple[object, ...]]:
    """Each command that makes a Runtime, on the smallest work."""
    return {
        "invert": ("invert", "--engine", tiny_engine, "--features", maps, "--out", out, "--steps", 1),
        "eval": ("eval", "--images", pictures, "--out", out, "--settings", "lcm:1", "--no-plot"),
        "demo": ("demo", "--count", 1, "--out", out / "demo.png"),
        "bench": ("bench", tiny_engine, "--batch-sizes", 1, "--rounds", 2, "--samplers", "ddim:1"),
    }


@pytest.fixture
def pictures(tmp_path):
    """A folder of three pictures."""
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 40, 200)).save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path / "pictures"


@pytest.mark.filterwarnings("ignore::featinv_fast.evaluate.FewSamplesWarning")
@pytest.mark.parametrize("command", ["invert", "eval", "demo", "bench"])
def test_options_of_the_torch_backend_reach_the_runtime(
    featinv, installed, tiny_engine, maps, pictures, tmp_path, runtimes, command
):
    line = commands(tiny_engine, maps, pictures, tmp_path / "out")[command]
    backend = ("--backends", "torch") if command == "bench" else ("--backend", "torch")
    named = ("--kernels", "attention=torch,geglu=reference", "--cuda-graphs", "off")
    answer = featinv(*line, *backend, *FAST, *named)
    assert answer.code == 0, answer.err
    runtime, options = runtimes[0]
    expected = {**dict.fromkeys(LAYER_OPS, "auto"), "attention": "torch", "geglu": "reference"}
    assert runtime.info["kernels"] == expected
    assert runtime.info["cuda_graphs"] == {"mode": "off", "captured": [], "reasons": []}
    assert options["threads"] == 1


REFUSED = [
    ("--kernels", "cutlass", 2, "no provider of this name"),
    ("--kernels", "softmax=triton", 2, "no such operation"),
    ("--kernels", "attention=triton,geglu", 2, "attention=xformers,geglu=triton"),
    ("--kernels", "group_norm_silu=triton", 1, "it needs CUDA tensors"),
    ("--cuda-graphs", "always", 2, "cuda_graphs"),
    ("--two-streams", None, 1, "two streams are for NVIDIA GPUs"),
    ("--compiled", None, 1, "torch finds no C++ compiler"),
    ("--cuda-graphs", "step", 1, "NVIDIA GPU"),
]


@pytest.mark.parametrize(
    ("command", "option", "value", "code", "says"),
    [
        *(("invert", *refused) for refused in REFUSED),
        *((command, *REFUSED[-1]) for command in ("eval", "demo", "bench")),
    ],
)
def test_c6_options_that_cannot_be_served_are_refused(
    featinv, installed, tiny_engine, maps, pictures, tmp_path, monkeypatch, command, option, value, code, says
):
    from torch._inductor import config

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    line = commands(tiny_engine, maps, pictures, tmp_path / "out")[command]
    backend = ("--backends", "torch") if command == "bench" else ("--backend", "torch")
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        answer = featinv(*line, *backend, "--device", "cpu", *FAST, option, *([value] if value else []))
    assert (answer.code, answer.out) == (code, "")
    assert says in answer.err
    assert "Traceback" not in answer.err


def test_bench_asks_torch_alone_for_kernels(featinv, tiny_engine):
    arguments = ("bench", tiny_engine, "--batch-sizes", 1, "--rounds", 2, "--samplers", "ddim:1", "--device", "cpu")
    answer = featinv(*arguments, "--backends", "torch,onnxruntime", "--kernels", "reference", "--json", *FAST)
    assert answer.code == 0, answer.err
    found = {row["backend"]: (row["kernels"], row["cuda_graphs"]) for row in answer.json["rows"]}
    assert found == {"torch": (dict.fromkeys(LAYER_OPS, "reference"), "off"), "onnxruntime": ({}, "off")}
    # Something else ran than the plain layers of the reference.
    assert all(row["gate"]["relative"] > 0.0 for row in answer.json["rows"])
    # A mode of CUDA graphs refuses torch, and what else was asked for is timed.
    answer = featinv(*arguments, "--backends", "torch,onnxruntime", "--cuda-graphs", "step", "--json", *FAST)
    assert answer.code == 3
    assert {row["backend"] for row in answer.json["rows"]} == {"onnxruntime"}
    assert "NVIDIA" in answer.json["refused"]["torch"][0]
    for option in ({"kernels": "triton"}, {"cuda_graphs": "step"}, {"compiled": True}, {"two_streams": True}):
        with pytest.raises(ArgumentError, match="of the torch backend"):
            BenchOptions(backends=("onnxruntime",), **option)


def test_the_reference_of_a_benchmark_is_as_plain_as_can_be(tiny_engine, runtimes):
    options = BenchOptions(backends=("torch",), batch_sizes=(1,), kernels="torch", threads=1)
    bench = Bench(options, open_engine(tiny_engine))
    bench._reference(options.settings[0])
    (contender, _), (reference, asked) = runtimes
    assert contender.info["kernels"] == dict.fromkeys(LAYER_OPS, "torch")
    assert reference.info["kernels"] == {}
    assert asked["cuda_graphs"] == "off"


def test_without_an_engine_the_built_in_one_is_taken_and_named(featinv, installed, pictures, tmp_path):
    np.save(tmp_path / "features.npy", np.zeros((2, 256, 4, 4), dtype=np.float32))
    with pytest.warns(UserWarning, match="zero"):
        answer = featinv("invert", "--features", tmp_path / "features.npy", "--out", tmp_path / "maps", "--json", *FAST)
    assert answer.code == 0, answer.err
    assert answer.json["engine"] == "scenes, student"
    assert "no --engine" in answer.err
    assert "'scenes, student'" in answer.err
    assert "[256, 4, 4]" in answer.err


def test_a1_maps_that_do_not_fit_the_built_in_engine(featinv, installed, maps, tmp_path):
    answer = featinv("invert", "--features", maps, "--out", tmp_path / "out", *FAST)
    assert (answer.code, answer.out) == (1, "")
    said, error = answer.err.split("\n", maxsplit=1)
    assert "the built-in one" in said
    assert "[256, 4, 4]" in said
    assert "does not fit this engine" in error
    assert "[2, 6, 5, 5]" in error
    assert "featinv_convnext" in error


def test_names_of_kernels():
    assert shared._kernels("triton") == "triton"
    assert shared._kernels("attention=xformers") == {"attention": "xformers"}
    assert shared._kernels("attention=xformers,geglu=torch") == {"attention": "xformers", "geglu": "torch"}
    for text in ("geglu=", "geglu=torch,", "geglu=torch,geglu=triton"):
        with pytest.raises(argparse.ArgumentTypeError, match="not of the form"):
            shared._kernels(text)

"""The graphs of an engine in other tools: plain onnxruntime, OpenVINO and onnx's reference evaluator.

Each runs in a process of its own in which neither this project nor torch can be imported.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from featinv_fast.backends import Request, load
from featinv_fast.config import Precision
from featinv_fast.engine import open_engine

SCRIPT = Path(__file__).with_name("run_elsewhere.py")
TOOLS = ("onnxruntime", "openvino", "reference")
GRAPHS = ("condition_encoder", "time_embedding", "denoiser", "denoiser_unguided", "decoder")
# The batch that the graphs were traced with is 3.
BATCHES = (1, 2, 5)

Cases = dict[str, dict[str, Tensor]]  # "graph/case" -> input -> value


@pytest.fixture
def run_elsewhere(tmp_path: Path) -> Callable[[str, Path, Cases], dict[str, Tensor]]:
    """`run_elsewhere(tool, engine, cases)`: what the tool computes for each case."""

    def run(tool: str, engine: Path, cases: Cases) -> dict[str, Tensor]:
        inputs, outputs = tmp_path / "inputs.npz", tmp_path / "outputs.npz"
        np.savez(inputs, **{f"{case}/{name}": x.numpy() for case, feeds in cases.items() for name, x in feeds.items()})
        command = [sys.executable, str(SCRIPT), tool, str(engine), str(inputs), str(outputs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        with np.load(outputs) as arrays:
            return {case: torch.from_numpy(arrays[case]) for case in arrays}

    return run


def random_cases(engine: Path) -> Cases:
    """Every graph at several batch sizes; numbers of time steps are batch sizes too."""
    generator = torch.Generator().manual_seed(3)
    cases: Cases = {}
    for graph, spec in open_engine(engine).graph_specs().items():
        for batch in BATCHES:
            shapes = spec.input_shapes({dim.name: batch for dim in spec.dims})
            cases[f"{graph}/{batch}"] = {
                name: torch.randn(shape, generator=generator) for name, shape in shapes.items()
            }
    return cases


def compute_here(engine: Path, cases: Cases) -> dict[str, Tensor]:
    """What the networks themselves compute with the engine's weights, in fp32."""
    request = Request(engine=open_engine(engine), device=torch.device("cpu"), precision=Precision.FP32)
    session = load(request, "torch")
    return {case: session.run(case.split("/")[0], *feeds.values()) for case, feeds in cases.items()}


def check(
    given: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    relative_norm: Callable[[Tensor, Tensor], float],
    tolerance: float,
) -> None:
    assert given.keys() == expected.keys()
    for case, output in given.items():
        assert output.dtype == torch.float32
        assert relative_norm(output, expected[case]) <= (2e-5 if case.startswith("time_embedding") else tolerance), case


@pytest.mark.parametrize("tool", TOOLS)
def test_other_tools_compute_every_graph(tiny_engine: Path, run_elsewhere, relative_norm, tool: str):
    cases = random_cases(tiny_engine)
    assert len(cases) == len(GRAPHS) * len(BATCHES)
    check(run_elsewhere(tool, tiny_engine, cases), compute_here(tiny_engine, cases), relative_norm, 2e-5)


@pytest.mark.parametrize("tool", TOOLS)
def test_other_tools_compute_fp16_graphs(tiny_fp16_engine: Path, run_elsewhere, relative_norm, tool: str):
    cases = random_cases(tiny_fp16_engine)
    check(run_elsewhere(tool, tiny_fp16_engine, cases), compute_here(tiny_fp16_engine, cases), relative_norm, 1e-2)


@pytest.fixture(scope="module")
def tiny_bf16_engine(make_engine: Callable[..., Path]) -> Path:
    return make_engine(metadata={"feature_shape": "6x5x5"}, precision=Precision.BF16, onnx=True)


# onnxruntime has no bf16 convolution for the CPU.
@pytest.mark.parametrize("tool", ["openvino", "reference"])
def test_other_tools_compute_bf16_graphs(tiny_bf16_engine: Path, run_elsewhere, relative_norm, tool: str):
    cases = random_cases(tiny_bf16_engine)
    check(run_elsewhere(tool, tiny_bf16_engine, cases), compute_here(tiny_bf16_engine, cases), relative_norm, 8e-2)


@pytest.mark.parametrize("tool", ["onnxruntime", "openvino"])
def test_other_tools_compute_what_the_official_code_computed(
    golden, golden_engine: Path, run_elsewhere, relative_norm, tool: str
):
    request = Request(engine=open_engine(golden_engine), device=torch.device("cpu"))
    (row,) = load(request, "torch").run("time_embedding", torch.tensor([481.0]))
    denoised = {
        "latents": golden.inputs["in.latent"],
        "condition": golden.expected["condition.nchw"],
        "time_bias": row,
        "guidance_scale": torch.tensor(1.75),
        "control_scales": torch.ones(2, golden.config.control_count),
    }
    cases = {
        "condition_encoder/golden": {"features": golden.inputs["in.features"]},
        "denoiser/golden": denoised,
        "decoder/golden": {"latents": golden.inputs["in.decode"]},
    }
    cond, uncond = golden.expected["eps.t481.cond"], golden.expected["eps.t481.uncond"]
    expected = {
        "condition_encoder/golden": golden.expected["condition.nchw"],
        "denoiser/golden": uncond + 1.75 * (cond - uncond),
        "decoder/golden": golden.expected["decode.image"],
    }
    check(run_elsewhere(tool, golden_engine, cases), expected, relative_norm, 2e-5)

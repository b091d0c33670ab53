"""The graphs of an engine in other tools: plain onnxruntime, OpenVINO and onnx's reference evaluator.

Each runs in a process of its own in which neither this project nor torch can be imported.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from featinv_export.trt_parser_support import check_graphs
from featinv_export.weights import weight_index
from featinv_fast import demo
from featinv_fast.backends import Request, load
from featinv_fast.backends.torch_ import WEIGHT_FILE
from featinv_fast.config import Precision
from featinv_fast.engine import EngineFolder, GraphSpec, open_engine

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


def random_cases(specs: Mapping[str, GraphSpec], batches: Sequence[int] = BATCHES) -> Cases:
    """Every graph at several batch sizes; numbers of time steps are batch sizes too."""
    generator = torch.Generator().manual_seed(3)
    cases: Cases = {}
    for graph, spec in specs.items():
        for batch in batches:
            shapes = spec.input_shapes({dim.name: batch for dim in spec.dims})
            cases[f"{graph}/{batch}"] = {
                name: torch.randn(shape, generator=generator) for name, shape in shapes.items()
            }
    return cases


def compute_here(engine: EngineFolder, cases: Cases) -> dict[str, Tensor]:
    """What the networks themselves compute with the engine's weights, in fp32."""
    request = Request(engine=engine, device=torch.device("cpu"), precision=Precision.FP32)
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
    engine = open_engine(tiny_engine)
    cases = random_cases(engine.graph_specs())
    assert len(cases) == len(GRAPHS) * len(BATCHES)
    check(run_elsewhere(tool, tiny_engine, cases), compute_here(engine, cases), relative_norm, 2e-5)


@pytest.mark.parametrize("tool", TOOLS)
def test_other_tools_compute_fp16_graphs(tiny_fp16_engine: Path, run_elsewhere, relative_norm, tool: str):
    engine = open_engine(tiny_fp16_engine)
    cases = random_cases(engine.graph_specs())
    check(run_elsewhere(tool, tiny_fp16_engine, cases), compute_here(engine, cases), relative_norm, 1e-2)


# onnxruntime has no bf16 convolution for the CPU.
@pytest.mark.parametrize("tool", ["openvino", "reference"])
def test_other_tools_compute_bf16_graphs(tiny_bf16_engine: Path, run_elsewhere, relative_norm, tool: str):
    engine = open_engine(tiny_bf16_engine)
    cases = random_cases(engine.graph_specs())
    check(run_elsewhere(tool, tiny_bf16_engine, cases), compute_here(engine, cases), relative_norm, 8e-2)


# The reference evaluator would take minutes.
@pytest.mark.parametrize(
    ("tool", "engine", "tolerance"),
    [
        ("onnxruntime", "golden_engine", 2e-5),
        ("openvino", "golden_engine", 2e-5),
        ("onnxruntime", "golden_fp16_engine", 1e-2),
        ("openvino", "golden_fp16_engine", 1e-2),
    ],
)
def test_other_tools_compute_what_the_official_code_computed(
    golden, golden_engine: Path, run_elsewhere, relative_norm, tool: str, engine: str, tolerance: float, request
):
    session = load(Request(engine=open_engine(golden_engine), device=torch.device("cpu")), "torch")
    rows = session.run("time_embedding", torch.tensor([481.0]))
    denoised = {
        "latents": golden.inputs["in.latent"],
        "condition": golden.expected["condition.nchw"],
        "time_bias": rows[0],
    }
    scales = torch.ones(2, golden.config.control_count)
    cases = {
        "condition_encoder/golden": {"features": golden.inputs["in.features"]},
        "time_embedding/golden": {"timesteps": torch.tensor([481.0])},
        "denoiser/golden": {**denoised, "guidance_scale": torch.tensor(1.75), "control_scales": scales},
        "denoiser_unguided/golden": {**denoised, "control_scales": scales[:1]},
        "decoder/golden": {"latents": golden.inputs["in.decode"]},
    }
    cond, uncond = golden.expected["eps.t481.cond"], golden.expected["eps.t481.uncond"]
    expected = {
        "condition_encoder/golden": golden.expected["condition.nchw"],
        "time_embedding/golden": rows,
        "denoiser/golden": uncond + 1.75 * (cond - uncond),
        "denoiser_unguided/golden": cond,
        "decoder/golden": golden.expected["decode.image"],
    }
    given = run_elsewhere(tool, request.getfixturevalue(engine), cases)
    check(given, expected, relative_norm, tolerance)


@pytest.mark.parametrize("name", demo.ENGINES)
@pytest.mark.parametrize(("precision", "tolerance"), [(Precision.FP32, 2e-5), (Precision.FP16, 1e-2)])
def test_other_tools_compute_the_built_in_engines(
    tmp_path: Path, run_elsewhere, relative_norm, built_in_graphs, name: str, precision: Precision, tolerance: float
):
    """In fp32 by the graphs that are shipped; others are made here. Both point into the weights, stored in fp16."""
    engine = demo.load_engine(name)
    manifest = engine.manifest
    assert (manifest.sampling.guidance_scale == 1.0) == (name == "student")
    idle = "denoiser" if name == "student" else "denoiser_unguided"  # which it does not run by default
    specs = {graph: spec for graph, spec in manifest.graph_specs().items() if graph != idle}
    shutil.copyfile(engine.path / WEIGHT_FILE, tmp_path / WEIGHT_FILE)
    graphs = engine.path if precision is manifest.precision else built_in_graphs(precision)
    assert weight_index(tmp_path) == weight_index(graphs)
    for graph in specs:
        shutil.copyfile(graphs / f"{graph}.onnx", tmp_path / f"{graph}.onnx")
    assert check_graphs([tmp_path / f"{graph}.onnx" for graph in specs], "10.0") == []
    cases = random_cases(specs, batches=(2,))
    expected = compute_here(engine, cases)
    for tool in ("onnxruntime", "openvino"):
        check(run_elsewhere(tool, tmp_path, cases), expected, relative_norm, tolerance)

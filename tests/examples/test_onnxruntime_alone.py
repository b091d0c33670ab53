"""The example without this project computes what the project computes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from featinv_fast import Runtime
from featinv_fast.engine import open_engine

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnxruntime_alone.py"


def test_the_example_inverts_what_the_runtime_inverts(tiny_engine: Path, tiny_maps, run_alone, tmp_path: Path):
    np.save(tmp_path / "features.npy", tiny_maps.numpy())
    run_alone(EXAMPLE.name, tiny_engine, tmp_path / "features.npy", tmp_path / "images.npy")
    images = np.load(tmp_path / "images.npy")
    noise = np.random.default_rng(0).standard_normal((len(tiny_maps), 4, 8, 8)).astype(np.float32)
    expected = Runtime(tiny_engine, backend="onnxruntime", threads=1).invert(tiny_maps, latents=noise).images
    assert images.shape == expected.shape
    assert images.dtype == np.uint8
    difference = np.abs(images.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.001


CHANGES = {
    "lcm": {"sampler": "lcm", "steps": 3, "guidance_scale": 1.0},
    "one branch": {"guidance_scale": 1.0},
    "features amplified": {"steps": 2, "unconditional_strength": 0.0, "guidance_scale": 2.0},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_manifest_says_of_sampling_is_obeyed(
    tiny_engine: Path, tiny_maps, restage, run_alone, monkeypatch, tmp_path: Path, change: str
):
    sampling = dataclasses.replace(open_engine(tiny_engine).manifest.sampling, **CHANGES[change])
    engine = restage(tiny_engine, tmp_path / "engine", sampling=sampling)
    np.save(tmp_path / "features.npy", tiny_maps[:2].numpy())
    run_alone(EXAMPLE.name, engine, tmp_path / "features.npy", tmp_path / "images.npy")
    noise = np.random.default_rng(0)

    def draw(*_) -> torch.Tensor:
        return torch.from_numpy(noise.standard_normal((2, 4, 8, 8)).astype(np.float32))

    latents = draw().numpy()
    monkeypatch.setattr("featinv_fast.runtime.sampling.start_noise", draw)
    expected = Runtime(engine, backend="onnxruntime", threads=1).invert(tiny_maps[:2], latents=latents).images
    difference = np.abs(np.load(tmp_path / "images.npy").astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.001


def test_a_sampler_that_it_does_not_serve_is_refused_by_name(tiny_engine: Path, restage, tmp_path: Path):
    sampling = dataclasses.replace(open_engine(tiny_engine).manifest.sampling, sampler="dpm++2m")
    engine = restage(tiny_engine, tmp_path / "engine", sampling=sampling)
    command = [sys.executable, str(EXAMPLE), str(engine), "features.npy", "images.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "the samplers ddim, lcm; the engine has (3, 'featinv', 'dpm++2m')" in done.stderr


def test_the_example_fits_on_a_page():
    assert len(EXAMPLE.read_text().splitlines()) <= 80


def test_the_table_of_graphs_names_what_the_graphs_have(tiny_engine: Path):
    table = (EXAMPLE.parent / "README.md").read_text()
    for name, spec in open_engine(tiny_engine).graph_specs().items():
        (row,) = (line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        assert all(f"`{tensor.name}`" in row for tensor in (*spec.inputs, spec.output))

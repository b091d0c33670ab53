"""The example without this project computes what the project computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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


def test_the_example_fits_on_a_page():
    assert len(EXAMPLE.read_text().splitlines()) <= 80


def test_the_table_of_graphs_names_what_the_graphs_have(tiny_engine: Path):
    table = (EXAMPLE.parent / "README.md").read_text()
    for name, spec in open_engine(tiny_engine).graph_specs().items():
        (row,) = (line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        assert all(f"`{tensor.name}`" in row for tensor in (*spec.inputs, spec.output))

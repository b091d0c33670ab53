"""A built-in engine of the format before is carried over to what the package ships."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from featinv_export.demo_build import carry_over as module
from featinv_export.demo_build.carry_over import carry_over_engine
from featinv_export.targets import onnx_
from featinv_fast import demo
from featinv_fast.checkpoints.writer import write_safetensors
from featinv_fast.engine import open_engine
from featinv_fast.engine.files import hash_files, manifest_checksum
from featinv_fast.errors import EngineFormatError, EngineIntegrityError, ParityError
from featinv_fast.rewrites.upsample_products import is_kernel

WEIGHTS, CARD = "weights.safetensors", "README.md"


@pytest.fixture
def old_engine(tmp_path) -> Path:
    """The built-in student as it was in format 2: no kernels, no graphs, nothing said of the backbone's weights."""
    shipped, folder = demo.engine_path(), tmp_path / "student"
    folder.mkdir()
    tensors = {n: t for n, t in load_file(shipped / WEIGHTS).items() if not is_kernel(n)}
    write_safetensors(folder / WEIGHTS, tensors, {})
    shutil.copyfile(shipped / CARD, folder / CARD)
    manifest = json.loads((shipped / "manifest.json").read_bytes())
    del manifest["family"]
    for name in ("weights_sha256", "prefix_tokens", "more_layers"):
        del manifest["features"][name]
    files = {name: vars(info) for name, info in hash_files(folder, [WEIGHTS, CARD]).items()}
    parity = [row for row in manifest["parity"] if row["backend"] == "torch"]
    manifest |= {"format_version": 2, "files": files, "parity": parity, "tensorrt_parsers": None}
    write_manifest(folder, manifest)
    return folder


def write_manifest(folder: Path, manifest: dict) -> None:
    content = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(content)
    (folder / "manifest.json.sha256").write_bytes(manifest_checksum(content))


@pytest.fixture(autouse=True)
def shipped_graphs(monkeypatch):
    """Writing graphs is tested elsewhere and takes most of the time; they fit any weights of the same places."""

    def copy(candidate, report):
        for name in candidate.specs:
            shutil.copyfile(demo.engine_path() / f"{name}.onnx", candidate.folder / f"{name}.onnx")

    monkeypatch.setattr(onnx_, "write_graphs", copy)


def test_what_is_shipped_comes_out(old_engine):
    with pytest.raises(EngineFormatError, match="older format"):
        open_engine(old_engine)
    shipped = demo.load_engine()
    identity = shipped.manifest.features.weights_sha256
    carried = open_engine(carry_over_engine(old_engine, identity))
    assert carried.manifest.files[WEIGHTS] == shipped.manifest.files[WEIGHTS]
    assert carried.manifest.files.keys() == shipped.manifest.files.keys()
    assert carried.manifest.features == shipped.manifest.features
    assert carried.manifest.source == shipped.manifest.source
    rows = [{(row.graph, row.backend, row.batch) for row in m.parity} for m in (carried.manifest, shipped.manifest)]
    assert rows[0] == rows[1]


def test_kernels_that_compute_something_else_are_not_installed(old_engine, monkeypatch):
    monkeypatch.setattr(module, "_TAPS", module._TAPS.flip(0))
    before = {path.name: path.read_bytes() for path in old_engine.iterdir()}
    with pytest.raises(ParityError, match=r"torch with fused operations(.|\n)*"):
        carry_over_engine(old_engine, None)
    assert {path.name: path.read_bytes() for path in old_engine.iterdir()} == before


def test_other_formats_and_changed_engines_are_refused(old_engine):
    manifest = json.loads((old_engine / "manifest.json").read_bytes())
    write_manifest(old_engine, manifest | {"format_version": 3})
    with pytest.raises(EngineFormatError, match="cannot be carried over"):
        carry_over_engine(old_engine, None)
    write_manifest(old_engine, manifest)
    (old_engine / CARD).write_text("another")
    with pytest.raises(EngineIntegrityError, match="was changed"):
        carry_over_engine(old_engine, None)

"""Another checkpoint in an existing engine: graphs stay as they are, weights are checked as in an export."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from featinv_export import cli, onnx_graphs, parity
from featinv_export.exporter import export
from featinv_export.options import ExportOptions
from featinv_export.refit import refit
from featinv_export.targets import onnx_
from featinv_fast import Runtime
from featinv_fast.checkpoints import save
from featinv_fast.config import FeatureSpec, SamplingConfig
from featinv_fast.engine import ParityStatus, open_engine
from featinv_fast.errors import (
    CheckpointMismatchError,
    EngineExistsError,
    EngineIntegrityError,
    ExportError,
    ParityError,
)

GRAPHS = {
    f"{name}.onnx" for name in ("condition_encoder", "time_embedding", "denoiser", "denoiser_unguided", "decoder")
}


@pytest.fixture(scope="module")
def first(tiny, tmp_path_factory) -> Path:
    """An engine of the tiny checkpoint, with ONNX graphs. Do not change it."""
    folder = tmp_path_factory.mktemp("first")
    checkpoint = save(tiny, folder / "first.safetensors")
    return export(ExportOptions(checkpoint=checkpoint, out=folder / "first.engine", onnx=True, max_batch=8))


@pytest.fixture
def engine(first: Path, tmp_path: Path) -> Path:
    """A copy to refit."""
    return Path(shutil.copytree(first, tmp_path / "first.engine"))


@pytest.fixture
def second(tiny, make_model, tmp_path: Path):
    """`second(**changes)`: a checkpoint of the same architecture with other weights, as a file."""

    def write(**changes) -> Path:
        values = {"tensors": make_model(tiny.config, seed=5).state_dict(), "sampling": SamplingConfig(steps=3)}
        return save(dataclasses.replace(tiny, **values | changes), tmp_path / "second.safetensors")

    return write


def test_the_engine_is_the_one_that_an_export_would_make_but_the_graphs_are_kept(
    engine, second, tmp_path, monkeypatch, tiny_maps
):
    before = open_engine(engine).manifest
    contents = {name: (engine / name).read_bytes() for name in GRAPHS}
    checkpoint = second()
    expected = export(ExportOptions(checkpoint=checkpoint, out=tmp_path / "exported.engine", max_batch=8))

    def never(*arguments: object) -> None:
        raise AssertionError("a graph was exported")

    monkeypatch.setattr(onnx_graphs, "export_graph", never)
    monkeypatch.setattr(onnx_, "write_graphs", never)
    assert refit(engine, ExportOptions(checkpoint=checkpoint)) == engine
    after = open_engine(engine).manifest
    assert {name for name in after.files if after.files[name] == before.files.get(name)} == GRAPHS
    assert {name: (engine / name).read_bytes() for name in GRAPHS} == contents
    assert after.files["weights.safetensors"] == open_engine(expected).manifest.files["weights.safetensors"]
    assert (after.name, after.source.file_name, after.sampling.steps) == ("second", "second.safetensors", 3)
    assert after.max_batch == 8
    assert {(info.graph, info.backend, info.batch) for info in after.parity} == {
        (graph, backend, batch)
        for graph in after.graph_specs()
        for backend in ("torch", "onnxruntime")
        for batch in (1, 2)
    }
    assert {info.status for info in after.parity} == {ParityStatus.PASSED}
    assert max(info.relative for info in after.parity) <= 2e-5
    latents = [
        Runtime(folder, backend=backend, threads=1).invert(tiny_maps[:1], output_type="latent").images
        for folder, backend in ((expected, "torch"), (engine, "onnxruntime"))
    ]
    assert np.linalg.norm(latents[0] - latents[1]) / np.linalg.norm(latents[0]) < 2e-5
    assert "# second" in (engine / "README.md").read_text()


def test_beside_the_engine_and_on_the_command_line(engine, second, tmp_path, capsys):
    before = open_engine(engine).manifest
    out = tmp_path / "other.engine"
    arguments = ["--ckpt", str(second()), "--refit", str(engine), "--out", str(out), "--name", "other"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert open_engine(out).manifest.name == "other"
    assert open_engine(engine).manifest == before
    assert cli.main(arguments) == 2
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize("surplus", [["--onnx"], ["--precision", "fp16"], ["--max-batch", "4"], ["--trt"]])
def test_what_the_engine_decides_is_not_asked_for(engine, surplus, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert cli.main(["--ckpt", "x.safetensors", "--refit", str(engine), *surplus]) == 2
    assert "no effect with --refit" in capsys.readouterr().err


def test_b4_another_architecture_is_refused(engine, tiny, make_model, second):
    before = open_engine(engine).manifest
    config = dataclasses.replace(tiny.config, condition_hidden_channels=24)
    checkpoint = second(config=config, tensors=make_model(config).state_dict())
    with pytest.raises(CheckpointMismatchError, match="does not fit the graphs") as caught:
        refit(engine, ExportOptions(checkpoint=checkpoint))
    assert caught.value.given == {"condition_hidden_channels": 24}
    assert caught.value.expected == {"condition_hidden_channels": 16}
    assert open_engine(engine).manifest == before


def test_b4_feature_maps_of_another_size_are_refused(engine, second):
    checkpoint = second(features=FeatureSpec(channels=6, height=9, width=9))
    with pytest.raises(CheckpointMismatchError, match="does not fit the graphs") as caught:
        refit(engine, ExportOptions(checkpoint=checkpoint))
    assert caught.value.given == "features of 9x9 cells"


def test_b5_weights_that_do_not_fit_the_graphs_types_are_refused(tiny_fp16_engine, tiny, second, tmp_path):
    engine = Path(shutil.copytree(tiny_fp16_engine, tmp_path / "half.engine"))
    name = "denoiser.unet.conv_out.weight"
    assert name in tiny.tensors
    tensors = {**tiny.tensors, name: tiny.tensors[name] * 1e6}
    with pytest.raises(ExportError, match="do not fit the types") as caught:
        refit(engine, ExportOptions(checkpoint=second(tensors=tensors)))
    assert "denoiser.unet.conv_out.weight" in caught.value.given


def test_b12_a_graph_that_computes_something_else_is_not_installed(engine, second, monkeypatch):
    before = open_engine(engine).manifest
    plain = parity.reference_cases

    def wrong(*arguments: object) -> list[parity.Case]:
        return [dataclasses.replace(case, expected=case.expected * 1.01) for case in plain(*arguments)]

    monkeypatch.setattr(parity, "reference_cases", wrong)
    with pytest.raises(ParityError, match="nothing was installed"):
        refit(engine, ExportOptions(checkpoint=second()))
    assert open_engine(engine).manifest == before


def test_b9_an_interruption_leaves_the_engine_as_it_was(engine, second):
    before = open_engine(engine).manifest

    def stop(what: str, *_: int) -> None:
        if what.startswith("running the plain model"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refit(engine, ExportOptions(checkpoint=second()), stop)
    assert open_engine(engine).manifest == before
    assert sorted(path.name for path in engine.parent.iterdir()) == ["first.engine", "second.safetensors"]


def test_b9_killed_in_the_middle(engine, second):
    """Killed when the new weights are there and nothing is checked yet."""
    before = open_engine(engine).manifest
    checkpoint = second()
    command = [sys.executable, "-m", "featinv_export", "--ckpt", str(checkpoint), "--refit", str(engine)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not list(engine.parent.glob(".first.engine.*partial/weights.safetensors")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.kill()
    assert open_engine(engine).manifest == before
    refit(engine, ExportOptions(checkpoint=checkpoint))
    assert open_engine(engine).manifest.name == "second"
    assert sorted(path.name for path in engine.parent.iterdir()) == ["first.engine", "second.safetensors"]


def test_b8_another_folder_is_not_replaced_without_force(engine, second, first):
    with pytest.raises(EngineExistsError):
        refit(first, ExportOptions(checkpoint=second(), out=engine))


def test_c1_a_damaged_engine_is_not_refitted(engine, second):
    (engine / "denoiser.onnx").write_bytes(b"")
    with pytest.raises(EngineIntegrityError, match=r"denoiser\.onnx"):
        refit(engine, ExportOptions(checkpoint=second()))


def test_a_weight_file_in_another_order_is_refused(engine, restage, second, tmp_path):
    def reorder(folder: Path) -> None:
        """The same tensors, the last one first."""
        path = folder / "weights.safetensors"
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header, data = json.loads(content[8:start]), content[start:]
        reordered = {"__metadata__": header.pop("__metadata__")} if "__metadata__" in header else {}
        values = b""
        for name, entry in sorted(header.items(), key=lambda item: -item[1]["data_offsets"][0]):
            first, last = entry["data_offsets"]
            reordered[name] = entry | {"data_offsets": [len(values), len(values) + last - first]}
            values += data[first:last]
        text = json.dumps(reordered).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(len(text).to_bytes(8, "little") + text + values)

    other = restage(engine, tmp_path / "reordered.engine", reorder)
    with pytest.raises(ExportError, match="another order"):
        refit(other, ExportOptions(checkpoint=second()))

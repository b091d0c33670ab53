"""Opening an engine: none, damaged, replaced, and without a network."""

from __future__ import annotations

import dataclasses
import shutil
import socket
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from featinv_fast import Runtime
from featinv_fast.demo import builtin
from featinv_fast.engine import open_engine
from featinv_fast.errors import BackendUnavailableError, EngineIntegrityError, EngineNotFoundError


@pytest.fixture
def copy(tiny_engine, tmp_path) -> Path:
    """A copy of the tiny engine, to spoil."""
    return Path(shutil.copytree(tiny_engine, tmp_path / "copy.engine"))


@pytest.fixture
def built_in(tiny_engine, tmp_path, monkeypatch) -> Path:
    """A copy of the tiny engine in the place of the built-in one."""
    monkeypatch.setattr(builtin, "FOLDER", tmp_path / "installed")
    return Path(shutil.copytree(tiny_engine, tmp_path / "installed" / "student"))


def test_without_an_engine_the_built_in_one_is_opened(built_in, tiny_maps):
    runtime = Runtime(backend="torch")
    assert runtime.engine.path == built_in
    assert runtime.invert(tiny_maps[:1]).ok.all()


def test_a_package_without_the_built_in_engine_says_so(built_in):
    shutil.rmtree(built_in)
    with pytest.raises(EngineNotFoundError, match="install featinv-fast again") as caught:
        Runtime()
    assert isinstance(caught.value, FileNotFoundError)
    assert "featinv-export --ckpt" in str(caught.value)


def test_c1_a_damaged_built_in_engine_is_refused(built_in):
    (built_in / "weights.safetensors").write_bytes(b"")
    with pytest.raises(EngineIntegrityError, match=r"weights\.safetensors"):
        Runtime()


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_c2_files_linked_by_an_installer_are_the_packages_own(built_in, tmp_path, tiny_maps, backend):
    for path in built_in.iterdir():
        (tmp_path / f"cached {path.name}").hardlink_to(path)
    assert Runtime(backend=backend, threads=1).invert(tiny_maps[:1], steps=1).ok.all()
    with pytest.raises(EngineIntegrityError, match="hard link"):
        Runtime(built_in)


def test_a_folder_without_an_engine(tmp_path):
    with pytest.raises(EngineNotFoundError, match="featinv-export"):
        Runtime(tmp_path / "missing.engine")


def test_an_engine_that_is_open_already_is_taken(tiny_engine, tiny_maps):
    opened = open_engine(tiny_engine)
    assert Runtime(opened).engine is opened


def test_a_relative_path_survives_a_change_of_folder(tiny_engine, tiny_maps, monkeypatch, tmp_path):
    monkeypatch.chdir(tiny_engine.parent)
    runtime = Runtime(tiny_engine.name, backend="onnxruntime")
    monkeypatch.chdir(tmp_path)
    assert runtime.invert(tiny_maps[:1], steps=1).ok.all()


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "auto"])
@pytest.mark.parametrize("damage", ["changed", "longer", "shorter", "missing"])
@pytest.mark.parametrize("name", ["denoiser.onnx", "weights.safetensors", "manifest.json", "README.md"])
def test_c1_a_damaged_file_is_named_before_any_library_reads_it(copy, monkeypatch, name, damage, backend):
    def parsed(*_, **__):
        raise AssertionError("a library was given a file of a damaged engine")

    monkeypatch.setattr(onnxruntime, "InferenceSession", parsed)
    monkeypatch.setattr("featinv_fast.backends.torch_.safe_open", parsed)
    content = (copy / name).read_bytes()
    middle = len(content) // 2
    spoilt = {
        "changed": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "longer": content + b"\0",
        "shorter": content[:-1],
    }
    if damage == "missing":
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(spoilt[damage])
    with pytest.raises(EngineIntegrityError, match=name):
        Runtime(copy, backend=backend)


@pytest.mark.parametrize("what", ["another engine", "nothing"])
def test_c1_graphs_of_two_engines_do_not_mix(copy, restage, tiny_maps, what):
    """onnxruntime loads a graph when it is first run; by then another export may lie in the folder."""
    runtime = Runtime(copy, backend="onnxruntime")
    runtime.invert(tiny_maps[:1], steps=1, guidance_scale=1.75)
    if what == "nothing":
        shutil.rmtree(copy)
    else:
        restage(copy, copy, name="another")
    # What is loaded goes on, what is not is refused.
    assert runtime.invert(tiny_maps[:1], steps=1, guidance_scale=1.75).ok.all()
    with pytest.raises(EngineIntegrityError, match="replaced since it was opened"):
        runtime.invert(tiny_maps[:1], steps=1, guidance_scale=1.0)


def test_c1_a_graph_that_changes_after_the_engine_was_opened(copy, monkeypatch):
    runtime = Runtime(copy, backend="onnxruntime")
    content = (copy / "decoder.onnx").read_bytes()
    (copy / "decoder.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("onnxruntime was given it"))
    with pytest.raises(EngineIntegrityError, match=r"decoder\.onnx was changed"):
        runtime.decode(torch.zeros(1, 4, 8, 8))


def test_c1_torch_keeps_the_engine_that_it_opened(copy, restage, tiny_maps):
    runtime = Runtime(copy, backend="torch")
    before = runtime.invert(tiny_maps[:1]).images

    def zero(folder):
        size = (folder / "weights.safetensors").stat().st_size
        with (folder / "weights.safetensors").open("r+b") as file:
            file.seek(size // 2)
            file.write(bytes(size - size // 2))

    restage(copy, copy, zero)
    assert np.array_equal(runtime.invert(tiny_maps[:1]).images, before)


@pytest.fixture
def no_network(monkeypatch):
    """Whoever opens a socket or looks up a name fails the test."""

    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_c8_nothing_opens_a_socket(no_network, tiny_engine, tiny_maps, tmp_path, backend):
    runtime = Runtime(tiny_engine, backend=backend)
    inversion = runtime.invert(tiny_maps[:2], steps=1, progress=True)
    inversion.save(tmp_path)
    runtime.decode(inversion.latents)
    runtime.encode_condition(tiny_maps[:2])
    assert runtime.info["backend"] == backend


def test_c8_a_file_that_an_engine_lacks_is_named_with_the_command_that_makes_it(tiny_engine, restage, tmp_path):
    def drop(folder):
        (folder / "decoder.onnx").unlink()

    engine = restage(tiny_engine, tmp_path / "torch.engine", drop)
    with pytest.raises(BackendUnavailableError, match=r"no ONNX graphs \(decoder\): export it with --onnx"):
        Runtime(engine, backend="onnxruntime")
    assert Runtime(engine).info["backend"] == "torch"


def test_the_reasons_against_other_backends_are_told(tiny_engine, restage, tmp_path):
    def drop(folder):
        for path in folder.glob("*.onnx"):
            path.unlink()

    runtime = Runtime(restage(tiny_engine, tmp_path / "torch.engine", drop))
    reasons = runtime.info["reasons_against"]
    assert reasons["torch"] == []
    assert "condition_encoder, time_embedding, denoiser, denoiser_unguided, decoder" in reasons["onnxruntime"][0]


def test_the_engines_name_is_told(tiny_engine, restage, tmp_path):
    engine = restage(tiny_engine, tmp_path / "named.engine", name="ConvNeXt, 写真", adaptations=("lora",))
    info = Runtime(engine, backend="torch").info
    assert (info["name"], info["adaptations"]) == ("ConvNeXt, 写真", ["lora"])
    assert dataclasses.asdict(open_engine(engine).manifest)["name"] == info["name"]

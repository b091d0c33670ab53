"""`featinv convert`, `--help` and `--version`."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch

from featinv_fast.checkpoints import load


@pytest.fixture(scope="module")
def checkpoint(tiny_engine):
    """The checkpoint that the tiny engine was made from, in our own layout."""
    return tiny_engine.with_name("tiny.safetensors")


def test_round_trip_through_every_layout(featinv, checkpoint, tmp_path):
    destinations = {"ldm": tmp_path / "ldm.safetensors", "diffusers": tmp_path / "diffusers"}
    path = checkpoint
    for layout, destination in (*destinations.items(), ("featinv", tmp_path / "back.safetensors")):
        answer = featinv("convert", path, destination, "--to", layout)
        assert (answer.code, answer.out, answer.err) == (0, f"{destination}\n", "")
        assert load(destination).layout == layout
        path = destination
    first, last = load(checkpoint), load(path)
    assert (last.config, last.features, last.sampling) == (first.config, first.features, first.sampling)
    assert last.named_tensors().keys() == first.named_tensors().keys()
    for name, tensor in first.named_tensors().items():
        assert torch.equal(last.named_tensors()[name], tensor), name


def test_what_is_there_is_replaced_by_force_alone(featinv, checkpoint, tmp_path):
    destination = tmp_path / "copy.safetensors"
    assert featinv("convert", checkpoint, destination).code == 0
    before = destination.stat().st_mtime_ns
    answer = featinv("convert", checkpoint, destination)
    assert (answer.code, answer.out) == (2, "")
    assert "--force" in answer.err
    assert destination.stat().st_mtime_ns == before
    assert featinv("convert", checkpoint, destination, "--force").code == 0
    assert destination.stat().st_mtime_ns != before


def test_b2_a_truncated_checkpoint_is_a_failure(featinv, checkpoint, tmp_path):
    (tmp_path / "short.safetensors").write_bytes(checkpoint.read_bytes()[:-100])
    answer = featinv("convert", tmp_path / "short.safetensors", tmp_path / "new.safetensors")
    assert (answer.code, answer.out) == (1, "")
    assert "short.safetensors" in answer.err
    assert not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("paint",),
        ("convert", "only one"),
        ("convert", "a", "b", "--to", "onnx"),
        ("convert", "a", "folder", "--to", "ldm"),
    ],
)
def test_wrong_usage(featinv, arguments):
    answer = featinv(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err


def test_help_and_version(featinv):
    answer = featinv("--version")
    assert (answer.code, answer.out.strip()) == (0, importlib.metadata.version("featinv-fast"))
    for command in ("invert", "convert", "doctor"):
        assert command in featinv("--help").out
        answer = featinv(command, "--help")
        assert answer.code == 0
        assert answer.out.startswith(f"usage: featinv {command}")

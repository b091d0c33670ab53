"""Saving and converting: the same values in every layout, and nothing lost on the way."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from safetensors import safe_open

from featinv_fast.checkpoints import convert, load, save, writer
from featinv_fast.checkpoints.layouts import LAYOUTS
from featinv_fast.errors import ArgumentError, CheckpointCorruptError, CheckpointError, OutputExistsError


def named(folder, layout, stem="x"):
    return folder / (stem if layout == "diffusers" else f"{stem}.safetensors")


def assert_equal(given, expected):
    for field in ("config", "features", "sampling", "adaptations"):
        assert getattr(given, field) == getattr(expected, field), field
    mine, theirs = given.named_tensors(), expected.named_tensors()
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert mine[name].dtype == tensor.dtype
        assert torch.equal(mine[name], tensor), name


@pytest.mark.parametrize(("first", "second"), itertools.permutations(LAYOUTS, 2))
def test_round_trips_are_exact(tiny, tmp_path, first, second):
    tiny = dataclasses.replace(tiny, adaptations=("something was done",))
    one = load(save(tiny, named(tmp_path, first, "one"), first))
    assert one.layout == first
    two = load(save(one, named(tmp_path, second, "two"), second))
    assert two.layout == second
    for checkpoint in (one, two):
        assert_equal(checkpoint, tiny)
        assert checkpoint.metadata["featinv.info.trained_by"] == "a test"
        assert checkpoint.metadata["somebody"] == "else"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_round_trips_keep_dtypes(tiny, tmp_path, layout, dtype):
    tensors = {n: t.to(dtype) if n.startswith("denoiser.") else t for n, t in tiny.tensors.items()}
    mixed = dataclasses.replace(tiny, tensors=tensors, text_encoder={}, prompts={"cond": None, "uncond": None})
    loaded = load(save(mixed, named(tmp_path, layout), layout))
    assert_equal(loaded, mixed)
    assert loaded.prompts == {"cond": None, "uncond": None}


def test_the_golden_checkpoint_survives_every_conversion(golden, golden_checkpoint, tmp_path):
    convert(golden_checkpoint, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b", "diffusers")
    convert(tmp_path / "b", tmp_path / "c.safetensors", "ldm")
    with safe_open(tmp_path / "c.safetensors", "pt") as file:
        assert set(file.keys()) == {*golden.tensors, "featinv.prompt.cond", "featinv.prompt.uncond"}
        for name, tensor in golden.tensors.items():
            assert torch.equal(file.get_tensor(name), tensor), name


def test_the_same_content_gives_the_same_bytes(tiny, tmp_path):
    a, b = save(tiny, tmp_path / "a.safetensors"), save(tiny, tmp_path / "b.safetensors")
    assert a.read_bytes() == b.read_bytes()
    again = save(load(a), tmp_path / "c.safetensors")
    assert again.read_bytes() == a.read_bytes()


def test_tensors_of_any_memory_layout_are_written_by_value(tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "transposed": base.transpose(0, 2),
        "shared": base[1],
        "expanded": torch.ones(1).expand(5),
        "scalar": torch.tensor(3.0, dtype=torch.bfloat16),
        "counted": torch.tensor(7),  # as a batch norm counts its batches
        "empty": torch.zeros(0, 4),
    }
    writer.write_safetensors(tmp_path / "x.safetensors", tensors, {})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert file.get_tensor(name).dtype == tensor.dtype
            assert torch.equal(file.get_tensor(name), tensor), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_existing_destination_is_refused_without_force(tiny, tiny_ldm, tmp_path, layout):
    path = named(tmp_path, layout)
    save(tiny, path, layout)
    for attempt in (lambda: save(tiny, path, layout), lambda: convert(tiny_ldm, path, layout)):
        with pytest.raises(CheckpointError, match="exists") as caught:
            attempt()
        assert "force=True" in str(caught.value)
        assert "--force" in caught.value.message(command_line=True)
    other = dataclasses.replace(tiny, adaptations=("other",))
    save(other, path, layout, force=True)
    assert_equal(load(path), other)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_checkpoint_is_not_converted_onto_itself(tiny, tmp_path):
    (tmp_path / "link.safetensors").symlink_to("x.safetensors")
    for source, destination, layout in (
        ("x", "x", "diffusers"),
        ("x.safetensors", "x.safetensors", "ldm"),
        ("x.safetensors", "link.safetensors", "featinv"),
        ("x", "x/inside.safetensors", "featinv"),
        ("x/inside.safetensors", "x", "diffusers"),  # the folder is replaced with all that is in it
    ):
        path = tmp_path / source
        save(tiny, path, "featinv" if path.suffix else "diffusers", force=True)
        with pytest.raises(OutputExistsError, match="an input, the checkpoint"):
            convert(path, tmp_path / destination, layout, force=True)
        assert_equal(load(path), tiny)


def test_force_does_not_replace_what_is_no_checkpoint(tiny, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.png").write_bytes(b"cat")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        save(tiny, folder, "diffusers", force=True)
    assert (folder / "cat.png").read_bytes() == b"cat"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_failed_write_leaves_the_old_checkpoint(tiny, tmp_path, monkeypatch, layout):
    path = named(tmp_path, layout)
    save(tiny, path, layout)

    def full_disk(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.os, "fsync", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        save(dataclasses.replace(tiny, adaptations=("new",)), path, layout, force=True)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert_equal(load(path), tiny)


def test_a_folder_that_cannot_be_replaced_is_put_back(tiny, tmp_path, monkeypatch):
    path = save(tiny, tmp_path / "x", "diffusers")
    rename = type(path).rename

    def failing(self, target):
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", failing)
    with pytest.raises(CheckpointError, match="Input/output"):
        save(tiny, path, "diffusers", force=True)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert_equal(load(path), tiny)


def test_unknown_layouts_and_unsuitable_names(tiny, tmp_path):
    with pytest.raises(ArgumentError, match="unknown checkpoint layout"):
        save(tiny, tmp_path / "x.safetensors", "onnx")
    with pytest.raises(ArgumentError, match="does not suit"):
        save(tiny, tmp_path / "x.ckpt", "ldm")
    with pytest.raises(ArgumentError, match="does not suit"):
        save(tiny, tmp_path / "x.safetensors", "diffusers")
    assert not list(tmp_path.iterdir())


def test_b5_weights_that_are_not_finite_are_not_converted(tiny, tmp_path):
    name = "denoiser.unet.conv_out.bias"
    bad = dataclasses.replace(tiny, tensors={**tiny.tensors, name: torch.tensor([1.0, float("nan"), 0.0, 0.0])})
    save(bad, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointCorruptError, match=name):
        convert(tmp_path / "bad.safetensors", tmp_path / "out", "diffusers")
    assert not (tmp_path / "out").exists()

"""Files of every format: what is read, what is refused, and how much memory it takes."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file

from featinv_fast.checkpoints import load
from featinv_fast.checkpoints.architecture import model_shapes
from featinv_fast.checkpoints.reader import read_file
from featinv_fast.config import AutoencoderConfig, ModelConfig
from featinv_fast.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointUnsafeError,
)


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def assert_same(given, expected):
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        assert given[name].dtype == tensor.dtype
        assert torch.equal(given[name], tensor), name


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_b1_pickles_of_tensors_are_read(tmp_path, tiny, tiny_tensors, suffix, zipped):
    path = tmp_path / f"model{suffix}"
    torch.save(tiny_tensors, path, _use_new_zipfile_serialization=zipped)
    loaded = load(path)
    assert loaded.layout == "ldm"
    assert_same(loaded.tensors, tiny.tensors)


def test_b1_a_lightning_checkpoint_is_read_without_its_optimizer(tmp_path, tiny, tiny_tensors):
    path = tmp_path / "last.ckpt"
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in tiny_tensors.items()}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(4.0)}}, "param_groups": [{"lr": 1e-5}]}
    content = {"epoch": 2, "state_dict": parameters, "optimizer_states": [optimizer], "hyper_parameters": {"a": 1}}
    torch.save(content, path)
    loaded = load(path)
    assert_same(loaded.tensors, tiny.tensors)
    assert not any(tensor.requires_grad for tensor in loaded.tensors.values())


@pytest.mark.parametrize("form", ["zip", "legacy", "protocol 2", "protocol 4", "optimizer"])
def test_b1_code_in_a_pickle_never_runs(tmp_path, form):
    path, folder = tmp_path / "model.ckpt", tmp_path / "made by code"
    content = {"a": torch.zeros(3), "b": Malicious(folder)}
    if form == "optimizer":
        content = {"state_dict": {"a": torch.zeros(3)}, "optimizer_states": [Malicious(folder)]}
    with path.open("wb") as file:
        if form.startswith("protocol"):
            pickle.dump(content["b"], file, protocol=int(form[-1]))
        else:
            torch.save(content, file, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(CheckpointUnsafeError, match="operand" if form == "protocol 4" else "mkdir") as caught:
        load(path)
    assert "remedy" in str(caught.value)
    assert "weights_only=False" not in str(caught.value)
    assert not folder.exists()
    if form.startswith("protocol"):  # the file does what the test believes
        pickle.loads(path.read_bytes())
        assert folder.exists()


def test_b1_a_program_is_refused(tmp_path):
    path = tmp_path / "script.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(CheckpointUnsafeError, match="TorchScript"):
        load(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_b2_truncated_pickles(tmp_path, share, zipped):
    path = tmp_path / "short.ckpt"
    torch.save({f"a{i}": torch.zeros(100) for i in range(20)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises((CheckpointCorruptError, CheckpointUnsafeError), match=r"short\.ckpt"):
        load(path)


def test_b2_something_else_named_ckpt(tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(CheckpointCorruptError, match="not a PyTorch file"):
        load(path)


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [torch.zeros(3)], {}, {"state_dict": {"a": torch.zeros(2), "b": 7}}]
)
def test_b4_pickles_without_a_state_dict(tmp_path, content):
    path = tmp_path / "odd.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointMismatchError, match="dense tensors"):
        load(path)


def test_missing_files_and_unknown_names(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load(tmp_path / "nothing.safetensors")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="how it is to be read"):
        load(tmp_path / "model.gguf")


def shard(folder, parts, weight_map):
    for name, tensors in parts.items():
        save_file(tensors, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": weight_map}))
    return index


def test_sharded_files_are_read_as_one(tmp_path):
    parts = {"1.safetensors": {"a": torch.ones(2), "b": torch.zeros(3)}, "2.safetensors": {"c": torch.ones(1)}}
    index = shard(tmp_path, parts, {"c": "2.safetensors", "a": "1.safetensors", "b": "1.safetensors"})
    assert_same(read_file(index).tensors, parts["1.safetensors"] | parts["2.safetensors"])


@pytest.mark.parametrize(
    ("weight_map", "error"),
    [
        ({"a": "1.safetensors"}, CheckpointCorruptError),
        ({"a": "1.safetensors", "b": "1.safetensors", "c": "1.safetensors"}, CheckpointCorruptError),
        ({"a": "3.safetensors"}, CheckpointError),
        ({"a": "../1.safetensors"}, CheckpointUnsafeError),
        ({"a": "1.bin"}, CheckpointUnsafeError),
        ({"a": 1}, CheckpointCorruptError),
        (None, CheckpointCorruptError),
    ],
)
def test_b2_indices_that_do_not_fit_their_shards(tmp_path, weight_map, error):
    index = shard(tmp_path, {"1.safetensors": {"a": torch.ones(2), "b": torch.zeros(3)}}, weight_map)
    with pytest.raises(error):
        read_file(index)


MEASURE = """
    import sys, torch
    from featinv_fast.checkpoints import check_finite, load
    from featinv_fast.models import FeatInv

    def resident(key):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

    before = resident("VmRSS")
    checkpoint = load(sys.argv[1])
    with torch.device("meta"):
        model = FeatInv(checkpoint.config)
    model.load_state_dict(checkpoint.tensors, strict=True, assign=True)
    opened = resident("VmRSS")
    check_finite(model.state_dict())  # touches every weight
    print(opened - before, resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory the way Linux reports it")
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_loading_maps_memory(tmp_path, suffix):
    config = ModelConfig(channels=64, feature_channels=1024, autoencoder=AutoencoderConfig(channels=64))
    tensors = {name: torch.zeros(shape) for name, shape in model_shapes(config).items()}
    path = tmp_path / f"large{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    size = path.stat().st_size
    assert size > 200e6
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(path)]
    opened, peak = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert opened < 0.3 * size  # loading maps the tensors' first pages at most
    assert peak <= 1.3 * size

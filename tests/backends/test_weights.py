"""A manifest that does not fit its weights or itself is refused by name, quickly, whatever its checksums say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from featinv_export import cli
from featinv_fast import Runtime
from featinv_fast.engine import Manifest
from featinv_fast.engine.files import hash_files, manifest_checksum
from featinv_fast.errors import EngineFormatError, EngineIntegrityError

WEIGHTS = "weights.safetensors"


@pytest.fixture
def mutant(tiny_engine: Path, tmp_path: Path) -> Callable[..., Path]:
    """`mutant(path, value)`: the tiny engine with one value of its manifest changed; checksums are sound."""

    def make(key: str = "", value: object = None, edit: Callable[[Path], object] | None = None) -> Path:
        folder = tmp_path / "mutant.engine"
        shutil.copytree(tiny_engine, folder)
        manifest = json.loads((folder / "manifest.json").read_bytes())
        if edit is not None:
            edit(folder)
            manifest["files"] |= {name: vars(info) for name, info in hash_files(folder, [WEIGHTS]).items()}
        *parents, last = key.split(".")
        place = manifest
        for parent in parents:
            place = place[parent]
        place |= {last: value} if key else {}
        content = json.dumps(manifest).encode()
        (folder / "manifest.json").write_bytes(content)
        (folder / "manifest.json.sha256").write_bytes(manifest_checksum(content))
        return folder

    return make


@pytest.mark.parametrize("value", [-1, 0, 2**40, 1e300, True, "3", [], None])
@pytest.mark.parametrize(
    "key",
    [
        *(f"model.{name}" for name in ("channels", "blocks_per_level", "heads", "latent_size", "feature_channels")),
        *(f"model.{name}" for name in ("latent_channels", "context_channels", "context_tokens")),
        *(f"model.autoencoder.{name}" for name in ("channels", "blocks_per_level", "image_channels", "latent_scale")),
        *("sampling.steps", "features.channels", "time_bias_size", "max_batch", "optimal_batch"),
    ],
)
def test_a_number_out_of_its_range_is_refused(tiny_engine, key, value):
    manifest = json.loads((tiny_engine / "manifest.json").read_bytes())
    *parents, last = key.split(".")
    place = manifest
    for parent in parents:
        place = place[parent]
    place[last] = value
    with pytest.raises(EngineFormatError):
        Manifest.from_json(json.dumps(manifest).encode())


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("model.blocks_per_level", 2, "encoder.levels.1.blocks.1.residual.conv_in.weight is missing"),
        ("model.blocks_per_level", 4, "is missing"),
        ("model.channel_multipliers", [1, 2, 2, 2], "is missing"),
        ("model.channels", 64, r"instead of F32 \[64"),
        ("model.attention_levels", [], "is none of them"),
        ("model.context_tokens", 9, "instead of"),
        ("model.condition_hidden_channels", 4096, r"condition_encoder.conv_in.weight is F32 \[\d+, 6, 3, 3\] instead"),
        ("model.guidance_embedding_channels", 8, "guidance_projection.weight is missing"),
        ("model.autoencoder.channels", 96, "decoder.conv_in.weight"),
        ("model.autoencoder.channel_multipliers", [1], "is none of them|instead of"),
        ("precision", "fp16", "is F32"),
        ("storage", "bf16", "instead of BF16"),
        ("kept_fp32", ["nothing"], "nothing, kept in fp32, does not exist"),
        ("time_bias_size", 7, "time biases, not 7"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_an_architecture_that_is_not_the_weights_is_refused(mutant, key, value, named, backend):
    with pytest.raises(EngineIntegrityError, match=named):
        Runtime(mutant(key, value), backend=backend, device="cpu")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.blocks_per_level", 20_000),
        ("model.heads", 7),
        ("model.latent_size", 7),
        ("model.attention_levels", [5]),
        ("model.guidance_embedding_channels", 2),
        ("model.autoencoder.latent_channels", 8),
        ("model.channel_multipliers", []),
        ("model.channel_multipliers", [1] * 7),
        ("features.more_layers", [{"layer": "1", "channels": 6}]),
        ("family", "denoiser"),
    ],
)
def test_values_that_no_network_has_together_are_refused(mutant, key, value):
    with pytest.raises(EngineFormatError, match=key.rpartition(".")[2]):
        Runtime(mutant(key, value), backend="torch", device="cpu")


def test_layers_that_the_network_does_not_take_are_refused(mutant):
    more = [{"layer": "1", "channels": 6, "height": 5, "width": 5}]
    with pytest.raises(EngineFormatError, match=r"12 channels of 2 layers: 6x5x5 \+ 6x5x5\n  expected: 6 channels"):
        Runtime(mutant("features.more_layers", more), backend="torch", device="cpu")


@pytest.mark.parametrize(
    ("key", "value"), [("features.height", 7), ("model.latent_size", 16), ("features.width", None)]
)
def test_a_graph_of_other_sizes_than_the_manifests_is_refused(mutant, key, value):
    runtime = Runtime(mutant(key, value), backend="onnxruntime", device="cpu")
    height, width = 7 if key == "features.height" else 5, 5
    with pytest.raises(EngineIntegrityError, match="is not the graph that the engine's manifest declares"):
        runtime.invert(torch.ones(1, 6, height, width), steps=1)


def without_one(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["decoder.conv_out.bias"]
    save_file(tensors, folder / WEIGHTS)


def with_another_type(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {"decoder.conv_out.bias": torch.zeros(3, dtype=torch.int32)}, folder / WEIGHTS)


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x00" * 100)


@pytest.mark.parametrize("edit", [without_one, with_another_type, no_weights])
def test_weights_that_are_not_the_architectures_are_refused(mutant, edit, capsys):
    engine = mutant(edit=edit)
    with pytest.raises(EngineIntegrityError):
        Runtime(engine, backend="torch", device="cpu")
    assert cli.main(["--verify", str(engine)]) == 1
    assert "remedy: export the checkpoint again" in capsys.readouterr().err

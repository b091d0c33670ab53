"""FeatInv on several layers of a backbone: trained, exported, run by both backends, inverted and evaluated."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from featinv_export.cli import main as featinv_export
from featinv_fast import Runtime
from featinv_fast.checkpoints import load
from featinv_fast.cli import main as featinv
from featinv_fast.engine import open_engine
from featinv_fast.errors import ConfigError, FeatureShapeError
from featinv_fast.features import open_backbone
from featinv_fast.train import run
from featinv_fast.train.reading import read_recipe

BACKBONE = ("--backbone", "test_convnext", "--image-size", 64, "--backbone-weights", "random:0")


@pytest.fixture
def folder(featinv_folder):
    """The recipe takes two layers."""
    recipe = featinv_folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("[data]", 'layers = ["final", "1"]\n[data]'))
    return featinv_folder


def train(folder, *changes):
    return run(folder / "recipe.toml", root=folder, changes=list(changes), progress=False)


def command(main, *arguments):
    return main([str(argument) for argument in arguments])


def maps_of(folder, layer):
    out = folder / f"{layer}.safetensors"
    pictures = ("--images", folder / "pictures", "--out", out, "--quiet")
    assert command(featinv, "features", *BACKBONE, "--layer", layer, *pictures) == 0
    return out


@pytest.mark.filterwarnings("ignore::featinv_fast.evaluate.FewSamplesWarning")
def test_from_a_recipe_to_images(folder, capsys):
    checkpoint = load(train(folder, "training.steps=20"))
    spec = checkpoint.features
    layers = [(one.layer, one.channels, one.height, one.width) for one in spec.layers]
    assert layers == [("final", 64, 2, 2), ("1", 32, 8, 8)]
    assert checkpoint.config.feature_shapes == ((64, 2, 2), (32, 8, 8))
    assert checkpoint.config.feature_channels == 96

    engine = folder / "both.engine"
    assert command(featinv_export, "--ckpt", checkpoint.path, "--out", engine, "--onnx", "--steps", 2) == 0
    assert open_engine(engine).manifest.features == spec
    assert "| layer | final, 1 |" in (engine / "README.md").read_text()
    capsys.readouterr()
    assert command(featinv_export, "--inspect", engine) == 0
    assert "features [B, 64, 2, 2] + [B, 32, 8, 8]\n" in capsys.readouterr().out

    # By name and packed, on both backends: the same latents, in which every layer has a part.
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    by_name = {
        layer: open_backbone("test_convnext", layer=layer, image_size=64, weights="random:0")(pixels)
        for layer in ("1", "final")
    }
    runtime = Runtime(engine, backend="torch", threads=1)
    expected = runtime.invert(by_name, output_type="latent").latents
    assert torch.equal(runtime.invert(open_backbone(spec, weights="random:0")(pixels)).latents, expected)
    graphs = Runtime(engine, backend="onnxruntime", threads=1).invert(by_name, output_type="latent").latents
    torch.testing.assert_close(graphs, expected, atol=1e-4, rtol=1e-4)
    for name, maps in by_name.items():
        changed = runtime.invert(by_name | {name: -maps}, output_type="latent").latents
        assert (changed - expected).abs().max() > 1e-5
    with pytest.raises(FeatureShapeError, match="a map of each layer"):
        runtime.invert(by_name["final"])
    runtime.warmup()

    pictures = ("--engine", engine, "--images", folder / "pictures", "--backbone-weights", "random:0")
    running = ("--threads", 1, "--quiet")
    assert command(featinv, "invert", *pictures, *running, "--out", folder / "of pictures") == 0
    maps = ("--engine", engine, "--features", maps_of(folder, "final,1"))
    assert command(featinv, "invert", *maps, *running, "--out", folder / "of maps") == 0
    images = [sorted(path.read_bytes() for path in (folder / out).glob("*.png")) for out in ("of pictures", "of maps")]
    assert images[0] == images[1]
    assert len(images[0]) == 5
    turned = ("--engine", engine, "--features", maps_of(folder, "1,final"))
    assert command(featinv, "invert", *turned, *running, "--out", folder / "none") == 2
    assert "are others than the engine takes" in capsys.readouterr().err

    assert command(featinv, "eval", *pictures, *running, "--no-plot", "--out", folder / "judged") == 0
    report = json.loads((folder / "judged" / "report.json").read_text())
    assert all(-1 <= row["cosine"]["mean"] <= 1 for row in report["rows"])


def test_pairs_of_several_layers_train_what_the_backbone_trains(folder):
    own = load_file(train(folder, "folder=own", "out=own.safetensors"))
    maps_of(folder, "final,1")
    pairs = train(folder, "folder=pairs", "out=pairs.safetensors", "features.file='final,1.safetensors'")
    for name, tensor in load_file(pairs).items():
        torch.testing.assert_close(tensor, own[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("line", ['layers = ["1"]', 'layers = ["1", "final"]\npooled = true'])
def test_layers_that_contradict_the_rest_are_refused(folder, line):
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('layers = ["final", "1"]', line))
    with pytest.raises(ConfigError, match="layers of the backbone"):
        read_recipe(recipe)

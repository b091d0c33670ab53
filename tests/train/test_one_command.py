"""The real thing: a folder of images, a timm backbone and a base model; one command; a FeatInv checkpoint."""

from __future__ import annotations

import argparse
import dataclasses

import pytest
import timm
import torch
from safetensors.torch import save_file

from featinv_fast.checkpoints import load
from featinv_fast.checkpoints.architecture import TEXT_ENCODER, text_encoder_shapes
from featinv_fast.checkpoints.ldm import LAYOUT
from featinv_fast.checkpoints.recipe import Recipe
from featinv_fast.cli.train import add_parser
from featinv_fast.config import SamplingConfig
from featinv_fast.errors import ArgumentError
from featinv_fast.text import TRAINING_PROMPT, encode_prompt

RECIPE = """
recipe = "controlnet"
folder = "run"
out = "featinv.safetensors"
base = "sd.safetensors"
latent_size = 8
condition_hidden_channels = 16
[backbone]
name = "test_convnext"
weights = "backbone.safetensors"
[data]
source = "pictures"
size = 64
[training]
steps = 3
batch_size = 2
checkpoint_every = 2
image_every = 3
device = "cpu"
"""


@pytest.fixture
def folder(tmp_path, pictures, make_model, tiny_config):
    """Images, a backbone and a base in the official layout, with CLIP's vocabulary."""
    (tmp_path / "pictures").symlink_to(pictures)
    save_file(timm.create_model("test_convnext", num_classes=3).state_dict(), tmp_path / "backbone.safetensors")
    config = dataclasses.replace(tiny_config, context_channels=64, context_tokens=77)
    text = text_encoder_shapes(layers=1, width=64, hidden=64, vocabulary=49408, tokens=77)
    generator = torch.Generator().manual_seed(1)
    text = {TEXT_ENCODER + name: torch.randn(shape, generator=generator) / 8 for name, shape in text.items()}
    tensors = Recipe.make(LAYOUT, config, {name: tuple(t.shape) for name, t in text.items()}).write(
        make_model(config).state_dict() | text
    )
    base = {name: t for name, t in tensors.items() if not name.startswith("control_model.")}
    save_file(base, tmp_path / "sd.safetensors")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def command(*arguments):
    """Run a command line of `featinv train` or `featinv distill`."""
    parser = argparse.ArgumentParser(prog="featinv")
    add_parser(parser.add_subparsers(required=True))
    options = parser.parse_args([str(argument) for argument in arguments])
    return options.run(options)


def test_one_command_makes_a_featinv_checkpoint(folder, capsys):
    assert command("train", "--config", folder / "recipe.toml", "--root", folder, "--quiet") == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(folder / "featinv.safetensors")
    assert printed.err == ""
    checkpoint = load(folder / "featinv.safetensors")
    assert (checkpoint.features.backbone, checkpoint.features.channels) == ("test_convnext", 64)
    assert (checkpoint.features.input_size, checkpoint.features.height) == (64, 2)
    assert checkpoint.sampling == SamplingConfig()
    assert checkpoint.config.image_size == 16
    base = load_text(folder)
    assert torch.equal(checkpoint.prompts["cond"], encode_prompt(TRAINING_PROMPT, base))
    assert torch.equal(checkpoint.prompts["uncond"], encode_prompt("", base))
    assert (folder / "run" / "images" / "000000003.png").exists()


def load_text(folder):
    from featinv_fast.checkpoints import load_base

    return load_base(folder / "sd.safetensors").text_encoder


def test_values_may_be_replaced_and_bars_are_shown(folder, capsys):
    assert command("train", "--config", folder / "recipe.toml", "--root", folder, "--set", "training.steps=1") == 0
    assert "1/1" in capsys.readouterr().err


def test_each_command_has_its_recipes(folder):
    with pytest.raises(ArgumentError, match="another command") as caught:
        command("distill", "--config", folder / "recipe.toml")
    assert "featinv train" in caught.value.expected

"""Recipes: every key is read, and every other one is an error."""

from __future__ import annotations

import pytest

from featinv_fast.config import FeatureLayout, Precision
from featinv_fast.errors import ConfigError
from featinv_fast.train import read_recipe
from featinv_fast.train.settings import BaseRecipe, Crop, TrainingConfig

BASE = """
recipe = "base"
folder = "runs/base"
out = "base.safetensors"
autoencoder = "autoencoder.safetensors"
[data]
source = "pictures"
crop = "center"
[model]
latent_size = 16
channel_multipliers = [1, 2]
attention_levels = [0]
[training]
steps = 5
precision = "bf16"
"""


@pytest.fixture
def recipe(tmp_path):
    """`recipe(text)` writes a file; returns its path."""

    def write(text=BASE):
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return path

    return write


def test_a_recipe_is_read(recipe):
    read = read_recipe(recipe())
    assert isinstance(read, BaseRecipe)
    assert (read.model.latent_size, read.model.channel_multipliers, read.model.channels) == (16, (1, 2), 320)
    assert (read.data.crop, read.training.precision, read.training.steps) == (Crop.CENTER, Precision.BF16, 5)


def test_the_official_defaults():
    config = TrainingConfig(steps=1)
    assert (config.learning_rate, config.batch_size, config.precision) == (1e-5, 8, Precision.FP32)


def test_changes_replace_values(recipe):
    changes = ["training.steps=7", "data.source=other folder", "model.heads = 4", "out='x.safetensors'"]
    read = read_recipe(recipe(), changes)
    assert (read.training.steps, read.data.source, read.model.heads, read.out) == (
        7,
        "other folder",
        4,
        "x.safetensors",
    )


def test_a_change_may_add_a_table(recipe):
    text = BASE.replace('recipe = "base"', 'recipe = "controlnet"').split("autoencoder")[0] + 'base = "b"\n'
    text += "[data]\nsource = 'x'\n[training]\nsteps = 1\n"
    read = read_recipe(recipe(text), ["backbone.name=resnet50", "backbone.layout=nhwc"])
    assert (read.backbone.name, read.backbone.layout, read.drop_features) == ("resnet50", FeatureLayout.NHWC, 0.15)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('recipe = "base"', 'recipe = "bass"', "unknown recipe"),
        ('recipe = "base"', "", "unknown recipe"),
        ('recipe = "base"', f"recipe = 0x{'F' * 5000}", "unknown recipe"),
        ("steps = 5", "steps = 5\nstep = 5", "step"),
        ("steps = 5", "steps = 5.5", "training.steps"),
        ("steps = 5", "steps = 0", "out of range"),
        ("steps = 5", "steps = 5\nema_decay = 1.0", "average"),
        ("steps = 5", "steps = 5\ndevice = 'tpu'", "device"),
        ("steps = 5", "steps = 5\nlearning_rate = nan", "out of range"),
        ('crop = "center"', 'crop = "middle"', "data.crop"),
        ('source = "pictures"', "", "source"),
        ('"base.safetensors"', '"base.ckpt"', "safetensors"),
        ("[model]", "[model", "no TOML"),
        ("steps = 5", f"steps = {'[' * 3000}{']' * 3000}", "no TOML.*nested"),
        ("steps = 5", f"steps = 1{'0' * 5000}", "no TOML.*digits"),
        ("steps = 5", f"steps = 0x{'F' * 5000}", "training.steps.*64 bits"),
        ("steps = 5", f"steps = 5\nlearning_rate = 1{'0' * 400}", "training.learning_rate"),
        ('precision = "bf16"', f"precision = 0x{'F' * 5000}", "training.precision.*digits"),
        ("steps = 5", f"steps = 5\nseed = {2**63}", "training.seed.*64 bits"),
    ],
)
def test_mistakes_are_named(recipe, old, new, named):
    assert old in BASE
    with pytest.raises(ConfigError, match=f"(?s){named}") as raised:
        read_recipe(recipe(BASE.replace(old, new)))
    assert len(str(raised.value)) < 2000


def test_files_and_changes_that_are_none(recipe, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="without a value"):
        read_recipe(recipe(), ["training.steps"])
    with pytest.raises(ConfigError, match="inside of a value"):
        read_recipe(recipe(), ["out.name=3"])
    with pytest.raises(ConfigError, match=r"training\.steps"):
        read_recipe(recipe(), [f"training.steps={'[' * 3000}"])

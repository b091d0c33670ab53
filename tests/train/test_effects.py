"""Keys of recipes that have no effect are refused, each with the reason; unknown ones name the nearest."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch

import featinv_fast.demo.recipes
from featinv_fast.errors import ConfigError
from featinv_fast.train import read_recipe, run
from featinv_fast.train.classifier import make_classifier
from featinv_fast.train.effects import RULES, changed_in
from featinv_fast.train.settings import DataConfig, Recipe, Split

RECIPES = featinv_fast.demo.recipes.FOLDER
FOLDER = ["data.source=pictures"]
OWN = ["own_path.share=1.0"]

# A shipped recipe, what is changed in it, the key that then has no effect, and the reason.
IDLE = [
    ("base", ["data.crop=center"], "data.crop", "drawn, not read"),
    ("base", ["data.crop=random"], "data.crop", "drawn, not read"),
    ("judge", ["data.flips=[0.0, 0.0]"], "data.flips", "drawn, not read"),
    ("vit", ["data.holdout=[0.2, 0.2]"], "data.holdout", "drawn, not read"),
    ("swin", ["data.on_unreadable=skip"], "data.on_unreadable", "drawn, not read"),
    ("judge", [*FOLDER, "data.crop=center", "data.flips=[0.5, 0.0]"], "data.flips", "the centre"),
    ("controlnet", [*FOLDER, "data.holdout=[0.2, 0.2]", "data.cache=none"], "data.holdout", "no split"),
    ("controlnet", FOLDER, "data.cache", "other crops"),
    ("autoencoder", ["data.cache=memory"], "data.cache", "the images themselves"),
    ("backbone", ["data.cache=none"], "data.cache", "the images themselves"),
    ("autoencoder", ["model.latent_scale=0.2"], "model.latent_scale", "measured"),
    ("autoencoder", ["perceptual_weight=0.0"], "perceptual.weights", "weight of this comparison is 0"),
    ("autoencoder", ["perceptual.layer='1'"], "perceptual.layer", "perceptual_layers"),
    ("autoencoder", ["perceptual.pooled=true"], "perceptual.pooled", "perceptual_layers"),
    ("backbone", ["concept_weight=0.0"], "concepts.shape", "weight is 0"),
    ("backbone", ["training.image_every=10"], "training.image_every", "no images"),
    ("base", ["model.autoencoder.channels=64"], "model.autoencoder.channels", "trained autoencoder"),
    ("base", ["model.feature_channels=8"], "model.feature_channels", "no condition encoder"),
    ("base", ["drop_prompt=1.0"], "concepts.shape", "always dropped"),
    ("base", ["drop_caption=1.0"], "concepts.cell", "always dropped"),
    ("refined", ["perceptual.weight=0.0"], "perceptual.layers", "weight of this loss is 0"),
    ("refined", OWN, "times", "own path"),
    ("refined", OWN, "drop_features", "own path"),
    ("consistency", ["lora_rank=4"], "lora_rank", "low-rank"),
    ("consistency", ["teacher_steps=50"], "teacher_steps", "50 steps"),
    ("consistency", OWN, "guidance_scale", "nothing is learned from the teacher"),
    ("consistency", ["guidance_scale=[1.0, 1.0]"], "unconditional_strength", "not guided"),
    ("trajectory", ["huber=0.01"], "huber", "teacher's path"),
    ("trajectory", ["perceptual.layers=[1]"], "perceptual.layers", "teacher's path"),
    ("trajectory", ["own_path.jumps=2"], "own_path.jumps", "teacher's path"),
]


@pytest.mark.parametrize(("name", "changes", "key", "reason"), IDLE)
def test_a_key_without_effect_is_refused_with_the_reason(name, changes, key, reason):
    with pytest.raises(ConfigError, match="no effect") as caught:
        read_recipe(RECIPES / f"{name}.toml", changes)
    assert f"{key}: " in caught.value.given
    assert reason in caught.value.given


def test_keys_that_need_tables_which_are_not_there(tmp_path):
    text = {name: (RECIPES / f"{name}.toml").read_text() for name in ("autoencoder", "backbone", "base")}
    for name, table, key in (
        ("autoencoder", "perceptual", "perceptual_weight"),
        ("backbone", "concepts", "concept_weight"),
        ("base", "concepts", "drop_caption"),
    ):
        head, _, rest = text[name].partition(f"[{table}]\n")
        path = tmp_path / f"{name}.toml"
        path.write_text(head + "[" + rest.partition("\n[")[2])
        with pytest.raises(ConfigError, match="no effect") as caught:
            read_recipe(path, [f"{key}=0.5"])
        assert key in caught.value.given


def test_the_seed_of_a_folder_counts_where_something_is_drawn(tmp_path):
    path = tmp_path / "recipe.toml"
    lines = (RECIPES / "controlnet.toml").read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith(("count", "cache"))))
    seeded = [*FOLDER, "data.crop=center", "data.seed=1"]
    for drawn in ("data.split=train", "data.count=3", "data.crop=random"):
        assert read_recipe(path, [*seeded, drawn]).data.seed == 1
    with pytest.raises(ConfigError, match=r"data\.seed: nothing is drawn"):
        read_recipe(path, seeded)


def test_every_shipped_recipe_is_read_and_named_by_a_rule():
    kinds = {type(read_recipe(path)) for path in RECIPES.glob("*.toml")}
    assert {Recipe, *kinds} == {kind for rule in RULES for kind in rule.recipes}


def test_recipes_made_in_python_are_held_to_it(tmp_path):
    recipe = read_recipe(RECIPES / "judge.toml")
    assert "concept_weight" not in changed_in(recipe)  # 0.3, as it is by itself
    flipped = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, flips=(1.0, 0.0)))
    with pytest.raises(ConfigError, match=r"data\.flips: scenes are drawn"):
        run(flipped, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "near"),
    [
        ("training.learning_rat=1", "'learning_rate' for 'learning_rat'"),
        ("data.splitt=train", "'split' for 'splitt'"),
        ("data.split=validatoin", "'validation'"),
        ("data.crop=centre", "'center'"),
        ("recipe=backbon", "'backbone'"),
    ],
)
def test_a_misspelt_key_or_value_is_answered_with_the_nearest(change, near):
    with pytest.raises(ConfigError) as caught:
        read_recipe(RECIPES / "judge.toml", [change])
    assert f"did you mean {near}" in caught.value.remedy


def test_nothing_near_is_guessed_for_nonsense():
    with pytest.raises(ConfigError) as caught:
        read_recipe(RECIPES / "judge.toml", ["data.split=nonsense"])
    assert "did you mean" not in caught.value.remedy
    assert caught.value.expected == ["train", "validation", "test"]


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"size": 0}, {"holdout": (0.5, 0.5)}, {"holdout": (0.0, 0.1)}, {"flips": (1.5, 0.0)}]
)
def test_numbers_of_the_data_out_of_range(wrong):
    with pytest.raises(ConfigError, match="out of range"):
        DataConfig(source="x", split=Split.TRAIN, **wrong)


BACKBONE = """
recipe = "backbone"
folder = "run"
out = "backbone.safetensors"
name = "test_resnet"
classes = 2
[data]
source = "pictures"
[training]
steps = 1
"""


def test_a_folder_must_suit_itsmake_classifier(pictures, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(BACKBONE)
    flat = [f"data.source={pictures / 'cats'}"]
    for changes in (flat, [f"data.source={pictures}", "classes=1"]):
        with pytest.raises(ConfigError, match="do not suit the classifier"):
            run(path, root=tmp_path, changes=changes, progress=False)


def test_a_model_without_branches_to_skip_is_trained_and_drop_path_refused(tmp_path, monkeypatch):
    def make(name, num_classes, drop_path_rate=None, **_):
        if drop_path_rate is not None and name == "test_resnet":
            raise TypeError("unexpected keyword argument 'drop_path_rate'")
        return torch.nn.Linear(3, num_classes)

    monkeypatch.setattr(timm, "create_model", make)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(BACKBONE)
    read = read_recipe(recipe, ["name=test_resnet"])
    assert isinstance(make_classifier(read, 160), torch.nn.Linear)
    for name, problem in (("test_resnet", "timm cannot make this model"), ("test_convnext", "drop_path has no effect")):
        with pytest.raises(ConfigError, match=problem):
            make_classifier(dataclasses.replace(read, name=name, drop_path=0.1), 160)

"""Concept heads beside the classes of a backbone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors import safe_open

from featinv_fast.errors import ArgumentError
from featinv_fast.train import read_recipe, run
from featinv_fast.train.backbone import BackboneObjective
from featinv_fast.train.data import open_data
from featinv_fast.train.settings import BackboneRecipe, DataConfig, TrainingConfig


@pytest.fixture
def recipe():
    """A backbone that learns two concepts: one of each object, and one of the image."""
    return BackboneRecipe(
        recipe="backbone",
        folder="run",
        out="backbone.safetensors",
        name="featinv_convnext",
        classes=20,
        concepts={"colour": 8, "background": 6},
        concept_weight=0.5,
        data=DataConfig(source="scenes", count=8, size=64),
        training=TrainingConfig(steps=2, batch_size=4),
    )


@pytest.fixture
def objective(recipe, tmp_path):
    """`objective(recipe)`: with the same random backbone every time."""
    import timm

    from featinv_fast.features import small_backbones

    small_backbones.register()

    def make(recipe=recipe):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = timm.create_model(recipe.name, num_classes=recipe.classes)
            return BackboneObjective(model, recipe, open_data(recipe.data, tmp_path), 64)

    return make


def test_every_concept_adds_its_surprise(objective, recipe):
    both = objective()
    plain = objective(dataclasses.replace(recipe, concepts={}))
    assert {name: head.out_features for name, head in both.heads.items()} == {"colour": 3 * 8, "background": 6}
    for head in both.heads.values():  # they know nothing: log(8) and log(6) nats, times the weight
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    batch = both.load(np.arange(4))
    generator = torch.Generator()
    losses, alone = both(batch, generator, None), plain(batch, generator, None)
    assert set(losses) == {"loss", "accuracy", "colour", "background"}
    assert (losses["loss"] - alone["loss"]).item() == pytest.approx(0.5 * (np.log(8) + np.log(6)), rel=1e-5)
    losses["loss"].backward()
    assert all(head.weight.grad.abs().max() > 0 for head in both.heads.values())


def test_objects_that_are_not_there_do_not_count(objective):
    both = objective()
    batch = both.load(np.arange(4))
    nobody = batch | {"colour": torch.full_like(batch["colour"], -1)}
    with torch.no_grad():
        with_colours, without = (both(b, torch.Generator(), None) for b in (batch, nobody))
    assert without["colour"] == 0
    assert torch.isfinite(without["loss"])
    assert without["loss"] < with_colours["loss"] - 0.5


def test_an_unknown_concept_is_named(objective, recipe):
    with pytest.raises(ArgumentError, match="texture") as caught:
        objective(dataclasses.replace(recipe, concepts={"texture": 3}))
    assert "colour" in str(caught.value)


def test_the_heads_are_thrown_away(recipe, tmp_path):
    path = run(recipe, root=tmp_path, progress=False)
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    assert "head.fc.weight" in names
    assert not [name for name in names if "colour" in name or "heads" in name]


def test_concepts_are_read_from_a_file(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        'recipe = "backbone"\nfolder = "run"\nout = "b.safetensors"\nname = "featinv_convnext"\nclasses = 20\n'
        '[concepts]\nshape = 5\n[data]\nsource = "scenes"\n[training]\nsteps = 1\n'
    )
    recipe = read_recipe(path)
    assert isinstance(recipe, BackboneRecipe)
    assert recipe.concepts == {"shape": 5}

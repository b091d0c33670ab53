"""Concepts: heads beside the classes of a backbone, and captions for base models."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from featinv_fast.config import FeatureSpec
from featinv_fast.demo.world.dataset import SceneDataset
from featinv_fast.errors import ArgumentError, CheckpointMismatchError
from featinv_fast.features import Backbone
from featinv_fast.train import read_recipe, run
from featinv_fast.train.backbone import BackboneObjective
from featinv_fast.train.base import BaseObjective
from featinv_fast.train.concepts import Captions, concept_slots
from featinv_fast.train.data import open_data
from featinv_fast.train.inputs import Inputs
from featinv_fast.train.settings import BackboneRecipe, BaseRecipe, Cache, DataConfig, TrainingConfig


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


def test_the_heads_are_kept_beside_the_network(recipe, tmp_path):
    path = run(recipe, root=tmp_path, progress=False)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    heads = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith("featinv.concepts.")}
    assert heads == {
        "featinv.concepts.colour.weight": (3 * 8, 256),
        "featinv.concepts.colour.bias": (3 * 8,),
        "featinv.concepts.background.weight": (6, 256),
        "featinv.concepts.background.bias": (6,),
    }
    assert json.loads(metadata["featinv.concepts"]) == {"colour": [3, 8], "background": [1, 6]}

    alone = {name: tensor for name, tensor in tensors.items() if name not in heads}
    save_file(alone, tmp_path / "alone.safetensors")
    spec = FeatureSpec(channels=256, backbone="featinv_convnext", layer="final", input_size=64)
    one, other = (Backbone(spec, weights=file) for file in (path, tmp_path / "alone.safetensors"))
    assert one.weights_sha256 == other.weights_sha256
    pixels = torch.ones(1, 3, 64, 64)
    torch.testing.assert_close(one.features_and_logits(pixels), other.features_and_logits(pixels), rtol=0, atol=0)
    save_file({**alone, "featinv.others.weight": torch.ones(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"featinv\.others\.weight"):
        Backbone(spec, weights=tmp_path / "foreign.safetensors")


def test_concepts_are_read_from_a_file(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        'recipe = "backbone"\nfolder = "run"\nout = "b.safetensors"\nname = "featinv_convnext"\nclasses = 20\n'
        '[concepts]\nshape = 5\n[data]\nsource = "scenes"\n[training]\nsteps = 1\n'
    )
    recipe = read_recipe(path)
    assert isinstance(recipe, BackboneRecipe)
    assert recipe.concepts == {"shape": 5}


# --- captions: what base models are told ---


def test_captions_have_a_token_for_each_object_and_one_for_the_image():
    codes = {
        "shape": torch.tensor([[0, 2, -1], [4, -1, -1]]),
        "colour": torch.tensor([[1, 1, -1], [0, -1, -1]]),
        "background": torch.tensor([3, 5]),
    }
    captions = Captions({"shape": 5, "colour": 8, "background": 6}, {"shape": 3, "colour": 3, "background": 0}, 16)
    tokens = captions(codes)
    assert tokens.shape == (2, 3 + 1, 16)
    shape, colour, background = (captions.tables[name].weight for name in codes)
    torch.testing.assert_close(tokens[0, 1], shape[1 + 2] + colour[1 + 1] + captions.places[1])
    torch.testing.assert_close(tokens[0, 2], shape[0] + colour[0] + captions.places[2])  # no third object
    torch.testing.assert_close(tokens[1, 3], background[1 + 5])
    assert Captions({"background": 6}, {"background": 0}, 16)(codes).shape == (2, 1, 16)


@pytest.fixture
def told(tiny_config, make_model, tmp_path):
    """`told(drops)`: the prompts that a base model is given for eight scenes, and its objective."""

    def make(**drops):
        concepts = {"shape": 5, "cell": 9, "background": 6}
        recipe = BaseRecipe(
            recipe="base",
            folder="run",
            out="base.safetensors",
            model=tiny_config,
            autoencoder="x",
            concepts=concepts,
            data=DataConfig(source="scenes", count=8, size=16, cache=Cache.DISK),
            training=TrainingConfig(steps=1),
            **drops,
        )
        data = open_data(recipe.data, tmp_path)
        slots = concept_slots(data, concepts)
        assert slots == {"shape": 3, "cell": 3, "background": 0}
        model = make_model(tiny_config)
        inputs = Inputs(
            data,
            recipe.data,
            model.autoencoder,
            image_size=16,
            extractor=None,
            folder=tmp_path,
            progress=False,
            concepts=tuple(concepts),
        )
        prompts = {
            "cond": torch.ones(1, 1, tiny_config.context_channels),
            "uncond": torch.zeros(1, 1, tiny_config.context_channels),
        }
        captions = Captions(concepts, slots, tiny_config.context_channels)
        objective = BaseObjective(model.denoiser.unet, recipe, tiny_config, inputs, prompts, captions)
        given = []
        hook = objective.unet.register_forward_pre_hook(lambda _, arguments: given.append(arguments[2]))
        batch = objective.load(np.arange(8))
        loss = objective(batch, torch.Generator().manual_seed(0), None)["loss"]
        hook.remove()
        return given[0], objective, batch, loss

    return make


def test_a_base_is_told_what_is_in_the_scenes(told):
    given, objective, batch, loss = told(drop_prompt=0.0, drop_caption=0.0)
    torch.testing.assert_close(given, objective.captions(batch))
    np.testing.assert_array_equal(batch["shape"], SceneDataset("train", length=8).batch(np.arange(8))["shape"])
    objective.captions.requires_grad_()
    objective.unet.requires_grad_()
    assert loss.requires_grad
    loss.backward()
    assert objective.captions.tables["shape"].weight.grad.abs().sum() > 0


def test_a_base_also_learns_both_constant_prompts(told):
    assert (told(drop_prompt=1.0, drop_caption=0.0)[0] == 0).all()
    assert (told(drop_prompt=0.0, drop_caption=1.0)[0] == 1).all()
    given, objective, batch, _ = told(drop_prompt=0.4, drop_caption=0.5)
    captions = objective.captions(batch)
    kinds = [
        (row == 0).all() + 2 * (row == 1).all() + 4 * torch.equal(row, said)
        for row, said in zip(given, captions, strict=True)
    ]
    assert set(map(int, kinds)) == {1, 2, 4}


def test_concepts_that_the_data_do_not_tell_are_refused(tmp_path):
    data = open_data(DataConfig(source="scenes", count=2, size=16), tmp_path)
    with pytest.raises(ArgumentError, match="do not tell"):
        concept_slots(data, ["mood"])

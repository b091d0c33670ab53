"""FeatInv learned on from a model of another layer or backbone, and what the result says of it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from featinv_fast.checkpoints import load
from featinv_fast.errors import ConfigError
from featinv_fast.train import run
from featinv_fast.train.place import REMARKS_NOTE


def train(folder, name, *changes):
    changes = [f"folder={name}", f"out={name}.safetensors", *changes]
    return run(folder / "recipe.toml", root=folder, changes=changes, progress=False)


def remarks(path):
    return json.loads(load(path).metadata.get(REMARKS_NOTE, "[]"))


STILL = ["training.steps=1", "training.learning_rate=0.0", "start=trained.safetensors"]


def test_another_layer_keeps_all_but_the_first_convolution(featinv_folder, caplog):
    trained = train(featinv_folder, "trained")
    assert remarks(trained) == []
    path = train(featinv_folder, "other", *STILL, "backbone.layer='1'")
    old, new, fresh = (
        load_file(one) for one in (trained, path, train(featinv_folder, "fresh", "backbone.layer='1'", *STILL[:2]))
    )
    first = {"condition_encoder.conv_in.weight", "condition_encoder.conv_in.bias"}
    assert old["condition_encoder.conv_in.weight"].shape[1] != new["condition_encoder.conv_in.weight"].shape[1]
    for name in new:
        assert torch.equal(new[name], fresh[name] if name in first else old[name]), name
    (said,) = remarks(path)
    assert "test_convnext, layer final, of 64 channels: the first convolution" in said
    assert "test_convnext, layer 1 is started from" in caplog.text
    assert load(path).features.layer == "1"


def test_another_backbone_of_as_many_channels_keeps_everything(featinv_folder, caplog):
    trained = train(featinv_folder, "trained")
    same = train(featinv_folder, "same", *STILL)
    assert caplog.text == ""
    assert remarks(same) == []
    path = train(featinv_folder, "other", *STILL, "backbone.layer='3'")  # the map before the last norm
    assert remarks(path) == ["started from a model of the features of test_convnext, layer final, of 64 channels"]
    for name, tensor in load_file(trained).items():
        assert torch.equal(load_file(path)[name], tensor), name


def test_another_architecture_is_refused(featinv_folder):
    train(featinv_folder, "trained")
    with pytest.raises(ConfigError, match="of whatever features"):
        train(featinv_folder, "other", *STILL, "backbone.layer='1'", "condition_hidden_channels=8")


def test_a_lengthened_run_notes_that_its_rate_fell(featinv_folder):
    changes = ["training.rate_shape=cosine", "training.steps=2"]
    assert remarks(train(featinv_folder, "run", *changes)) == []
    path = train(featinv_folder, "run", *changes[:1], "training.steps=3")
    assert remarks(path) == ["the first 2 steps had the learning rates of a run of 2"]
    assert json.loads(load(path).metadata["featinv.info.recipe"])["training"]["steps"] == 3

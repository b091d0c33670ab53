"""Held-out items while a run trains: what they are, what is written of them, and that the training does not notice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import featinv_fast.demo.recipes
from featinv_fast.config import FeatureSpec
from featinv_fast.errors import ConfigError
from featinv_fast.features import Backbone, list_images
from featinv_fast.train import controlnet, read_recipe, run
from featinv_fast.train.data import open_data, open_held_out
from featinv_fast.train.logs import VALIDATION, read_log
from featinv_fast.train.settings import Crop, DataConfig, Split, ValidationConfig
from featinv_fast.train.validation import Validation

RECIPES = featinv_fast.demo.recipes.FOLDER
VALIDATED = ["validation.every=2", "validation.count=3", "validation.shown=2"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pictures of two steps, and one thread: what is computed here is too small for more."""
    monkeypatch.setattr(controlnet, "PREVIEW_STEPS", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(featinv_folder):
    """`featinv_folder` with two classes of eight noisy images, and a recipe that learns from their training part."""
    (featinv_folder / "pictures").unlink()
    random = np.random.default_rng(1)
    for name in ("cats", "dogs"):
        (featinv_folder / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            coarse = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((40, 50)).save(featinv_folder / "pictures" / name / f"{i}.png")
    return featinv_folder


def train(folder, *changes, name="featinv"):
    changes = [f"folder={name}", f"out={name}.safetensors", "data.split=train", "training.steps=4", *changes]
    return run(folder / "recipe.toml", root=folder, changes=changes, progress=False)


def test_what_is_trained_is_the_same_with_and_without(folder):
    common = ["training.log_every=1", "training.ema_decay=0.9", "data.crop=random"]
    plain, validated = train(folder, *common, name="plain"), train(folder, *common, *VALIDATED, name="validated")
    for name, tensor in load_file(plain).items():
        assert torch.equal(load_file(validated)[name], tensor), name
    assert (folder / "plain" / "log.csv").read_text() == (folder / "validated" / "log.csv").read_text()
    assert not (folder / "plain" / VALIDATION).exists()


def test_losses_cosines_and_pictures_of_held_out_images(folder):
    train(folder, *VALIDATED, "data.holdout=[0.25, 0.1]")
    rows = read_log(folder / "featinv", VALIDATION)
    assert [row["step"] for row in rows] == [2, 4]
    assert list(rows[0]) == ["step", "loss", "cosine"]
    assert all(-1 <= row["cosine"] <= 1 and row["loss"] > 0 for row in rows)
    assert rows[0]["loss"] != rows[1]["loss"]  # of the same noise: the weights differ
    pictures = sorted(path.name for path in (folder / "featinv" / "validation").iterdir())
    assert pictures == ["000000002.png", "000000004.png"]
    with Image.open(folder / "featinv" / "validation" / pictures[0]) as picture:
        assert picture.size == (2 * 16, 2 * 16)


def test_held_out_items_are_none_of_the_training_s(folder):
    config = DataConfig(source="pictures", split=Split.TRAIN, size=32, holdout=(0.25, 0.1))
    learned, held = open_data(config, folder), open_held_out(config, folder)
    assert not {*learned.selection.digests} & {*held.selection.digests}
    assert sorted(held.selection.labels) == [0, 0, 1, 1]
    assert held.crop is Crop.CENTER


def test_a_run_that_goes_on_writes_the_same_rows(folder):
    train(folder, *VALIDATED, "training.checkpoint_every=1", name="whole")
    train(folder, *VALIDATED, "training.checkpoint_every=1", name="killed")
    (folder / "killed" / "checkpoints" / "step_000000004.pt").unlink()
    with (folder / "killed" / VALIDATION).open("a") as file:
        file.write("4,0.5,")
    train(folder, *VALIDATED, "training.checkpoint_every=1", name="killed")
    assert (folder / "killed" / VALIDATION).read_text() == (folder / "whole" / VALIDATION).read_text()
    train(folder, "validation.every=1", name="killed")  # may change, be added and taken away


def test_the_losses_are_means_over_the_items(line):
    class Counted(line):
        def forward(self, batch, *_):
            return {"loss": batch["x"].mean()}

    values = np.arange(9, dtype=np.float32)
    validation = Validation(ValidationConfig(count=5, shown=1), values, batch_size=2, seed=0)
    losses, pictures = validation.of(Counted(), None, torch.device("cpu"))
    assert losses == {"loss": pytest.approx(np.mean([0, 2, 4, 6, 8]))}
    assert pictures is None


def test_features_made_elsewhere_are_those_of_the_held_out_images(folder):
    backbone = Backbone(FeatureSpec(channels=64, backbone="test_convnext", input_size=64), weights="random:0")
    maps = torch.cat(list(backbone.extract(list_images(folder / "pictures")))).contiguous()
    save_file({"features": maps}, folder / "maps.safetensors")
    train(folder, *VALIDATED, name="own")
    train(folder, *VALIDATED, "features.file=maps.safetensors", name="pairs")
    for own, pairs in zip(*(read_log(folder / name, VALIDATION) for name in ("own", "pairs")), strict=True):
        assert pairs == pytest.approx(own, rel=1e-4)


def test_a_recipe_that_reconstructs_nothing_has_its_losses(tmp_path):
    backbone = [
        "data.count=8", "data.size=32", "training.steps=2", "training.batch_size=2", "training.warmup_steps=0",
        "validation.every=1", "validation.count=3",
    ]  # fmt: skip
    run(RECIPES / "judge.toml", root=tmp_path, changes=[*backbone, "folder=judge"], progress=False)
    rows = read_log(tmp_path / "judge", VALIDATION)
    assert [row["step"] for row in rows] == [1, 2]
    assert {"loss", "accuracy"} <= rows[0].keys()
    assert not (tmp_path / "judge" / "validation").exists()


@pytest.mark.parametrize("changes", [["data.split=validation"], ["data.split=test"]])
def test_nothing_held_out_is_refused(changes):
    with pytest.raises(ConfigError, match="nothing is held out"):
        read_recipe(RECIPES / "base.toml", [*changes, "validation.every=10"])


def test_wrong_validations(folder):
    recipe = folder / "recipe.toml"
    with pytest.raises(ConfigError, match="nothing is held out"):
        read_recipe(recipe, ["validation.every=1"])  # the whole folder is learned from
    for change in ("validation.every=0", "validation.count=0", "validation.shown=0"):
        with pytest.raises(ConfigError, match="out of range"):
            read_recipe(recipe, ["data.split=train", change])
    with pytest.raises(ConfigError, match="not in the feature file"):
        read_recipe(recipe, ["data.source=scenes", "features.file=maps.npy", "validation.every=1"])
    with pytest.raises(ConfigError, match="no effect"):
        read_recipe(RECIPES / "base.toml", ["validation.shown=3"])

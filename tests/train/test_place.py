"""What a run reads and writes: it goes on only from what it started with, and replaces only what it wrote."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import featinv_fast.demo.recipes
from featinv_fast.checkpoints.writer import write_safetensors
from featinv_fast.cli.main import main
from featinv_fast.errors import ConfigError, ExitCode, InputNotFoundError, OutputExistsError
from featinv_fast.train import read_recipe, run
from featinv_fast.train.place import INPUTS_NOTE, prepare
from featinv_fast.train.result import Result
from featinv_fast.train.settings import ControlNetRecipe

RECIPES = featinv_fast.demo.recipes.FOLDER
RECIPE = """
recipe = "autoencoder"
folder = "run"
out = "made.safetensors"
perceptual_layers = [0]
[perceptual]
name = "test_convnext"
weights = "backbone.safetensors"
input_size = 32
[model]
channels = 32
channel_multipliers = [1]
blocks_per_level = 1
[data]
source = "pictures"
size = 8
crop = "center"
[training]
steps = 2
batch_size = 2
checkpoint_every = 1
device = "cpu"
"""


def weights(path, seed):
    model = timm.create_model("test_convnext")
    save_file({name: tensor + 0.01 * seed for name, tensor in model.state_dict().items()}, path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which the recipe has run. Do not change it."""
    root = tmp_path_factory.mktemp("finished")
    random = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (root / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "pictures" / name / f"{i}.png")
    weights(root / "backbone.safetensors", seed=0)
    (root / "recipe.toml").write_text(RECIPE)
    run(root / "recipe.toml", root=root, progress=False)
    return root


@pytest.fixture
def root(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "root")


def again(root, *changes, **options):
    return run(root / "recipe.toml", root=root, changes=changes, progress=False, **options)


# --- going on ---


def test_a_finished_run_makes_the_same_file_again(root):
    before = (root / "made.safetensors").read_bytes()
    (root / "made.safetensors").unlink()
    assert again(root) == root / "made.safetensors"
    assert (root / "made.safetensors").read_bytes() == before


def test_the_file_says_what_it_was_made_from(finished):
    with safe_open(finished / "made.safetensors", framework="pt") as file:
        told = json.loads(file.metadata()[INPUTS_NOTE])
    assert told["inputs"].keys() == {"perceptual.weights"}
    assert (told["images"]["count"], told["images"]["classes"], told["skipped"]) == (6, ["cats", "dogs"], 0)


def paint(path):
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda root: paint(root / "pictures" / "cats" / "1.png"), "1 changed (cats/1.png)"),
        (lambda root: paint(root / "pictures" / "dogs" / "9.png"), "1 new (dogs/9.png)"),
        (lambda root: (root / "pictures" / "dogs" / "2.png").unlink(), "1 gone (dogs/2.png)"),
        (lambda root: (root / "pictures" / "dogs").rename(root / "pictures" / "wolves"), "3 new (wolves/0.png"),
    ],
)
def test_a_run_goes_on_only_with_its_images_and_names_those_that_differ(root, change, named):
    change(root)
    with pytest.raises(ConfigError, match="other images") as caught:
        again(root)
    assert named in caught.value.given
    (root / "run" / "images.json").unlink()  # the checkpoints know their hash all the same
    with pytest.raises(ConfigError, match="other settings") as caught:
        again(root)
    assert "images.sha256" in caught.value.given


def test_a_run_goes_on_only_with_its_input_files(root):
    weights(root / "backbone.safetensors", seed=1)
    with pytest.raises(ConfigError, match="other settings") as caught:
        again(root)
    assert caught.value.given.keys() == {"inputs.perceptual.weights", "seen.perceptual"}


def test_names_and_intervals_do_not_matter_and_other_numbers_do(root):
    (root / "backbone.safetensors").rename(root / "same.safetensors")
    (root / "pictures").rename(root / "photos")
    moved = ["perceptual.weights=same.safetensors", "data.source=photos", "data.on_unreadable=skip"]
    again(root, *moved, "training.checkpoint_every=7", "training.log_every=3")
    with pytest.raises(ConfigError, match="other settings") as caught:
        again(root, *moved, "kl_weight=0.5")
    assert caught.value.given == {"kl_weight": "0.5"}


def test_what_only_the_result_states_may_change(root, tmp_path):
    recipe = tmp_path / "recipe.toml"
    head, data = RECIPE.replace("autoencoder", "controlnet").replace("perceptual]", "backbone]").split("[data]")
    head = head.replace("perceptual_layers = [0]", 'base = "made.safetensors"').split("[model]")[0]
    recipe.write_text(f"{head}[data]{data}")
    identities = [
        prepare(read, root, config=recipe, force=True, progress=False).identity
        for read in (
            read_recipe(recipe, ["folder=other", "out=other.safetensors", *changes])
            for changes in ([], ["steps=20", "guidance_scale=3.0", "unconditional_strength=0.5"], ["drop_features=0.5"])
        )
    ]
    assert isinstance(read_recipe(recipe), ControlNetRecipe)
    assert identities[0] == identities[1] != identities[2]
    assert identities[0]["inputs"].keys() == {"base", "backbone.weights"}


def test_a_run_that_has_trained_nothing_may_start_with_other_images(root):
    shutil.rmtree(root / "run" / "checkpoints")
    paint(root / "pictures" / "cats" / "1.png")
    again(root)
    assert "cats/1.png" in json.loads((root / "run" / "images.json").read_text())


def test_an_unreadable_image_ends_the_command_as_failed_before_anything_is_loaded(root, capsys):
    (root / "pictures" / "cats" / "1.png").write_bytes(b"no image")
    shutil.rmtree(root / "run")
    (root / "made.safetensors").unlink()
    (root / "backbone.safetensors").write_bytes(b"no weights")
    assert main(["train", "--config", str(root / "recipe.toml"), "--root", str(root), "--quiet"]) == ExitCode.FAILED
    assert "cats/1.png" in capsys.readouterr().err
    weights(root / "backbone.safetensors", seed=0)
    again(root, "data.on_unreadable=skip")
    with safe_open(root / "made.safetensors", framework="pt") as file:
        told = json.loads(file.metadata()[INPUTS_NOTE])
    assert (told["images"]["count"], told["skipped"]) == (5, 1)


# --- results ---


def test_a_file_of_another_run_or_program_is_not_replaced(root):
    mine = root / "mine.safetensors"
    mine.write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match="did not write it") as caught:
        again(root, "out=mine.safetensors")
    assert "--force" in caught.value.message(command_line=True)
    with pytest.raises(OutputExistsError):  # what another run of the recipe made
        again(root, "folder=second")
    assert mine.read_bytes() == b"precious"
    assert again(root, "out=mine.safetensors", force=True) == mine
    assert mine.read_bytes() != b"precious"


def test_what_the_same_run_wrote_is_replaced_unless_it_was_changed(root):
    before = (root / "made.safetensors").read_bytes()
    again(root)
    (root / "made.safetensors").write_bytes(before + b" ")
    with pytest.raises(OutputExistsError):
        again(root)


def test_a_result_that_comes_while_the_run_trains_is_not_lost(root):
    result = Result(root / "new.safetensors", root / "run", force=False)
    (root / "new.safetensors").write_bytes(b"precious")
    with pytest.raises(OutputExistsError), result.writing():
        pass
    assert (root / "new.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize("killed_at", ["write_json", "replace"])
def test_killed_while_it_writes_a_run_knows_both_results_again(root, monkeypatch, killed_at):
    """Between the record and the rename either file may be at the place of the result."""
    result = Result(root / "made.safetensors", root / "run", force=False)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if killed_at == "replace":
            replace = os.replace
            patch.setattr("pathlib.Path.replace", lambda path, to: killed() if to == result.path else replace(path, to))
        else:
            patch.setattr("featinv_fast.train.result.write_json", killed)
        with pytest.raises(KeyboardInterrupt), result.writing() as path:
            write_safetensors(path, {}, {"made": "anew"})
    with Result(root / "made.safetensors", root / "run", force=False).writing() as path:
        write_safetensors(path, {}, {"made": "anew"})
    assert b"anew" in (root / "made.safetensors").read_bytes()
    assert not list(root.glob(".*partial*"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["out=backbone.safetensors"], "perceptual.weights"),
        (["out=linked.safetensors"], "perceptual.weights"),
        (["out=hard.safetensors"], "perceptual.weights"),
        (["out=pictures/../backbone.safetensors"], "perceptual.weights"),
        (["out=pictures/made.safetensors"], "data.source"),
        (["folder=pictures/run"], "data.source"),
        (["folder=pictures"], "data.source"),
        (["data.source=run/images", "folder=run"], "data.source"),
    ],
)
def test_a_result_that_is_an_input_is_refused_whatever_it_is_called(root, changes, named):
    (root / "linked.safetensors").symlink_to("backbone.safetensors")
    os.link(root / "backbone.safetensors", root / "hard.safetensors")
    before = (root / "backbone.safetensors").read_bytes()
    for force in (False, True):
        with pytest.raises(OutputExistsError, match=f"is or lies in an input, {named}"):
            again(root, *changes, force=force)
    assert (root / "backbone.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "key", "file"),
    [
        ("consistency", "teacher", "refined"),
        ("trajectory", "backbone.weights", "backbone"),
        ("refined", "start", "controlnet"),
        ("refined", "base", "base"),
        ("base", "autoencoder", "autoencoder"),
    ],
)
def test_no_recipe_replaces_what_it_reads(tmp_path, name, key, file):
    for one in ("refined", "backbone", "controlnet", "base", "autoencoder"):
        (tmp_path / f"{one}.safetensors").touch()
    recipe = read_recipe(RECIPES / f"{name}.toml", [f"out={file}.safetensors"])
    with pytest.raises(OutputExistsError, match=f"out is or lies in an input, {key}"):
        prepare(recipe, tmp_path, config=None, force=True, progress=False)


def test_neither_the_recipe_nor_the_runs_folder_is_the_result(root):
    (root / "recipe.toml").rename(root / "recipe.safetensors")
    with pytest.raises(OutputExistsError, match="the recipe itself"):
        run(root / "recipe.safetensors", root=root, changes=["out=recipe.safetensors"], force=True, progress=False)
    with pytest.raises(ConfigError, match="where the run's folder is"):
        run(root / "recipe.safetensors", root=root, changes=["folder=x.safetensors/run", "out=x.safetensors"])


def test_a_missing_input_is_named_before_anything_is_read(root):
    with pytest.raises(InputNotFoundError, match=r"absent\.safetensors"):
        again(root, "perceptual.weights=absent.safetensors")

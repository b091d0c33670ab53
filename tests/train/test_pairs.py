"""Training on images and a feature file that was made elsewhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from featinv_fast.checkpoints import load
from featinv_fast.config import FeatureLayout, FeatureSpec
from featinv_fast.errors import ConfigError, FeatureShapeError, UnreadableFileError
from featinv_fast.features import Backbone, StoredFeatures, list_images
from featinv_fast.features.stored import IDS
from featinv_fast.train import run
from featinv_fast.train.parts import open_features
from featinv_fast.train.place import prepare
from featinv_fast.train.reading import read_recipe

FILE = ["features.file=maps.safetensors"]


@pytest.fixture
def maps(featinv_folder):
    """The folder's maps, made as a user would: [5, 64, 2, 2], also in `maps.safetensors`."""
    backbone = Backbone(FeatureSpec(channels=64, backbone="test_convnext", input_size=64), weights="random:0")
    made = torch.cat(list(backbone.extract(list_images(featinv_folder / "pictures")))).contiguous()
    save_file({"features": made}, featinv_folder / "maps.safetensors")
    return made


def train(folder, *changes, name="featinv"):
    changes = [f"folder={name}", f"out={name}.safetensors", *changes]
    return run(folder / "recipe.toml", root=folder, changes=changes, progress=False)


def without_backbone(folder):
    recipe = folder / "recipe.toml"
    head, _, rest = recipe.read_text().partition("[backbone]")
    recipe.write_text(head + "[data]" + rest.partition("[data]")[2])


def test_pairs_train_what_the_backbone_trains(featinv_folder, maps):
    own, pairs = train(featinv_folder, name="own"), train(featinv_folder, *FILE, "data.cache=disk", name="pairs")
    for name, tensor in load_file(own).items():
        torch.testing.assert_close(load_file(pairs)[name], tensor, rtol=0, atol=1e-5)
    assert load(pairs).features.weights_sha256 == load(own).features.weights_sha256
    assert not any("features" in path.name for path in (featinv_folder / "cache").rglob("*.npy"))


@pytest.mark.parametrize(("layout", "shape"), [("nchw", (64, 2, 2)), ("tokens", (5, 64)), ("pooled", (64,))])
def test_the_file_alone_describes_its_maps(featinv_folder, maps, layout, shape):
    tokens = torch.cat([maps.mean((2, 3))[:, None], maps.flatten(2).transpose(1, 2)], dim=1)
    array = {"nchw": maps, "tokens": tokens, "pooled": maps.mean((2, 3))}[layout]
    assert array.shape[1:] == shape
    np.save(featinv_folder / "maps.npy", array.numpy())
    without_backbone(featinv_folder)
    features = load(train(featinv_folder, "features.file=maps.npy", f"features.layout={layout}")).features
    assert (features.channels, features.layout, features.backbone) == (64, FeatureLayout(layout), None)
    shown = tokens[:, 1:] if layout == "tokens" else array  # the prefix is no position
    assert features.absolute_max == pytest.approx(float(shown.abs().max()))


def test_a_part_of_the_folder_takes_its_rows(featinv_folder, maps):
    recipe = read_recipe(featinv_folder / "recipe.toml", [*FILE, "data.count=2", "data.seed=3"])
    place = prepare(recipe, featinv_folder, config=None, force=False, progress=False)
    found = open_features(recipe, place).pairs.maps(place.data, np.array([1, 0]))
    chosen = list(place.data.selection.places)
    assert chosen != [0, 1]
    assert torch.equal(found, maps[chosen[::-1]])


def test_another_number_of_rows_is_refused(featinv_folder, maps):
    save_file({"features": maps[:4].clone()}, featinv_folder / "maps.safetensors")
    with pytest.raises(ConfigError, match="another number of rows") as caught:
        train(featinv_folder, *FILE)
    assert "4 rows" in caught.value.given
    assert "5 rows" in caught.value.expected


@pytest.mark.parametrize("beside", [False, True], ids=["in the metadata", "beside"])
def test_ids_in_another_order_are_refused_with_both_sides(featinv_folder, maps, beside):
    ids = ["cats/0.png", "cats/2.png", "cats/1.png", "dogs/0.png", "dogs/1.png"]

    def write(ids):
        save_file({"features": maps}, featinv_folder / "maps.safetensors", None if beside else {IDS: json.dumps(ids)})
        if beside:
            (featinv_folder / "maps.ids").write_text("\n".join(ids))

    write(ids)
    with pytest.raises(ConfigError, match="another order") as caught:
        train(featinv_folder, *FILE)
    assert "row 1" in caught.value.given
    assert "cats/2.png" in caught.value.given
    assert "cats/1.png" in caught.value.expected
    write([*ids[:4], "dogs/7.png"])
    with pytest.raises(ConfigError, match="of other images"):
        train(featinv_folder, *FILE)
    write(sorted(ids))
    assert train(featinv_folder, *FILE).exists()


def test_without_ids_the_backbone_tells_another_order(featinv_folder, maps):
    save_file({"features": maps[[0, 1, 4, 3, 2]].clone()}, featinv_folder / "maps.safetensors")
    with pytest.raises(ConfigError, match="not those of their images") as caught:
        train(featinv_folder, *FILE)
    assert "dogs/1.png" in caught.value.given
    assert "cats/2.png" in caught.value.expected


def test_maps_of_another_shape_are_refused(featinv_folder, maps):
    save_file({"features": torch.zeros(5, 32, 2, 2)}, featinv_folder / "maps.safetensors")
    with pytest.raises(FeatureShapeError):
        train(featinv_folder, *FILE)
    without_backbone(featinv_folder)
    with pytest.raises(ConfigError, match="another shape than its layout"):
        train(featinv_folder, *FILE, "features.layout=tokens")


def test_another_file_is_another_run(featinv_folder, maps):
    train(featinv_folder, *FILE)
    save_file({"features": maps + 0.01}, featinv_folder / "maps.safetensors")
    with pytest.raises(ConfigError, match="other settings") as caught:
        train(featinv_folder, *FILE)
    assert list(caught.value.given) == ["inputs.features.file"]


def test_recipes_of_pairs_are_checked(featinv_folder, maps):
    for change, text in (
        ("data.crop=random", "random crops"),
        ("features.layout=nchw", "the backbone says it"),
    ):
        with pytest.raises(ConfigError) as caught:
            train(featinv_folder, *FILE, change)
        assert text in str(caught.value)
    without_backbone(featinv_folder)
    for changes, text in (
        ([], "neither"),
        (FILE, "laid out"),
        ([*FILE, "features.layout=nchw", "perceptual.layers=[1]"], "without [backbone]"),
        ([*FILE, "features.layout=nchw", "features.prefix_tokens=2"], "no tokens"),
    ):
        with pytest.raises(ConfigError) as caught:
            train(featinv_folder, *changes)
        assert text in str(caught.value)


def test_ids_that_cannot_be_ids(tmp_path):
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "maps.safetensors", {IDS: "{"})
    with pytest.raises(UnreadableFileError, match="ids"):
        StoredFeatures(tmp_path / "maps.safetensors")
    np.save(tmp_path / "other.npy", np.zeros((2, 3)))
    (tmp_path / "other.ids").write_text("one\n")
    with pytest.raises(UnreadableFileError, match="do not fit"):
        StoredFeatures(tmp_path / "other.npy")

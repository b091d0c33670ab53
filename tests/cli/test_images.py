"""`featinv invert --images`: a backbone with random weights computes the features of a folder of pictures."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featinv_fast import Runtime, demo
from featinv_fast.config import FeatureLayout, FeatureSpec
from featinv_fast.engine import open_engine
from featinv_fast.errors import CheckpointError, FeatureShapeError
from featinv_fast.features import Backbone, FeatureStatisticsWarning, ImageReading, open_backbone

BACKBONE = "convnext_atto"
WEIGHTS = "random:0"


@pytest.fixture(scope="module")
def engine(make_engine, tiny_config) -> Path:
    """An engine that was trained on the smallest ConvNeXt's final map: 64 pixels in, [320, 2, 2] out."""
    metadata = {
        "backbone": BACKBONE,
        "layer": "final",
        "layout": "nchw",
        "feature_shape": "320x2x2",
        "input_size": "64",
        "steps": "1",
    }
    return make_engine(dataclasses.replace(tiny_config, feature_channels=320), metadata)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Three pictures, one of them in a folder, and what is none."""
    folder = tmp_path / "pictures"
    (folder / "cats").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, size in (("10.png", (80, 70)), ("9.jpg", (64, 64)), ("cats/1.png", (50, 90))):
        pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def arguments(engine, pictures, tmp_path) -> tuple[object, ...]:
    out = tmp_path / "out"
    weights = ("--backbone-weights", WEIGHTS, "--threads", 1)
    return ("invert", "--engine", engine, "--images", pictures, "--out", out, "--quiet", "--json", *weights)


def test_c8_a_folder_of_pictures_without_a_network(featinv, arguments, engine, pictures, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    answer = featinv(*arguments, "--seed", 4)
    assert answer.code == 0
    names = ["9", "10", "cats__1"]  # in natural order
    assert [item["name"] for item in answer.json["items"]] == names
    assert [item["seed"] for item in answer.json["items"]] == [4, 5, 6]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == sorted(f"{name}.png" for name in names)

    spec = open_engine(engine).manifest.features
    stated = {"backbone": BACKBONE, "layer": "final", "layout": FeatureLayout.NCHW, "input_size": 64}
    assert spec == FeatureSpec(**stated, channels=320, height=2, width=2)
    (maps,) = Backbone(spec, weights=WEIGHTS).extract(
        [pictures / "9.jpg", pictures / "10.png", pictures / "cats/1.png"]
    )
    expected = Runtime(engine, threads=1).invert(maps, seed=4).images
    for name, image in zip(names, expected, strict=True):
        written = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        assert np.abs(written.astype(int) - image).max() <= 1


def test_one_picture(featinv, arguments, pictures):
    answer = featinv(*arguments, "--images", pictures / "9.jpg")
    assert answer.code == 0
    assert [item["name"] for item in answer.json["items"]] == ["9"]


def test_an_unusual_picture_is_called_by_its_path(featinv, arguments, engine, restage, tmp_path):
    spec = dataclasses.replace(open_engine(engine).manifest.features, absolute_max=1e-6)
    narrow = restage(engine, tmp_path / "narrow.engine", features=spec)
    with pytest.warns(FeatureStatisticsWarning) as caught:
        answer = featinv(*arguments, "--engine", narrow, "--batch-size", 2)
    assert answer.code == 0
    assert [warning.message.outlying_items for warning in caught] == [("9.jpg", "10.png"), ("cats/1.png",)]


@pytest.mark.parametrize("samples", [1, 2])
def test_a_broken_picture_costs_only_itself(featinv, arguments, pictures, tmp_path, samples):
    whole = featinv(*arguments, "--samples", samples)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    content = (pictures / "10.png").read_bytes()
    (pictures / "10.png").write_bytes(content[: len(content) // 2])
    broken = featinv(*arguments, "--samples", samples, "--out", tmp_path / "again")
    assert (whole.code, broken.code) == (0, 3)
    assert "10.png" in broken.err
    items = broken.json["items"]
    assert [bool(item["error"]) for item in items] == [item["source"] == "10.png" for item in items]
    assert [(item["name"], item["seed"]) for item in items] == [
        (item["name"], item["seed"]) for item in whole.json["items"]
    ]
    after = {path.name: path for path in (tmp_path / "again").glob("*.png")}
    assert set(after) == {name for name in before if not name.startswith("10")}
    for name, path in after.items():
        pixels = np.asarray(Image.open(path)).astype(int)
        assert np.abs(pixels - np.asarray(Image.open(tmp_path / "out" / name))).max() <= 1


def test_nothing_but_broken_pictures_is_a_failure(featinv, arguments, pictures):
    for name in ("9.jpg", "10.png", "cats/1.png"):
        (pictures / name).write_bytes(b"no picture")
    answer = featinv(*arguments)
    assert answer.code == 1
    assert len(answer.json["items"]) == 3
    assert all("cannot be read" in item["error"] for item in answer.json["items"])


def test_a_suffix_stays_where_it_tells_two_pictures_apart(featinv, arguments, pictures):
    Image.open(pictures / "9.jpg").save(pictures / "9.png")
    answer = featinv(*arguments)
    assert {item["source"]: item["name"] for item in answer.json["items"]} == {
        "9.jpg": "9.jpg",
        "9.png": "9.png",
        "10.png": "10",
        "cats/1.png": "cats__1",
    }


def test_two_pictures_of_one_name_get_two_files(featinv, arguments, pictures, tmp_path):
    (pictures / "cats__1.png").write_bytes((pictures / "cats" / "1.png").read_bytes())
    answer = featinv(*arguments)
    assert answer.code == 0
    names = {item["source"]: item["name"] for item in answer.json["items"]}
    assert len(set(names.values())) == len(names) == 4
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == set(names.values())


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (("--backbone", "resnet50"), "convnext_atto"),
        (("--layer", "2"), "'layer': 'final'"),
        (("--image-size", "96"), "'input_size': 64"),
        (("--images", "missing"), "no such file or folder"),
        (("--backbone-weights", "random:x"), "random:0"),
    ],
)
def test_contradictions_are_wrong_usage(featinv, arguments, extra, says):
    answer = featinv(*arguments, *extra)
    assert (answer.code, answer.out) == (2, "")
    assert says in answer.err


def test_an_engine_that_does_not_say_where_its_features_come_from(featinv, arguments, tiny_engine):
    answer = featinv(*arguments, "--engine", tiny_engine)
    assert answer.code == 2
    assert "--backbone convnext_base" in answer.err
    answer = featinv(*arguments, "--engine", tiny_engine, "--backbone", "alexnets")
    assert answer.code == 2
    assert "unknown backbone" in answer.err
    answer = featinv(*arguments, "--engine", tiny_engine, "--backbone", BACKBONE, "--image-size", 64)
    assert answer.code == 1
    assert "320x2x2" in answer.err


def test_sixteen_bits_and_transparency_are_read_as_asked_and_recorded(featinv, arguments, pictures, tmp_path):
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) // 16
    folder = tmp_path / "forms"
    folder.mkdir()
    Image.fromarray(grey.astype(np.uint8)).save(folder / "a.png")
    Image.fromarray(grey * 257).save(folder / "b.png")
    Image.merge("LA", [Image.fromarray(grey.astype(np.uint8)), Image.new("L", (64, 64), 0)]).save(folder / "c.png")
    Image.new("RGB", (64, 64), (9, 8, 7)).save(folder / "d.png")
    Image.new("F", (64, 64)).save(folder / "e.tif")
    same = ("--images", folder, "--out", tmp_path / "forms_out", "--background", "9,8,7", "--exif-rotation")
    answer = featinv(*arguments, *same)
    assert answer.code == 3
    assert answer.json["run"]["given"]["reading"] == {"background": [9, 8, 7], "exif_rotation": True}
    errors = {item["name"]: item["error"] for item in answer.json["items"]}
    assert [name for name, error in errors.items() if error] == ["e"]
    assert "mode 'F'" in errors["e"]
    features = list(
        Backbone(FeatureSpec(backbone=BACKBONE, channels=320, input_size=64), weights=WEIGHTS).extract(
            [folder / "a.png", folder / "b.png", folder / "c.png", folder / "d.png"],
            batch_size=1,
            reading=ImageReading(background=(9, 8, 7)),
        )
    )
    assert np.array_equal(features[0], features[1])
    assert np.array_equal(features[2], features[3])


def test_a_background_that_is_no_colour_is_wrong_usage(featinv, arguments):
    answer = featinv(*arguments, "--background", "256,0,0")
    assert answer.code == 2
    assert "0 to 255" in answer.err


def test_the_features_of_other_weights_are_refused(featinv, arguments, make_engine, tiny_config):
    spec = FeatureSpec(backbone=BACKBONE, channels=320, input_size=64)
    trained = Backbone(spec, weights="random:1").weights_sha256
    metadata = {"backbone": BACKBONE, "layer": "final", "feature_shape": "320x2x2", "input_size": "64"}
    metadata |= {"weights_sha256": trained, "steps": "1"}
    engine = make_engine(dataclasses.replace(tiny_config, feature_channels=320), metadata)
    refused = featinv(*arguments, "--engine", engine)
    assert refused.code == 1
    assert trained in refused.err
    assert "--backbone-weights FILE" in refused.err
    assert featinv(*arguments, "--engine", engine, "--backbone-weights", "random:1").code == 0


def test_the_built_in_weights_are_those_of_the_built_in_backbone_alone(installed):
    own = demo.backbone().weights_sha256
    built_in = dataclasses.replace(demo.backbone_spec(), weights_sha256=own)
    assert open_backbone(built_in).weights_sha256 == open_backbone("featinv_convnext").weights_sha256 == own
    for other in ("0" * 64, None):  # a training of one's own, which says so or not
        with pytest.raises(CheckpointError, match="--backbone-weights FILE"):
            open_backbone(dataclasses.replace(built_in, weights_sha256=other))
    with pytest.raises(FeatureShapeError, match="256x4x4"):
        open_backbone(dataclasses.replace(built_in, height=5), weights=installed / "backbone.safetensors")

"""`featinv features`: what a vision model's maps are, and files of them that `invert` holds against its engine."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open

from featinv_fast.engine import open_engine
from featinv_fast.features import Backbone, open_backbone

KEYS = [
    "backbone", "layer", "layout", "channels", "height", "width", "prefix_tokens", "input_size", "mean", "std",
    "weights_sha256",
]  # fmt: skip
CONVNEXT = ("--backbone", "convnext_atto", "--backbone-weights", "random:0", "--image-size", 64)
OWN = """
import torch


def net():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 2, 2))
    network.input_size, network.mean, network.std = 64, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return network
"""


@pytest.fixture(scope="module")
def engine(make_engine, tiny_config) -> Path:
    """An engine that was trained on the smallest ConvNeXt's final map: 64 pixels in, [320, 2, 2] out."""
    metadata = {"backbone": "convnext_atto", "layer": "final", "layout": "nchw", "feature_shape": "320x2x2"}
    metadata |= {"input_size": "64", "steps": "1"}
    return make_engine(dataclasses.replace(tiny_config, feature_channels=320), metadata)


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "cats").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in ("10.png", "9.png", "cats/1.png"):
        Image.fromarray(generator.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(folder / name)
    return folder


def test_the_spec_is_printed(featinv):
    found = featinv("features", *CONVNEXT, "--json").json
    assert list(found) == KEYS
    backbone = open_backbone("convnext_atto", image_size=64, weights="random:0")
    own = timm.get_pretrained_cfg("convnext_atto")
    assert found == {
        "backbone": "convnext_atto",
        "layer": "final",
        "layout": "nchw",
        "channels": 320,
        "height": 2,
        "width": 2,
        "prefix_tokens": None,
        "input_size": 64,
        "mean": list(own.mean),
        "std": list(own.std),
        "weights_sha256": backbone.weights_sha256,
    }
    text = featinv("features", *CONVNEXT).out
    assert [line.split()[0] for line in text.splitlines()] == KEYS
    assert f"weights_sha256  {backbone.weights_sha256}" in text


def test_layers_are_listed_with_their_shapes(featinv):
    layers = {one["layer"]: one["shape"] for one in featinv("features", *CONVNEXT, "--layers", "--json").json["layers"]}
    assert layers["final"] == layers["3"] == [320, 2, 2]
    assert layers["0"] == [40, 16, 16]
    assert layers["stages.1.blocks.0.conv_dw"] == [80, 8, 8]
    assert "head" not in layers
    assert "  stages.1.blocks.0.conv_dw " in featinv("features", *CONVNEXT, "--layers").out


@pytest.mark.parametrize(
    ("backbone", "layer", "size", "expected"),
    [
        ("test_vit", "blocks.0", 80, ("tokens", 64, 5, 5, 1)),
        ("torchvision:resnet18", "layer3.1.conv2", 64, ("nchw", 256, 4, 4, None)),
        ("torchvision:swin_t", "features.1", 64, ("nhwc", 96, 16, 16, None)),
        ("test_convnext", "1", 64, ("nchw", 32, 8, 8, None)),
    ],
)
def test_a_layer_is_a_stage_or_the_path_of_a_module(featinv, backbone, layer, size, expected):
    answer = featinv(
        "features", "--backbone", backbone, "--layer", layer, "--image-size", size, "--backbone-weights", "random:0",
        "--json",
    )  # fmt: skip
    found = answer.json
    assert tuple(found[name] for name in ("layout", "channels", "height", "width", "prefix_tokens")) == expected
    assert found["layer"] == layer


def test_a_module_of_ones_own(featinv, tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    found = featinv("features", "--backbone", "own_net:net", "--backbone-weights", "random:0", "--json").json
    assert (found["layer"], found["channels"], found["height"], found["input_size"]) == ("final", 16, 8, 64)
    assert (found["mean"], found["std"]) == ([0.5] * 3, [0.25] * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backbone", "convnext_atoo"), "did you mean convnext_atto"),
        (("--backbone", "torchvision:resnet19"), "resnet18"),
        (("--backbone", "no_such_module:net"), "No module named"),
        ((*CONVNEXT, "--layer", "stages.1.blocks.0.conv_dv"), "did you mean .*stages.1.blocks.0.conv_dw"),
        ((*CONVNEXT, "--layer", "head.fc"), r"head.fc.* \[1, 1000\]"),
        ((*CONVNEXT, "--layer", "7"), "0 to 3"),
        ((*CONVNEXT, "--image-size", 0), "--image-size"),
        ((*CONVNEXT, "--batch-size", 4), "no maps are written"),
        ((*CONVNEXT, "--background", "255,255,255"), "no maps are written"),
        ((*CONVNEXT, "--out", "maps.safetensors"), "belong together"),
        ((*CONVNEXT, "--images", "nowhere", "--out", "maps.safetensors"), "nowhere"),
        ((*CONVNEXT, "--images", ".", "--out", "maps.npy"), "maps.safetensors"),
        ((*CONVNEXT, "--images", ".", "--out", "maps.safetensors", "--json"), "maps are written"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(featinv, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = featinv(
        "features", *options, *(() if "--backbone-weights" in options else ["--backbone-weights", "random:0"])
    )
    assert answer.code == 2
    assert_in_lines(message, answer.err)
    assert list(tmp_path.iterdir()) == []


def assert_in_lines(pattern: str, text: str) -> None:
    assert re.search(pattern, text), text


def test_maps_of_pictures_are_inverted_as_the_pictures_are(featinv, engine, pictures, tmp_path):
    maps = tmp_path / "maps.safetensors"
    answer = featinv("features", *CONVNEXT, "--images", pictures, "--out", maps, "--batch-size", 2, "--quiet")
    assert (answer.code, answer.out.strip()) == (0, str(maps))
    with safe_open(maps, "pt") as file:
        metadata, written = file.metadata(), file.get_tensor("features")
    assert json.loads(metadata["featinv.ids"]) == ["9.png", "10.png", "cats/1.png"]
    spec = open_backbone("convnext_atto", image_size=64, weights="random:0").spec
    assert json.loads(metadata["featinv.features"])["weights_sha256"] == spec.weights_sha256
    paths = [pictures / name for name in ("9.png", "10.png", "cats/1.png")]
    torch.testing.assert_close(written, torch.cat(list(Backbone(spec, weights="random:0").extract(paths))))

    images = {}
    for name, source in (("of_maps", ("--features", maps)), ("of_pictures", ("--images", pictures, *CONVNEXT[2:4]))):
        out = tmp_path / name
        assert featinv("invert", "--engine", engine, *source, "--out", out, "--threads", 1, "--quiet").code == 0
        images[name] = {path.name: np.asarray(Image.open(path)) for path in out.glob("*.png")}
    assert set(images["of_maps"]) == {"9.png", "10.png", "cats__1.png"}  # as the images that the maps are of
    for name, image in images["of_pictures"].items():
        np.testing.assert_array_equal(images["of_maps"][name], image)
    assert featinv("features", *CONVNEXT, "--images", pictures, "--out", maps).code == 2  # it is there


def test_maps_are_called_by_their_ids(featinv, engine, tmp_path):
    maps = np.random.default_rng(0).standard_normal((3, 320, 2, 2)).astype(np.float32)
    maps[1, 0, 0, 0] = np.nan
    np.save(tmp_path / "maps.npy", maps)
    (tmp_path / "maps.ids").write_text("birds/v1.2\nbirds/v1.3\ncat.jpg\n")
    names = {"ids": ["birds__v1.2", "birds__v1.3", "cat"], "same": ["000000", "000001", "000002"]}
    for kind, expected in names.items():
        out = tmp_path / kind
        answer = featinv("invert", "--engine", engine, "--features", tmp_path / "maps.npy", "--out", out, "--quiet")
        assert answer.code == 3
        assert ("birds/v1.3" if kind == "ids" else "feature map 1 holds NaN") in answer.err
        items = json.loads((out / "inversion.json").read_text())["items"]
        assert [item["name"] for item in items] == expected
        assert {path.stem for path in out.glob("*.png")} == {expected[0], expected[2]}
        (tmp_path / "maps.ids").write_text("cat\ncat\ndog\n")  # two of one name are no names


@pytest.mark.parametrize(
    ("made_with", "named"),
    [
        (("--backbone", "convnext_femto", "--image-size", 64), "convnext_femto.*convnext_atto|backbone"),
        (("--backbone", "convnext_atto", "--image-size", 64, "--layer", "stages.3"), "layer"),
    ],
)
def test_maps_of_another_network_or_layer_are_refused(featinv, engine, pictures, tmp_path, made_with, named):
    maps = tmp_path / "maps.safetensors"
    made = featinv(
        "features", *made_with, "--backbone-weights", "random:0", "--images", pictures, "--out", maps, "--quiet"
    )
    assert made.code == 0
    answer = featinv("invert", "--engine", engine, "--features", maps, "--out", tmp_path / "out", "--quiet")
    assert answer.code == 2
    assert_in_lines(named, answer.err)
    assert_in_lines("featinv features", answer.err)
    assert not (tmp_path / "out").exists()


def test_maps_of_other_weights_are_refused(featinv, engine, restage, pictures, tmp_path):
    maps = tmp_path / "maps.safetensors"
    featinv(
        "features",
        *CONVNEXT[:2],
        "--image-size",
        64,
        "--backbone-weights",
        "random:1",
        "--images",
        pictures,
        "--out",
        maps,
        "--quiet",
    )
    ours = open_backbone("convnext_atto", image_size=64, weights="random:0").weights_sha256
    theirs = open_backbone("convnext_atto", image_size=64, weights="random:1").weights_sha256
    spec = dataclasses.replace(open_engine(engine).manifest.features, weights_sha256=ours)
    knows = restage(engine, tmp_path / "knows.engine", features=spec)
    answer = featinv("invert", "--engine", knows, "--features", maps, "--out", tmp_path / "out", "--quiet")
    assert answer.code == 2
    assert ours in answer.err
    assert theirs in answer.err

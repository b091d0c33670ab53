"""Scenes, a small backbone, and a stand-in engine that gives blurred originals."""

import dataclasses
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from featinv_fast.config import FeatureSpec
from featinv_fast.errors import NumericalError
from featinv_fast.evaluate import Example
from featinv_fast.features import Backbone, center_crop
from featinv_fast.runtime import Inversion, OutputType, RunFlags

SIZE = 64


def _scene(number: int) -> Image.Image:
    """Three shapes on a plain ground, wider than high."""
    random = np.random.default_rng(number)
    scene = Image.new("RGB", (90, 80), tuple(random.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(scene)
    for shape in (pen.ellipse, pen.rectangle, pen.ellipse):
        left, top, edge = random.integers(5, 50, 3).tolist()
        shape((left, top, left + edge, top + edge), tuple(random.integers(0, 256, 3).tolist()))
    return scene


@dataclasses.dataclass
class BlurringRuntime:
    """An engine that knows the originals: the row with seed s is original s, blurred less the more steps are made.

    Of several samples the row is sample s % samples of original s // samples, and each is blurred a pixel more.
    """

    originals: list[Image.Image]
    failing: tuple[int, ...] = ()  # seeds
    features: FeatureSpec | None = None
    calls: list[dict] = dataclasses.field(default_factory=list)

    @property
    def info(self):
        return {"name": "blurring", "image_size": SIZE, "device": "cpu"}

    @property
    def engine(self):
        return types.SimpleNamespace(manifest=types.SimpleNamespace(features=self.features))

    def invert(self, features, *, steps, sampler, guidance_scale, seed, layout, errors, samples=1):
        self.calls.append({"features": features, "seed": list(seed), "layout": layout, "errors": errors})
        assert len(features if features is not None else seed) * samples == len(seed)
        steps = steps or 4
        images = np.zeros((len(seed), SIZE, SIZE, 3), np.uint8)
        failed = {}
        for row, number in enumerate(seed):
            if number in self.failing:
                failed[row] = NumericalError("overflow")
            else:
                crop = center_crop(self.originals[number // samples], SIZE)
                images[row] = np.asarray(crop.filter(ImageFilter.GaussianBlur(4 / steps + number % samples)))
        return Inversion(
            images=images,
            latents=torch.zeros(len(seed), 4, 6, 6),
            seeds=tuple(seed),
            errors=failed,
            output_type=OutputType.UINT8,
            flags=RunFlags(
                backend="blur",
                device="cpu",
                precision="fp32",
                sampler=sampler or "ddim",
                steps=steps,
                guidance_scale=1.75 if guidance_scale is None else guidance_scale,
                batch_size=8,
            ),
        )


@pytest.fixture(scope="session")
def scenes() -> list[Image.Image]:
    return [_scene(number) for number in range(11)]


@pytest.fixture(scope="session")
def examples(scenes) -> list[Example]:
    groups = ("plain", "noise/1", "noise/2")
    return [Example(image=scene, name=f"scene {i}", group=groups[i % 3]) for i, scene in enumerate(scenes)]


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    spec = FeatureSpec(backbone="test_convnext", layer="final", channels=64, input_size=SIZE)
    return Backbone(spec, weights="random:0")


@pytest.fixture(scope="session")
def make_runtime(scenes) -> Callable[..., BlurringRuntime]:
    return lambda **options: BlurringRuntime(scenes, **options)

"""What the package ships, with stand-ins in its place: engines, backbone, figures, and scenes to try them on."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from featinv_fast import Runtime, demo
from featinv_fast.demo import builtin
from featinv_fast.errors import ArgumentError, EngineNotFoundError


def test_the_runtime_opens_the_student(installed):
    scenes = demo.load_scenes(3)
    runtime = Runtime(backend="torch", threads=1)
    assert runtime.engine.path == demo.engine_path() == installed / "student"
    inversion = runtime.invert(scenes.features)
    assert (inversion.flags.sampler, inversion.flags.steps, len(inversion)) == ("lcm", 2, 3)


def test_the_teacher_has_its_name(installed):
    assert Runtime(demo.load_engine("teacher")).info["name"] == "scenes, teacher"
    assert demo.engine_path("teacher") == installed / "teacher"


def test_features_are_those_of_the_backbone(installed):
    scenes = demo.load_scenes(70, first=5)
    assert scenes.features.shape == (70, 256, 4, 4)
    assert scenes.features.dtype == np.float32
    one = demo.load_scenes(1, first=71).features  # alone, and not in a chunk of 64
    np.testing.assert_allclose(scenes.features[66:67], one, atol=1e-5)
    assert scenes.features is scenes.features
    assert demo.backbone().spec == demo.backbone_spec("final")
    assert demo.load_scenes(0).features.shape == (0, 256, 4, 4)


@pytest.mark.parametrize("layer", ["final", "0", "1", "2", "3"])
def test_every_layer_is_as_its_spec_says(installed, layer):
    backbone = demo.backbone(layer)
    features = backbone(backbone.preprocess([]).new_zeros(1, 3, 64, 64))
    spec = demo.backbone_spec(layer)
    assert tuple(features.shape[1:]) == (spec.channels, spec.height, spec.width)


def test_scenes_come_with_all_that_is_known():
    scenes, more = demo.load_scenes(4), demo.load_scenes(6)
    assert len(scenes) == 4
    assert scenes.images.shape == (4, 64, 64, 3)
    assert np.array_equal(more.images[:4], scenes.images)
    assert len(scenes.descriptions) == 4
    for label, shape, pattern in zip(scenes.labels, scenes.concepts["shape"], scenes.concepts["pattern"], strict=True):
        assert scenes.class_names[label] == f"{demo.CONCEPTS['pattern'][pattern[0]]} {demo.CONCEPTS['shape'][shape[0]]}"


def test_splits_and_styles_differ():
    test = demo.load_scenes(2)
    assert not np.array_equal(test.images, demo.load_scenes(2, split="train").images)
    negative = demo.load_scenes(2, style="negative")
    assert not np.array_equal(test.images, negative.images)
    assert np.array_equal(test.labels, negative.labels)


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(builtin, "FOLDER", tmp_path / "nowhere")
    for ask in (demo.engine_path, demo.load_engine, demo.backbone, demo.results, lambda: demo.load_scenes(1).features):
        with pytest.raises(EngineNotFoundError, match=r"install featinv-fast again, make them with .*demo_build"):
            ask()


def test_unknown_names_are_refused(installed):
    with pytest.raises(ArgumentError, match="student, teacher"):
        demo.engine_path("pupil")
    with pytest.raises(ArgumentError, match="final, 0, 1, 2, 3"):
        demo.backbone("4")


def test_results_are_plain_data(installed):
    assert demo.results() == {"scenes": 512}


def test_scenes_need_no_torch():
    code = (
        "import sys; from featinv_fast import demo; demo.load_scenes(1); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'PIL')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

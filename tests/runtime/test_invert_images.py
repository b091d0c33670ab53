"""`Runtime.invert_images`: images in, images out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from featinv_fast import Runtime
from featinv_fast.errors import ArgumentError
from featinv_fast.features import open_backbone


@pytest.fixture(scope="module")
def runtime(make_engine, tiny_config):
    """An engine of the smallest ConvNeXt's final map, 64 pixels in."""
    metadata = {"backbone": "convnext_atto", "layer": "final", "layout": "nchw", "feature_shape": "320x2x2"}
    metadata |= {"input_size": "64", "steps": "1"}
    return Runtime(make_engine(dataclasses.replace(tiny_config, feature_channels=320), metadata), threads=1)


@pytest.fixture(scope="module")
def backbone(runtime):
    return open_backbone(runtime.info["features"], weights="random:0")


@pytest.fixture
def pictures(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("2.png", "10.png"):
        Image.fromarray(generator.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def test_images_give_what_their_maps_give(runtime, backbone, pictures):
    paths = [pictures / "2.png", pictures / "10.png"]
    expected = runtime.invert(torch.cat(list(backbone.extract(paths))), seed=3).images
    assert len(expected) == 2
    for images in (pictures, str(pictures), paths, map(str, paths), [Image.open(path) for path in paths]):
        np.testing.assert_array_equal(runtime.invert_images(images, backbone=backbone, seed=3).images, expected)
    np.testing.assert_array_equal(runtime.invert_images(paths[0], backbone=backbone, seed=3).images, expected[:1])


def test_the_engines_own_backbone_is_opened_once(runtime, backbone, pictures, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "featinv_fast.runtime.runtime.open_backbone", lambda spec, *, device: opened.append((spec, device)) or backbone
    )
    monkeypatch.setattr(runtime, "_backbone", None)
    runtime.invert_images(pictures)
    runtime.invert_images(pictures)
    assert opened == [(runtime.engine.manifest.features, torch.device("cpu"))]


def test_another_backbone_or_no_image_is_refused(runtime, backbone, pictures, tmp_path):
    other = open_backbone("convnext_atto", layer="2", image_size=64, weights="random:0")
    with pytest.raises(ArgumentError, match=r"(?s)maps of the backbone are others.*'layer': '2'.*'layer': 'final'"):
        runtime.invert_images(pictures, backbone=other)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArgumentError, match="no image"):
        runtime.invert_images(tmp_path / "empty", backbone=backbone)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ArgumentError, match="broken"):
        runtime.invert_images([tmp_path / "broken.png"], backbone=backbone)

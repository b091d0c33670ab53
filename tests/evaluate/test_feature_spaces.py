import hashlib
import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from featinv_fast.config import FeatureLayout, FeatureSpec
from featinv_fast.errors import CheckpointError, CheckpointMismatchError, MissingPackageError
from featinv_fast.evaluate import (
    WORLD_DISTANCE,
    FrechetDistance,
    InceptionFeatures,
    Pooled,
    PooledFeatures,
    feature_spaces,
)
from featinv_fast.features import Backbone, normalise


def images(count, edge=48):
    return torch.from_numpy(np.random.default_rng(count).integers(0, 256, (count, edge, edge, 3), dtype=np.uint8))


def test_pooled_features_are_averages_of_the_backbones_map(backbone):
    space = PooledFeatures(backbone, name=WORLD_DISTANCE)
    assert (space.name, space.dimension) == ("featinv_world_distance", 64)
    batch = images(3)
    maps = backbone(backbone.preprocess([Image.fromarray(image.numpy()) for image in batch]))
    assert torch.allclose(space(batch), maps.mean(dim=(2, 3)), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "layer", "layout", "channels"),
    [("test_resnet", "1", FeatureLayout.NHWC, 32), ("test_vit", "final", FeatureLayout.TOKENS, 64)],
)
def test_pooled_features_know_the_layout(name, layer, layout, channels):
    spec = FeatureSpec(backbone=name, layer=layer, layout=layout, channels=channels)
    backbone = Backbone(spec, weights="random:0")
    batch = images(2, edge=160)
    pixels = backbone.preprocess([Image.fromarray(image.numpy()) for image in batch])
    expected = normalise(backbone(pixels), spec, layout=layout).mean(dim=(2, 3))
    assert expected.shape == (2, channels)
    assert torch.allclose(PooledFeatures(backbone, name="x")(batch), expected, atol=1e-6)
    vectors, logits = Pooled(backbone).features_and_logits(pixels)
    assert torch.allclose(vectors, expected, atol=1e-6)
    assert logits.shape == (2, 1000)
    assert Pooled(backbone).spec.layout is FeatureLayout.POOLED


def test_world_distance_grows_with_blur(backbone, scenes):
    distance = FrechetDistance(PooledFeatures(backbone, name=WORLD_DISTANCE))
    originals = torch.stack([torch.from_numpy(np.array(scene.resize((64, 64)))) for scene in scenes * 8])
    distance.update("originals", originals)
    distance.update("same", originals.flip(0))
    for factor in (2, 4, 8):
        small = torch.nn.functional.avg_pool2d(originals.permute(0, 3, 1, 2).float(), factor)
        coarse = torch.nn.functional.interpolate(small, scale_factor=factor).permute(0, 2, 3, 1).to(torch.uint8)
        distance.update(f"by {factor}", coarse)
    assert distance.between("originals", "same") == pytest.approx(0.0, abs=1e-6)
    grown = [distance.between("originals", f"by {factor}") for factor in (2, 4, 8)]
    assert 0.0 < grown[0] < grown[1] < grown[2]


def test_inception_needs_its_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(MissingPackageError, match=r"featinv-fast\[evaluate\]"):
        InceptionFeatures(tmp_path / "w.pth")


@pytest.fixture
def inception_class():
    return pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3


def test_other_weights_are_not_fid(inception_class, tmp_path):
    with pytest.raises(CheckpointError, match="pt_inception-2015-12-05-6726825d"):
        InceptionFeatures(tmp_path / "none.pth")
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(CheckpointMismatchError, match=feature_spaces.INCEPTION_SHA256):
        InceptionFeatures(tmp_path / "w.pth")


def test_b1_inception_weights_are_unpickled_only_if_they_are_the_known_file(inception_class, tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")

    torch.save({"fc.weight": Trap()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointMismatchError):
        InceptionFeatures(tmp_path / "w.pth")
    assert not (tmp_path / "sprung").exists()


def test_inception_features_are_those_of_the_network(inception_class, tmp_path, monkeypatch):
    class Untrained(inception_class):
        """The network with its random first weights."""

        def load_state_dict(self, state):
            assert state == {}

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    torch.manual_seed(0)
    network = Untrained("untrained", ["2048"], feature_extractor_weights_path=nothing)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(feature_spaces, "INCEPTION_SHA256", digest)
    space = InceptionFeatures(tmp_path / "w.pth")
    batch = images(2)
    features = space(batch)
    assert (space.name, features.shape) == ("fid", (2, 2048))
    assert torch.equal(features, network(batch.permute(0, 3, 1, 2))[0])
    assert not torch.equal(features[0], features[1])

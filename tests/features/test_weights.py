"""The hash that names a backbone's weights."""

from __future__ import annotations

import hashlib
import struct

import pytest
import timm
import torch
from safetensors.torch import save_file

from featinv_fast.config import FeatureSpec
from featinv_fast.features import Backbone
from featinv_fast.features.weights import weights_sha256


def make(name="test_convnext", **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, **options)


def test_the_hash_follows_its_description():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(1, 3)
            self.pos_embed = torch.nn.Parameter(torch.zeros(4))
            self.register_buffer("batches", torch.tensor(7))
            self.pretrained_cfg = {"classifier": "head"}

    model = Model()
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor([[1.5, -2.0]]))
    expected = hashlib.sha256(b"a.weight:float32:1x2;" + struct.pack("<2f", 1.5, -2.0)).hexdigest()
    assert weights_sha256(model) == expected
    assert weights_sha256(model.bfloat16()) != expected


def test_one_network_has_one_hash_whatever_the_file(tmp_path):
    model = make()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    spec = FeatureSpec(backbone="test_convnext", layer="final", channels=64, input_size=64)
    hashes = {Backbone(spec, weights=tmp_path / name).weights_sha256 for name in ("w.safetensors", "w.pth")}
    assert hashes == {weights_sha256(model)}


def test_every_weight_of_the_map_counts():
    model = make()
    before = weights_sha256(model)
    state = model.state_dict()
    for name in ("stem.0.weight", "stages.3.blocks.0.mlp.fc2.bias"):
        kept = state[name].clone()
        state[name].view(-1)[0].add_(1e-6)
        assert weights_sha256(model) != before
        state[name].copy_(kept)
    assert weights_sha256(model) == before
    assert weights_sha256(timm.create_model("test_convnext")) != before


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_the_classifier_does_not_count(name):
    model = make(name)
    before = weights_sha256(model)
    model.reset_classifier(3)
    assert weights_sha256(model) == before
    model.reset_classifier(0)
    assert weights_sha256(model) == before


def test_the_size_of_the_images_does_not_count():
    overlay = {"state_dict": make("test_vit").state_dict()}
    sizes = [
        timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay=overlay, img_size=size)
        for size in (160, 96)
    ]
    assert len({weights_sha256(model) for model in sizes}) == 1

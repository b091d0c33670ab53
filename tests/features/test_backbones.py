import pickle
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms

from featinv_fast.config import FeatureLayout, FeatureSpec
from featinv_fast.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointUnsafeError,
    MissingPackageError,
)
from featinv_fast.features import KNOWN_BACKBONES, Backbone, center_crop, known_spec, normalise, to_rgb

# timm's own models for tests: a third of a million parameters.
SMALL = FeatureSpec(backbone="test_convnext", layer="final", channels=64, height=2, width=2, input_size=64)


def noise(width, height, mode="RGB"):
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.fixture(scope="module")
def small_model():
    torch.manual_seed(7)
    return timm.create_model("test_convnext").eval()


@pytest.mark.parametrize("spec", KNOWN_BACKBONES, ids=lambda spec: f"{spec.backbone}-{spec.layer}")
def test_official_backbones_have_the_recorded_maps(spec):
    stage = {} if spec.layer == "final" else {"features_only": True, "out_indices": (int(spec.layer),)}
    with torch.device("meta"):  # shapes without weights
        model = timm.create_model(spec.backbone, **stage).eval()
        pixels = torch.empty(1, 3, spec.input_size or 224, spec.input_size or 224)
    shape = tuple(model(pixels)[0].shape if stage else model.forward_features(pixels).shape)
    shape = (shape[0], shape[3], *shape[1:3]) if spec.layout is FeatureLayout.NHWC else shape
    assert shape == (1, spec.channels, spec.height or 7, spec.width or 7)
    assert model.pretrained_cfg["mean"] == spec.mean
    assert model.pretrained_cfg["std"] == spec.std


def test_known_specs_are_found_with_and_without_the_tag():
    assert known_spec("convnext_base").channels == 1024
    assert known_spec("convnext_base.fb_in22k_ft_in1k", "1") == KNOWN_BACKBONES[2]
    assert known_spec("swinv2_base_window12to24_192to384").layout is FeatureLayout.NHWC
    for name, layer in [("convnext_base", "4"), ("convnext_base.other", "final"), ("vgg16", "final")]:
        with pytest.raises(ArgumentError, match="convnext_base"):
            known_spec(name, layer)


@pytest.mark.parametrize(
    ("width", "height", "mode"), [(90, 70, "RGB"), (70, 91, "RGBA"), (64, 64, "L"), (33, 200, "RGB"), (97, 65, "RGB")]
)
def test_preprocessing_equals_the_official_transforms(width, height, mode):
    image = noise(width, height, mode)
    crop = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64)])
    backbone = Backbone(SMALL, weights="random:0")
    constants = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # what timm says of the model
    tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(**constants)])
    cropped = crop(to_rgb(image))
    assert np.array_equal(np.asarray(center_crop(image, 64)), np.asarray(cropped))
    assert torch.equal(backbone.preprocess([image, image]), torch.stack([tensor(cropped)] * 2))


def test_final_features_are_those_of_the_model(tmp_path, small_model):
    save_file(small_model.state_dict(), tmp_path / "w.safetensors")
    backbone = Backbone(SMALL, weights=tmp_path / "w.safetensors")
    pixels = torch.randn(2, 3, 64, 64)
    features = backbone(pixels)
    assert not features.requires_grad
    assert not features.is_inference()
    with torch.no_grad():
        assert torch.equal(features, small_model.forward_features(pixels))
    assert normalise(features, SMALL, layout=SMALL.layout).shape == (2, 64, 2, 2)


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stages_are_those_of_features_only(tmp_path, name, stage):
    torch.manual_seed(3)
    model = timm.create_model(name).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    stages = timm.create_model(
        name, features_only=True, pretrained=True, pretrained_cfg_overlay={"state_dict": model.state_dict()}
    ).eval()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = stages(pixels)[stage]
    spec = FeatureSpec(backbone=name, layer=str(stage), channels=expected.shape[1], input_size=64)
    assert torch.equal(Backbone(spec, weights=tmp_path / "w.pth")(pixels), expected)


def test_swin_keeps_its_own_layout():
    name = "swin_tiny_patch4_window7_224"
    spec = FeatureSpec(backbone=name, layer="final", channels=768, height=7, width=7, layout=FeatureLayout.NHWC)
    backbone = Backbone(spec, weights="random:1")
    (features,) = backbone.extract([noise(230, 240)])
    assert features.shape == (1, 7, 7, 768)
    assert torch.equal(normalise(features, spec), features.permute(0, 3, 1, 2))
    first = FeatureSpec(backbone=name, layer="0", channels=96, height=56, width=56, layout=FeatureLayout.NHWC)
    assert Backbone(first, weights="random:1")(torch.zeros(1, 3, 224, 224)).shape == (1, 56, 56, 96)


def test_vit_gives_tokens():
    spec = FeatureSpec(
        backbone="test_vit", layer="final", channels=64, height=10, width=10, layout=FeatureLayout.TOKENS
    )
    backbone = Backbone(spec, weights="random:1")
    assert backbone.input_size == 160
    features = backbone(torch.randn(2, 3, 160, 160))
    assert features.shape == (2, 101, 64)
    maps = normalise(features, spec)
    assert torch.equal(maps[1, :, 3, 4], features[1, 1 + 34])


@pytest.mark.parametrize(
    ("name", "layer", "layout"),
    [
        ("test_convnext", "final", FeatureLayout.NCHW),
        ("test_convnext", "1", FeatureLayout.NCHW),
        ("test_resnet", "0", FeatureLayout.NCHW),
        ("test_resnet", "1", FeatureLayout.NHWC),
        ("test_vit", "final", FeatureLayout.TOKENS),
    ],
)
def test_logits_come_with_the_same_features(name, layer, layout):
    backbone = Backbone(FeatureSpec(backbone=name, layer=layer, layout=layout, channels=1), weights="random:5")
    pixels = torch.randn(2, 3, backbone.input_size, backbone.input_size)
    features, logits = backbone.features_and_logits(pixels)
    assert torch.equal(features, backbone(pixels))
    with torch.no_grad():
        assert torch.equal(logits, backbone.model(pixels))
    assert logits.shape == (2, 1000)


def test_a_model_without_a_classifier_has_no_logits():
    backbone = Backbone(SMALL, weights="random:0")
    backbone.model.reset_classifier(0)
    features, logits = backbone.features_and_logits(torch.zeros(1, 3, 64, 64))
    assert features.shape == (1, 64, 2, 2)
    assert logits is None


def test_images_and_files_are_extracted_in_order(tmp_path):
    images = [noise(64 + i, 70) for i in range(5)]
    images[3].save(tmp_path / "3.png")
    mixed = [*images[:3], tmp_path / "3.png", images[4]]
    backbone = Backbone(SMALL, weights="random:0")
    batches = list(backbone.extract(iter(mixed), batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.allclose(torch.cat(batches), backbone(backbone.preprocess(images)), atol=1e-5)
    assert backbone.preprocess([]).shape == (0, 3, 64, 64)
    with pytest.raises(ArgumentTypeError, match=r"images\[0\]"):
        backbone.preprocess([np.zeros((64, 64, 3))])


def test_random_weights_follow_their_seed_and_leave_the_global_one():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    pixels = torch.ones(1, 3, 64, 64)
    first, again, other = (Backbone(SMALL, weights=f"random:{seed}")(pixels) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(ArgumentError, match="seed"):
        Backbone(SMALL, weights="random:x")


def test_c8_a_failing_download_names_the_remedy(monkeypatch):
    def offline(*_args, **_options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(CheckpointError, match="--backbone-weights FILE") as caught:
        Backbone(SMALL)
    assert "no route to host" in str(caught.value)


def test_b1_pickled_code_in_weights_never_runs(tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")

    torch.save({"state_dict": Trap()}, tmp_path / "w.pth")
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointUnsafeError):
        Backbone(SMALL, weights=tmp_path / "w.pth")
    with pytest.raises(CheckpointCorruptError):
        Backbone(SMALL, weights=tmp_path / "w.safetensors")
    assert not (tmp_path / "sprung").exists()


def test_b2_damaged_weights(tmp_path, small_model):
    save_file(small_model.state_dict(), tmp_path / "w.safetensors")
    torch.save(small_model.state_dict(), tmp_path / "w.pth")
    for path in (tmp_path / "w.safetensors", tmp_path / "w.pth"):
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(CheckpointCorruptError, match=path.name):
            Backbone(SMALL, weights=path)
    with pytest.raises(CheckpointError, match="no such file"):
        Backbone(SMALL, weights=tmp_path / "none.safetensors")


def test_b4_weights_that_do_not_fit(tmp_path, small_model):
    state = small_model.state_dict()
    missing = dict(list(state.items())[1:])
    for wrong in (missing, {**state, "extra": torch.zeros(1)}, {"x": torch.zeros(1)}):
        save_file(wrong, tmp_path / "w.safetensors")
        with pytest.raises(CheckpointMismatchError, match="test_convnext"):
            Backbone(SMALL, weights=tmp_path / "w.safetensors")
    for nothing in ({}, [torch.zeros(1)], {"epoch": 3}):
        torch.save(nothing, tmp_path / "w.pth")
        with pytest.raises(CheckpointMismatchError, match="no state_dict"):
            Backbone(SMALL, weights=tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": None}, "unknown backbone"),
        ({"backbone": "no_such_net"}, "unknown backbone"),
        ({"backbone": "what is this:"}, "unknown backbone"),
        ({"backbone": "resnet500"}, "did you mean resnet50"),
        ({"layer": "stages.1.nothing"}, "no such module"),
        ({"layer": "-1"}, "final, 0 to 3"),
        ({"layer": "head.fc"}, "gives"),
        ({"layout": FeatureLayout.POOLED}, "pooled"),
        ({"layer": "9"}, "final, 0 to 3"),
    ],
)
def test_models_and_layers_that_cannot_be_served(changes, message):
    spec = FeatureSpec(**{"backbone": "test_convnext", "layer": "final", "channels": 64, "input_size": 64, **changes})
    with pytest.raises(ArgumentError, match=message):
        Backbone(spec, weights="random:0")(torch.zeros(1, 3, 64, 64))


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError, match=r"featinv-fast\[timm\]"):
        Backbone(SMALL, weights="random:0")

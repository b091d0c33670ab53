"""Maps that were made elsewhere: what needs pixels or classes of the originals is absent, not wrong."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from featinv_fast.commands.evaluate import evaluate_folder
from featinv_fast.commands.evaluate_options import EvaluateOptions, JudgeOptions
from featinv_fast.config import FeatureLayout, FeatureSpec, to_dict
from featinv_fast.errors import ArgumentError, OutputExistsError
from featinv_fast.evaluate import Example, Setting, evaluate, html_page, picture_page
from featinv_fast.features.stored import IDS, SPEC

SETTING = [Setting(steps=2)]


@pytest.fixture(scope="module")
def maps(backbone, scenes):
    return backbone(backbone.preprocess(scenes))


@pytest.fixture
def options(maps, backbone, tmp_path):
    names = [f"{'ab'[i % 2]}/{i}.png" for i in range(11)]
    metadata = {IDS: json.dumps(names), SPEC: json.dumps(to_dict(backbone.spec))}
    save_file({"features": maps.contiguous()}, tmp_path / "maps.safetensors", metadata)
    given = {"out": tmp_path / "out", "features": tmp_path / "maps.safetensors", "settings": SETTING, "plot": False}
    return lambda **changes: EvaluateOptions(**given | {"backbone_weights": "random:0", "progress": False} | changes)


def test_figures_of_maps_are_those_of_their_images(make_runtime, backbone, scenes, maps):
    whole = evaluate(make_runtime(), backbone, scenes, SETTING, samples=2).rows[0].figures
    runtime = make_runtime()
    examples = [Example(features=one, target=i) for i, one in enumerate(maps)]
    report = evaluate(runtime, backbone, examples, SETTING, samples=2, batch_size=4, pictures=2)
    figures = report.rows[0].figures
    assert figures.keys() == {
        "cosine", "feature_distance", "accuracy_top1", "accuracy_top5", "pixel_spread", "feature_spread",
        "pairwise_ssim",
    }  # fmt: skip
    for name in ("cosine", "feature_distance", "pixel_spread", "feature_spread", "pairwise_ssim"):
        assert figures[name].mean == pytest.approx(whole[name].mean, rel=1e-4)
    assert (report.rows[0].top1, report.rows[0].distances, len(report.rows)) == (None, {}, 1)
    assert torch.equal(runtime.calls[0]["features"], maps[:4])
    assert report.pictures[0].original is None
    picture_page(report.pictures)
    assert html_page(report).count('src="data:image/png') == 2 * (2 + 1)


def test_images_with_maps_of_their_own(make_runtime, backbone, scenes, maps):
    runtime = make_runtime()
    examples = [Example(image=scene, features=2 * one) for scene, one in zip(scenes, maps, strict=True)]
    report = evaluate(runtime, backbone, examples, SETTING)
    assert torch.equal(runtime.calls[0]["features"], 2 * maps)
    assert report.rows[0].figures == evaluate(make_runtime(), backbone, scenes, SETTING).rows[0].figures


def test_mixtures_are_refused(make_runtime, backbone, scenes, maps):
    for examples, message in (
        ([Example(image=scenes[0]), Example(features=maps[1])], "images and maps alone are mixed"),
        ([Example(features=maps[0]), Example(features=maps[1, :, :1])], "differ in size"),
    ):
        with pytest.raises(ArgumentError, match=message):
            evaluate(make_runtime(), backbone, examples, SETTING)


def test_the_command_takes_a_file(make_runtime, backbone, options, tmp_path, maps):
    (tmp_path / "labels.csv").write_text("name,label\n" + "\n".join(f"{'ab'[i % 2]}/{i}.png,{i}" for i in range(11)))
    given = options(labels=str(tmp_path / "labels.csv"), group_by_folder=True, limit=5)
    report, _ = evaluate_folder(make_runtime(features=backbone.spec), given)
    assert [item.name for item in report.items] == ["a/0.png", "a/2.png", "a/4.png", "a/6.png", "a/8.png"]
    assert report.rows[0].figures["accuracy_top1"].originals == 5
    assert report.row("unrelated").figures.keys() == {"cosine", "feature_distance"}
    with pytest.raises(OutputExistsError):
        options()


def test_engines_of_pooled_features_are_judged_by_the_vectors(make_runtime, options, tmp_path, maps):
    np.save(tmp_path / "pooled.npy", maps.mean(dim=(2, 3)).numpy())
    spec = FeatureSpec(
        backbone="test_convnext",
        layer="final",
        channels=64,
        height=1,
        width=1,
        input_size=64,
        layout=FeatureLayout.POOLED,
    )
    runtime = make_runtime(features=spec)
    report, _ = evaluate_folder(runtime, options(features=tmp_path / "pooled.npy"))
    assert runtime.calls[0]["features"].shape == (11, 64)
    assert runtime.calls[0]["layout"] is FeatureLayout.POOLED
    assert report.rows[0].judge == "test_convnext, layer final (pooled)"
    assert 0.5 < report.rows[0].cosine.mean < 1.0


def test_what_would_have_no_effect_is_refused(options, tmp_path):
    for changes in ({"judge": JudgeOptions(name="test_resnet")}, {"checkpoint": tmp_path}, {"inception": tmp_path}):
        with pytest.raises(ArgumentError, match=f"(?s){next(iter(changes))}.*maps alone"):
            options(**changes)
    for changes in ({"images": tmp_path}, {"features": None}):
        with pytest.raises(ArgumentError, match="not one source"):
            options(**changes)
    with pytest.raises(ArgumentError, match="layout"):
        options(images=tmp_path, features=None, layout="nhwc")

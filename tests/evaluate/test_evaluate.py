import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from featinv_fast.config import FeatureLayout, FeatureSpec
from featinv_fast.errors import ArgumentError, ArgumentTypeError
from featinv_fast.evaluate import (
    EvaluationInterrupted,
    Example,
    FewSamplesWarning,
    Kind,
    Pooled,
    PooledFeatures,
    Setting,
    evaluate,
    interval,
)
from featinv_fast.evaluate.measures.feature_distance import feature_distance
from featinv_fast.evaluate.measures.pixels import psnr
from featinv_fast.evaluate.measures.probabilities import kl_divergence, total_variation
from featinv_fast.evaluate.measures.ssim import ssim
from featinv_fast.features import Backbone, center_crop, place_of

SETTINGS = (Setting(steps=2), Setting(steps=8), Setting(sampler="lcm", steps=4, guidance_scale=1.0))


def figures(report):
    """The measured numbers of all rows, without times and time stamps."""
    return [dataclasses.replace(row, seconds_per_image=None, created="") for row in report.rows]


def test_figures_are_those_computed_by_hand(make_runtime, backbone, scenes):
    runtime = make_runtime()
    report = evaluate(runtime, backbone, scenes, [Setting(steps=2)])
    row = report.row("DDIM-2 g=1.75")
    crops = [center_crop(scene, 64) for scene in scenes]
    blurred = [
        Image.fromarray(image)
        for image in runtime.invert(
            None, steps=2, sampler=None, guidance_scale=None, seed=range(11), layout=None, errors="return"
        ).images
    ]
    first, second = (backbone.preprocess(images) for images in (crops, blurred))
    cosines = F.cosine_similarity(backbone(first).double(), backbone(second).double(), dim=1)
    assert row.cosine.mean == pytest.approx(cosines.mean().item(), abs=1e-6)
    assert row.cosine.median == pytest.approx(np.quantile(cosines.numpy(), 0.5, method="inverted_cdf"), abs=3e-5)
    with torch.no_grad():
        logits, others = backbone.model(first), backbone.model(second)
    top = logits.argmax(1, keepdim=True)
    assert row.top1 == (others.argmax(1, keepdim=True) == top).double().mean().item()
    assert row.top5 == (others.topk(5, dim=1).indices == top).any(1).double().mean().item()
    assert (row.n, row.failed, row.steps, row.backend, row.engine) == (11, 0, 2, "blur", "blurring")
    assert row.backbone == "test_convnext, layer final"
    assert 0.0 < row.seconds_per_image < 5.0
    assert [item.cosine for item in report.items] == pytest.approx(cosines.mean(dim=(1, 2)).tolist(), abs=1e-6)


def test_measures_of_single_images_and_their_intervals(make_runtime, backbone, examples):
    report = evaluate(make_runtime(failing=(3,)), backbone, examples, SETTINGS[:1], batch_size=4, pictures=11, seed=0)
    items = [item for item in report.items if item.error is None]
    assert [item.figures for item in report.items if item.error] == [{}]
    pictures = {picture.name: (picture.original, *picture.reconstructions.values()) for picture in report.pictures}
    for item in items:
        original, (reconstruction, cosine) = pictures[item.name]
        images = [torch.tensor(np.asarray(image))[None] for image in (original, reconstruction)]
        maps, logits = zip(*(backbone.features_and_logits(backbone.preprocess([image])) for image in (
            examples[item.seed].image, reconstruction
        )), strict=True)  # fmt: skip
        expected = {
            "cosine": cosine,
            "top1": float(item.place < 1),
            "top5": float(item.place < 5),
            "psnr": psnr(*images).item(),
            "ssim": ssim(*images).item(),
            "feature_distance": feature_distance(*maps).item(),
            "kl_divergence": kl_divergence(*logits).item(),
            "total_variation": total_variation(*logits).item(),
        }
        assert item.figures == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for row in report.rows[:4]:
        assert row.figures["cosine"].mean == pytest.approx(row.cosine.mean, abs=1e-12)
        assert (row.figures["top1"].mean, row.figures["top5"].mean) == pytest.approx((row.top1, row.top5), abs=1e-12)
        for name, figure in row.figures.items():
            values = [item.figures[name] for item in items if row.group in (None, item.group)]
            assert (figure.low, figure.high) == interval(values, seed=0)
            assert (figure.mean, figure.originals) == (pytest.approx(np.mean(values)), len(values))
    floor = report.row("unrelated").figures
    assert floor.keys() == expected.keys()
    assert floor["psnr"].high < report.rows[0].figures["psnr"].low


def test_more_steps_and_the_ceiling(make_runtime, backbone, examples):
    report = evaluate(make_runtime(), backbone, examples, SETTINGS, autoencoder=lambda pixels: pixels)
    two, eight = report.row("DDIM-2 g=1.75"), report.row("DDIM-8 g=1.75")
    ceiling, floor = report.row("autoencoder"), report.row("unrelated")
    assert floor.cosine.mean < two.cosine.mean < eight.cosine.mean < ceiling.cosine.mean
    # The identity in [-1, 1] gives the bytes back but for truncation; scenes are cropped at the engine's own size.
    assert ceiling.cosine.mean == pytest.approx(1.0, abs=2e-3)
    assert (ceiling.kind, ceiling.share_of_ceiling, ceiling.sampler) == (Kind.AUTOENCODER, 1.0, None)
    assert two.share_of_ceiling == pytest.approx(two.cosine.mean / ceiling.cosine.mean)


@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_figures_do_not_depend_on_batches(make_runtime, backbone, examples, batch_size):
    options = {"autoencoder": lambda pixels: 0.9 * pixels, "pictures": 2, "seed": 0}
    whole = evaluate(make_runtime(), backbone, examples, SETTINGS, batch_size=32, **options)
    runtime = make_runtime()
    parts = evaluate(runtime, backbone, examples, SETTINGS, batch_size=batch_size, **options)
    for row, expected in zip(figures(parts), figures(whole), strict=True):
        assert row.cosine.mean == pytest.approx(expected.cosine.mean, abs=1e-5)
        ends, others = ([x for f in one.figures.values() for x in (f.low, f.high)] for one in (row, expected))
        assert ends == pytest.approx(others, rel=1e-4, abs=1e-5)
        assert (row.label, row.group, row.n, row.top1) == (expected.label, expected.group, expected.n, expected.top1)
    assert [seed for call in runtime.calls[:: len(SETTINGS)] for seed in call["seed"]] == list(range(11))
    assert [picture.name for picture in parts.pictures] == [picture.name for picture in whole.pictures]


def test_groups_have_rows_that_make_up_the_whole(make_runtime, backbone, examples):
    report = evaluate(make_runtime(), backbone, examples, SETTINGS[:1], autoencoder=lambda pixels: pixels)
    whole = report.row("DDIM-2 g=1.75")
    parts = [row for row in report.rows if row.label == whole.label and row.group is not None]
    assert [(row.group, row.n) for row in parts] == [("noise/1", 4), ("noise/2", 3), ("plain", 4)]
    assert sum(row.n * row.cosine.mean for row in parts) / 11 == pytest.approx(whole.cosine.mean, abs=1e-12)
    assert sum(row.n * row.top1 for row in parts) / 11 == pytest.approx(whole.top1, abs=1e-12)
    ceiling = report.row("autoencoder", "plain")
    assert parts[2].share_of_ceiling == pytest.approx(parts[2].cosine.mean / ceiling.cosine.mean)
    alone = evaluate(make_runtime(), backbone, [example.image for example in examples], SETTINGS[:1])
    assert {row.group for row in alone.rows} == {None}


def test_failed_rows_are_counted_and_left_out(make_runtime, backbone, examples):
    report = evaluate(make_runtime(failing=(3, 6)), backbone, examples, SETTINGS[:1], batch_size=4, pictures=9)
    kept = [example for i, example in enumerate(examples) if i not in (3, 6)]
    row = report.row("DDIM-2 g=1.75")
    assert (row.n, row.failed) == (9, 2)
    assert report.row(row.label, "plain").failed == 2
    items = [item for item in report.items if item.label == row.label]
    assert [item.name for item in items if item.error is None] == [example.name for example in kept]
    failed = items[3]
    assert (failed.cosine, failed.place, failed.seed) == (None, None, 3)
    assert "overflow" in failed.error
    assert row.cosine.mean == pytest.approx(np.mean([item.cosine for item in items if item.error is None]))
    assert {picture.name: picture for picture in report.pictures}["scene 3"].reconstructions[row.label] == (None, None)


def test_engines_know_what_messages_call_the_images(make_runtime, backbone, examples, monkeypatch):
    runtime, called = make_runtime(), []
    invert = runtime.invert

    def watched(features, **options):
        called.extend(place_of(row) for row in range(len(features)))
        return invert(features, **options)

    monkeypatch.setattr(runtime, "invert", watched)
    evaluate(runtime, backbone, examples, SETTINGS[:1], batch_size=4)
    assert called == [example.name for example in examples]


def test_rows_exist_even_where_everything_failed(make_runtime, backbone, scenes):
    report = evaluate(make_runtime(failing=range(11)), backbone, scenes, SETTINGS[:1], pictures=1)
    row = report.row("DDIM-2 g=1.75")
    assert (row.n, row.failed, row.cosine, row.top1, row.share_of_ceiling) == (0, 11, None, None, None)


def test_distances_of_each_setting(make_runtime, backbone, scenes):
    spaces = [PooledFeatures(backbone, name="pooled_distance")]
    with pytest.warns(FewSamplesWarning, match="11 images for 64 dimensions"):
        report = evaluate(make_runtime(), backbone, scenes, SETTINGS[:2], spaces=spaces, batch_size=3)
    two, eight = (report.row(label).distances["pooled_distance"] for label in ("DDIM-2 g=1.75", "DDIM-8 g=1.75"))
    assert (two.originals, two.reconstructions, two.dimension) == (11, 11, 64)
    assert 0.0 < eight.value < two.value
    assert report.row("unrelated").distances == {}


def test_the_engine_gets_the_backbones_features_and_seeds(make_runtime, backbone, scenes):
    runtime = make_runtime()
    evaluate(runtime, backbone, scenes[2:5], SETTINGS[:2], seed=2, batch_size=2)
    features = backbone(backbone.preprocess(scenes[2:4]))
    assert torch.allclose(runtime.calls[0]["features"], features, atol=1e-6)
    assert [call["seed"] for call in runtime.calls] == [[2, 3], [2, 3], [4], [4]]
    assert {(call["layout"], call["errors"]) for call in runtime.calls} == {(FeatureLayout.NCHW, "return")}


def test_engines_of_pooled_features_are_judged_by_the_map(make_runtime, backbone, scenes):
    runtime = make_runtime()
    report = evaluate(runtime, Pooled(backbone), scenes, SETTINGS[:1], judge=backbone)
    assert runtime.calls[0]["features"].shape == (11, 64)
    assert runtime.calls[0]["layout"] is FeatureLayout.POOLED
    row = report.row("DDIM-2 g=1.75")
    assert (row.backbone, row.judge) == ("test_convnext, layer final (pooled)", "test_convnext, layer final")
    by_map = evaluate(make_runtime(), backbone, scenes, SETTINGS[:1]).row(row.label)
    assert row.cosine == by_map.cosine
    alone = evaluate(make_runtime(), Pooled(backbone), scenes, SETTINGS[:1]).row(row.label)
    assert alone.cosine.mean > by_map.cosine.mean  # averages agree better than locations do


def test_backbones_without_classes_have_no_match(make_runtime, scenes):
    spec = FeatureSpec(backbone="test_convnext", layer="final", channels=64, input_size=64)
    backbone = Backbone(spec, weights="random:0")
    backbone.model.reset_classifier(0)
    row = evaluate(make_runtime(), backbone, scenes, SETTINGS[:1]).row("DDIM-2 g=1.75")
    assert (row.n, row.top1, row.top5) == (11, None, None)
    assert row.cosine.mean > 0.5
    assert row.figures.keys() == {"cosine", "feature_distance", "psnr", "ssim"}


def test_originals_are_cropped_by_the_backbone_and_resized_for_the_eye(make_runtime, scenes):
    spec = FeatureSpec(backbone="test_convnext", layer="final", channels=64, input_size=96)
    backbone = Backbone(spec, weights="random:0")
    seen = []

    def autoencoder(pixels):
        seen.append(pixels)
        return pixels

    report = evaluate(make_runtime(), backbone, scenes[:2], SETTINGS[:1], autoencoder=autoencoder, pictures=2)
    expected = center_crop(scenes[1], 96).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(report.pictures[1].original), np.asarray(expected))
    pixels = torch.from_numpy(np.asarray(expected, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1.0
    assert torch.allclose(seen[0][1], pixels, atol=1e-6)


def test_arrays_and_single_colour_images_are_taken(make_runtime, backbone, scenes):
    mixed = [np.asarray(scenes[0]), scenes[1].convert("L"), Example(image=np.asarray(scenes[2]), name="third")]
    report = evaluate(make_runtime(), backbone, iter(mixed), SETTINGS[:1])
    assert [item.name for item in report.items] == ["000000", "000001", "third"]
    assert report.items[0].cosine == pytest.approx(
        evaluate(make_runtime(), backbone, scenes[:1], SETTINGS[:1]).items[0].cosine, abs=1e-6
    )


@pytest.mark.parametrize("bad", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), "image.png", None])
def test_what_is_no_image_is_refused_with_its_number(make_runtime, backbone, scenes, bad):
    with pytest.raises(ArgumentTypeError, match=r"images\[1\] is no image"):
        evaluate(make_runtime(), backbone, [scenes[0], bad])


def test_calls_that_cannot_be_served(make_runtime, backbone, scenes):
    for images, settings, message in (
        ([], SETTINGS, "no images"),
        (scenes, [], "no settings"),
        (scenes, [Setting(), Setting(sampler="ddim", steps=4)], "DDIM-4"),
    ):
        with pytest.raises(ArgumentError, match=message):
            evaluate(make_runtime(), backbone, images, settings)
    with pytest.raises(ArgumentError, match="batch_size"):
        evaluate(make_runtime(), backbone, scenes, batch_size=0)


def test_a12_interruption_keeps_what_was_measured(make_runtime, backbone, scenes):
    def stopped():
        yield from scenes[:5]
        raise KeyboardInterrupt

    with pytest.raises(EvaluationInterrupted) as caught:
        evaluate(make_runtime(), backbone, stopped(), SETTINGS[:1], batch_size=2)
    assert caught.value.report.row("DDIM-2 g=1.75").n == 4
    with pytest.raises(EvaluationInterrupted) as caught:
        evaluate(make_runtime(), backbone, stopped(), SETTINGS[:1], batch_size=10)
    assert caught.value.report is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ddim:50:1.75", Setting(sampler="ddim", steps=50, guidance_scale=1.75)),
        ("lcm:4", Setting(sampler="lcm", steps=4)),
        ("lcm", Setting(sampler="lcm")),
        ("::2", Setting(guidance_scale=2.0)),
        ("", Setting()),
    ],
)
def test_settings_are_parsed(text, expected):
    assert Setting.parse(text) == expected


@pytest.mark.parametrize("text", ["ddim:x", "ddim:5:y", "ddim:5:1:2"])
def test_unreadable_settings(text):
    with pytest.raises(ArgumentError, match=r"ddim:50:1\.75"):
        Setting.parse(text)

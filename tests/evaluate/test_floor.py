"""The floor: every original against one of another class, whatever the order and the batches."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch.nn.functional as F
from PIL import ImageEnhance

from featinv_fast.evaluate import Example, Kind, Setting, evaluate, floor
from featinv_fast.features import Backbone, center_crop

SETTING = [Setting(steps=2)]


@pytest.fixture(scope="module")
def sorted_by_class(scenes):
    """As class folders are listed: neighbours are of one class."""
    return [Example(image=scene, name=f"{i}.png", label="cat" if i < 6 else "dog") for i, scene in enumerate(scenes)]


def row_of(report):
    row = report.row("unrelated")
    return row.n, pytest.approx(row.cosine.mean, abs=1e-6), row.top1, row.top5


def test_neighbours_of_one_class_are_not_unrelated(make_runtime, backbone, scenes):
    """In folders of classes most neighbours show the same thing: here they are the same image, a little brighter."""
    logits = backbone.features_and_logits(backbone.preprocess([center_crop(scene, 64) for scene in scenes]))[1]
    tops = logits.argmax(dim=1).tolist()
    other = next(i for i, top in enumerate(tops) if top != tops[0])
    images = [ImageEnhance.Brightness(scenes[i]).enhance(1 + k / 100) for i in (0, other) for k in range(6)]
    examples = [Example(image=image, label="ab"[i // 6]) for i, image in enumerate(images)]
    runtime = make_runtime()
    runtime.originals = images
    row = evaluate(runtime, backbone, examples, SETTING).row("unrelated")
    maps = backbone(backbone.preprocess([center_crop(image, 64) for image in images])).double()
    pairs = {(i, k): F.cosine_similarity(maps[i], maps[k], dim=0).mean().item() for i in range(12) for k in range(i)}
    across = [cosine for (i, k), cosine in pairs.items() if i // 6 != k // 6]
    within = [cosine for (i, k), cosine in pairs.items() if i // 6 == k // 6]
    assert (row.n, row.top1) == (12, 0.0)
    assert min(across) <= row.cosine.mean <= max(across) < min(within)


@pytest.mark.parametrize("labelled", [True, False])
def test_the_pairs_depend_neither_on_order_nor_on_batches(make_runtime, backbone, scenes, sorted_by_class, labelled):
    examples = [dataclasses.replace(one, label=one.label if labelled else None) for one in sorted_by_class]
    expected = row_of(evaluate(make_runtime(), backbone, examples, SETTING))
    turned = [examples[i] for i in (7, 1, 9, 3, 0, 10, 5, 2, 8, 6, 4)]
    runtime = make_runtime()
    runtime.originals = [one.image for one in turned]
    assert row_of(evaluate(runtime, backbone, turned, SETTING, batch_size=3)) == expected


def test_another_seed_makes_other_pairs(make_runtime, backbone, sorted_by_class, monkeypatch):
    runtime = make_runtime()
    monkeypatch.setattr(runtime, "originals", runtime.originals * 2)
    one, other = (evaluate(runtime, backbone, sorted_by_class, SETTING, seed=seed) for seed in (0, 5))
    assert one.row("unrelated").cosine.mean != other.row("unrelated").cosine.mean


def test_without_labels_the_backbones_own_classes_count(make_runtime, backbone, scenes):
    report = evaluate(make_runtime(), backbone, scenes, SETTING)
    assert report.row("unrelated").top1 == 0.0
    assert "by the judging backbone, chosen by seed 0; 11 of 11 originals" in report.notes[Kind.UNRELATED]
    assert report.to_dict()["notes"]["unrelated"] == report.notes[Kind.UNRELATED]
    json.dumps(report.to_dict())


def test_the_row_is_left_out_with_the_reason(make_runtime, backbone, scenes, sorted_by_class):
    classless = Backbone(backbone.spec, weights="random:0")
    classless.model.reset_classifier(0)
    for judge, examples, reason in (
        (backbone, sorted_by_class[:4], "all are of one class by their labels"),
        (backbone, sorted_by_class[:1], "all are of one class"),
        (backbone, scenes[:1], "all are of one class by the judging backbone"),
        (classless, scenes, "nothing tells their classes"),
    ):
        report = evaluate(make_runtime(), judge, examples, SETTING)
        assert {row.kind for row in report.rows} == {Kind.ENGINE}
        assert reason in report.notes[Kind.UNRELATED]


def test_of_many_originals_the_same_ones_are_kept(make_runtime, backbone, sorted_by_class, monkeypatch):
    monkeypatch.setattr(floor, "KEPT", 5)
    whole, parts = (evaluate(make_runtime(), backbone, sorted_by_class, SETTING, batch_size=size) for size in (11, 2))
    assert row_of(whole) == row_of(parts)
    assert whole.row("unrelated").n == 5
    assert "5 of 11 originals" in whole.notes[Kind.UNRELATED]


@pytest.mark.parametrize("classes", ["ab", "aab", "aabbb", "abca", "bbbba", "aabbccaa"])
def test_partners_are_the_next_of_another_class_in_the_circle(classes):
    for place, partner in enumerate(floor.partners(classes)):
        following = itertools.islice(itertools.cycle(range(len(classes))), place + 1, place + len(classes))
        assert partner == next(other for other in following if classes[other] != classes[place])
    assert floor.partners("aaa") == floor.partners("") == []

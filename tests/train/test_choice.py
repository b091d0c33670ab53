"""Hold-outs and samples of folders: seeded, the same share of each class, nothing in common."""

from __future__ import annotations

from collections import Counter

import pytest

from featinv_fast.errors import ArgumentError
from featinv_fast.train.choice import part, sample
from featinv_fast.train.settings import Split

CLASSES = ["cats"] * 40 + ["dogs"] * 20 + ["eels"] * 3 + ["fish"] * 2
CONTENTS = [f"content {i}" for i in range(len(CLASSES))]


def parts(contents=CONTENTS, classes=CLASSES, holdout=(0.1, 0.2), seed=0):
    return {split: part(contents, classes, split, holdout, seed) for split in Split}


def counts(places):
    return Counter(CLASSES[place] for place in places)


def test_the_parts_have_nothing_in_common_and_the_same_share_of_each_class():
    found = parts()
    assert sorted(place for places in found.values() for place in places) == list(range(len(CLASSES)))
    assert counts(found[Split.VALIDATION]) == {"cats": 4, "dogs": 2, "eels": 1}
    assert counts(found[Split.TEST]) == {"cats": 8, "dogs": 4, "eels": 1}
    assert counts(found[Split.TRAIN]) == {"cats": 28, "dogs": 14, "eels": 1, "fish": 2}
    assert all(places == sorted(places) for places in found.values())


def test_the_parts_follow_from_the_seed_and_not_from_the_order():
    assert parts() == parts()
    assert parts()[Split.TEST] != parts(seed=1)[Split.TEST]
    turned = parts(CONTENTS[::-1], CLASSES[::-1])
    for split, places in parts().items():
        assert {CONTENTS[place] for place in places} == {CONTENTS[::-1][place] for place in turned[split]}


def test_copies_stay_together_also_in_different_classes():
    contents = [f"content {i % 20}" for i in range(40)]
    found = parts(contents, ["a"] * 20 + ["b"] * 20)
    held = [{contents[place] for place in places} for places in found.values()]
    assert sum(map(len, held)) == len(set.union(*held)) == 20
    assert sum(map(len, found.values())) == 40


def test_an_added_image_moves_one_other_at_most_across_each_border():
    before = {place: split for split, places in parts().items() for place in places}
    after = {
        place: split
        for split, places in parts([*CONTENTS, "new"], [*CLASSES, "cats"]).items()
        for place in places
        if place < len(CLASSES)
    }
    assert sum(before[place] != after[place] for place in before) <= 2


def test_a_part_without_images_is_refused():
    with pytest.raises(ArgumentError, match="validation part of the folder is empty"):
        part(["a", "b"], ["x", "y"], Split.VALIDATION, (0.1, 0.1), 0)


def test_a_sample_has_the_same_share_of_each_class():
    names = [f"{name}/{i}.png" for i, name in enumerate(CLASSES)]
    assert counts(sample(names, CLASSES, 13, 0)) == {"cats": 8, "dogs": 4, "eels": 1}
    assert sample(names, CLASSES, len(names), 0) == list(range(len(names)))
    assert sample(names, CLASSES, 13, 0) != sample(names, CLASSES, 13, 1)
    assert set(sample(names, CLASSES, 13, 0)) < set(sample(names, CLASSES, 30, 0))
    # Of equal classes each has one before any has two.
    assert sorted(place // 10 for place in sample(names[:60], [str(i // 10) for i in range(60)], 6, 3)) == [*range(6)]


def test_a_sample_of_more_than_there_is_is_refused():
    with pytest.raises(ArgumentError, match="not so many") as caught:
        sample(["a", "b"], ["x", "x"], 3, 0)
    assert "at most 2" in str(caught.value)

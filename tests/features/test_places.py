"""What messages call the items of a call."""

import warnings

import pytest
import torch
from PIL import Image

from featinv_fast.config import FeatureSpec
from featinv_fast.errors import ArgumentError
from featinv_fast.features import Backbone, FeatureStatisticsWarning, check_statistics, items_at, place_of


def test_items_are_numbered_within_their_call_unless_it_is_told_where_they_are():
    assert [place_of(item) for item in range(2)] == [0, 1]
    with items_at(64):
        assert place_of(3) == 67
    with items_at([7, "cats/1.png"]):
        assert [place_of(item) for item in range(3)] == [7, "cats/1.png", 2]  # more items than places
    with pytest.raises(KeyError), items_at(5):
        raise KeyError
    assert place_of(0) == 0


def test_a_place_in_an_inner_block_is_an_item_of_the_one_around_it():
    with items_at(["a", "b", "c", "d"]), items_at(2):
        assert [place_of(item) for item in range(2)] == ["c", "d"]
        with items_at([1, "e"]):
            assert [place_of(item) for item in range(2)] == ["d", "e"]


def test_a5_unusual_items_are_called_by_their_places():
    maps = torch.ones(4, 2, 3, 3)
    maps[1] = 0
    maps[3] = 100
    with (
        items_at([8, 9, 11, "cats/1.png"]),
        pytest.warns(FeatureStatisticsWarning, match=r"item\(s\) 9; .* item\(s\) cats/1\.png\.") as caught,
    ):
        check_statistics(maps, FeatureSpec(channels=2, absolute_max=10.0))
    warning = caught[0].message
    assert (warning.zero_items, warning.outlying_items) == ((9,), ("cats/1.png",))


def test_an_image_of_a_later_batch_is_called_by_its_place_among_all():
    backbone = Backbone(FeatureSpec(channels=64, backbone="test_convnext", layer="final"), weights="random:0")
    images = [Image.new("RGB", (8, 8))] * 6
    images[5] = Image.new("RGB", (0, 8))
    with pytest.raises(ArgumentError, match=r"images\[5\] has no pixels"):
        list(backbone.extract(images, batch_size=4))
    with pytest.raises(ArgumentError, match=r"images\[25\] has no pixels"), items_at(20):
        backbone.preprocess(images)


def test_nothing_is_left_of_a_block(recwarn):
    with items_at(3):
        pass
    warnings.simplefilter("always")
    check_statistics(torch.zeros(1, 2, 3, 3), FeatureSpec(channels=2))
    assert "item(s) 0." in str(recwarn.pop(FeatureStatisticsWarning).message)

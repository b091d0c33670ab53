import warnings

import pytest
import torch

from featinv_fast.config import FeatureSpec
from featinv_fast.features import FeatureStatisticsWarning, check_statistics, non_finite_items

SPEC = FeatureSpec(channels=2, height=3, width=3, absolute_max=10.0)


def test_a4_items_that_are_not_finite_are_found():
    maps = torch.ones(5, 2, 3, 3)
    maps[1, 0, 2, 1] = float("nan")
    maps[3, 1, 0, 0] = float("inf")
    maps[4, 1, 2, 2] = float("-inf")
    assert non_finite_items(maps) == [1, 3, 4]
    assert non_finite_items(maps[:1]) == []
    assert non_finite_items(maps[:0]) == []


def test_a5_usual_features_raise_no_warning():
    maps = torch.full((3, 2, 3, 3), -40.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_statistics(maps, SPEC)
        check_statistics(maps[:0], SPEC)
        check_statistics(maps * 1e6, FeatureSpec(channels=2))


def test_a5_zero_and_outlying_items_give_one_warning_with_the_statistic():
    maps = torch.ones(4, 2, 3, 3)
    maps[0] = 0
    maps[2, 1, 1, 1] = -41.5
    with pytest.warns(FeatureStatisticsWarning) as caught:
        check_statistics(maps, SPEC)
    (record,) = caught
    assert record.filename == __file__
    warning = record.message
    assert isinstance(warning, UserWarning)
    assert (warning.zero_items, warning.outlying_items) == ((0,), (2,))
    assert (warning.largest, warning.limit) == (41.5, 40.0)
    assert "41.5" in str(warning)
    assert "item(s) 0;" in str(warning)
    assert "item(s) 2." in str(warning)


def test_a5_zeros_are_reported_without_statistics():
    with pytest.warns(FeatureStatisticsWarning, match="zero in item") as caught:
        check_statistics(torch.zeros(12, 2, 3, 3), FeatureSpec(channels=2))
    assert caught[0].message.zero_items == tuple(range(12))
    assert "and 2 more" in str(caught[0].message)


def test_a5_items_that_are_not_finite_do_not_hide_others():
    maps = torch.ones(3, 2, 3, 3)
    maps[0, 0, 0, 0] = float("nan")
    maps[1, 0, 0, 0] = float("inf")
    maps[2, 0, 0, 0] = 50.0
    with pytest.warns(FeatureStatisticsWarning) as caught:
        check_statistics(maps, SPEC)
    assert caught[0].message.outlying_items == (2,)
    assert caught[0].message.largest == 50.0

import math

import numpy as np
import pytest
import torch

from featinv_fast.errors import ArgumentError
from featinv_fast.evaluate import FeatureCosine, TopKMatch


def maps(seed, count=23, channels=7, height=5, width=3):
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.normal(0.3, 1.0, (count, channels, height, width)).astype(np.float32))


def filled(metric, first, second, sizes):
    start = 0
    for size in sizes:
        metric.update(first[start : start + size], second[start : start + size])
        start += size
    assert start == len(first)
    return metric


def test_cosine_of_hand_made_maps():
    # Two locations, two channels: parallel and at 60 degrees; opposite and at a right angle.
    first = torch.tensor([[[[1.0, 2.0]], [[1.0, 0.0]]], [[[3.0, 1.0]], [[4.0, 0.0]]]])
    second = torch.tensor([[[[5.0, 1.0]], [[5.0, math.sqrt(3)]]], [[[-3.0, 0.0]], [[-4.0, 7.0]]]])
    metric = FeatureCosine()
    assert metric.update(first, second) == pytest.approx([0.75, -0.5], abs=1e-7)
    summary = metric.summary()
    assert summary.mean == pytest.approx(0.125, abs=1e-7)
    assert summary.median_of_images == pytest.approx(0.125, abs=1e-7)
    assert summary.quantiles == {"0.05": -1.0, "0.25": -1.0, "0.5": 0.0, "0.75": 0.5, "0.95": 1.0}
    assert summary.median == 0.0


def test_cosine_agrees_with_numpy():
    first, second = maps(0), 0.7 * maps(0) + maps(1)
    a, b = (x.numpy().astype(np.float64) for x in (first, second))
    expected = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))  # [B, H, W]
    metric = FeatureCosine()
    assert metric.update(first, second) == pytest.approx(expected.mean((1, 2)), abs=1e-12)
    summary = metric.summary()
    assert len(metric) == 23
    assert summary.mean == pytest.approx(expected.mean(), abs=1e-12)
    assert summary.median_of_images == pytest.approx(np.median(expected.mean((1, 2))), abs=1e-12)
    for share, value in summary.quantiles.items():
        assert value == pytest.approx(np.quantile(expected, float(share), method="inverted_cdf"), abs=1.6e-5)
    assert summary.median == summary.quantiles["0.5"]


@pytest.mark.parametrize("sizes", [(23,), (1,) * 23, (10, 1, 7, 5)])
def test_cosine_does_not_depend_on_batches_or_order(sizes):
    first, second = maps(2), maps(3) + maps(2)
    order = torch.from_numpy(np.random.default_rng(5).permutation(len(first)))
    whole = filled(FeatureCosine(), first, second, (23,)).summary()
    shuffled = filled(FeatureCosine(), first[order], second[order], sizes).summary()
    assert shuffled == whole
    left, right = FeatureCosine(), FeatureCosine()
    left.update(first[:9], second[:9])
    right.update(first[9:], second[9:])
    left.merge(right)
    assert left.summary() == whole


def test_cosine_of_equal_opposite_and_zero_maps():
    same, zeros = maps(4), torch.zeros(1, 7, 5, 3)
    for other, value in ((same, 1.0), (-3.0 * same, -1.0)):
        summary = filled(FeatureCosine(), same, other, (23,)).summary()
        assert summary.mean == pytest.approx(value, abs=1e-7)
        assert set(summary.quantiles.values()) == {value}
    assert FeatureCosine().update(zeros, same[:1]) == [0.0]
    assert FeatureCosine().update(zeros, zeros) == [0.0]


def test_cosine_takes_half_precision():
    first, second = maps(6), maps(7)
    for dtype in (torch.float16, torch.bfloat16):
        a, b = first.to(dtype), second.to(dtype)
        assert FeatureCosine().update(a, b) == FeatureCosine().update(a.double(), b.double())


def test_cosine_refuses_what_it_cannot_compare():
    metric = FeatureCosine()
    for first, second in ((maps(0), maps(0)[:5]), (maps(0)[0], maps(0)[0]), (maps(0)[:0], maps(0)[:0])):
        with pytest.raises(ArgumentError, match="cannot be compared"):
            metric.update(first, second)
    broken = maps(0)
    broken[3, 2, 1, 1] = torch.nan
    with pytest.raises(ArgumentError, match="NaN"):
        metric.update(broken, maps(0))
    with pytest.raises(ArgumentError, match="nothing to summarise"):
        metric.summary()


def test_match_of_hand_made_logits():
    original = torch.tensor([[0.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0]]).repeat(4, 1)  # class 1
    reconstruction = torch.tensor(
        [
            [0.0, 7.0, 1.0, 2.0, 3.0, 4.0, 5.0],  # first
            [9.0, 5.0, 8.0, 7.0, 6.0, 0.0, 1.0],  # fifth
            [9.0, 4.0, 8.0, 7.0, 6.0, 5.0, 1.0],  # sixth
            [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0],  # all equal: the second by number
        ]
    )
    metric = TopKMatch()
    assert metric.update(original, reconstruction) == [0, 4, 5, 1]
    assert metric.summary() == {1: 0.25, 5: 0.75}


def test_match_agrees_with_topk_and_streams():
    random = torch.Generator().manual_seed(0)
    first = torch.randn(31, 12, generator=random)
    second = first + 2.0 * torch.randn(31, 12, generator=random)
    expected = {
        k: (second.topk(k, dim=1).indices == first.argmax(1, keepdim=True)).any(1).double().mean().item()
        for k in (1, 3, 5)
    }
    whole = filled(TopKMatch((1, 3, 5)), first, second, (31,))
    assert whole.summary() == expected
    assert 0.0 < expected[1] < expected[3] < expected[5] < 1.0
    order = torch.randperm(31, generator=random)
    assert filled(TopKMatch((1, 3, 5)), first[order], second[order], (4, 20, 7)).summary() == expected
    parts = filled(TopKMatch((1, 3, 5)), first[:8], second[:8], (8,))
    parts.merge(filled(TopKMatch((1, 3, 5)), first[8:], second[8:], (23,)))
    parts.merge(TopKMatch((1, 3, 5)))
    assert parts.summary() == expected


def test_match_says_nothing_where_a_match_is_certain():
    assert TopKMatch().summary() == {1: None, 5: None}
    metric = TopKMatch()
    metric.update(torch.eye(5), torch.eye(5))
    assert metric.summary() == {1: 1.0, 5: None}


def test_match_refuses_what_it_cannot_compare():
    metric = TopKMatch()
    metric.update(torch.eye(6), torch.eye(6))
    with pytest.raises(ArgumentError, match="number of classes"):
        metric.update(torch.eye(7), torch.eye(7))
    with pytest.raises(ArgumentError, match="cannot be compared"):
        metric.update(torch.zeros(2, 6), torch.zeros(3, 6))
    with pytest.raises(ArgumentError, match="NaN"):
        metric.update(torch.full((1, 6), torch.inf), torch.zeros(1, 6))
    assert metric.summary() == {1: 1.0, 5: 1.0}

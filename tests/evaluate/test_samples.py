"""Several images of one map: what the features leave open."""

import itertools

import numpy as np
import pytest
import torch

from featinv_fast.evaluate import Setting, evaluate, html_page, interval, spread_map
from featinv_fast.evaluate.measures.spread import feature_spread, pairwise_ssim, pixel_deviation
from featinv_fast.evaluate.measures.ssim import ssim

SETTING = [Setting(steps=4)]


@pytest.fixture(scope="module")
def report(make_runtime, backbone, examples):
    runtime = make_runtime(failing=(3 * 4 + 1, 3 * 6, 3 * 6 + 2))  # one of scene 4's images, two of scene 6's
    return evaluate(runtime, backbone, examples, SETTING, samples=3, batch_size=4, pictures=4)


def test_seeds_and_items(report):
    assert [item.seed for item in report.items] == list(range(33))
    assert [(item.name, item.sample) for item in report.items[3:6]] == [("scene 1", 0), ("scene 1", 1), ("scene 1", 2)]
    assert [item.seed for item in report.items if item.error] == [13, 18, 20]
    assert [item.to_dict()["sample"] for item in report.items[:4]] == [0, 1, 2, 0]
    row = report.row("DDIM-4 g=1.75")
    assert (row.n, row.failed, row.samples, row.figures["cosine"].originals) == (30, 3, 3, 11)
    assert report.row("unrelated").samples == 1


def test_intervals_draw_originals_with_all_their_images(report):
    row = report.row("DDIM-4 g=1.75")
    values = [
        np.mean([item.cosine for item in items if item.cosine is not None])
        for _, items in itertools.groupby(report.items, key=lambda item: item.name)
    ]
    figure = row.figures["cosine"]
    assert (figure.low, figure.high) == pytest.approx(interval(values, seed=0))
    assert figure.mean == pytest.approx(np.mean(values))
    assert row.cosine.mean == pytest.approx(np.mean([item.cosine for item in report.items if item.cosine is not None]))


def test_the_spread_of_each_map(report):
    names = {"pixel_spread", "feature_spread", "pairwise_ssim"}
    for item in report.items:
        alone = item.name == "scene 6" or item.error is not None
        assert (names & item.figures.keys() == names) is not alone
    figure = report.row("DDIM-4 g=1.75").figures["pixel_spread"]
    values = {item.name: item.figures["pixel_spread"] for item in report.items if "pixel_spread" in item.figures}
    assert len(values) == figure.originals == 10
    assert figure.mean == pytest.approx(np.mean(list(values.values())))
    assert "pixel_spread" not in report.row("unrelated").figures
    first = report.pictures[0]
    assert list(first.reconstructions) == ["DDIM-4 g=1.75", "DDIM-4 g=1.75 (2)", "DDIM-4 g=1.75 (3)"]
    shown = torch.stack([torch.tensor(np.asarray(image)) for image, _ in first.reconstructions.values()])
    heat, levels = first.spreads["DDIM-4 g=1.75"]
    assert levels == pytest.approx(report.items[0].figures["pixel_spread"])
    assert np.array_equal(np.asarray(heat), np.asarray(spread_map(shown)[0]))


def test_spreads_by_hand():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4, 13, 12, 3), dtype=np.uint8)
    given = torch.tensor(images)
    assert np.allclose(pixel_deviation(given), images.astype(float).std(axis=0, ddof=1))
    pairs = [ssim(given[i : i + 1], given[k : k + 1]).item() for i in range(4) for k in range(i)]
    assert pairwise_ssim(given).item() == pytest.approx(np.mean(pairs))
    original, maps = random.normal(size=(1, 5, 2, 3)), random.normal(size=(4, 5, 2, 3))
    by_hand = np.sqrt(((maps - maps.mean(axis=0)) ** 2).sum() / 3) / np.linalg.norm(original)
    assert feature_spread(torch.tensor(original), torch.tensor(maps)).item() == pytest.approx(by_hand)
    assert feature_spread(torch.zeros(1, 5, 2, 3), torch.tensor(maps)).isnan().all()


def test_the_map_of_the_spread():
    images = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
    images[1, 0, 1], images[1, 0, 2] = 45, 255  # deviations of 45 / 2^(1/2) and 255 / 2^(1/2) levels
    heat, levels = spread_map(images)
    assert np.asarray(heat).tolist() == [[0, 127, 255]]
    assert levels == pytest.approx((45 + 255) / 3 / 2**0.5)


def test_the_page_shows_samples_and_spread(report):
    page = html_page(report)
    assert page.count("spread (white: 64 levels)") == 1
    assert page.count('src="data:image/png') == sum(1 + 3 + bool(p.spreads) for p in report.pictures) - sum(
        image is None for p in report.pictures for image, _ in p.reconstructions.values()
    )
    assert "spread in features" in page

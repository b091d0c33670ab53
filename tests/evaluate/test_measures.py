"""Measures against torchmetrics, and intervals against a bootstrap made by hand."""

import sys

import numpy as np
import pytest
import torch
from torchmetrics.functional import kl_divergence as reference_kl
from torchmetrics.functional.image import (
    learned_perceptual_image_patch_similarity,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchvision.models import alexnet

from featinv_fast.errors import ArgumentError, CheckpointError, CheckpointMismatchError
from featinv_fast.evaluate import bootstrap, lpips
from featinv_fast.evaluate.measures import Seen
from featinv_fast.evaluate.measures.feature_distance import feature_distance
from featinv_fast.evaluate.measures.pixels import psnr
from featinv_fast.evaluate.measures.probabilities import kl_divergence, total_variation
from featinv_fast.evaluate.measures.ssim import ssim


@pytest.fixture(scope="module")
def pair():
    """Images [4, 40, 33, 3]: smooth ones, and the same with more noise in each."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.uniform(0, 255, (4, 3, 6, 5)))
    smooth = torch.nn.functional.interpolate(coarse, (40, 33), mode="bilinear").permute(0, 2, 3, 1)
    noise = torch.from_numpy(random.normal(0, 1, smooth.shape)) * torch.tensor([1.0, 5.0, 20.0, 60.0]).view(4, 1, 1, 1)
    return smooth.to(torch.uint8), (smooth + noise).clamp(0, 255).to(torch.uint8)


def channels_first(images):
    return images.permute(0, 3, 1, 2).double()


def test_psnr_is_that_of_torchmetrics(pair):
    given = psnr(*pair)
    first, second = map(channels_first, pair)
    expected = [peak_signal_noise_ratio(b, a, data_range=255.0).item() for a, b in zip(first, second, strict=True)]
    assert given.tolist() == pytest.approx(expected, abs=1e-5)
    assert psnr(pair[0], pair[0]).tolist() == pytest.approx([10 * np.log10(255**2 * 40 * 33 * 3)] * 4)


def test_ssim_is_that_of_torchmetrics(pair):
    _, places = structural_similarity_index_measure(
        channels_first(pair[1]), channels_first(pair[0]), data_range=255.0, return_full_image=True
    )
    # torchmetrics also counts places whose window reaches over the border into a mirrored image; the paper does not.
    expected = places[..., 5:-5, 5:-5].flatten(1).mean(dim=1)
    assert ssim(*pair).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert 0.0 < expected.min() < 0.5 < 0.9 < expected.max() < 1.0
    assert ssim(pair[0], pair[0]).tolist() == pytest.approx([1.0] * 4)
    assert ssim(pair[0][:, :10], pair[1][:, :10]).isnan().all()


def test_probabilities_are_compared_as_torchmetrics_does():
    random = torch.Generator().manual_seed(0)
    first, second = (3 * torch.randn(9, 12, generator=random) for _ in range(2))
    p, q = first.double().softmax(1), second.double().softmax(1)
    expected = [reference_kl(a[None], b[None]).item() for a, b in zip(p, q, strict=True)]
    assert kl_divergence(first, second).tolist() == pytest.approx(expected, abs=1e-5)
    assert total_variation(first, second).tolist() == pytest.approx((1 - torch.minimum(p, q).sum(1)).tolist())
    certain = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    assert total_variation(certain, certain.flip(1)).tolist() == [1.0, 1.0]
    assert kl_divergence(certain, certain.flip(1)).tolist() == [1e4, 1e4]


def test_feature_distance_of_hand_made_maps():
    first = torch.tensor([3.0, 4.0, 0.0, 0.0]).view(2, 2, 1, 1)
    second = torch.tensor([3.0, 1.0, 1.0, 1.0]).view(2, 2, 1, 1)
    near, undefined = feature_distance(first, second).tolist()
    assert near == pytest.approx(0.6)
    assert np.isnan(undefined)


@pytest.mark.parametrize("drawn", [1, 200, 2**22])
def test_intervals_are_those_of_a_bootstrap_made_by_hand(monkeypatch, drawn):
    monkeypatch.setattr(bootstrap, "_DRAWN", drawn)
    values = np.random.default_rng(1).exponential(1.0, 37)
    random = np.random.default_rng(5)
    means = sorted(np.mean([values[i] for i in random.integers(0, 37, 37)]) for _ in range(2000))
    low, high = bootstrap.interval(values.tolist(), seed=5)
    # Between the neighbours of the 2.5 % and 97.5 % quantiles, as numpy's linear quantile is.
    assert low == pytest.approx(means[49] + 0.975 * (means[50] - means[49]))
    assert high == pytest.approx(means[1949] + 0.025 * (means[1950] - means[1949]))
    assert low < values.mean() < high
    assert bootstrap.interval([0.25], seed=0) == (0.25, 0.25)


@pytest.fixture(scope="module")
def alexnet_weights(tmp_path_factory):
    """A hub's folder with AlexNet's weights, drawn at random, under the name that they are published by."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "checkpoints").mkdir()
    torch.manual_seed(0)
    torch.save(alexnet(weights=None).state_dict(), folder / "checkpoints" / "alexnet-owt-7be5be79.pth")
    return folder


def seen(images):
    return Seen(images=images, maps=torch.zeros(len(images), 1, 1, 1), logits=None)


def test_lpips_is_that_of_torchmetrics(pair, alexnet_weights, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(alexnet_weights))
    # These are not the published weights.
    monkeypatch.setattr(sys.modules[lpips.__module__], "_require", lambda *_: None)
    pair = [torch.nn.functional.interpolate(channels_first(images), 80).permute(0, 2, 3, 1).byte() for images in pair]
    monkeypatch.setattr(sys.modules[lpips.__module__], "_AT_ONCE", 3)
    given = lpips("alex").compute(*map(seen, pair))
    first, second = (channels_first(images).float() / 127.5 - 1 for images in pair)
    expected = learned_perceptual_image_patch_similarity(first, second, net_type="alex", reduction="none")
    assert given.shape == (4,)
    assert given.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert given[0] < given[3]
    assert lpips("alex").compute(seen(pair[0]), Seen(images=None, maps=pair[0], logits=None)) is None


def test_lpips_takes_only_published_weights_that_are_present(alexnet_weights, monkeypatch, tmp_path):
    with pytest.raises(ArgumentError, match="alex, vgg, squeeze"):
        lpips("resnet")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match="vgg16-397923af"):
        lpips("vgg")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(alexnet_weights))
    with pytest.raises(CheckpointMismatchError, match="begins with 7be5be79"):
        lpips("alex")

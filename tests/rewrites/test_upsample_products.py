"""Nine products in place of a doubled map's 3x3 convolution."""

from __future__ import annotations

import copy

import pytest
import torch

from featinv_fast.models.layers import Upsample
from featinv_fast.rewrites.upsample_products import UpsampleProducts, upsample_products

EXACT = 1e-10


def layer(channels: int, dtype: torch.dtype = torch.float64) -> Upsample:
    torch.manual_seed(channels)
    return Upsample(channels).to(dtype).requires_grad_(requires_grad=False)


# Borders weigh most in the smallest maps; the two axes differ.
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 5), (8, 8)])
@pytest.mark.parametrize("channels", [1, 6])
def test_equal_to_doubling_and_convolving(channels: int, size: tuple[int, int], relative_norm):
    plain = layer(channels)
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    expected = plain(x)
    given = UpsampleProducts(plain.conv)(x)
    assert given.dtype is torch.float64
    assert relative_norm(given, expected) < EXACT


def test_the_golden_models_layers(golden_model, relative_norm):
    networks = (golden_model.denoiser.unet, golden_model.autoencoder.decoder)
    layers = [copy.deepcopy(m).double() for network in networks for m in network.modules() if isinstance(m, Upsample)]
    assert len(layers) == 6
    for plain in layers:
        x = torch.randn(1, plain.conv.in_channels, 4, 3, dtype=torch.float64)
        assert relative_norm(UpsampleProducts(plain.conv)(x), plain(x)) < EXACT


def test_no_more_weights_than_before_once_one_form_is_chosen():
    plain = layer(4)
    products, kernel = UpsampleProducts(plain.conv), UpsampleProducts(plain.conv)
    products.keep_products()
    kernel.keep_kernel()
    sizes = [sum(p.numel() for p in module.parameters()) for module in (plain, products, kernel)]
    assert sizes == sizes[:1] * 3


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_rounds_no_worse_than_twice_the_plain_layer_in_its_dtype(dtype: torch.dtype, limit: float, relative_norm):
    plain = layer(32)
    x = torch.randn(1, 32, 16, 16, dtype=torch.float64)
    expected = plain(x)
    errors = [
        relative_norm(module.to(dtype)(x.to(dtype)), expected)
        for module in (UpsampleProducts(plain.conv), copy.deepcopy(plain))
    ]
    assert errors[0] <= 2.0 * errors[1]
    assert errors[0] < limit


def test_every_layer_of_a_network_is_replaced(golden_model):
    decoder = copy.deepcopy(golden_model.autoencoder.decoder)
    assert upsample_products(decoder) == 3
    assert not any(isinstance(module, Upsample) for module in decoder.modules())
    assert sum(isinstance(module, UpsampleProducts) for module in decoder.modules()) == 3
    assert upsample_products(decoder) == 0

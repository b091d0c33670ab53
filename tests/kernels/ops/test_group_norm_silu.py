"""GroupNorm + SiLU: what a map's layout, a time bias and a large mean do, and which arguments are refused."""

import pytest
import torch
import torch.nn.functional as F

from featinv_kernels import KernelArgumentError, group_norm_silu


def tensors(*shape):
    generator = torch.Generator().manual_seed(1)
    channels = shape[-1]
    return [torch.randn(size, generator=generator) for size in (shape, (channels,), (channels,), (channels,))]


@pytest.mark.parametrize("provider", ["torch", "reference"])
def test_equals_a_residual_blocks_norm_of_a_channels_last_map(provider):
    x, weight, bias, time = tensors(2, 6, 5, 64)
    expected = F.silu(F.group_norm(x.permute(0, 3, 1, 2) + time[:, None, None], 32, weight, bias, 1e-5))
    output = group_norm_silu(x, weight, bias, time, provider=provider)
    torch.testing.assert_close(output.permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize("provider", ["torch", "reference"])
def test_a_bias_of_each_item_reaches_that_item(provider):
    x, weight, bias, time = tensors(3, 4, 64)
    rows = torch.stack([time, 2 * time, torch.zeros_like(time)])
    output = group_norm_silu(x, weight, bias, rows, provider=provider)
    for item in range(3):
        expected = group_norm_silu(x[item : item + 1], weight, bias, rows[item], provider=provider)
        torch.testing.assert_close(output[item : item + 1], expected)


def test_a_mean_of_a_million_deviations_leaves_only_the_rounding_of_x():
    x, weight, bias, _ = tensors(1, 256, 64)
    exact = x.double() + 1e6
    shifted = exact.float()
    output = group_norm_silu(shifted, weight, bias, silu=False, provider="reference")
    expected = group_norm_silu(shifted.double(), weight.double(), bias.double(), silu=False, provider="torch")
    assert (output - expected).abs().max() < 1e-4


def test_strides_do_not_matter():
    x, weight, bias, time = tensors(2, 6, 4, 64)
    strided = x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    torch.testing.assert_close(group_norm_silu(strided, weight, bias, time), group_norm_silu(x, weight, bias, time))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 64)}, "not a batch of maps with the channels last"),
        ({"x": torch.zeros(2, 0, 64)}, "not a batch of maps with the channels last"),
        ({"x": torch.zeros(2, 4, 64, dtype=torch.int32)}, "x is not floating-point"),
        ({"groups": 5}, "cannot be divided into groups"),
        ({"groups": 0}, "cannot be divided into groups"),
        ({"weight": torch.zeros(32)}, "weight has the wrong shape"),
        ({"bias": torch.zeros(1, 64)}, "bias has the wrong shape"),
        ({"channel_bias": torch.zeros(3, 64)}, "channel_bias has the wrong shape"),
        ({"bias": torch.zeros(64, device="meta")}, "bias and x are on different devices"),
        ({"provider": "cudnn"}, "no provider of this name"),
    ],
)
def test_refused_arguments(change, message):
    x, weight, bias, time = tensors(2, 4, 64)
    with pytest.raises(KernelArgumentError, match=message):
        group_norm_silu(**({"x": x, "weight": weight, "bias": bias, "channel_bias": time} | change))

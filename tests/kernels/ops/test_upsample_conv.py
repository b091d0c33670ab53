"""The doubled map's convolution: equal to doubling and convolving, and which arguments are refused."""

import pytest
import torch
import torch.nn.functional as F

from featinv_kernels import KernelArgumentError, phase_weights, upsample_conv


def tensors(batch=2, height=3, width=5, channels=7, out_channels=9):
    generator = torch.Generator().manual_seed(1)
    shapes = ((batch, height, width, channels), (out_channels, channels, 3, 3), (out_channels,))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("provider", ["torch", "reference"])
@pytest.mark.parametrize("size", [(3, 5), (1, 1), (1, 4), (8, 8)])
def test_equals_doubling_and_convolving(size, provider):
    x, weight, bias = tensors(height=size[0], width=size[1])
    doubled = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest")
    expected = F.conv2d(doubled, weight, bias, padding=1).permute(0, 2, 3, 1)
    output = upsample_conv(x, phase_weights(weight), bias, provider=provider)
    error = torch.linalg.vector_norm(output - expected) / torch.linalg.vector_norm(expected)
    assert error < 1e-14


def test_weights_are_summed_before_they_are_rounded():
    _, weight, _ = tensors()
    assert torch.equal(phase_weights(weight.half()), phase_weights(weight.half().double()).half())
    assert phase_weights(weight.half()).dtype == torch.float16
    with pytest.raises(KernelArgumentError, match="not a 3x3 convolution"):
        phase_weights(weight[..., :2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 5, 7, dtype=torch.float64)}, "not a batch of maps with the channels last"),
        ({"x": torch.zeros(1, 0, 5, 7, dtype=torch.float64)}, "not a batch of maps with the channels last"),
        ({"x": torch.zeros(1, 3, 5, 7)}, "weight and x differ in dtype"),
        ({"weight": torch.zeros(9, 7, 3, 3, dtype=torch.float64)}, "weight has the wrong shape"),
        ({"bias": torch.zeros(7)}, "bias has the wrong shape"),
        ({"provider": "cudnn"}, "no provider of this name"),
    ],
)
def test_refused_arguments(change, message):
    x, weight, bias = tensors()
    with pytest.raises(KernelArgumentError, match=message):
        upsample_conv(**({"x": x, "weight": phase_weights(weight), "bias": bias} | change))

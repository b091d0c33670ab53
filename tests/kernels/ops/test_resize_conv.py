"""The enlarged map's convolution: equal to the condition encoder's first layer, and which arguments are refused."""

import pytest
import torch
import torch.nn.functional as F

from featinv_kernels import OPS, KernelArgumentError, Request, resize_conv, tap_weights


def tensors(batch=2, height=3, width=5, channels=7, out_channels=9):
    generator = torch.Generator().manual_seed(1)
    shapes = ((batch, height, width, channels), (out_channels, channels, 3, 3), (out_channels,))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("provider", ["torch", "reference"])
@pytest.mark.parametrize("new_size", [(8, 9), (32, 32), (3, 5), (2, 2), (1, 1)])
def test_equals_resizing_and_convolving(new_size, provider):
    x, weight, bias = tensors()
    large = F.interpolate(x.permute(0, 3, 1, 2), new_size, mode="bilinear", align_corners=False)
    expected = F.silu(F.conv2d(large, weight, bias, padding=1)).permute(0, 2, 3, 1)
    output = resize_conv(x, tap_weights(weight), bias, *new_size, provider=provider)
    error = torch.linalg.vector_norm(output - expected) / torch.linalg.vector_norm(expected)
    assert error < 1e-14


def test_a_map_that_does_not_grow_is_left_to_torch():
    triton = OPS["resize_conv"].provider("triton")

    def reasons(size):
        shape = (1, size, size, 256, 32, 32, 512)
        return triton.not_preferred_reasons(Request(device=torch.device("cuda"), dtype=torch.float16, shape=shape))

    assert reasons(36) == ["the map does not grow, so products on the small map save nothing"]
    assert "the map does not grow" not in " ".join(reasons(9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 5, 7, dtype=torch.float64)}, "not a batch of maps with the channels last"),
        ({"x": torch.zeros(1, 3, 5, 7)}, "weight and x differ in dtype"),
        ({"weight": torch.zeros(9, 7, 3, 3, dtype=torch.float64)}, "weight has the wrong shape"),
        ({"bias": torch.zeros(7)}, "bias has the wrong shape"),
        ({"height": 0}, "the new size is empty"),
    ],
)
def test_refused_arguments(change, message):
    x, weight, bias = tensors()
    arguments = {"x": x, "weight": tap_weights(weight), "bias": bias, "height": 8, "width": 8}
    with pytest.raises(KernelArgumentError, match=message):
        resize_conv(**(arguments | change))


def test_weights_of_another_size_are_refused():
    with pytest.raises(KernelArgumentError, match="not a 3x3 convolution"):
        tap_weights(torch.zeros(9, 7, 1, 1))

"""The conversion to bytes: the official formula, its edges, and which arguments are refused."""

import numpy as np
import pytest
import torch

from featinv_kernels import KernelArgumentError, to_uint8


def official(image):
    """x * 127.5 + 127.5 in torch, then clip and truncate in NumPy."""
    return (image.float() * 127.5 + 127.5).permute(0, 2, 3, 1).numpy().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equals_the_official_code(dtype):
    image = (torch.randn(2, 3, 33, 21, generator=torch.Generator().manual_seed(0)) * 0.8).to(dtype)
    output = to_uint8(image)
    assert output.shape == (2, 33, 21, 3)
    assert np.array_equal(output.numpy(), official(image))


def test_truncates_at_every_byte():
    # every integer, and the fp32 numbers just below and above it, back through the scale
    integers = torch.arange(256, dtype=torch.float64)
    values = torch.stack([(integers + shift - 127.5) / 127.5 for shift in (-1e-3, 0.0, 1e-3)]).float()
    image = values.reshape(1, 3, 16, 16)
    output = to_uint8(image)
    assert np.array_equal(output.numpy(), official(image))
    above = output[..., 2].flatten().tolist()
    assert above == list(range(256))
    below = output[..., 0].flatten().tolist()
    assert below == [0, *range(255)]


def test_nan_is_black_and_infinity_saturates():
    image = torch.tensor([float("nan"), float("inf"), float("-inf"), 2.0, -2.0, 0.0]).reshape(1, 1, 2, 3)
    output = to_uint8(image.expand(1, 3, 2, 3))
    assert output[0, :, :, 0].flatten().tolist() == [0, 255, 0, 255, 0, 127]
    assert torch.equal(output[..., 0], output[..., 2])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 8, 8), "not a batch of RGB images"),
        (torch.zeros(1, 4, 8, 8), "not a batch of RGB images"),
        (torch.zeros(1, 8, 8, 3), "not a batch of RGB images"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "not floating-point"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.complex64), "not floating-point"),
    ],
)
def test_refused_arguments(image, message):
    with pytest.raises(KernelArgumentError, match=message):
        to_uint8(image)


def test_export_keeps_the_batch_dimension_dynamic():
    class Convert(torch.nn.Module):
        def forward(self, image):
            return to_uint8(image)

    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(Convert(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    for n in (1, 5):
        image = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(n))
        assert torch.equal(exported.module()(image), to_uint8(image))

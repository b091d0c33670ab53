"""The sampler step: what a term that is absent means, and which arguments are refused."""

import pytest
import torch

from featinv_kernels import KernelArgumentError, sampler_step


def tensors(*shape):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for _ in range(4)]


def test_values_by_hand():
    x, eps, z, h = (torch.full((2, 3), value) for value in (1.0, 10.0, 100.0, 1000.0))
    coefficients = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    new_latents, new_history = sampler_step(x, eps, coefficients, z, h)
    assert torch.equal(new_latents, torch.full((2, 3), 1.0 + 20.0 + 300.0 + 4000.0))
    assert torch.equal(new_history, torch.full((2, 3), 5.0 + 60.0))


@pytest.mark.parametrize("coefficient", [float("inf"), float("nan")])
def test_an_absent_term_is_left_out_and_not_multiplied_by_zero(coefficient):
    x, eps, z, h = tensors(2, 4, 8, 8)
    coefficients = torch.tensor([0.9, -0.2, coefficient, coefficient, 0.3, 0.4])
    new_latents, _ = sampler_step(x, eps, coefficients)
    torch.testing.assert_close(new_latents, 0.9 * x - 0.2 * eps)
    assert not sampler_step(x, eps, coefficients, noise=z)[0].isfinite().any()
    assert not sampler_step(x, eps, coefficients, history=h)[0].isfinite().any()


def test_coefficients_are_a_row_of_a_table():
    x, eps, z, h = tensors(1, 4, 4, 4)
    table = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    for row in range(5):
        expected = sampler_step(x, eps, table[row].clone(), z, h)
        torch.testing.assert_close(sampler_step(x, eps, table[row], z, h), expected, rtol=0, atol=0)
        # a column of the transposed table has the same numbers and other strides
        column = table.t().contiguous()[:, row]
        torch.testing.assert_close(sampler_step(x, eps, column, z, h), expected, rtol=0, atol=0)


def test_half_precision_eps_is_cast_up_first():
    x, eps, _, _ = tensors(2, 4, 8, 8)
    coefficients = torch.randn(6, generator=torch.Generator().manual_seed(3))
    for dtype in (torch.float16, torch.bfloat16):
        outputs = sampler_step(x, eps.to(dtype), coefficients)
        assert [t.dtype for t in outputs] == [torch.float32, torch.float32]
        torch.testing.assert_close(outputs, sampler_step(x, eps.to(dtype).float(), coefficients), rtol=0, atol=0)


def test_channels_last_inputs_give_contiguous_outputs():
    x, eps, z, h = tensors(2, 4, 6, 5)
    coefficients = torch.randn(6, generator=torch.Generator().manual_seed(4))
    expected = sampler_step(x, eps, coefficients, z, h)
    outputs = sampler_step(*(t.to(memory_format=torch.channels_last) for t in (x, eps)), coefficients, z, h)
    assert all(t.is_contiguous() for t in outputs)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": torch.zeros(2, 4, 8, 9)}, "eps and latents differ in shape"),
        ({"noise": torch.zeros(1, 4, 8, 8)}, "noise and latents differ in shape"),
        ({"history": torch.zeros(2, 4, 8)}, "history and latents differ in shape"),
        ({"coefficients": torch.zeros(1, 6)}, "A, B, C, D, P, Q"),
        ({"coefficients": torch.zeros(6, dtype=torch.float64)}, "coefficients has the wrong dtype"),
        ({"latents": torch.zeros(2, 4, 8, 8, dtype=torch.float16)}, "latents has the wrong dtype"),
        ({"noise": torch.zeros(2, 4, 8, 8, dtype=torch.float16)}, "noise has the wrong dtype"),
        ({"eps": torch.zeros(2, 4, 8, 8, dtype=torch.int32)}, "eps is not floating-point"),
        ({"eps": torch.zeros(2, 4, 8, 8, device="meta")}, "eps and latents are on different devices"),
        ({"provider": "cublas"}, "no provider of this name"),
    ],
)
def test_refused_arguments(change, message):
    x, eps, _, _ = tensors(2, 4, 8, 8)
    arguments = {"latents": x, "eps": eps, "coefficients": torch.zeros(6)} | change
    with pytest.raises(KernelArgumentError, match=message):
        sampler_step(**arguments)


def test_export_keeps_the_batch_dimension_dynamic():
    class Step(torch.nn.Module):
        def forward(self, latents, eps, coefficients):
            return sampler_step(latents, eps, coefficients)

    x, eps, _, _ = tensors(2, 4, 8, 8)
    coefficients = torch.randn(6, generator=torch.Generator().manual_seed(5))
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(Step(), (x, eps, coefficients), dynamic_shapes=({0: batch}, {0: batch}, None))
    for n in (1, 3):
        x, eps, _, _ = tensors(n, 4, 8, 8)
        expected = sampler_step(x, eps, coefficients)
        torch.testing.assert_close(exported.module()(x, eps, coefficients), expected, rtol=0, atol=0)

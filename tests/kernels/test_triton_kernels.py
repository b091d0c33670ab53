"""The Triton kernels against the reference: on a GPU, or on a CPU through Triton's interpreter.

The interpreter has to be switched on before Triton is imported and then holds for the whole process, so
`test_triton_interpreter.py` runs this file in a process of its own.
"""

import os

import numpy as np
import pytest
import torch

from featinv_kernels import OPS
from featinv_kernels.ops.sampler_step import reference as sampler_step_reference
from featinv_kernels.ops.to_uint8 import reference as to_uint8_reference
from featinv_kernels.providers import TRITON_DTYPES

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
pytestmark = [
    pytest.mark.gpu
    if DEVICE.type == "cuda"
    else pytest.mark.skipif(not INTERPRETED, reason="no GPU; test_triton_interpreter.py runs this on the CPU"),
    # The interpreter computes with NumPy, which warns of NaN and infinity.
    pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning"),
]

EVERY_SUPPORTED_CASE = [
    pytest.param(op, case, id=f"{op.name}-{case.label}")
    for op in OPS.values()
    for case in (op.small_cases if DEVICE.type == "cpu" else op.cases)
    if case.dtype in TRITON_DTYPES
]
# These round as the reference does, operation by operation.
BIT_FOR_BIT = ("sampler_step", "to_uint8")
NAN = float("nan")


def assert_same(actual, expected):
    """Equal bit for bit, except that any NaN equals any other."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def misaligned(tensor):
    """The same values at an address that is not a multiple of 16."""
    storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    view = storage[1:].view(tensor.shape)
    return view.copy_(tensor)


@pytest.fixture(autouse=True)
def _bfloat16_products(monkeypatch):
    """Triton's interpreter keeps bfloat16 as bits and multiplies matrices of those bits: give it their values."""
    if not INTERPRETED:
        return
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    create_dot = InterpreterBuilder.create_dot

    def in_fp32(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot_of_values(self, a, b, *args):
        return create_dot(self, in_fp32(a), in_fp32(b), *args)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot_of_values)


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch):
    """Memory that a kernel should have written and has not reads as NaN."""
    empty, empty_like = torch.empty, torch.empty_like

    def poisoned(tensor):
        return tensor.fill_(NAN) if tensor.dtype.is_floating_point else tensor.fill_(0xAA)

    monkeypatch.setattr(torch, "empty", lambda *args, **options: poisoned(empty(*args, **options)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **options: poisoned(empty_like(*args, **options)))


@pytest.mark.parametrize(("op", "case"), EVERY_SUPPORTED_CASE)
def test_kernel_agrees_with_the_slow_way(op, case, assert_as_accurate_as_torch):
    inputs = op.make_inputs(case, DEVICE)
    output = op.function(**inputs, provider="triton")
    if op.name in BIT_FOR_BIT:
        assert_same(output, op.function(**inputs, provider="reference"))
    else:
        assert_as_accurate_as_torch(op, inputs, output)


@pytest.mark.parametrize("name", OPS)
def test_cases_cover_the_dtypes_of_the_kernels(name):
    assert {case.dtype for case in OPS[name].small_cases} >= set(TRITON_DTYPES)


@pytest.mark.parametrize("size", [1, 15, 511, 512, 513, 1023])
@pytest.mark.parametrize("terms", [(), ("noise",), ("history",), ("noise", "history")])
def test_sampler_step_writes_everything_and_nothing_else(size, terms):
    from featinv_kernels.ops.sampler_step import triton_kernel

    generator = torch.Generator().manual_seed(size)
    x, eps, z, h = (torch.randn(size, generator=generator).to(DEVICE) for _ in range(4))
    coefficients = torch.randn(6, generator=generator).to(DEVICE)
    noise, history = z if "noise" in terms else None, h if "history" in terms else None
    # NaN where the kernel must write, and a guard behind it that it must not touch
    buffers = torch.full((2, size + 1024), NAN, device=DEVICE)
    buffers[:, size:] = -7.0
    new_latents, new_history = buffers[:, :size]
    triton_kernel.launch(x, eps, coefficients, noise, history, new_latents=new_latents, new_history=new_history)
    assert_same((new_latents, new_history), sampler_step_reference.sampler_step(x, eps, coefficients, noise, history))
    assert (buffers[:, size:] == -7.0).all()


@pytest.mark.parametrize("poison", [0x00, 0xAA])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 3, 5), (2, 3, 1, 341), (1, 3, 1, 1023), (2, 3, 1, 1024)])
def test_to_uint8_writes_everything_and_nothing_else(shape, poison):
    from featinv_kernels.ops.to_uint8 import triton_kernel

    image = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    n, channels, height, width = shape
    buffer = torch.full((image.numel() + 1024,), poison, dtype=torch.uint8, device=DEVICE)
    out = buffer[: image.numel()].view(n, height, width, channels)
    triton_kernel.launch(image, out=out)
    assert_same(out, to_uint8_reference.to_uint8(image))
    assert (buffer[image.numel() :] == poison).all()


@pytest.mark.parametrize("name", OPS)
def test_misaligned_inputs(name, assert_as_accurate_as_torch):
    op = OPS[name]
    inputs = op.make_inputs(op.small_cases[0], DEVICE)
    inputs = {k: misaligned(v) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    output = op.function(**inputs, provider="triton")
    if op.name in BIT_FOR_BIT:
        assert_same(output, op.function(**inputs, provider="reference"))
    else:
        assert_as_accurate_as_torch(op, inputs, output)


def test_absent_terms_are_not_read():
    x = torch.ones(33, device=DEVICE)
    coefficients = torch.tensor([1.0, 2.0, NAN, float("inf"), 3.0, 4.0], device=DEVICE)
    new_latents, new_history = OPS["sampler_step"].function(x, x, coefficients, provider="triton")
    assert_same(new_latents, 3 * x)
    assert_same(new_history, 7 * x)


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU the kernels are compiled")
def test_the_interpreter_ran():
    from featinv_kernels.ops.sampler_step import triton_kernel as sampler_step_kernel
    from featinv_kernels.ops.to_uint8 import triton_kernel as to_uint8_kernel

    kernels = (sampler_step_kernel.sampler_step_kernel, to_uint8_kernel.to_uint8_kernel)
    assert [type(kernel).__name__ for kernel in kernels] == ["InterpretedFunction"] * 2

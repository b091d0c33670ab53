"""Nothing that a caller has set in torch reaches an image, and nothing of it is changed."""

from __future__ import annotations

import contextlib
import threading

import numpy as np
import pytest
import torch

from featinv_fast import Runtime
from featinv_kernels.torch_state import neutral_torch_state

SEED = 20


@contextlib.contextmanager
def restored(put, get, value):
    """A setting of the process, for a while."""
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


@contextlib.contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def fp32_products_in_bfloat16():
    with restored(
        lambda value: setattr(torch.backends.mkldnn.matmul, "fp32_precision", value),
        lambda: torch.backends.mkldnn.matmul.fp32_precision,
        "bf16",
    ):
        yield


STATES = {
    "default dtype float64": lambda: restored(torch.set_default_dtype, torch.get_default_dtype, torch.float64),
    "default dtype bfloat16": lambda: restored(torch.set_default_dtype, torch.get_default_dtype, torch.bfloat16),
    "default device meta": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "deterministic algorithms": lambda: restored(
        torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled, True
    ),
    "coarse products": lambda: restored(
        torch.set_float32_matmul_precision, torch.get_float32_matmul_precision, "medium"
    ),
    "coarse products, by the newer name": fp32_products_in_bfloat16,
    "one kind of attention": lambda: torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]),
}


def state():
    """What a call could change."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.empty(0).device,
        "autocast": torch.is_autocast_enabled("cpu"),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "products": (torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision),
        "attention": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        "threads": torch.get_num_threads(),
        "generator": torch.random.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002 -- the global one is what is tested
    }


@pytest.fixture(scope="module", params=["torch", "onnxruntime"])
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def invert(tiny_engine, tiny_maps):
    """Everything that a Runtime computes, with one that is made where it is called."""

    def run(backend):
        runtime = Runtime(tiny_engine, backend=backend)
        runtime.warmup()
        inversion = runtime.invert(tiny_maps, seed=SEED, eta=0.5)
        condition = runtime.encode_condition(tiny_maps)
        return inversion.images, inversion.latents, condition, runtime.decode(inversion.latents, "torch")

    return run


@pytest.fixture(scope="module")
def expected(invert, backend):
    """The same without anything set."""
    return invert(backend)


@pytest.mark.parametrize("name", STATES)
def test_what_is_set_in_torch_does_not_reach_the_images(invert, backend, expected, name):
    with STATES[name]():
        before = state()
        found = invert(backend)
        assert state() == before
    for mine, usual in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(usual))
    for tensor in found[1:]:
        assert tensor.dtype == torch.float32
        assert not tensor.is_inference()


def test_global_generators_neither_matter_nor_move(invert, backend, expected):
    torch.manual_seed(1234)
    np.random.seed(5)  # noqa: NPY002 -- the global one is what is tested
    before = state()
    images, *_ = invert(backend)
    assert state() == before
    np.testing.assert_array_equal(images, expected[0])


@pytest.mark.parametrize("threads", [1, 3])
def test_another_thread_count_changes_the_order_of_sums_alone(invert, backend, expected, threads):
    with restored(torch.set_num_threads, torch.get_num_threads, threads):
        images, *_ = invert(backend)
        assert torch.get_num_threads() == threads
    difference = np.abs(images.astype(int) - expected[0].astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


def test_nothing_stands_between_torch_and_its_operations_where_nothing_is_set():
    with neutral_torch_state():
        assert torch.overrides._get_current_function_mode_stack() == []


def test_the_last_of_several_threads_gives_back_what_the_first_changed():
    inside, leave = threading.Event(), threading.Event()

    def longer():
        with neutral_torch_state():
            inside.set()
            leave.wait(10)

    with restored(torch.set_default_dtype, torch.get_default_dtype, torch.float64):
        with neutral_torch_state():
            other = threading.Thread(target=longer)
            other.start()
            assert inside.wait(10)
        assert torch.get_default_dtype() == torch.float32
        leave.set()
        other.join()
        assert torch.get_default_dtype() == torch.float64


def test_an_error_gives_everything_back():
    with STATES["coarse products"](), STATES["default dtype float64"](), torch.inference_mode():
        before = state()
        with contextlib.suppress(ZeroDivisionError), neutral_torch_state(gradients=True):
            recorded = (torch.ones(1, requires_grad=True) * 2).requires_grad
            raise ZeroDivisionError
        assert state() == before
    assert recorded

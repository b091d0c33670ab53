"""Which provider runs, what is said about the others, and what importing costs."""

import json
import logging
import subprocess
import sys

import pytest
import torch

from featinv_kernels import (
    OPS,
    KernelArgumentError,
    ProviderUnavailableError,
    Request,
    choose,
    not_supported_reasons,
    providers,
    support_table,
)

SAMPLER_STEP = OPS["sampler_step"]


def request_on(device, dtype=torch.float32, shape=(1, 4, 32, 32)):
    return Request(device=torch.device(device), dtype=dtype, shape=shape)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Pretends to be a machine: `machine(capability=(9, 0))` has a GPU, `triton=False` lacks Triton."""

    def pretend(*, capability=None, triton=True):
        choose.cache_clear()
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(providers, "_is_installed", lambda _: triton)

    pretend()
    yield pretend
    choose.cache_clear()


def test_cpu_runs_the_reference():
    assert choose(SAMPLER_STEP, request_on("cpu")).name == "reference"
    assert not_supported_reasons("sampler_step", "reference", request_on("cpu")) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gpu_runs_triton(machine, dtype):
    machine(capability=(8, 0))
    assert choose(SAMPLER_STEP, request_on("cuda:0", dtype)).name == "triton"


def test_automatic_fallback_says_so_once(machine, caplog):
    machine(capability=(9, 0), triton=False)
    with caplog.at_level(logging.INFO, logger="featinv_kernels"):
        for _ in range(3):
            assert choose(SAMPLER_STEP, request_on("cuda:0")).name == "reference"
    (record,) = caplog.records
    assert "reference serves" in record.getMessage()
    assert "triton is not installed" in record.getMessage()


@pytest.mark.parametrize(
    ("situation", "device", "dtype", "reason"),
    [
        ({"triton": False, "capability": (9, 0)}, "cuda", torch.float32, "triton is not installed"),
        ({}, "cpu", torch.float32, "it needs CUDA tensors, given cpu tensors"),
        ({}, "cuda", torch.float32, "no CUDA device is available"),
        ({"capability": (7, 5)}, "cuda", torch.float32, "it needs compute capability 8.0 or newer, cuda has 7.5"),
        (
            {"capability": (9, 0)},
            "cuda",
            torch.float64,
            "it takes torch.float32, torch.float16, torch.bfloat16, given torch.float64",
        ),
    ],
)
@pytest.mark.parametrize("name", OPS)
def test_each_reason_against_triton(machine, situation, device, dtype, reason, name):
    machine(**situation)
    request = request_on(device, dtype, OPS[name].cases[0].shape)
    assert not_supported_reasons(name, "triton", request) == [reason]


def test_reasons_add_up(machine):
    machine(triton=False)
    reasons = not_supported_reasons("sampler_step", "triton", request_on("cpu", torch.float64))
    assert len(reasons) == 3


def test_reason_from_the_shape(machine):
    machine(capability=(9, 0))
    largest = request_on("cuda", shape=(1, 3, 26_754, 26_754))
    too_large = request_on("cuda", shape=(1, 3, 26_755, 26_755))
    assert not_supported_reasons("to_uint8", "triton", largest) == []
    assert not_supported_reasons("to_uint8", "triton", too_large) == [
        f"it takes images of less than 2**31 values, given {3 * 26_755**2}"
    ]
    assert choose(OPS["to_uint8"], too_large).name == "reference"


def test_an_explicit_provider_is_used_even_when_a_better_one_could_serve(machine):
    machine(capability=(9, 0))
    assert choose(SAMPLER_STEP, request_on("cuda"), "reference").name == "reference"


def test_c6_an_explicit_provider_that_cannot_serve_raises_with_every_candidates_reasons():
    x = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ProviderUnavailableError) as caught:
        SAMPLER_STEP.function(x, x, torch.zeros(6), provider="triton")
    reasons = caught.value.reasons
    assert list(reasons) == ["triton", "native", "reference"]
    assert reasons["triton"] == ["it needs CUDA tensors, given cpu tensors"]
    assert reasons["triton"][0] in reasons["native"]  # whose others depend on what is installed
    assert reasons["reference"] == []
    assert "reference: available" in str(caught.value)
    assert "remedy" in str(caught.value)
    assert isinstance(caught.value, RuntimeError)


def test_c6_auto_raises_when_nobody_can_serve():
    with pytest.raises(ProviderUnavailableError, match="any provider") as caught:
        choose(SAMPLER_STEP, request_on("cuda"))
    assert all("no CUDA device is available" in why for why in caught.value.reasons.values())


def test_unknown_names():
    with pytest.raises(KernelArgumentError, match=r"'cuda'[\s\S]*auto[\s\S]*triton[\s\S]*reference"):
        choose(SAMPLER_STEP, request_on("cpu"), "cuda")
    with pytest.raises(KernelArgumentError, match="no such op"):
        not_supported_reasons("convolution", "triton", request_on("cpu"))


def test_support_table_is_plain_and_complete(machine):
    machine(capability=(9, 0))
    rows = support_table()
    assert json.loads(json.dumps(rows)) == rows
    by_key = {(row["op"], row["provider"], row["device"], row["dtype"]): row for row in rows}
    assert len(by_key) == len(rows)
    for op in OPS.values():
        for provider in op.providers:
            counted = [row["cases"] for row in rows if (row["op"], row["provider"]) == (op.name, provider.name)]
            assert sum(counted) == 2 * len(op.cases)
    for row in rows:
        assert row["supported_cases"] == (0 if row["reasons"] else row["cases"])
    assert by_key["to_uint8", "triton", "cuda", "float16"]["reasons"] == []
    assert by_key["to_uint8", "triton", "cpu", "float16"]["reasons"] == ["it needs CUDA tensors, given cpu tensors"]
    assert "torch.float64" in by_key["to_uint8", "triton", "cuda", "float64"]["reasons"][0]
    assert by_key["to_uint8", "reference", "cuda", "float64"]["reasons"] == []


def test_support_table_without_a_gpu():
    rows = [row for row in support_table() if row["device"] == "cuda"]
    assert rows
    assert all("no CUDA device is available" in row["reasons"] for row in rows)


def test_without_triton_the_ops_run_and_say_so():
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, featinv_kernels as k\n"
        "x = torch.zeros(1, 3, 2, 2)\n"
        "assert k.to_uint8(x).eq(127).all()\n"
        "request = k.Request(device=x.device, dtype=x.dtype, shape=tuple(x.shape))\n"
        "print(k.not_supported_reasons('to_uint8', 'triton', request)[0])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == "triton is not installed"


def test_importing_and_running_on_a_cpu_imports_neither_triton_nor_the_compiler():
    script = (
        "import sys, torch, featinv_kernels\n"
        "featinv_kernels.support_table()\n"
        "featinv_kernels.to_uint8(torch.zeros(1, 3, 2, 2))\n"
        "print([name for name in ('triton', 'torch._dynamo', 'featinv_fast') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == "[]"

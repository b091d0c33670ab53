"""Which kernels the torch backend's layers call: chosen, named, refused, and visible."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featinv_fast import Runtime
from featinv_fast.backends import Request, reasons_against
from featinv_fast.backends.torch_ import providers_on
from featinv_fast.checks.options import LAYER_OPS
from featinv_fast.engine import open_engine
from featinv_fast.errors import ArgumentError, BackendUnavailableError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_layers_are_plain_on_a_cpu_and_fused_on_a_gpu():
    assert providers_on(CPU, "auto") == {}
    assert providers_on(GPU, "off") == {}
    assert providers_on(GPU, "auto") == dict.fromkeys(LAYER_OPS, "auto")
    assert providers_on(CPU, "torch") == dict.fromkeys(LAYER_OPS, "torch")


def test_kernels_that_are_named_give_the_same_images(tiny_engine, tiny_maps):
    runtime = Runtime(tiny_engine, kernels={"attention": "torch", "geglu": "reference"}, threads=1)
    named = {**dict.fromkeys(LAYER_OPS, "auto"), "attention": "torch", "geglu": "reference"}
    assert (runtime.info["backend"], runtime.info["kernels"]) == ("torch", named)
    plain = Runtime(tiny_engine, backend="torch", threads=1)
    assert plain.info["kernels"] == {}
    images = [r.invert(tiny_maps[:3], seed=1, output_type="float").images for r in (runtime, plain)]
    assert not np.array_equal(*images)  # something else did run
    assert np.abs(images[0] - images[1]).max() <= 1e-4


def test_c6_kernels_that_cannot_run_are_refused_and_not_replaced(tiny_engine, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailableError) as caught:
        Runtime(tiny_engine, kernels={"group_norm_silu": "triton"})
    assert any("group_norm_silu by triton: it needs CUDA tensors" in reason for reason in caught.value.reasons["torch"])
    assert "it calls no kernels by name" in caught.value.reasons["onnxruntime"][0]
    with pytest.raises(ArgumentError, match="no provider of this name"):
        Runtime(tiny_engine, kernels="cutlass")
    with pytest.raises(ArgumentError, match="no such operation"):
        Runtime(tiny_engine, kernels={"softmax": "triton"})


def test_other_backends_are_not_asked_where_no_kernel_is_named(tiny_engine):
    opened = open_engine(tiny_engine)
    for kernels in ("auto", "off"):
        reasons = reasons_against(Request(engine=opened, device=CPU, kernels=kernels))
        assert reasons["torch"] == []
        assert not any("kernels" in reason for reason in reasons["onnxruntime"])

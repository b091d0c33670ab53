"""The words in which the libraries say that memory is exhausted, from the libraries themselves."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from featinv_fast.backends import free_memory, is_out_of_memory


def test_a8_torch_on_a_cpu():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)


def test_a8_numpy():
    with pytest.raises(MemoryError) as caught:
        np.empty(2**50)
    assert is_out_of_memory(caught.value)


def test_a8_onnxruntime():
    graph = helper.make_graph(
        [helper.make_node("Expand", ["x", "size"], ["y"])],
        "expand",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("size", onnx.TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="allocate") as caught:
        session.run(None, {"x": np.zeros(1, np.float32), "size": np.array([2**45])})
    assert is_out_of_memory(caught.value)
    with pytest.raises(Exception, match="INVALID_ARGUMENT") as caught:
        session.run(None, {"x": np.zeros((1, 1), np.float32), "size": np.array([2])})
    assert not is_out_of_memory(caught.value)


def test_the_free_memory_of_the_cpu_is_a_number():
    assert free_memory(torch.device("cpu")).replace(",", "").removesuffix(" MiB available").isdigit()

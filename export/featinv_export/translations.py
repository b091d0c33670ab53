"""How a few torch operators become ONNX, where the general translation is slower or less readable.

Each function receives `onnx_ir` values with static shapes but for the batch, and emits nodes through `op`.
Statistics and softmax stay in fp32 by the casts that the networks themselves contain, or by the ones made here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

OPSET = 20
# ONNX has convolutions in bf16 from this opset on. Of the operators that we emit, none changed in between but for the
# types it takes.
BF16_OPSET = 22


def translations() -> dict[Any, Callable]:
    """The table that `torch.onnx.export(custom_translation_table=...)` takes."""
    from onnxscript import opset20 as op

    def constant(values: list[int]) -> Any:
        return op.Constant(value=ir.tensor(np.asarray(values, dtype=np.int64)))

    def linear(input: Any, weight: Any, bias: Any = None) -> Any:  # noqa: A002
        """One Gemm: the bias is its epilogue and the weight is read as it is stored, [out, in]."""
        rows = op.Reshape(input, constant([-1, weight.shape[1]]))
        product = op.Gemm(rows, weight, transB=1) if bias is None else op.Gemm(rows, weight, bias, transB=1)
        if len(input.shape) == 2:
            return product
        # Only the batch (the first axis) is unknown at export.
        return op.Reshape(product, constant([-1, *(int(d) for d in input.shape[1:-1]), weight.shape[0]]))

    def group_norm(
        input: Any,  # noqa: A002
        num_groups: int,
        weight: Any = None,
        bias: Any = None,
        eps: float = 1e-5,
        cudnn_enabled: bool = True,  # noqa: ARG001
    ) -> Any:
        """InstanceNormalization of [B, groups, -1]: it runs everywhere, GroupNormalization only from opset 21 on."""
        channels, height, width = (int(d) for d in input.shape[1:])
        dtype = input.dtype.numpy()
        grouped = op.Reshape(input, constant([-1, num_groups, channels // num_groups * height * width]))
        ones = op.Constant(value=ir.tensor(np.ones(num_groups, dtype)))
        zeros = op.Constant(value=ir.tensor(np.zeros(num_groups, dtype)))
        normed = op.Reshape(
            op.InstanceNormalization(grouped, ones, zeros, epsilon=eps), constant([-1, channels, height, width])
        )
        column = constant([channels, 1, 1])
        return op.Add(op.Mul(normed, op.Reshape(weight, column)), op.Reshape(bias, column))

    def attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        """softmax(q k^T / sqrt(d)) v with the softmax in fp32 at least, the scale on the smaller operand."""
        unused = (attn_mask, dropout_p, is_causal, scale, enable_gqa)
        assert unused == (None, 0.0, False, None, False), "our networks use none of these"
        dtype = query.dtype
        factor = op.Constant(value=ir.tensor(np.asarray(int(query.shape[-1]) ** -0.5, dtype.numpy())))
        logits = op.MatMul(op.Mul(query, factor), op.Transpose(key, perm=[0, 1, 3, 2]))
        if dtype == ir.DataType.FLOAT or dtype == ir.DataType.DOUBLE:
            weights = op.Softmax(logits, axis=-1)
        else:
            weights = op.Cast(op.Softmax(op.Cast(logits, to=ir.DataType.FLOAT), axis=-1), to=dtype)
        return op.MatMul(weights, value)

    aten = torch.ops.aten
    return {
        aten.linear.default: linear,
        aten.group_norm.default: group_norm,
        aten.scaled_dot_product_attention.default: attention,
    }

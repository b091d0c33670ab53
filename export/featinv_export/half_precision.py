"""Which nodes of a half-precision graph compute in fp32 all the same, and why."""

from __future__ import annotations

import onnx_ir as ir

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
NAMES = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}

# Nodes that move values or give them another type, but compute none.
_MOVES = "Cast Concat Constant Expand Gather Identity Pad Reshape Shape Slice Split Squeeze Tile Transpose Unsqueeze"
MOVES = frozenset(_MOVES.split())
PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})

NORM = "statistics of norms: sums over thousands of values, which half precision rounds away"
SOFTMAX = "softmax: exponentials and their sum leave the range of fp16 and the digits of bf16"
SUMS = "sums of the products that make an enlarged map, which would be rounded at each of them"
UNFIT = "weights that do not fit half precision"
BOUNDARY = "between the sampler and the networks: features, latents, guidance and images are fp32"
UNEXPLAINED = "no known reason"


def arithmetic(model: ir.Model) -> ir.DataType:
    """The type of the graph's products; FLOAT unless some are in half precision.

    The time embedding is FLOAT in every precision: it runs once per call, and angles up to 1000 need more digits.
    """
    # Inputs: weights have a type before types are inferred.
    dtypes = {value.dtype for node in model.graph if node.op_type in PRODUCTS for value in node.inputs if value}
    return next((half for half in HALVES if half in dtypes), ir.DataType.FLOAT)


def nodes_in_fp32(model: ir.Model) -> dict[str, list[str]]:
    """Reason -> names of the nodes that compute in fp32, where nodes have names and values have types."""
    result: dict[str, list[str]] = {}
    for node in model.graph:
        values = (*node.inputs[:1], *node.outputs)
        if node.op_type not in MOVES and any(v is not None and v.dtype == ir.DataType.FLOAT for v in values):
            result.setdefault(_reason(node), []).append(str(node.name))
    return result


def _reason(node: ir.Node) -> str:
    scope = str(node.name).rpartition("/")[0]
    module = scope.rpartition(".")[2]
    if node.op_type in ("InstanceNormalization", "LayerNormalization") or module.startswith("norm"):
        return NORM  # with the affine map that follows
    if node.op_type == "Softmax":
        return SOFTMAX
    if node.op_type in PRODUCTS:
        return UNFIT
    if node.op_type == "Add" and module in ("upsample", "resample"):
        return SUMS
    return BOUNDARY if "." not in scope else UNEXPLAINED

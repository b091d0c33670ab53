"""What TensorRT's ONNX parser reads: operators, the types of their data, and what it restricts.

Facts of docs/operators.md and docs/Changelog.md in github.com/onnx/onnx-tensorrt (releases 10.0 to 10.15) and of the
release notes of github.com/NVIDIA/TensorRT for what came later (up to 11.4). An operator that is not listed is not
supported. Where releases differ in the types, these are the oldest's. Plugins and quantised types are left out: our
graphs use neither.
"""

from __future__ import annotations

# The newest release that this table was compared with, and the oldest one it covers.
OLDEST = (10, 0)
NEWEST = (11, 4)

# Release -> the newest opset it reads, which is that of the ONNX it is built with (1.17 in 10.6). Between two entries
# the older one holds; the oldest opset is 9 in all of them.
MINIMUM_OPSET = 9
MAXIMUM_OPSET = {(10, 0): 20, (10, 6): 22, (10, 15): 24, (11, 0): 25}

# The names of onnx.TensorProto.DataType. DOUBLE is read too, but silently narrowed to FLOAT, so it is no type of ours.
FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
NUMBERS = FLOATS | {"INT32", "INT64"}
ANY = NUMBERS | {"BOOL"}

# Of a network's inputs and outputs.
BOUNDARY = ANY | {"UINT8"}

_BY_TYPES: tuple[tuple[frozenset[str], str], ...] = (
    (
        FLOATS,
        """
        Acos Acosh Asin Asinh Atan Atanh Attention AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos
        Cosh CumSum Dropout Einsum Elu Erf Exp Floor Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
        GroupNormalization HardSigmoid HardSwish Hardmax InstanceNormalization IsInf LRN LayerNormalization LeakyRelu
        Log LogSoftmax LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization PRelu Pow RMSNormalization
        RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reciprocal Resize RotaryEmbedding Round Scan Selu
        Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Upsample
        """,
    ),
    (
        NUMBERS,
        """
        Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean Min Mod
        Mul Neg Pad Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
        ReduceSum ReduceSumSquare Relu ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK
        """,
    ),
    (
        ANY,
        """
        Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot
        Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where
        """,
    ),
    (BOUNDARY, "Cast CastLike"),
    (frozenset({"BOOL"}), "And Not Or Xor"),
    (frozenset({"FLOAT", "FLOAT16"}), "DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign"),
)

# Operator -> the types of its data.
TYPES: dict[str, frozenset[str]] = {name: types for types, names in _BY_TYPES for name in names.split()}

# Operators that came after the oldest release.
SINCE = {
    "DeformConv": (10, 1),
    "Attention": (10, 14),
    "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15),
    "Swish": (11, 0),
}

# Operator -> attribute -> the values that are read (as a set), where not all are.
ATTRIBUTES: dict[str, dict[str, frozenset[object]]] = {
    "AveragePool": {"dilations": frozenset({1})},
    "LpPool": {"dilations": frozenset({1})},
    "MaxPool": {"dilations": frozenset({1})},
    "Resize": {
        "antialias": frozenset({0}),
        "coordinate_transformation_mode": frozenset(
            {"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"}
        ),
        "keep_aspect_ratio_policy": frozenset({"stretch"}),
        "mode": frozenset({"nearest", "linear"}),
    },
    "ScatterND": {"reduction": frozenset({"none"})},
    "TopK": {"sorted": frozenset({1})},
}

# Operators of which the first outputs alone are read, and how many of them.
OUTPUTS = {"Attention": 1, "LayerNormalization": 1, "MaxPool": 1}

# Operator -> index of an input that must be constant -> the release from which it need not be; `None` = always must.
CONSTANT_INPUTS: dict[str, dict[int, tuple[int, int] | None]] = {
    "CumSum": {1: None},
    "OneHot": {1: None},
    "Pad": {3: (10, 4)},
    "Slice": {3: (10, 3)},
    "Squeeze": {1: None},
    "Unsqueeze": {1: None},
    **{
        f"Reduce{name}": {1: None}
        for name in "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split()  # noqa: SIM905 -- one line
    },
}

"""Since which version of its domain an op is read: opset 7 of ONNX, or the one that brought it.

Below opset 7 the ops may mean something else (a note says so). A test runs every op at its first version, at each
that changed it, and at the newest.
"""

from __future__ import annotations

FIRST = 7
_BROUGHT = {
    8: "Expand",
    9: "Acosh Asinh Atanh Compress Cosh Erf EyeLike IsNaN MaxUnpool MeanVarianceNormalization NonZero OneHot Scatter "
       "Shrink Sign Sinh Where",
    10: "ConvInteger DequantizeLinear IsInf MatMulInteger Mod NonMaxSuppression QLinearConv QLinearMatMul QuantizeLinear "
        "Resize ReverseSequence RoiAlign ThresholdedRelu",
    11: "ConcatFromSequence CumSum Det DynamicQuantizeLinear GatherElements GatherND Round ScatterElements ScatterND "
        "SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SplitToSequence Unique",
    12: "Celu Einsum GreaterOrEqual LessOrEqual",
    14: "HardSwish Trilu",
    15: "CastLike Optional OptionalGetElement OptionalHasElement",
    16: "GridSample",
    17: "DFT LayerNormalization STFT SequenceMap",
    18: "CenterCropPad Col2Im GroupNormalization Mish",
    19: "DeformConv",
    20: "AffineGrid Gelu",
    23: "Attention RMSNormalization RotaryEmbedding",
    24: "Swish TensorScatter",
    26: "CumProd",
    28: "SwiGLU",
}  # fmt: skip
_SINCE = {op: version for version, ops in _BROUGHT.items() for op in ops.split()}


def since(domain: str, op: str) -> int:
    """The version of the op's domain from which it is read; com.microsoft has one version only."""
    return 1 if domain else _SINCE.get(op, FIRST)

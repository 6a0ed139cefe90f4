"""Where the entries of each output of a node lie, given those of its inputs: the table of ops that are followed.

Any other op gives UNKNOWN. The arrays of a Range broadcast to its value's shape, so entrywise ops broadcast
as the runtime does; what changes shapes keeps one interval for all entries, and of the slices' norms only
what survives.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from snaudit.domains import MICROSOFT, plain
from snaudit.images import affine, bounded, entrywise, merges, moves
from snaudit.ranges import UNKNOWN, Range
from snaudit.rules.interface import Step

__all__ = ["images"]

Image = Callable[[Step], Range | tuple[Range, ...]]

_MOVES = (
    "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "GatherElements", "GatherND", "TopK", "Compress",
)  # fmt: skip
_ROWS: tuple[tuple[Image, tuple[str, ...]], ...] = (
    (entrywise.same, ("Identity", "Dropout")),
    (entrywise.cast, ("Cast",)),
    (entrywise.stepped, ("Floor", "Ceil", "Round")),
    (moves.selected, _MOVES),
    (moves.filled, ("ConstantOfShape",)),
    (moves.channelwise, ("MaxPool", "GlobalMaxPool", "GlobalAveragePool")),
    (moves.sliced, ("ReverseSequence",)),
    (moves.cut, ("Slice",)),
    (moves.split, ("Split",)),
    (moves.cropped, ("CenterCropPad", "Trilu")),
    (moves.reshaped, ("Reshape", "Flatten", "Squeeze", "Unsqueeze")),
    (moves.transposed, ("Transpose",)),
    (moves.gathered, ("Gather",)),
    (moves.concatenated, ("Concat",)),
    (moves.padded, ("Pad",)),
    (moves.scattered, ("ScatterND", "ScatterElements", "Scatter")),
    (moves.resized, ("Resize", "Upsample")),
    (moves.averaged, ("AveragePool",)),
    (moves.reduced, ("ReduceMean", "ReduceMax", "ReduceMin")),
    (moves.total, ("ReduceSum",)),
    (moves.euclidean, ("ReduceL2",)),
    (moves.absolute, ("ReduceL1",)),
    (moves.squares, ("ReduceSumSquare",)),
    (moves.log_sum_exp, ("ReduceLogSumExp",)),
    (merges.total, ("Add", "Sum")),
    (merges.difference, ("Sub",)),
    (merges.mean, ("Mean",)),
    (merges.product, ("Mul",)),
    (merges.quotient, ("Div",)),
    (merges.extreme, ("Max", "Min")),
    (merges.chosen, ("Where",)),
    (entrywise.raised, ("Pow",)),
    (entrywise.prelu, ("PRelu",)),
    (entrywise.clip, ("Clip",)),
    (entrywise.wave, ("Sin", "Cos")),
    (bounded.softmax, ("Softmax",)),
    (entrywise.unit, ("Hardmax", "IsNaN", "IsInf", "Not", "And", "Or", "Xor", "Equal", "Less",
                      "LessOrEqual", "Greater", "GreaterOrEqual")),
    (bounded.log_softmax, ("LogSoftmax",)),
    (entrywise.sign, ("Sign",)),
    (bounded.layer_norm, ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")),
    (bounded.group_norm, ("InstanceNormalization", "GroupNormalization")),
    (bounded.recurrent, bounded.RECURRENT),
    (affine.matmul, ("MatMul",)),
    (affine.gemm, ("Gemm",)),
    (affine.convolution, ("Conv", "ConvTranspose")),
    (affine.batch_normalization, ("BatchNormalization",)),
    (entrywise.curve, ("Relu", "Sigmoid", "Tanh", "HardSwish", "Mish", "Abs", "Neg", "Erf", "Softplus", "Softsign",
                       "Atan", "Asinh", "Exp", "Sinh", "Cosh", "Log", "Sqrt", "Reciprocal", "Asin", "Acos", "Acosh",
                       "Atanh", "LeakyRelu", "Elu", "Selu", "Celu", "HardSigmoid", "Gelu", "Swish")),
    (entrywise.rectified, ("ThresholdedRelu",)),
)  # fmt: skip
_TABLE: dict[tuple[str, str], Image] = {("", op): find for find, ops in _ROWS for op in ops}
_TABLE[(MICROSOFT, "DynamicQuantizeLSTM")] = bounded.recurrent
_TABLE |= {(MICROSOFT, op): entrywise.curve for op in ("Gelu", "FastGelu", "QuickGelu")}


def images(step: Step) -> tuple[Range, ...]:
    """The Range of each output of a node."""
    find = _TABLE.get((plain(step.node.domain), step.node.op_type))
    count = len(step.node.outputs)
    if find is None:
        return (UNKNOWN,) * count
    with np.errstate(all="ignore"):  # what leaves the floats is unbounded, and NaN says nothing
        found = find(step)
    if isinstance(found, tuple):
        return found
    alike = 2 if find is bounded.recurrent else 1
    return tuple(found if index < alike else UNKNOWN for index in range(count))

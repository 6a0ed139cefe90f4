"""images(step) → where the entries of each output of a node lie, given those of its inputs.

One row for each op that is followed; any other gives UNKNOWN. The arrays of a Range broadcast to its
value's shape, so entrywise ops broadcast as the runtime does; what changes shapes keeps one interval for
all entries, and of the slices' norms only what survives.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from snaudit.domains import is_default
from snaudit import ranges, ranges_affine, ranges_moves
from snaudit.bound import root_up, times_up, up
from snaudit.ranges import (
    UNKNOWN,
    Range,
    along,
    enclosing,
    flat,
    joined,
)
from snaudit.ranges_curves import curve_of, periodic, power, raised, two_slopes
from snaudit.rules.interface import Step

Image = Callable[[Step], Range]
_UNIT = enclosing(0.0, 1.0)


def images(step: Step) -> tuple[Range, ...]:
    """The Range of each output of a node."""
    domain = "" if is_default(step.node) else step.node.domain
    find = _TABLE.get((domain, step.node.op_type))
    count = len(step.node.outputs)
    if find is None:
        return (UNKNOWN,) * count
    found = find(step)
    alike = count if step.node.op_type == "Split" else 2 if step.node.op_type in _RECURRENT else 1
    return tuple(found if index < alike else UNKNOWN for index in range(count))


def _curve(step: Step) -> Range:
    if len(step.inputs) > 1 and step.has(1):
        return UNKNOWN  # FastGelu's bias
    curve = curve_of(step.node.op_type, step.attribute)
    return UNKNOWN if curve is None else curve.image(step.range(0))


def _periodic(step: Step) -> Range:
    return periodic(step.node.op_type, step.range(0))[0]


def _prelu(step: Step) -> Range:
    slopes = step.constant(1)
    if slopes is None or not np.isfinite(slopes).all():
        return UNKNOWN
    found = two_slopes(slopes).image(step.range(0))
    return enclosing(found.low, found.high, found.rests)


def _clip(step: Step) -> Range:
    one = step.range(0)
    if step.opset < 11:
        ends = [step.attribute("min", -math.inf), step.attribute("max", math.inf)]
    else:
        arrays = [step.constant(i) if step.has(i) else np.array(s * math.inf) for i, s in ((1, -1), (2, 1))]
        if any(array is None or array.size != 1 for array in arrays):
            return UNKNOWN
        ends = [float(array.ravel()[0]) for array in arrays]
    if not ends[0] <= ends[1]:
        return UNKNOWN
    return enclosing(np.clip(one.low, *ends), np.clip(one.high, *ends), one.rests)


def _power(step: Step) -> Range:
    exponent, base = step.constant(1), step.constant(0)
    if exponent is not None and exponent.size == 1 and 0.0 < abs(float(exponent.ravel()[0])) < 100.0:
        return power(float(exponent.ravel()[0])).image(step.range(0))
    if base is not None and base.size == 1 and 0.0 < float(base.ravel()[0]) < math.inf:
        return raised(float(base.ravel()[0])).image(step.range(1))
    return UNKNOWN


def _sum(step: Step) -> Range:
    total = step.range(0)
    for index in range(1, len(step.inputs)):
        total = ranges.added(total, step.range(index))
    return _with_rows(step, total, _added_rows(step))


def _difference(step: Step) -> Range:
    if step.node.inputs[0] is step.node.inputs[1]:
        return enclosing(0.0, 0.0)
    found = ranges.added(step.range(0), ranges.negated(step.range(1)))
    return _with_rows(step, found, _added_rows(step))


def _added_rows(step: Step) -> float:
    """‖a + b‖ ≤ ‖a‖ + ‖b‖ over slices of the last axis, each broadcast to the result's length."""
    parts = [_row(step, index) for index in range(len(step.inputs))]
    return up(math.fsum(parts)) if all(math.isfinite(part) for part in parts) else math.inf


def _row(step: Step, index: int) -> float:
    """sup of the l2 norm over slices of the result's last axis that input `index` is broadcast to."""
    shape, own = step.output_shape(), step.shape(index)
    one = step.range(index)
    size = shape[-1] if shape else None
    if size is not None and own and own[-1] == size:
        return along(one, -1, size)
    return math.inf if size is None else times_up(one.largest, root_up(float(size)))


def _with_rows(step: Step, one: Range, row: float) -> Range:
    return enclosing(one.low, one.high, one.rests, (-1, row) if math.isfinite(row) else None)


def _product(step: Step) -> Range:
    first, second = step.range(0), step.range(1)
    if step.node.inputs[0] is step.node.inputs[1]:
        return ranges.squared(first)
    found = ranges.multiplied(first, second)
    row = min(times_up(_row(step, 0), second.largest), times_up(first.largest, _row(step, 1)))
    return _with_rows(step, found, row)


def _quotient(step: Step) -> Range:
    inverse = ranges.inverted(step.range(1))
    found = ranges.multiplied(step.range(0), inverse)
    return _with_rows(step, found, times_up(_row(step, 0), inverse.largest))


def _extreme(step: Step) -> Range:
    pick = np.maximum if step.node.op_type == "Max" else np.minimum
    parts = [step.range(index) for index in range(len(step.inputs))]
    low, high = parts[0].low, parts[0].high
    for part in parts[1:]:
        low, high = pick(low, part.low), pick(high, part.high)
    return enclosing(low, high, ranges.resting(parts))


def _mean(step: Step) -> Range:
    count = len(step.inputs)
    total = _sum(step)
    return ranges.multiplied(enclosing(total.low, total.high, total.rests), ranges.inverted(enclosing(count, count)))


def _chosen(step: Step) -> Range:
    return joined(step.range(1), step.range(2))


def _same(step: Step) -> Range:
    return step.range(0)


def _cast(step: Step) -> Range:
    source = step.node.inputs[0].dtype
    if step.attribute("to", step.node.outputs[0].dtype) not in (1, 10, 11, 16):
        return UNKNOWN
    return _UNIT if source is not None and int(source) == 9 else step.range(0)


def _steps(step: Step) -> Range:
    """Floor, Ceil, Round: within one of the input."""
    one = step.range(0)
    return enclosing(np.floor(one.low), np.ceil(one.high), one.rests)


def _softmax(step: Step) -> Range:
    axis = int(step.attribute("axis", -1 if step.opset >= 13 else 1))
    shape = step.shape(0)
    if shape is None:
        return _UNIT
    axis = axis % len(shape) - len(shape)
    if step.opset < 13 and axis != -1:
        axis = -1  # over all axes from there on: a part of them is no more than the whole
    return enclosing(0.0, 1.0, rows=(axis, 1.0), sums=(axis, 1.0))


def _unit(step: Step) -> Range:
    return _UNIT


def _log_softmax(step: Step) -> Range:
    return enclosing(-math.inf, 0.0)


def _sign(step: Step) -> Range:
    return enclosing(-1.0, 1.0)


def _layer_norm(step: Step) -> Range:
    """ẑ = u/√(v + ε) has ‖ẑ‖₂ < √d, and centred |ẑᵢ| ≤ √(d − 1), since ẑᵢ = −Σ of the others."""
    shape, scale = step.shape(0), step.constant(1)
    axis = int(step.attribute("axis", -1))
    if shape is None or scale is None or None in shape[axis:] or not float(step.attribute("epsilon", 1e-5)) > 0:
        return UNKNOWN
    size = math.prod(shape[axis:])
    centred = step.node.op_type == "LayerNormalization"
    entry = root_up(float(max(size - 1, 1) if centred else size))
    found = ranges.multiplied(enclosing(-entry, entry), ranges.of_constant(scale))
    row = times_up(root_up(float(size)), ranges.of_constant(scale).largest)
    shift = step.constant(2) if step.has(2) else None
    if step.has(2):
        if shift is None:
            return UNKNOWN
        found = ranges.added(found, ranges.of_constant(shift))
        added = ranges.of_constant(shift)
        whole = shift.ndim and shift.shape[-1] == shape[-1]
        alike = times_up(added.largest, root_up(float(shape[-1])))
        row = up(row + (along(added, -1, shape[-1]) if whole else alike))
    return enclosing(found.low, found.high, frozenset(), (-1, row) if math.isfinite(row) else None)


def _group_norm(step: Step) -> Range:
    """As `_layer_norm` over each channel (InstanceNormalization) or group of channels."""
    shape, scale, shift = step.shape(0), step.constant(1), step.constant(2)
    if shape is None or scale is None or shift is None or None in shape[1:]:
        return UNKNOWN
    parts = int(step.attribute("num_groups", 1)) if step.node.op_type == "GroupNormalization" else shape[1]
    size = math.prod(shape[1:]) // max(1, parts)
    entry = root_up(float(max(size - 1, 1)))
    entries = ranges.multiplied(enclosing(-entry, entry), flat(ranges.of_constant(scale)))
    return ranges.added(entries, flat(ranges.of_constant(shift)))


_RECURRENT = ("LSTM", "GRU", "RNN")


def _recurrent(step: Step) -> Range:
    """With the default activations every state is a gate times a tanh, or a mean of a tanh and the state
    before, so within ±1 if it starts within; a clip or another activation is not looked into."""
    if step.attribute("activations") is not None or step.attribute("clip") is not None:
        return UNKNOWN
    start = step.range(5) if step.has(5) else enclosing(0.0, 0.0)
    most = max(1.0, start.largest)
    return enclosing(-most, most, start.rests)


_MOVES = (
    "Flatten", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "GatherElements", "GatherND", "TopK", "Compress",
)  # fmt: skip
_ROWS: tuple[tuple[Image, tuple[str, ...]], ...] = (
    (_same, ("Identity", "Dropout")),
    (_cast, ("Cast",)),
    (_steps, ("Floor", "Ceil", "Round")),
    (ranges_moves.selected, _MOVES),
    (ranges_moves.channelwise, ("MaxPool", "GlobalMaxPool", "GlobalAveragePool")),
    (ranges_moves.sliced, ("Slice", "Split", "ReverseSequence")),
    (ranges_moves.cropped, ("CenterCropPad", "Trilu")),
    (ranges_moves.reshaped, ("Reshape", "Squeeze", "Unsqueeze")),
    (ranges_moves.transposed, ("Transpose",)),
    (ranges_moves.gathered, ("Gather",)),
    (ranges_moves.concatenated, ("Concat",)),
    (ranges_moves.padded, ("Pad",)),
    (ranges_moves.scattered, ("ScatterND", "ScatterElements", "Scatter")),
    (ranges_moves.resized, ("Resize", "Upsample")),
    (ranges_moves.averaged, ("AveragePool",)),
    (ranges_moves.reduced, ("ReduceMean", "ReduceMax", "ReduceMin")),
    (ranges_moves.total, ("ReduceSum",)),
    (ranges_moves.euclidean, ("ReduceL2",)),
    (ranges_moves.absolute, ("ReduceL1",)),
    (ranges_moves.squares, ("ReduceSumSquare",)),
    (ranges_moves.log_sum_exp, ("ReduceLogSumExp",)),
    (_sum, ("Add", "Sum")),
    (_difference, ("Sub",)),
    (_mean, ("Mean",)),
    (_product, ("Mul",)),
    (_quotient, ("Div",)),
    (_extreme, ("Max", "Min")),
    (_chosen, ("Where",)),
    (_power, ("Pow",)),
    (_prelu, ("PRelu",)),
    (_clip, ("Clip",)),
    (_periodic, ("Sin", "Cos")),
    (_softmax, ("Softmax",)),
    (_unit, ("Hardmax", "IsNaN", "IsInf", "Not", "And", "Or", "Xor", "Equal", "Less", "LessOrEqual",
             "Greater", "GreaterOrEqual")),
    (_log_softmax, ("LogSoftmax",)),
    (_sign, ("Sign",)),
    (_layer_norm, ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")),
    (_group_norm, ("InstanceNormalization", "GroupNormalization")),
    (_recurrent, _RECURRENT),
    (ranges_affine.matmul, ("MatMul",)),
    (ranges_affine.gemm, ("Gemm",)),
    (ranges_affine.convolution, ("Conv", "ConvTranspose")),
    (ranges_affine.batch_normalization, ("BatchNormalization",)),
    (_curve, ("Relu", "Sigmoid", "Tanh", "HardSwish", "Mish", "Abs", "Neg", "Erf", "Softplus", "Softsign", "Atan",
              "Asinh", "Exp", "Sinh", "Cosh", "Log", "Sqrt", "Reciprocal", "Asin", "Acos", "Acosh", "Atanh",
              "LeakyRelu", "Elu", "Selu", "Celu", "HardSigmoid", "Gelu", "Swish")),
)  # fmt: skip
_TABLE: dict[tuple[str, str], Image] = {("", op): find for find, ops in _ROWS for op in ops}
_TABLE |= {("com.microsoft", op): _curve for op in ("Gelu", "FastGelu", "QuickGelu")}
_TABLE[("", "ThresholdedRelu")] = lambda step: joined(step.range(0), enclosing(0.0, 0.0))

"""Quantizers and products of integer codes, as the functions that they are without rounding.

A quantizer rounds, so the exact function jumps and has no Lipschitz constant. Without rounding it is
clip(x/s + z), of slope 1/s at most, and differs from the exact one by half a step for each entry. So the
network f and the network f̃ without rounding differ by at most some e, and

    ‖f(x) − f(y)‖ ≤ L·‖x − y‖ + 2e,  L a Lipschitz constant of f̃.

Rules here return L's share, graded ASSUMED because it is not about f. `compose` walks the graph a second time
with `step.errors` set; then a Value's `lip` is a bound of the error so far: every rule passes errors on as it passes
distances on, and quantizers add their own. Codes are values in steps of their scale: Q(x) has Lipschitz
constant Lip(x)/s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from snaudit import joint
from snaudit.bound import Bound, Grade, at_most, chain, root_up, scaled, sum_up, up
from snaudit.broadcasting import dims, spread
from snaudit.domains import is_known
from snaudit.gains import copies, diagonal, means, outward
from snaudit.rules.interface import SURROGATE, Row, Step, Unbounded, Value, through

_INTEGERS = ("int2", "uint2", "int4", "uint4")
_AUDIT = "audit the model before quantization"


_MOVES = (
    "Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Gather",
    "GatherND", "Expand", "Tile", "Pad", "MaxPool", "GlobalMaxPool", "Max", "Min", "Clip", "Relu", "DepthToSpace",
    "SpaceToDepth", "Where", "ReduceMax", "ReduceMin", "Dropout", "If",
)  # fmt: skip
"""Ops whose result on integers is that on the same real numbers, with neither rounding nor overflow."""


def makes_codes(node: Any, of_codes: bool) -> bool:
    """Whether a node's results are codes; `of_codes`: whether it reads some."""
    if not is_known(node):
        return False
    if node.op_type == "QGemm":
        return len(node.inputs) > 7 and node.inputs[7] is not None
    if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") or node.op_type.startswith("QLinear"):
        return True
    return of_codes and takes_codes(node) and node.op_type in (*_MOVES, "Resize")


def takes_codes(node: Any) -> bool:
    """Whether an op may read codes: it dequantizes, multiplies or moves them. Integer arithmetic of other ops
    rounds or overflows, which no rule counts."""
    if not is_known(node):
        return False
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return mode is None or mode.value in ("nearest", b"nearest")
    return node.op_type in _MOVES or node.op_type == "Cast" or any(row.op == node.op_type for row in ROWS)


def _positive(step: Step, index: int) -> np.ndarray:
    """The scale that input `index` holds, in float64."""
    found = step.constant(index)
    if found is None:
        reason = f"a scale of {step.node.op_type} is no known constant"
        raise Unbounded(reason, "store it as a constant of the model", "unknown-constant")
    array = found.astype(np.float64)
    if not (np.isfinite(array) & (array > 0)).all() or not array.size:
        raise Unbounded(f"a scale of {step.node.op_type} is not positive", "repair it", "bad-constant")
    return array


def _step_of(step: Step, index: int) -> float:
    """The largest scale at `index`: what a step of the codes is worth at most."""
    return float(_positive(step, index).max())


def _steps_in(step: Step, index: int) -> float:
    """1 over the smallest scale at `index`, rounded up."""
    return up(float(1.0 / _positive(step, index).min()))


def _operator(step: Step) -> Bound:
    if step.operator is None or not step.operator.bounded:
        reason = f"the integer weight of {step.node.op_type} was not measured"
        raise Unbounded(reason, "store codes, zero point and scale as constants of the model", "unmeasured-weight")
    return step.operator


def _surrogate(value: Value, own: float = 0.0) -> Value:
    """The value as what rests on quantizers that do not round, with an error of its own."""
    lip = at_most(sum_up([value.lip.upper, own]), value.lip.method, Grade.ASSUMED)
    return Value(lip, value.sources, assumes=(SURROGATE,), part=None if own else value.part)


def _codes(step: Step, value: Value) -> tuple[Value, ...]:
    """Codes that are rounded: each entry is off by at most half a step, also where it is clipped."""
    if not step.errors:
        return (_surrogate(value),)
    if step.norm == "linf":
        return (_surrogate(value, 0.5),)
    count = _entries(step)
    size = up(float(count)) / 2 if step.norm == "l1" else root_up(up(float(count))) / 2
    return (_surrogate(value, size),)


def _entries(step: Step) -> int:
    """The number of entries of the result; sizes that the model's inputs leave open count as 1."""
    shape = dims(step.node.outputs[0])
    if shape is None and step.node.domain == "com.microsoft" and step.node.op_type in _SAME_SHAPE:
        shape = dims(step.node.inputs[0])
    free = {d for v in step.node.graph.inputs for d in dims(v) or () if isinstance(d, str)}
    if shape is None or not all(isinstance(d, int) or d in free for d in shape):
        raise Unbounded(f"the size of {step.where} is not known", "give the inputs fixed sizes", "unknown-shape")
    return math.prod(d for d in shape if isinstance(d, int))


_SAME_SHAPE = ("QuantizeLinear", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax")


def quantize(step: Step) -> tuple[Value, ...]:
    """1/s times the input's, s the smallest scale: clip(x/s + z) without rounding."""
    zero = step.constant(2)
    kind = zero.dtype if zero is not None else None
    if kind is not None and kind.kind not in "iu" and kind.name not in _INTEGERS:
        raise Unbounded(f"{step.node.op_type} rounds to {kind.name}: a step function", _AUDIT, "step")
    if kind is None and step.attribute("output_dtype", 0) not in (0, 2, 3, 4, 5, 6, 21, 22, 25, 26):
        raise Unbounded(f"{step.node.op_type} rounds to narrow floats: a step function", _AUDIT, "step")
    return _codes(step, through(step.data(), at_most(_steps_in(step, 1), "1/scale")))


def dequantize(step: Step) -> tuple[Value, ...]:
    """s times the codes', s the largest scale: (q − z)·s is exact."""
    return (through(step.data(), at_most(_step_of(step, 1), "scale")),)


def dynamic(step: Step) -> tuple[Value, ...]:
    """None by itself: codes and scale both depend on the input. Behind the product with its scale the codes are
    bounded as the input is."""
    _no_error_known(step)
    reason = "chooses its scale by its input, and what becomes of the codes is in no known pattern"
    raise Unbounded(f"{step.node.op_type} {reason}", "quantize with fixed scales, or " + _AUDIT, "step")


def integer_product(step: Step) -> tuple[Value, ...]:
    """None by itself: the product's scale comes after it. `compose` bounds the pattern as a whole."""
    reason = f"the scale of {step.node.op_type}'s result was not found behind it"
    raise Unbounded(reason, _AUDIT, "unmeasured-weight")


def rounded_product(step: Step) -> tuple[Value, ...]:
    """‖W‖ times the input's, W the real weight: the input is rounded to codes inside of the node."""
    _no_error_known(step)
    return (_surrogate(through(step.data(), _operator(step))),)


def _no_error_known(step: Step) -> None:
    if step.errors:
        reason = f"the step of {step.where} grows with its input"
        raise Unbounded(reason, "quantize with fixed scales", "step")


def blockwise(step: Step) -> tuple[Value, ...]:
    """‖W‖ times the input's, W the real weight of the blocks' codes, scales and zero points.

    At accuracy_level 4 runtimes round the input to int8: then it is a surrogate's constant.
    """
    if step.attribute("accuracy_level", 0) >= 4:
        return rounded_product(step)
    return (through(step.data(), _operator(step)),)


def scaled_product(step: Step) -> tuple[Value, ...]:
    """s·‖W‖ times the codes', for codes of a fixed scale s; the result is real."""
    return (_surrogate(through(step.data(), scaled(_operator(step), _step_of(step, 2)))),)


def _requantized(data: tuple[int, ...], out: int) -> Callable[[Step], tuple[Value, ...]]:
    """A product with an integer weight: codes in, of the scale behind each of `data`; codes out."""

    def rule(step: Step) -> tuple[Value, ...]:
        varying = [index for index in data if index in step.varying]
        if len(varying) != 1:
            raise Unbounded(f"{step.node.op_type} multiplies two varying values", _AUDIT, "product")
        value = through(step.data(varying[0]), _operator(step))
        gain = outward(_step_of(step, varying[0] + 1) * abs(float(step.attribute("alpha", 1.0))), 2)
        value = through(value, at_most(gain, "scale"))
        if not step.has(out):
            return (_surrogate(value),)
        return _codes(step, through(value, at_most(_steps_in(step, out), "1/scale")))

    rule.__doc__ = "s·‖W‖/s' times the codes', W the real weight, s and s' the scales of input and output."
    return rule


def _scales(step: Step, index: int, out: int) -> Bound:
    return at_most(outward(_step_of(step, index) * _steps_in(step, out), 2), "scales")


def _steep(gain: Callable[[Step], float]) -> Callable[[Step], tuple[Value, ...]]:
    def rule(step: Step) -> tuple[Value, ...]:
        value = through(step.data(), at_most(gain(step), "slope"))
        return _codes(step, through(value, _scales(step, 1, 3)))

    rule.__doc__ = "s/s' times the function's own constant: codes in, codes out."
    return rule


def _leak(step: Step) -> float:
    return max(1.0, abs(float(step.attribute("alpha", 0.01))))


def global_average(step: Step) -> tuple[Value, ...]:
    """s/s'·1/√n (l2), 1/n (l1), 1 (linf) times the codes', over the spatial axes."""
    shape = step.shape(0)
    if shape is None:
        raise Unbounded("the shape of the input is not known", "give the inputs fixed sizes", "unknown-shape")
    sizes = shape[1:-1] if step.attribute("channels_last", 0) else shape[2:]
    gain = means(1 if None in sizes else math.prod(sizes), step.norm)
    return _codes(step, through(through(step.data(), gain), _scales(step, 1, 3)))


def _copied(step: Step, index: int, other: int) -> tuple[Value, tuple[int, ...]]:
    """(input `index` broadcast to the result's shape, the axes along which it is copied)."""
    fixed = step.constant(other)
    against = dims(step.node.inputs[other]) if fixed is None else fixed.shape
    found = spread(dims(step.node.inputs[index]), [against])
    if step.norm != "linf" and (found.count is None or found.meets):
        reason = f"whether {step.node.op_type} copies its input by broadcasting is not known"
        raise Unbounded(reason, "give the inputs fixed sizes", "unknown-shape")
    return through(step.inputs[index], copies(found.count or 1, step.norm)), found.axes


def added(step: Step) -> tuple[Value, ...]:
    """The sum of the branches', each by its scale over the result's."""
    parts = [
        through(_copied(step, index, 3 - index)[0], _scales(step, index + 1, 6))
        for index in (0, 3) if index in step.varying
    ]  # fmt: skip
    return _codes(step, joint.add(parts, step.norm))


def multiplied(step: Step) -> tuple[Value, ...]:
    """max|c| times the codes' by their scale over the result's, c the real constant factor."""
    varying = [index for index in (0, 3) if index in step.varying]
    if len(varying) != 1:
        raise Unbounded("QLinearMul multiplies two varying values", _AUDIT, "product")
    (index,) = varying
    other = 3 - index
    codes, zero = step.constant(other), step.constant(other + 2)
    if codes is None:
        raise Unbounded("a factor of QLinearMul is not known", "store it as a constant", "unknown-constant")
    factors = codes.astype(np.float64) - (0.0 if zero is None else zero.astype(np.float64))
    _, axes = _copied(step, index, other)
    axes = tuple(axis for axis in axes if -axis <= factors.ndim)
    own = chain(diagonal(factors, axes, step.norm), at_most(_step_of(step, other + 1), "scale"))
    return _codes(step, through(through(step.inputs[index], own), _scales(step, index + 1, 6)))


def concatenated(step: Step) -> tuple[Value, ...]:
    """The parts stacked, each by its scale over the result's."""
    parts = []
    for index in range(2, len(step.inputs), 3):
        if index in step.varying:
            parts.append(through(step.inputs[index], _scales(step, index + 1, 0)))
    return _codes(step, joint.stack(parts, step.norm))


def pooled(step: Step) -> tuple[Value, ...]:
    """s/s' times the norm of the averaging map."""
    from snaudit.rules.pooling import average_pool

    if step.attribute("channels_last", 0):
        raise Unbounded("channels last is not bounded yet", "use channels first", "no-rule")
    (value,) = average_pool(replace(step, inputs=(step.data(), *step.inputs[1:])))
    return _codes(step, through(value, _scales(step, 1, 3)))


_WITHOUT = "without rounding; the error is stated"
_M = "com.microsoft"

ROWS: tuple[Row, ...] = (
    *(Row("QuantizeLinear", quantize, "1/s", "clip(x/s + z)", _WITHOUT, domain) for domain in ("", _M)),
    *(Row("DequantizeLinear", dequantize, "s", "(q − z)·s", "constant scale", domain) for domain in ("", _M)),
    Row("DynamicQuantizeLinear", dynamic, "∞", "bounded together with what dequantizes its codes"),
    Row("MatMulInteger", integer_product, "∞", "bounded together with the scaling of its result"),
    Row("ConvInteger", integer_product, "∞", "bounded together with the scaling of its result"),
    Row("QLinearMatMul", _requantized((0, 3), 6), "s·‖W‖/s'", "block diagonal", _WITHOUT),
    Row("QLinearConv", _requantized((0,), 6), "s·‖W‖/s'", "restriction of an infinite convolution", _WITHOUT),
    Row("QLinearConv", _requantized((0,), 6), "s·‖W‖/s'", "restriction of an infinite convolution", _WITHOUT, _M),
    Row("QGemm", _requantized((0,), 7), "s·|alpha|·‖W‖/s'", "block diagonal", _WITHOUT, _M),
    Row("DynamicQuantizeMatMul", rounded_product, "‖W‖", "block diagonal", _WITHOUT, _M),
    Row("MatMulIntegerToFloat", scaled_product, "s·‖W‖", "block diagonal", _WITHOUT, _M),
    Row("MatMulNBits", blockwise, "‖W‖", "block diagonal", "without rounding at accuracy_level 4", _M),
    Row("QLinearAdd", added, "Σ s·L/s'", "triangle inequality", _WITHOUT, _M),
    Row("QLinearMul", multiplied, "s·max|c|/s'", "diagonal map", "one constant factor; " + _WITHOUT, _M),
    Row("QLinearConcat", concatenated, "√Σ(s·L/s')² (l1: Σ, linf: max)", "stacking", _WITHOUT, _M),
    Row("QLinearSigmoid", _steep(lambda step: 0.25), "s/(4s')", "σ' = σ(1 − σ)", _WITHOUT, _M),
    Row("QLinearSoftmax", _steep(lambda step: 0.5), "s/(2s')", "2p(1 − p) ≤ 1/2", _WITHOUT, _M),
    Row("QLinearLeakyRelu", _steep(_leak), "max(1, |alpha|)·s/s'", "two slopes", _WITHOUT, _M),
    Row("QLinearAveragePool", pooled, "s/s' · norm of the averaging map", "tensor product", _WITHOUT, _M),
    Row("QLinearGlobalAveragePool", global_average, "s/(s'·√n) (l1: n, linf: 1)", "mean", _WITHOUT, _M),
)

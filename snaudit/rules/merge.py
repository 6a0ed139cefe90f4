"""Where branches meet: sums, products with constants, maxima, choices, concatenation; all broadcast.

How branches combine, and what disjoint sources gain, is `joint`'s. What broadcasting copies is
`broadcasting`'s: x copied m times costs √m (l2), m (l1), 1 (linf).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from snaudit import joint
from snaudit.bound import Grade, at_most, scaled, times_up, up
from snaudit.broadcasting import Dim, Spread, dims, spread
from snaudit.gains import copies, diagonal, outward
from snaudit.ranges import Range, enclosing, inverted
from snaudit.rules.interface import Row, Step, Unbounded, Value, through, unknown, within


def _dims(step: Step, index: int) -> tuple[Dim, ...] | None:
    known = dims(step.node.inputs[index])
    if known is not None and all(isinstance(d, int) for d in known):
        return known
    constant = step.constant(index)
    return known if constant is None else constant.shape


def _spread(step: Step, index: int) -> Spread:
    """How input `index` is copied; the other shapes, or failing that the result's, tell."""
    others = [_dims(step, i) for i in range(len(step.inputs)) if i != index and step.has(i)]
    found = spread(_dims(step, index), others)
    if found.count is None or found.meets:
        result = spread(_dims(step, index), [dims(step.node.outputs[0])])
        found = result if result.count is not None and not result.meets else found
    if found.count is None and step.norm != "linf":
        raise Unbounded(
            f"whether {step.node.op_type} copies its input {index} by broadcasting is not known",
            "give the inputs fixed sizes, or export the model with shapes",
            "unknown-shape",
        )
    return found


def _copied(step: Step, index: int) -> Value:
    """Input `index` broadcast to the result's shape."""
    found = _spread(step, index)
    value = through(step.inputs[index], copies(found.count or 1, step.norm))
    return _resting_on(value, _assumed(step, found))


def _resting_on(value: Value, assumes: tuple[str, ...]) -> Value:
    """The value with what nobody checked: its bound is only ASSUMED then."""
    lip = replace(value.lip, grade=Grade.ASSUMED) if assumes else value.lip
    return Value(lip, value.sources, assumes=assumes, part=value.part)


def _assumed(step: Step, found: Spread) -> tuple[str, ...]:
    if step.norm == "linf":
        return ()
    return tuple(
        f"{step.where}: the dynamic sizes {pair} are equal at run time (nothing is broadcast)"
        for pair in found.meets
    )


def _with_assumptions(value: Value, parts: Iterable[Value]) -> tuple[Value, ...]:
    sentences = dict.fromkeys(sentence for part in parts for sentence in part.assumes)
    return (Value(value.lip, value.sources, assumes=tuple(sentences), part=value.part),)


def added(step: Step) -> tuple[Value, ...]:
    """The sum of the branches' (√ΣL² in l2, max in l1 for disjoint sources); constants drop out.

    An infinite constant is a mask (its entries leave the next Softmax); NaN is no number to add.
    """
    for index in range(len(step.inputs)):
        constant = None if index in step.varying else step.constant(index)
        if constant is not None and constant.dtype.kind == "f" and np.isnan(constant).any():
            raise Unbounded(
                f"{step.node.op_type} with a constant that holds NaN", "repair it", "bad-constant"
            )
    parts = [_copied(step, i) for i in step.varying]
    return _with_assumptions(joint.add(parts, step.norm), parts)


def mean(step: Step) -> tuple[Value, ...]:
    """1/k times the sum of k branches', constants counted in k."""
    (value,) = added(step)
    gain = up(1.0 / len(step.inputs))
    return (Value(scaled(value.lip, gain), value.sources, assumes=value.assumes, part=value.part),)


def picked(step: Step) -> tuple[Value, ...]:
    """Maximum, minimum or choice by a constant condition: the branches stacked; constants drop out.

    |max(a, b) − max(a', b')| ≤ max(|a − a'|, |b − b'|) entry by entry, hence ≤ ‖(a − a', b − b')‖.
    Where only selects one of the two.
    """
    if step.node.op_type == "Where" and 0 in step.varying:
        raise Unbounded(
            "a condition that depends on the network's input switches", "use Max, Min or Clip", "step"
        )
    parts = [_copied(step, i) for i in step.varying]
    return _with_assumptions(joint.stack(parts, step.norm), parts)


def multiplied(step: Step) -> tuple[Value, ...]:
    """The diagonal map's norm times the varying factor's: max|c|, or c's norm over what it copies.

    Two varying factors f·g: |f·g − f'·g'| ≤ sup|f|·|g − g'| + sup|g|·|f − f'| entry by entry, so sup|f|·L_g +
    sup|g|·L_f (√ of the sum of squares for disjoint sources in l2), each copied by broadcasting first. The
    suprema come from ranges; x·x has 2·sup|x|. Loose where f and g are never large together.
    """
    if len(step.varying) != 1:
        return _product(step, (step.range(1), step.range(0)))
    (index,) = step.varying
    if step.constant(1 - index) is None:
        return _by_a_range(step, index, step.range(1 - index))
    return _scaled_by(step, index, _known(step, 1 - index))


def _product(step: Step, factors: tuple[Range, Range]) -> tuple[Value, ...]:
    """Σ of sup|factor|·L over the two varying inputs; a gap where a supremum is not known."""
    largest = [factor.largest for factor in factors]
    if not all(map(math.isfinite, largest)):
        op = step.node.op_type
        which = "both factors" if all(map(math.isinf, largest)) else "one factor"
        raise Unbounded(
            f"{op} of two values that both depend on the network's input, {which} of unknown range: "
            "its slope grows with them",
            "state an input range (--input-range), bound both factors (Sigmoid, Tanh or Clip before them), or "
            "make one a constant",
            "product",
        )
    parts = []
    for index in (0, 1):
        copied = _copied(step, index)
        gained = through(copied, at_most(largest[index], "range of the other factor"))
        parts.append(replace(gained, assumes=copied.assumes))
    (value,) = _with_assumptions(joint.add(parts, step.norm), parts)
    return (within(value, *factors),)


def _by_a_range(step: Step, index: int, other: Range) -> tuple[Value, ...]:
    """The varying factor times the supremum of the other, of which only a range is known."""
    if not math.isfinite(other.largest):
        _known(step, 1 - index)
    copied = _copied(step, index)
    value = through(copied, at_most(other.largest, "range of a factor"))
    return (within(replace(value, assumes=copied.assumes), other),)


def divided(step: Step) -> tuple[Value, ...]:
    """As Mul, by 1/c, for a constant c without a zero.

    f/g with a varying g is f·(1/g), and 1/g has the slope 1/g²: sup|1/g|·L_f + sup|f/g²|·L_g over ranges. It
    needs a range of g that holds no zero.
    """
    if 1 in step.varying:
        inverse = inverted(step.range(1))
        if not math.isfinite(inverse.largest):
            raise Unbounded(
                "Div by a value that depends on the network's input, and may be near zero: its slope grows "
                "without limit there",
                "state an input range (--input-range) that keeps the divisor away from zero, or divide by a "
                "constant",
                "needs-range",
            )
        curved = times_up(inverse.largest, inverse.largest)
        if 0 not in step.varying:
            if not math.isfinite(step.range(0).largest):
                _known(step, 0)
            copied = _copied(step, 1)
            gain = times_up(curved, step.range(0).largest)
            value = through(copied, at_most(gain, "slope on a range"))
            return (within(replace(value, assumes=copied.assumes), step.range(1)),)
        quotient = enclosing(0.0, times_up(curved, step.range(0).largest), step.range(0).rests)
        return _product(step, (inverse, quotient))
    if step.constant(1) is None and math.isfinite(inverted(step.range(1)).largest):
        return _by_a_range(step, 0, inverted(step.range(1)))
    divisor = _known(step, 1)
    if (divisor == 0).any():
        raise Unbounded("Div by a constant that holds a zero", "repair the constant", "bad-constant")
    with np.errstate(all="ignore"):
        return _scaled_by(step, 0, 1.0 / divisor)


def _known(step: Step, index: int) -> np.ndarray:
    constant = step.constant(index)
    if constant is None:
        raise unknown(step, index)
    return constant.astype(np.float64)


def _scaled_by(step: Step, index: int, factors: np.ndarray) -> tuple[Value, ...]:
    if not np.isfinite(factors).all():
        raise Unbounded(f"{step.node.op_type} by a constant that is not finite", "repair it", "bad-constant")
    found = _spread(step, index)
    axes = tuple(axis for axis in found.axes if -axis <= factors.ndim)
    gain = diagonal(factors, axes, step.norm)
    value = through(step.inputs[index], at_most(outward(gain.upper, 1), gain.method))
    return (Value(value.lip, value.sources, assumes=_assumed(step, found)),)


def concatenated(step: Step) -> tuple[Value, ...]:
    """The parts stacked: √ΣL² (l2), ΣL (l1), max L (linf); max L for parts of disjoint sources."""
    return (joint.stack((step.inputs[i] for i in step.varying), step.norm),)


_BROADCAST = "times the copies of broadcasting"

ROWS: tuple[Row, ...] = (
    *(Row(op, added, "ΣL", "triangle inequality", _BROADCAST) for op in ("Add", "Sub", "Sum")),
    Row("Mean", mean, "ΣL/k", "triangle inequality", _BROADCAST),
    *(
        Row(op, picked, "√ΣL² (l1: ΣL, linf: max)", "each entry is one of the entries", _BROADCAST)
        for op in ("Max", "Min")
    ),
    Row(
        "Where", picked, "√ΣL² (l1: ΣL, linf: max)", "each entry is one of the entries", "constant condition"
    ),
    Row("Mul", multiplied, "max|c|; sup|f|·L_g + sup|g|·L_f", "diagonal map; product rule", "one constant factor, or ranges of both"),
    Row("Div", divided, "1/min|c|; sup|1/g|·L_f + sup|f/g²|·L_g", "diagonal map; quotient rule", "constant divisor, or ranges of both"),
    Row("Concat", concatenated, "√ΣL² (l1: ΣL, linf: max)", "stacking"),
)

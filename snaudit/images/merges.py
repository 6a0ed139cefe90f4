"""Where sums, products, quotients and choices of several values lie."""

from __future__ import annotations

import math

import numpy as np

from snaudit import ranges
from snaudit.bound import root_up, times_up, up
from snaudit.ranges import Range, along, enclosing, joined
from snaudit.rules.interface import Step


def total(step: Step) -> Range:
    """A sum, entry by entry; its slices by the triangle inequality."""
    found = step.range(0)
    for index in range(1, len(step.inputs)):
        found = ranges.added(found, step.range(index))
    return _with_rows(step, found, _added_rows(step))


def difference(step: Step) -> Range:
    """As `total`; exactly zero for x − x."""
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


def product(step: Step) -> Range:
    """A product, entry by entry; ‖f·g‖ ≤ sup|f|·‖g‖ for the slices."""
    first, second = step.range(0), step.range(1)
    if step.node.inputs[0] is step.node.inputs[1]:
        return ranges.squared(first)
    found = ranges.multiplied(first, second)
    row = min(times_up(_row(step, 0), second.largest), times_up(first.largest, _row(step, 1)))
    return _with_rows(step, found, row)


def quotient(step: Step) -> Range:
    """As `product`, with the reciprocal; unknown where that may have a pole."""
    inverse = ranges.inverted(step.range(1))
    found = ranges.multiplied(step.range(0), inverse)
    return _with_rows(step, found, times_up(_row(step, 0), inverse.largest))


def extreme(step: Step) -> Range:
    """The entrywise Max or Min."""
    pick = np.maximum if step.node.op_type == "Max" else np.minimum
    parts = [step.range(index) for index in range(len(step.inputs))]
    low, high = parts[0].low, parts[0].high
    for part in parts[1:]:
        low, high = pick(low, part.low), pick(high, part.high)
    return enclosing(low, high, ranges.resting(parts))


def mean(step: Step) -> Range:
    """A sum over the count."""
    count = len(step.inputs)
    found = total(step)
    return ranges.multiplied(enclosing(found.low, found.high, found.rests), ranges.inverted(enclosing(count, count)))


def chosen(step: Step) -> Range:
    """Either branch of Where."""
    return joined(step.range(1), step.range(2))

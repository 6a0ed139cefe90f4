"""Where the entries of ops lie that bound their result whatever goes in."""

from __future__ import annotations

import math

from snaudit import ranges
from snaudit.bound import root_up, times_up, up
from snaudit.ranges import UNKNOWN, Range, along, enclosing, flat
from snaudit.rules.interface import Step

_UNIT = enclosing(0.0, 1.0)

def softmax(step: Step) -> Range:
    """Entries in [0, 1] that sum to 1 along the axis."""
    axis = int(step.attribute("axis", -1 if step.opset >= 13 else 1))
    shape = step.shape(0)
    if shape is None:
        return _UNIT
    axis = axis % len(shape) - len(shape)
    if step.opset < 13 and axis != -1:
        axis = -1  # over all axes from there on: a part of them is no more than the whole
    return enclosing(0.0, 1.0, rows=(axis, 1.0), sums=(axis, 1.0))


def log_softmax(step: Step) -> Range:
    """At most 0."""
    return enclosing(-math.inf, 0.0)


def layer_norm(step: Step) -> Range:
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


def group_norm(step: Step) -> Range:
    """As `layer_norm` over each channel (InstanceNormalization) or group of channels."""
    shape, scale, shift = step.shape(0), step.constant(1), step.constant(2)
    if shape is None or scale is None or shift is None or None in shape[1:]:
        return UNKNOWN
    parts = int(step.attribute("num_groups", 1)) if step.node.op_type == "GroupNormalization" else shape[1]
    size = math.prod(shape[1:]) // max(1, parts)
    entry = root_up(float(max(size - 1, 1)))
    entries = ranges.multiplied(enclosing(-entry, entry), flat(ranges.of_constant(scale)))
    return ranges.added(entries, flat(ranges.of_constant(shift)))


RECURRENT = ("LSTM", "GRU", "RNN")


def recurrent(step: Step) -> Range:
    """With the default activations every state is a gate times a tanh, or a mean of a tanh and the state
    before, so within ±1 if it starts within; a clip or another activation is not looked into."""
    if step.attribute("activations") is not None or step.attribute("clip") is not None:
        return UNKNOWN
    start = step.range(5) if step.has(5) else enclosing(0.0, 0.0)
    most = max(1.0, start.largest)
    return enclosing(-most, most, start.rests)

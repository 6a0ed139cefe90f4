"""Where the entries of entrywise functions of one value lie."""

from __future__ import annotations

import math

import numpy as np

from snaudit import curves
from snaudit.ranges import UNKNOWN, Range, enclosing, joined
from snaudit.rules.interface import Step

_UNIT = enclosing(0.0, 1.0)


def curve(step: Step) -> Range:
    """The image of the op's curve."""
    if len(step.inputs) > 1 and step.has(1):
        return UNKNOWN  # FastGelu's bias
    followed = curves.curve_of(step.node.op_type, step.attribute)
    return UNKNOWN if followed is None else followed.image(step.range(0))


def wave(step: Step) -> Range:
    """Sin and Cos."""
    return curves.periodic(step.node.op_type, step.range(0))[0]


def prelu(step: Step) -> Range:
    """Two slopes, whichever the channel has."""
    slopes = step.constant(1)
    if slopes is None or not np.isfinite(slopes).all():
        return UNKNOWN
    found = curves.two_slopes(slopes).image(step.range(0))
    return enclosing(found.low, found.high, found.rests)


def clip(step: Step) -> Range:
    """The range cut to constant limits."""
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


def raised(step: Step) -> Range:
    """A power of constant exponent, or an exponential of constant base."""
    exponent, base = step.constant(1), step.constant(0)
    if exponent is not None and exponent.size == 1 and 0.0 < abs(float(exponent.ravel()[0])) < 100.0:
        return curves.power(float(exponent.ravel()[0])).image(step.range(0))
    if base is not None and base.size == 1 and 0.0 < float(base.ravel()[0]) < math.inf:
        return curves.raised(float(base.ravel()[0])).image(step.range(1))
    return UNKNOWN


def same(step: Step) -> Range:
    """The input's own."""
    return step.range(0)


def cast(step: Step) -> Range:
    """The input's own in real arithmetic; 0 and 1 of a boolean."""
    source = step.node.inputs[0].dtype
    if step.attribute("to", step.node.outputs[0].dtype) not in (1, 10, 11, 16):
        return UNKNOWN
    return _UNIT if source is not None and int(source) == 9 else step.range(0)


def stepped(step: Step) -> Range:
    """Floor, Ceil, Round: within one of the input."""
    one = step.range(0)
    return enclosing(np.floor(one.low), np.ceil(one.high), one.rests)


def unit(step: Step) -> Range:
    """Within 0 and 1."""
    return _UNIT


def sign(step: Step) -> Range:
    """Within ±1."""
    return enclosing(-1.0, 1.0)


def rectified(step: Step) -> Range:
    """ThresholdedRelu: its argument or zero."""
    return joined(step.range(0), enclosing(0.0, 0.0))

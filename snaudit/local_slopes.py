"""Slope intervals [α, β] of entrywise functions where their argument's own interval is known, entry by entry.

For s, t in [l, u] a function's secant slope is f'(ξ) for some ξ strictly between (mean value theorem), and f' is
monotone between the curve's bends: so it lies in the hull of f'(l), f'(u) and the extrema at the bends inside.
A function of two straight lines has one slope on either side of its knee. Nothing else than where s and t lie is
used: no segment between two inputs of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from snaudit.curves import Curve, curve_of
from snaudit.domains import plain
from snaudit.ranges import Range

Ends = tuple[np.ndarray, np.ndarray]


class Gated(NamedTuple):
    """The function x ↦ outer·F(inner·x)/inner with F that of an op: its slopes are outer·F'(inner·x), within `slack`."""

    op: str
    attributes: Mapping[str, str]
    inner: float
    outer: float
    slack: float = 0.0


Attribute = Callable[[str, Any], Any]
_MARGIN, _FLOOR = 1e-12, 1e-13
"""What a slope in float64 may be off, of itself and besides: hundreds of times what sixty digits show for every curve."""
_FAR = 1e300
_NEAR = 1e-9
"""How early, of its place, a bend counts: places are known to a thousandth of that, and values there are the extremes."""
_SCALES = 1e-12
_RISING = frozenset({"Sigmoid", "Tanh", "Erf", "Softplus", "Softsign", "Atan", "Asinh", "Elu", "Selu", "Celu"})
_GATES = frozenset({"Gelu", "Swish", "QuickGelu", "Mish"})
"""x·g(x) with g rising: the extreme slope on the left is negative, that on the right positive."""


def knee_of(op: str, attribute: Attribute) -> tuple[float, float] | None:
    """(slope below zero, slope above) of a function of two lines that meet at zero."""
    if op == "LeakyRelu":
        return float(attribute("alpha", float(np.float32(0.01)))), 1.0
    return {"Relu": (0.0, 1.0), "Abs": (-1.0, 1.0)}.get(op)


def bent(below: np.ndarray | float, above: np.ndarray | float, low: np.ndarray, high: np.ndarray) -> Ends:
    """The slopes of two lines that meet at zero: one of them where zero is not strictly inside; exact."""
    below, above = np.asarray(below, np.float64), np.asarray(above, np.float64)
    least = np.where(low >= 0.0, above, np.where(high <= 0.0, below, np.minimum(below, above)))
    most = np.where(low >= 0.0, above, np.where(high <= 0.0, below, np.maximum(below, above)))
    return least, most


def clipped(bottom: np.ndarray | float, top: np.ndarray | float, low: np.ndarray, high: np.ndarray) -> Ends:
    """The slopes of min(max(x, bottom), top): 1 between, 0 outside, both where an end is strictly inside; exact."""
    inside = (low >= bottom) & (high <= top)
    outside = (high <= bottom) | (low >= top)
    return np.where(inside & ~outside, 1.0, 0.0), np.where(outside, 0.0, 1.0)


def curved(domain: str, op: str, attribute: Attribute, whole: Ends, low: np.ndarray, high: np.ndarray) -> Ends:
    """The slopes of a smooth function on [low, high], within those on the whole line; those where it is no
    function whose slopes are known with their signs."""
    curve = curve_of(op, attribute) if plain(domain) in ("", "com.microsoft") else None
    gated = op in _GATES
    if curve is None or not (gated or (op in _RISING and min(_signs(op, attribute)) >= 0.0)):
        return whole
    with np.errstate(all="ignore"):
        least, most = _hull(curve, gated, low, high)
    least = np.where(np.isnan(least), -np.inf, least - np.abs(least) * _MARGIN - _FLOOR)
    most = np.where(np.isnan(most), np.inf, most + np.abs(most) * _MARGIN + _FLOOR)
    return np.maximum(whole[0], least), np.minimum(whole[1], most)


def gated(one: Gated, whole: Ends, place: Ends) -> Ends:
    """The slopes of a function that is written out in parts on an interval, within those on the whole line.

    Its scales are products of a few floats, hence off by less than `_SCALES` of themselves.
    """
    at = [np.where(end == 0.0, 0.0, end * one.inner) for end in place]
    low, high = np.minimum(*at), np.maximum(*at)
    low, high = low - _SCALES * np.abs(low), high + _SCALES * np.abs(high)
    anything = np.full_like(low, -np.inf), np.full_like(high, np.inf)
    least, most = curved("", one.op, one.attributes.get, anything, low, high)
    ends = [end * one.outer for end in (least - one.slack, most + one.slack)]
    least, most = np.minimum(*ends), np.maximum(*ends)
    return np.maximum(whole[0], least - _SCALES * np.abs(least)), np.minimum(whole[1], most + _SCALES * np.abs(most))


def _signs(op: str, attribute: Attribute) -> tuple[float, float]:
    if op not in ("Elu", "Selu", "Celu"):
        return 1.0, 1.0
    return float(attribute("alpha", 1.0)), float(attribute("gamma", 1.0))


def _hull(curve: Curve, gated: bool, low: np.ndarray, high: np.ndarray) -> Ends:
    ends = [curve.slope(np.clip(end, -_FAR, _FAR)) for end in (low, high)]
    least, most = np.minimum(*ends), np.maximum(*ends)
    for place, size in curve.bends:
        inside = (low <= place + _NEAR * abs(place)) & (place - _NEAR * abs(place) <= high)
        value = -size if gated and place < 0.0 else size
        least = np.where(inside, np.minimum(least, value), least)
        most = np.where(inside, np.maximum(most, value), most)
    return least, most


def spread_over(one: Range, shape: tuple[int, ...], batched: bool) -> Ends:
    """The interval of each entry of a value of that shape (of all batch entries together where axis 0 is a batch)."""
    ends = []
    for end, least in ((one.low, np.min), (one.high, np.max)):
        if batched and end.ndim == len(shape) and end.shape[0] != 1:
            end = least(end, axis=0, keepdims=True)
        try:
            ends.append(np.broadcast_to(end, shape).ravel())
        except ValueError:
            ends.append(np.full(int(np.prod(shape)), least(end)))
    return ends[0], ends[1]

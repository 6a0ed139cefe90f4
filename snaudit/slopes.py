"""Slope intervals [α, β] of entrywise functions: α(s − t) ≤ φ(s) − φ(t) ≤ β(s − t) for s > t.

The rules' gains are max(|α|, |β|) of these. Decimals are rounded outward: the extrema of φ' are checked
to 30 digits in tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from snaudit.bound import up
from snaudit.domains import plain

Interval = tuple[float, float]
Attribute = Callable[[str, Any], Any]
"""attribute(name, default) → the value that a node has."""


def _wide(low: float, high: float) -> Interval:
    return math.nextafter(low, -math.inf), up(high)


GELU_ERF = _wide(-0.1289041451851549, 1.128904145185155)
GELU_TANH = _wide(-0.1289930686587719, 1.128993068658772)
SILU = _wide(-0.0998393201288670, 1.099839320128867)
MISH = _wide(-0.1125261223894627, 1.088498161251728)
ERF = (0.0, up(1.1283791670955126))
_UNIT = (0.0, 1.0)
_DEFAULT = float(np.float32(0.01))  # the lesser of the standard's 0.01 and what runtimes hold


def _leaky_relu(attribute: Attribute) -> Interval:
    alpha = attribute("alpha", _DEFAULT)
    return min(1.0, alpha), max(1.0, alpha)


def _elu(attribute: Attribute) -> Interval:
    """alpha·eˣ for x < 0: slopes between 0 and alpha; 1 for x > 0."""
    alpha = attribute("alpha", 1.0)
    return min(0.0, alpha), max(1.0, alpha)


def _selu(attribute: Attribute) -> Interval:
    """gamma for x > 0, gamma·alpha·eˣ below."""
    alpha = attribute("alpha", 1.67326319217681884765625)
    gamma = attribute("gamma", 1.05070102214813232421875)
    ends = (0.0, gamma, gamma * alpha)
    low, high = min(ends), max(ends)
    return (0.0 if low == 0.0 else math.nextafter(low, -math.inf)), up(high)


def _celu(attribute: Attribute) -> Interval | None:
    return _UNIT if attribute("alpha", 1.0) > 0 else None


def _hard_sigmoid(attribute: Attribute) -> Interval:
    alpha = attribute("alpha", float(np.float32(0.2)))
    return min(0.0, alpha), max(0.0, alpha)


def _gelu(attribute: Attribute) -> Interval:
    return GELU_TANH if attribute("approximate", "none") == "tanh" else GELU_ERF


def _thresholded_relu(attribute: Attribute) -> Interval | None:
    return _UNIT if attribute("alpha", 1.0) == 0.0 else None


def _shrink(attribute: Attribute) -> Interval | None:
    return _UNIT if attribute("lambd", 0.5) == attribute("bias", 0.0) >= 0.0 else None


def _always(interval: Interval) -> Callable[[Attribute], Interval]:
    return lambda attribute: interval


_TABLE: dict[tuple[str, str], Callable[[Attribute], Interval | None]] = {
    **{("", op): _always(_UNIT) for op in ("Relu", "Tanh", "Softplus", "Softsign", "Atan", "Asinh", "Clip")},
    **{("", op): _always((-1.0, 1.0)) for op in ("Abs", "Sin", "Cos")},
    ("", "Sigmoid"): _always((0.0, 0.25)),
    ("", "Erf"): _always(ERF),
    ("", "HardSwish"): _always((-0.5, 1.5)),
    ("", "Mish"): _always(MISH),
    ("", "LeakyRelu"): _leaky_relu,
    ("", "Elu"): _elu,
    ("", "Selu"): _selu,
    ("", "Celu"): _celu,
    ("", "HardSigmoid"): _hard_sigmoid,
    ("", "Gelu"): _gelu,
    ("", "ThresholdedRelu"): _thresholded_relu,
    ("", "Shrink"): _shrink,
    ("", "Swish"): _always(SILU),
    ("com.microsoft", "Gelu"): _always(GELU_ERF),
    ("com.microsoft", "QuickGelu"): _always(SILU),
}


def interval(domain: str, op: str, attribute: Attribute) -> Interval | None:
    """The slope interval of an op's function, as its attributes have it; None where none is known."""
    row = _TABLE.get((plain(domain), op))
    found = None if row is None else row(attribute)
    if found is None or not all(math.isfinite(end) for end in found):
        return None
    return found

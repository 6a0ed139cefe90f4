"""Curves: functions of one entry, with their image and their steepest slope on an interval.

A curve is monotone between its `turns`, and its slope between its `bends`; so its image on [a, b] is the
hull of the values at a, b and at the turns between, and sup|f'| the largest |f'| at a, b and at the bends
between. Where a turn or a bend is known to ten digits only, it counts a billionth early, with the
extremum over the whole line. Values are computed in float64 by numpy's functions (at most 4 ulp each);
`_MARGIN` and `_FLOOR` cover that, and cancellation in slopes of order one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from snaudit.ranges import Range, enclosing, with_zero

Function = Callable[[np.ndarray], np.ndarray]
Marks = tuple[tuple[float, float], ...]
_MARGIN, _FLOOR = 1e-12, 1e-13
_NEAR = 1e-9
_FAR, _TINY = 1e300, 1e-300


@dataclass(frozen=True, slots=True)
class Curve:
    """f, its slope, and where either turns: ((place, value there), …); `codomain` clamps the image.

    `exact`: values and slopes are exact in float64 (piecewise linear): no margin is added to slopes.
    `fixes_zero`: f(0) = 0, so that |f(x)| ≤ sup|f'|·|x|. `floor`: the absolute error of a value.
    """

    value: Function
    slope: Function
    turns: Marks = ()
    bends: Marks = ()
    codomain: tuple[float, float] = (-math.inf, math.inf)
    exact: bool = False
    fixes_zero: bool = False
    floor: float = _FLOOR

    def image(self, one: Range) -> Range:
        """The range of f(x), x in the range."""
        with np.errstate(all="ignore"):
            ends = [self.value(end) for end in _near(one)]
            low, high = np.minimum(*ends), np.maximum(*ends)
            for place, value in self.turns:
                inside = _holds(one, place)
                low = np.where(inside, np.minimum(low, value), low)
                high = np.where(inside, np.maximum(high, value), high)
            low = low - np.abs(low) * _MARGIN - self.floor
            high = high + np.abs(high) * _MARGIN + self.floor
        low, high = np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
        low, high = np.maximum(low, self.codomain[0]), np.minimum(high, self.codomain[1])
        rows = None
        if self.fixes_zero and one.rows is not None:
            steepest = self.steepest(with_zero(one))  # f(x) − f(0): the slope between 0 and x counts
            rows = (one.rows[0], one.rows[1] * steepest * (1 + _MARGIN)) if math.isfinite(steepest) else None
        return enclosing(low, high, one.rests, rows)

    def steepest(self, one: Range) -> float:
        """sup |f'| on the range, rounded up; ∞ where the slope has no limit there."""
        with np.errstate(all="ignore"):
            sizes = [np.abs(self.slope(end)) for end in _near(one)]
            most = float(np.max(np.maximum(*sizes)))
            for place, value in self.bends:
                if _holds(one, place).any():
                    most = max(most, abs(value))
        if math.isnan(most):
            return math.inf
        return most if self.exact else most * (1 + _MARGIN) + _FLOOR


def _near(one: Range) -> tuple[np.ndarray, np.ndarray]:
    """The ends, those beyond 1e300 moved outward to infinity (or inward from it, on the inner side)."""
    low = np.where(one.low < -_FAR, -np.inf, np.minimum(one.low, _FAR))
    return low, np.where(one.high > _FAR, np.inf, np.maximum(one.high, -_FAR))


def _holds(one: Range, place: float) -> np.ndarray:
    slack = _NEAR * abs(place)
    return (one.low <= place + slack) & (place - slack <= one.high)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _at_ends(value: Function, below: float, above: float) -> Function:
    """The function with its limits at −∞ and ∞."""

    def whole(x: np.ndarray) -> np.ndarray:
        inner = value(np.clip(x, -_FAR, _FAR))
        return np.where(x == -np.inf, below, np.where(x == np.inf, above, inner))

    return whole


def _logistic_slope(x: np.ndarray) -> np.ndarray:
    return _sigmoid(x) * _sigmoid(-x)


def _gaussian(x: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def _gelu_slope(x: np.ndarray) -> np.ndarray:
    return 0.5 * _erfc(-x / math.sqrt(2.0)) + x * _gaussian(x)


_K, _CUBE = math.sqrt(2.0 / math.pi), 0.044715


def _tanh_gelu(x: np.ndarray) -> np.ndarray:
    inner = _K * (x + _CUBE * x**3)
    return x * _sigmoid(2.0 * inner)


def _tanh_gelu_slope(x: np.ndarray) -> np.ndarray:
    inner = _K * (x + _CUBE * x**3)
    gate = _sigmoid(2.0 * inner)
    return gate + x * gate * _sigmoid(-2.0 * inner) * 2.0 * _K * (1.0 + 3.0 * _CUBE * x * x)


def _silu_slope(x: np.ndarray) -> np.ndarray:
    return _sigmoid(x) + x * _logistic_slope(x)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x)


def _mish_slope(x: np.ndarray) -> np.ndarray:
    gate = np.tanh(_softplus(x))
    return gate + x * (1.0 - gate * gate) * _sigmoid(x)


def _gated(value: Function, slope: Function, turn: tuple[float, float], bends: Marks) -> Curve:
    """x·g(x) with g rising from 0 to 1: one minimum, slopes 0 and 1 at the ends."""
    bends = tuple((place, size + 1e-12) for place, size in bends)
    ends = _at_ends(value, 0.0, math.inf), _at_ends(slope, 0.0, 1.0)
    return Curve(*ends, ((turn[0], turn[1] - 1e-12),), bends, (turn[1] - 1e-12, math.inf), fixes_zero=True)


GELU = _gated(
    lambda x: 0.5 * x * _erfc(-x / math.sqrt(2.0)), _gelu_slope,
    (-0.7517915246935645, -0.16997120747990369),
    ((-math.sqrt(2.0), 0.1289041451851548), (math.sqrt(2.0), 1.128904145185155)),
)  # fmt: skip
TANH_GELU = _gated(
    _tanh_gelu, _tanh_gelu_slope, (-0.7524614220710163, -0.17004075057125406),
    ((-1.4185040087908284, 0.1289930686587718), (1.4185040087908284, 1.128993068658772)),
)  # fmt: skip
SILU = _gated(
    lambda x: x * _sigmoid(x), _silu_slope, (-1.2784645427610737, -0.2784645427610738),
    ((-2.3993572805154677, 0.09983932012886692), (2.3993572805154677, 1.099839320128867)),
)  # fmt: skip
MISH = _gated(
    lambda x: x * np.tanh(_softplus(x)), _mish_slope, (-1.1924312145154952, -0.3088434130172504),
    ((-2.256376396360793, 0.1125261223894626), (1.4905711794854285, 1.088498161251728)),
)  # fmt: skip
SIGMOID = Curve(_sigmoid, _logistic_slope, bends=((0.0, 0.25),), codomain=(0.0, 1.0))
TANH = Curve(
    np.tanh, lambda x: 1.0 / np.cosh(x) ** 2, bends=((0.0, 1.0),), codomain=(-1.0, 1.0), fixes_zero=True
)
RELU = Curve(
    lambda x: np.maximum(x, 0.0), lambda x: np.where(x > 0.0, 1.0, 0.0), bends=((0.0, 1.0),),
    codomain=(0.0, math.inf), exact=True, fixes_zero=True,
)  # fmt: skip


def two_slopes(below: np.ndarray | float, above: float = 1.0) -> Curve:
    """above·x for x > 0, below·x for x < 0; `below` broadcasts to the value."""
    below = np.asarray(below, np.float64)
    steep = max(float(np.abs(below).max(initial=0.0)), abs(above))
    return Curve(
        lambda x: np.where(x > 0.0, above * x, np.where(x == 0.0, 0.0, below * x)),
        lambda x: np.where(x > 0.0, abs(above), np.abs(below)), ((0.0, 0.0),), ((0.0, steep),),
        exact=True, fixes_zero=True,
    )  # fmt: skip


def exponential_below(scale: float, gain: float, rate: float = 1.0) -> Curve:
    """gain·x for x > 0, gain·scale·(e^(x/rate) − 1) for x < 0: Elu, Selu, Celu (rate > 0)."""
    steep = abs(gain) * max(1.0, abs(scale) / rate)

    def value(x: np.ndarray) -> np.ndarray:
        return gain * np.where(x > 0.0, x, scale * np.expm1(np.minimum(x, 0.0) / rate))

    def slope(x: np.ndarray) -> np.ndarray:
        return abs(gain) * np.where(x > 0.0, 1.0, abs(scale) / rate * np.exp(np.minimum(x, 0.0) / rate))

    return Curve(value, slope, ((0.0, 0.0),), ((0.0, steep),), fixes_zero=True)


def clipped(low: float, high: float) -> Curve:
    """min(max(x, low), high)."""
    return Curve(
        lambda x: np.minimum(np.maximum(x, low), high), lambda x: np.where((x > low) & (x < high), 1.0, 0.0),
        bends=((low, 1.0), (high, 1.0)), codomain=(low, high), exact=True, fixes_zero=low <= 0.0 <= high,
    )  # fmt: skip


def ramp(alpha: float, beta: float) -> Curve:
    """HardSigmoid: min(max(alpha·x + beta, 0), 1). A margin stands for where the line meets its ends."""
    starts = [(-beta / alpha, alpha), ((1.0 - beta) / alpha, alpha)] if alpha else []

    def inside(x: np.ndarray) -> np.ndarray:
        line = alpha * x + beta
        return np.where((line > -1e-9) & (line < 1.0 + 1e-9), abs(alpha), 0.0)

    return Curve(
        lambda x: np.clip(alpha * x + beta, 0.0, 1.0), inside, bends=tuple(starts), codomain=(0.0, 1.0)
    )


def _hard_swish_slope(x: np.ndarray) -> np.ndarray:
    return np.where(x > 3.0, 1.0, np.where(x < -3.0, 0.0, np.abs(2.0 * np.clip(x, -3, 3) + 3.0) / 6.0))


HARD_SWISH = Curve(
    _at_ends(lambda x: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0), 0.0, math.inf), _hard_swish_slope,
    ((-1.5, -0.375), (-3.0, 0.0)), ((-3.0, 0.5), (3.0, 1.5)), (-0.375, math.inf), fixes_zero=True,
)  # fmt: skip


def soft_gate(alpha: float) -> Curve:
    """x·σ(alpha·x) = g(alpha·x)/alpha with g = SiLU, for alpha > 0."""
    return Curve(
        lambda x: SILU.value(alpha * x) / alpha,
        lambda x: SILU.slope(alpha * x),
        tuple((place / alpha, value / alpha) for place, value in SILU.turns),
        tuple((place / alpha, value) for place, value in SILU.bends),
        fixes_zero=True,
    )


def power(exponent: float) -> Curve:
    """x^p for a fixed p; where p is no integer, of x ≥ 0 only (elsewhere nothing is known)."""
    at_zero = 0.0 if exponent > 1.0 else 1.0 if exponent == 1.0 else math.inf
    whole = exponent == int(exponent)
    pole = ((0.0, math.inf), (0.0, -math.inf)) if exponent < 0.0 else ((0.0, 0.0),)

    def domain(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return y if whole else np.where(x < 0.0, np.nan, y)

    return Curve(
        lambda x: domain(x, np.power(x, exponent)),
        lambda x: domain(x, abs(exponent) * np.power(np.abs(x), exponent - 1.0)),
        pole, ((0.0, at_zero),),
        (0.0, math.inf) if exponent % 2 == 0 or not whole else (-math.inf, math.inf), floor=_TINY,
    )  # fmt: skip


def raised(base: float) -> Curve:
    """a^x for a fixed base a > 0."""
    rate = abs(math.log(base))
    return Curve(lambda x: np.power(base, x), lambda x: rate * np.power(base, x), codomain=(0.0, math.inf), floor=_TINY)


def _inside(low: float, high: float, slope: Function) -> Function:
    """The slope, infinite outside the open domain (low, high)."""
    return lambda x: np.where((x > low) & ((x < high) | (high == np.inf)), slope(x), np.inf)


_POSITIVE = (0.0, math.inf)
CURVES: dict[str, Curve] = {
    "Relu": RELU,
    "Sigmoid": SIGMOID,
    "Tanh": TANH,
    "HardSwish": HARD_SWISH,
    "Mish": MISH,
    "Abs": Curve(np.abs, lambda x: np.ones_like(x), ((0.0, 0.0),), codomain=_POSITIVE, exact=True, fixes_zero=True),
    "Neg": Curve(np.negative, lambda x: np.ones_like(x), exact=True, fixes_zero=True),
    "Erf": Curve(
        _erf, lambda x: 2.0 / math.sqrt(math.pi) * np.exp(-x * x), bends=((0.0, 1.1283791670955128),),
        codomain=(-1.0, 1.0), fixes_zero=True,
    ),
    "Softplus": Curve(_softplus, _sigmoid, codomain=_POSITIVE),
    "Softsign": Curve(
        _at_ends(lambda x: x / (1.0 + np.abs(x)), -1.0, 1.0), lambda x: 1.0 / (1.0 + np.abs(x)) ** 2,
        bends=((0.0, 1.0),), codomain=(-1.0, 1.0), fixes_zero=True,
    ),
    "Atan": Curve(np.arctan, lambda x: 1.0 / (1.0 + x * x), bends=((0.0, 1.0),), fixes_zero=True),
    "Asinh": Curve(np.arcsinh, lambda x: 1.0 / np.sqrt(1.0 + x * x), bends=((0.0, 1.0),), fixes_zero=True),
    "Exp": Curve(np.exp, np.exp, codomain=_POSITIVE, floor=_TINY),
    "Sinh": Curve(np.sinh, np.cosh, bends=((0.0, 1.0),), fixes_zero=True),
    "Cosh": Curve(np.cosh, np.sinh, ((0.0, 1.0),), ((0.0, 0.0),), (1.0, math.inf)),
    "Log": Curve(np.log, _inside(0.0, math.inf, lambda x: 1.0 / x), floor=_TINY),
    "Sqrt": Curve(np.sqrt, _inside(0.0, math.inf, lambda x: 0.5 / np.sqrt(x)), codomain=_POSITIVE, floor=_TINY),
    "Reciprocal": power(-1.0),
    "Asin": Curve(np.arcsin, _inside(-1.0, 1.0, lambda x: 1.0 / np.sqrt((1.0 - x) * (1.0 + x))), bends=((0.0, 1.0),)),
    "Acos": Curve(np.arccos, _inside(-1.0, 1.0, lambda x: 1.0 / np.sqrt((1.0 - x) * (1.0 + x))), bends=((0.0, 1.0),)),
    "Acosh": Curve(np.arccosh, _inside(1.0, math.inf, lambda x: 1.0 / np.sqrt((x - 1.0) * (x + 1.0)))),
    "Atanh": Curve(np.arctanh, _inside(-1.0, 1.0, lambda x: 1.0 / ((1.0 - x) * (1.0 + x))), bends=((0.0, 1.0),)),
}  # fmt: skip
"""Curves without parameters. Sin, Cos and Tan are `periodic`'s."""


def periodic(op: str, one: Range) -> tuple[Range, float]:
    """(image, sup |f'|) of Sin or Cos on a range: by the multiples of π/2 that it holds, a billionth early."""
    quarter = 0.5 * math.pi
    low, high = float(one.low.min()), float(one.high.max())
    if not high - low < 8.0 or max(-low, high) > 1e6:
        return enclosing(-1.0, 1.0, one.rests), 1.0
    first, last = math.ceil(low / quarter - _NEAR), math.floor(high / quarter + _NEAR)
    shift = 0 if op == "Sin" else 1
    values = [math.sin(end + shift * quarter) for end in (low, high)]
    values += [(0.0, 1.0, 0.0, -1.0)[(k + shift) % 4] for k in range(first, last + 1)]
    slopes = [abs(math.cos(end + shift * quarter)) for end in (low, high)]
    slopes += [(1.0, 0.0)[(k + shift) % 2] for k in range(first, last + 1)]
    image = enclosing(max(-1.0, min(values) - 1e-9), min(1.0, max(values) + 1e-9), one.rests)
    return image, min(1.0, max(slopes) + 1e-9)


def curve_of(op: str, attribute: Callable[[str, Any], Any]) -> Curve | None:
    """The curve of an op with its attributes; None where the op is none, or its attributes are odd."""
    if op in CURVES:
        return CURVES[op]
    made = _MADE.get(op)
    try:
        return None if made is None else made(attribute)
    except (ArithmeticError, TypeError, ValueError):
        return None


def _swish(attribute: Callable[[str, Any], Any]) -> Curve | None:
    alpha = float(attribute("alpha", 1.0))
    return soft_gate(alpha) if 1e-3 <= alpha <= 1e3 else None


def _quick_gelu(attribute: Callable[[str, Any], Any]) -> Curve | None:
    alpha = float(attribute("alpha", float(np.float32(1.702))))
    return soft_gate(alpha) if 1e-3 <= alpha <= 1e3 else None


def _celu(attribute: Callable[[str, Any], Any]) -> Curve | None:
    alpha = float(attribute("alpha", 1.0))
    return exponential_below(alpha, 1.0, alpha) if alpha > 0.0 else None


_MADE: dict[str, Callable[[Callable[[str, Any], Any]], Curve | None]] = {
    "LeakyRelu": lambda a: two_slopes(float(a("alpha", float(np.float32(0.01))))),
    "Elu": lambda a: exponential_below(float(a("alpha", 1.0)), 1.0),
    "Selu": lambda a: exponential_below(
        float(a("alpha", 1.67326319217681884765625)), float(a("gamma", 1.05070102214813232421875))
    ),
    "Celu": _celu,
    "HardSigmoid": lambda a: ramp(float(a("alpha", float(np.float32(0.2)))), float(a("beta", 0.5))),
    "Gelu": lambda a: TANH_GELU if a("approximate", "none") == "tanh" else GELU,
    "FastGelu": lambda a: TANH_GELU,
    "Swish": _swish,
    "QuickGelu": _quick_gelu,
}

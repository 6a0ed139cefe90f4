"""Numbers and grades as people read them: a few digits, and never rounded to the unsafe side."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal

from snaudit.bound import Bound, Grade

DIGITS = 5

GRADE_MEANS = {
    Grade.PROVED: "holds for the stored weights, our own rounding included",
    Grade.COMPUTED: "a theorem evaluated in float64, its rounding not enclosed",
    Grade.ESTIMATED: "an estimate: no theorem makes it an upper bound",
    Grade.ASSUMED: "rests on an assumption that nobody checked",
}


def at_most(x: float, digits: int = DIGITS) -> str:
    """x ≥ 0 rounded up to so many significant digits: the text is never below x.

    >>> at_most(12.34561), at_most(320000.0), at_most(math.inf)
    ('12.346', '3.2e+05', 'unbounded')
    """
    return _shown(x, ROUND_CEILING, digits)


def at_least(x: float, digits: int = DIGITS) -> str:
    """x ≥ 0 rounded down: the text is never above x."""
    return _shown(x, ROUND_FLOOR, digits)


def near(x: float, digits: int = DIGITS) -> str:
    """x rounded to nearest: for what is an estimate anyway."""
    return _shown(x, ROUND_HALF_EVEN, digits)


def upper_of(bound: Bound, digits: int = DIGITS) -> str:
    """The upper end of a bound rounded up, also where it exceeds the largest float.

    >>> upper_of(Bound(0.0, math.inf, Grade.PROVED, "product", 400.0))
    '1e+400'
    """
    if bound.bounded or not bound.known:
        return at_most(bound.upper, digits)
    exponent = math.floor(bound.huge)
    if bound.huge == exponent:
        return f"1e+{exponent}"
    text = at_most(10.0 ** (bound.huge - exponent) * (1.0 + 1e-12), digits)
    return f"{text.rstrip('0').rstrip('.')}e+{exponent}"


def exact(x: float) -> str:
    """The shortest text that reads back as x: for limits, which people wrote."""
    return repr(x).removesuffix(".0")


def apart(x: float, limit: float) -> str:
    """x with as many digits as it takes to be seen to lie on its own side of the limit."""
    show = at_least if x > limit else at_most
    for digits in range(DIGITS, 17):
        text = show(x, digits)
        if math.isinf(x) or (float(text) > limit) == (x > limit):
            return text
    return exact(x)


def short_of(estimate: float, value: float) -> str:
    """How far an estimate from below falls short of the value, in percent: "-3.2%"."""
    if not (math.isfinite(estimate) and math.isfinite(value)) or value <= 0.0:
        return ""
    missing = (1.0 - estimate / value) * 100.0
    if missing < 0.05:
        return "0.0%"
    return f"-{missing:.1f}%" if missing < 99.95 else "-100%"


def size(count: int) -> str:
    """A number of bytes in the largest decimal unit that leaves at least one."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count} bytes"


def _shown(x: float, rounding: str, digits: int) -> str:
    if math.isnan(x):
        return "not a number"
    if math.isinf(x):
        return "unbounded"
    if x == 0.0:
        return "0"
    rounded = Context(prec=digits, rounding=rounding).plus(Decimal(x))
    exponent = rounded.adjusted()
    if -4 < exponent < digits:
        return f"{rounded:.{digits - 1 - exponent}f}"
    mantissa = f"{rounded.scaleb(-exponent):.{digits - 1}f}".rstrip("0").rstrip(".")
    return f"{mantissa}e{exponent:+03d}"

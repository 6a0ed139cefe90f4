"""Bound, Grade, and the few ways in which bounds combine. All outward rounding lives here.

A bound encloses one non-negative number, a gain (dimensionless: output norm over input norm).
Its lower end is something seen (a witness, rounded down), its upper end something argued
(a theorem, rounded up). `math.inf` as upper is an honest value: no finite bound is known.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from snaudit.errors import SoundnessError

Norm = Literal["l2", "linf", "l1"]
NORMS: tuple[Norm, ...] = ("l2", "linf", "l1")


class Grade(enum.IntEnum):
    """How far a bound's upper end may be trusted; combining takes the least."""

    ASSUMED = 0
    """Rests on something that nobody checked."""
    ESTIMATED = 1
    """No theorem makes it an upper bound (power iteration taken as one)."""
    COMPUTED = 2
    """A theorem, evaluated in float64 without enclosing the rounding (LAPACK's SVD, say)."""
    PROVED = 3
    """Holds in exact arithmetic for the stored weights, our own rounding included."""


def up(x: float) -> float:
    """The next float above x: one rounding to nearest can have lost at most that."""
    return math.nextafter(x, math.inf)


def down(x: float) -> float:
    """The next float below x, and never below zero."""
    return max(0.0, math.nextafter(x, -math.inf))


def times_up(a: float, b: float) -> float:
    """a·b rounded up, for a, b ≥ 0. 0·∞ is ∞: what has no bound does not get one by a zero."""
    if math.isinf(a) or math.isinf(b):
        return math.inf
    if a == 0.0 or b == 0.0:
        return 0.0
    if a == 1.0 or b == 1.0:  # exact
        return a * b
    return up(a * b)


def sum_up(terms: Iterable[float]) -> float:
    """The sum of non-negative floats, rounded up (`fsum` rounds once), and exact where that is a float."""
    values = [term for term in terms if term != 0.0]
    try:
        total = math.fsum(values)
    except OverflowError:
        return math.inf
    if math.isinf(total) or math.fsum([*values, -total]) <= 0.0:  # the sign of what rounding lost
        return total
    return up(total)


def root_up(x: float) -> float:
    """√x rounded up; exact for the squares of integers."""
    root = math.sqrt(x)
    if root <= 2.0**26 and root == int(root) and root * root == x:  # root² has 53 bits: no rounding
        return root
    return up(root)


def root_sum_squares_up(terms: Iterable[float]) -> float:
    """√Σtᵢ² rounded up, scaled so that squares do not overflow."""
    values = [term for term in terms if term != 0.0]
    if len(values) < 2:
        return values[0] if values else 0.0
    largest = max(values)
    if math.isinf(largest):
        return math.inf
    exponent = math.frexp(largest)[1]  # scaling by a power of two is exact, but for subnormals
    scaled = [math.ldexp(value, -exponent) for value in values]
    total = sum_up(up(value * value) for value in scaled)
    try:
        return up(math.ldexp(up(math.sqrt(total)), exponent))
    except OverflowError:
        return math.inf


@dataclass(frozen=True, slots=True)
class Bound:
    """An enclosure lower ≤ gain ≤ upper, with the grade of its upper end and the method behind it.

    huge: where upper is ∞ only because the number exceeds the largest float, log₁₀ of it, rounded up;
    else ∞. rests: for reading only, how log upper grows with the log of each layer's norm that it is made
    of (its elasticity), by the layer's name. Raises ValueError for an interval that encloses nothing (negative, NaN, lower > upper).
    """

    lower: float
    upper: float
    grade: Grade
    method: str
    huge: float = math.inf
    rests: tuple[tuple[str, float], ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.lower <= self.upper or math.isinf(self.lower):
            raise ValueError(f"no interval: [{self.lower}, {self.upper}] by {self.method}")

    @property
    def bounded(self) -> bool:
        """Whether the upper end is a float."""
        return math.isfinite(self.upper)

    @property
    def known(self) -> bool:
        """Whether there is a finite upper end, a float or not."""
        return math.isfinite(self.upper) or math.isfinite(self.huge)

    @property
    def size(self) -> tuple[float, float]:
        """What orders upper ends, those beyond the floats included."""
        return self.upper, self.huge if math.isinf(self.upper) else 0.0

    @property
    def log10_upper(self) -> float:
        """log₁₀ of the upper end, rounded up; −∞ for zero."""
        if self.upper == 0.0:
            return -math.inf
        return self.huge if math.isinf(self.upper) else _log_up(self.upper)


def enclosed(lower: float, upper: float, grade: Grade, method: str) -> Bound:
    """The bound of ends that were found apart from each other and may cross by what rounding left open.

    Raises SoundnessError where they cross by more: then one of them is wrong.
    """
    if lower > upper * (1.0 + 1e-9) + 1e-280:
        raise SoundnessError(f"{method}: seen {lower!r}, above the argued {upper!r}")
    return Bound(min(lower, upper), upper, grade, method)


def exactly(value: float, method: str = "exact") -> Bound:
    """The bound of a gain known exactly."""
    return Bound(value, value, Grade.PROVED, method)


def at_most(upper: float, method: str, grade: Grade = Grade.PROVED) -> Bound:
    """The bound of a gain of which nothing was seen, only argued."""
    return Bound(0.0, upper, grade, method)


UNBOUNDED = Bound(0.0, math.inf, Grade.PROVED, "unbounded")
"""No finite bound is known. Vacuously proved."""


def chain(first: Bound, then: Bound, method: str = "product") -> Bound:
    """The bound of then∘first: uppers multiply (Lip(f∘g) ≤ Lip f · Lip g); nothing was seen."""
    upper, grade = times_up(first.upper, then.upper), min(first.grade, then.grade)
    rests = _together([(1.0, first), (1.0, then)])
    if math.isinf(upper) and first.known and then.known:
        return _of_log(up(first.log10_upper + then.log10_upper), method, grade, rests)
    return Bound(0.0, upper, grade, method, rests=rests)


def scaled(bound: Bound, factor: float) -> Bound:
    """The bound of factor·f for a known |factor|: both ends scale, outward."""
    size = abs(factor)
    if size == 1.0:
        return bound
    if not math.isfinite(size):
        return replace(bound, lower=0.0, upper=math.inf, huge=math.inf)
    upper = times_up(bound.upper, size)
    huge = math.inf
    if math.isinf(upper) and bound.known and size > 0.0:
        found = _of_log(up(bound.log10_upper + _log_up(size)), bound.method, bound.grade)
        upper, huge = found.upper, found.huge
    return replace(bound, lower=down(bound.lower * size), upper=upper, huge=huge)


def total(bounds: Iterable[Bound], method: str = "sum of branches") -> Bound:
    """The bound of f₁+…+f_k: uppers add, by the triangle inequality, in any norm."""
    terms = tuple(bounds)
    upper, rests = sum_up(b.upper for b in terms), _shared(terms, 1.0)
    if math.isinf(upper):
        return _of_log(_log_sum(terms, 1.0), method, _least(terms), rests)
    return Bound(0.0, upper, _least(terms), method, rests=rests)


def stacked(bounds: Iterable[Bound], norm: Norm, method: str = "concatenation") -> Bound:
    """The bound of x ↦ (f₁(x), …, f_k(x)): √ΣL² in l2, ΣL in l1, max L in linf."""
    terms, power = tuple(bounds), {"l2": 2.0, "l1": 1.0, "linf": math.inf}[norm]
    uppers, rests = [b.upper for b in terms], _shared(terms, power)
    if norm == "l2":
        upper = root_sum_squares_up(uppers)
    else:
        upper = sum_up(uppers) if norm == "l1" else max(uppers, default=0.0)
    if math.isinf(upper):
        return _of_log(_log_sum(terms, power), method, _least(terms), rests)
    return Bound(0.0, upper, _least(terms), method, rests=rests)


def larger(bounds: Iterable[Bound], method: str) -> Bound:
    """The bound of whichever of the functions it is: the largest upper end, the least grade."""
    return stacked(bounds, "linf", method)


_Rests = tuple[tuple[str, float], ...]


def _together(parts: Iterable[tuple[float, Bound]]) -> _Rests:
    """What the bounds rest on, each with its weight."""
    found: dict[str, float] = {}
    for weight, bound in parts:
        for name, part in bound.rests:
            found[name] = found.get(name, 0.0) + weight * part
    return tuple(found.items())


def _shared(bounds: tuple[Bound, ...], power: float) -> _Rests:
    """What the p-norm of uppers rests on: ∂ log‖u‖_p/∂ log uᵢ = (uᵢ/‖u‖_p)^p; of a maximum, its own."""
    if not any(bound.rests for bound in bounds) or not all(bound.known for bound in bounds):
        return ()
    logs = [bound.log10_upper for bound in bounds]
    largest = max(logs)
    if math.isinf(power) or math.isinf(largest):
        return bounds[logs.index(largest)].rests
    shares = [10.0 ** (power * (log - largest)) for log in logs]
    return _together((share / math.fsum(shares), bound) for share, bound in zip(shares, bounds, strict=True))


_BEYOND = 308.25
"""log₁₀ of the largest float is 308.2547…: what is below this fits."""


def _log_up(x: float) -> float:
    """log₁₀ x rounded up, for x > 0 (libm's logarithms are within 2 ulp, also of small results)."""
    found = math.log10(x)
    return found + abs(found) * 2.0**-50 + 2.0**-1000


def _log_sum(bounds: tuple[Bound, ...], power: float) -> float:
    """log₁₀ of the p-norm of the upper ends, rounded up: m + log₁₀(Σ10^(p(l − m)))/p with the largest l = m."""
    if not all(bound.known for bound in bounds):
        return math.inf
    logs = [bound.log10_upper for bound in bounds if bound.upper != 0.0]
    largest = max(logs)
    if math.isinf(power):
        return largest
    parts = math.fsum(10.0 ** (power * (log - largest)) for log in logs) * (1.0 + 1e-9)
    return up(largest + _log_up(parts) / power) if len(logs) > 1 else largest


def _of_log(log: float, method: str, grade: Grade, rests: _Rests = ()) -> Bound:
    """The bound 10^log: a float where it is one."""
    if math.isinf(log):
        return at_most(math.inf, method, grade)
    if log < _BEYOND:
        return Bound(0.0, 10.0**log * (1.0 + 1e-12), grade, method, rests=rests)
    return Bound(0.0, math.inf, grade, method, log, rests)


def _least(bounds: tuple[Bound, ...]) -> Grade:
    return min((b.grade for b in bounds), default=Grade.PROVED)

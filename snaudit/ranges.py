"""Range: where the entries of a value lie, as intervals rounded outward, and what norms its slices keep.

Intervals travel as arrays that broadcast to the value's shape: one pair for all entries, one for each
channel, or one for each entry. Unknown is (−∞, ∞): never wrong, and the answer of every op that nobody
wrote a rule for. Directed rounding: a sum is corrected by the sign of its error (Knuth's TwoSum, exact in
round-to-nearest), a product or quotient by one float; 0·∞ is 0, since a range's entries are finite numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from snaudit.bound import root_sum_squares_up, root_up, times_up, up
from snaudit.rounding import SAFE, TINY

LARGEST = 1 << 16
"""Entries of an interval array beyond which one interval stands for all."""


@dataclass(frozen=True, slots=True, eq=False)
class Range:
    """Every entry lies in [low, high], on the box of inputs that `rests` names (empty: everywhere).

    rows   (axis, r): no slice along that axis (counted from the last, −1) has an l2 norm above r
    sums   (axis, s): no slice along that axis has an l1 norm above s
    rests  sentences for the reader: the box of inputs on which this holds
    """

    low: np.ndarray
    high: np.ndarray
    rows: tuple[int, float] | None = None
    sums: tuple[int, float] | None = None
    rests: frozenset[str] = frozenset()

    @property
    def largest(self) -> float:
        """sup |x|; ∞ where that is not known."""
        return max(-float(self.low.min(initial=0.0)), float(self.high.max(initial=0.0)))

    @property
    def least(self) -> float:
        """inf |x|: 0 where the interval holds zero."""
        return float(np.maximum(0.0, np.maximum(self.low, -self.high)).min(initial=np.inf))

    @property
    def known(self) -> bool:
        """Whether anything is known at all."""
        return bool(np.isfinite(self.low).any() or np.isfinite(self.high).any()) or self.rows is not None

    @property
    def bounded(self) -> bool:
        """Whether every entry has a finite interval."""
        return bool(np.isfinite(self.low).all() and np.isfinite(self.high).all())


UNKNOWN = Range(np.array(-np.inf), np.array(np.inf))


def enclosing(
    low: np.ndarray | float,
    high: np.ndarray | float,
    rests: frozenset[str] = frozenset(),
    rows: tuple[int, float] | None = None,
    sums: tuple[int, float] | None = None,
) -> Range:
    """The Range of these ends. NaN says nothing; an entry is at most as large as its slice's norm."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    low, high = np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
    low, high = np.where(low == np.inf, -np.inf, low), np.where(high == -np.inf, np.inf, high)
    for most in (rows, sums):
        if most is not None:
            low, high = np.maximum(low, -most[1]), np.minimum(high, most[1])
    crossed = low > high  # two claims that exclude each other: neither is to be relied on
    if crossed.any():
        low, high = np.where(crossed, -np.inf, low), np.where(crossed, np.inf, high)
        rows = sums = None
    if max(low.size, high.size) > LARGEST:
        low, high = low.min(), high.max()
    elif 0 in (low.size, high.size):
        low, high = UNKNOWN.low, UNKNOWN.high
    return Range(np.asarray(low), np.asarray(high), rows, sums, rests)


def of_constant(array: np.ndarray) -> Range:
    """The exact range of a stored array, a large one by its rows; an infinite entry is a mask, of which
    nothing is said."""
    if array.size <= LARGEST:
        return _of_small(array)
    flat_rows = array.reshape(-1, array.shape[-1])
    step = max(1, LARGEST // array.shape[-1])
    parts = [_of_small(flat_rows[start : start + step]) for start in range(0, len(flat_rows), step)]
    rows = [np.inf if part.rows is None else part.rows[1] for part in parts]
    row = (-1, max(rows)) if max(rows) < np.inf else None
    low, high = min(float(part.low.min()) for part in parts), max(float(part.high.max()) for part in parts)
    return enclosing(low, high, rows=row)


def _of_small(array: np.ndarray) -> Range:
    values = np.asarray(array).astype(np.float64)
    low, high = values, values
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:  # may have been rounded
        exact = np.abs(values) < 2.0**53
        low = np.where(exact, values, np.nextafter(values, -np.inf))
        high = np.where(exact, values, np.nextafter(values, np.inf))
    finite = np.isfinite(values)
    rows = None
    if values.ndim and values.size and finite.all() and float(np.abs(values).max()) < 1e100:
        rows = (-1, float(np.sqrt(np.square(values).sum(axis=-1)).max()) * SAFE + TINY)
    return enclosing(np.where(finite, low, -np.inf), np.where(finite, high, np.inf), rows=rows)


def added(first: Range, second: Range) -> Range:
    """The entrywise sum."""
    first, second = _small_together(first, second)
    with np.errstate(all="ignore"):
        low, high = _sum(first.low, second.low)[0], _sum(first.high, second.high)[1]
    return enclosing(low, high, first.rests | second.rests)


def _small_together(first: Range, second: Range) -> tuple[Range, Range]:
    """Both as they are, or one interval each where their entries together would be too many."""
    shapes = [np.broadcast_shapes(one.low.shape, one.high.shape) for one in (first, second)]
    try:
        size = math.prod(np.broadcast_shapes(*shapes))
    except ValueError:
        size = LARGEST + 1
    return (first, second) if size <= LARGEST else (flat(first), flat(second))


def _sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a + b rounded down, rounded up): fl(a + b) is off by exactly TwoSum's error."""
    s = a + b
    shadow = s - a
    error = (a - (s - shadow)) + (b - shadow)
    exact = error == 0.0
    below = np.where(exact | (error > 0.0), s, np.nextafter(s, -np.inf))
    above = np.where(exact | (error < 0.0), s, np.nextafter(s, np.inf))
    return below, above


def negated(one: Range) -> Range:
    """The entrywise −x: exact."""
    return replace(one, low=-one.high, high=-one.low)


def multiplied(first: Range, second: Range) -> Range:
    """The entrywise product of two values that may differ; `squared` is tighter for x·x."""
    first, second = _small_together(first, second)
    with np.errstate(all="ignore"):
        pairs = [(a, b) for a in (first.low, first.high) for b in (second.low, second.high)]
        parts = [(a, b, np.where((a == 0.0) | (b == 0.0), 0.0, a * b)) for a, b in pairs]
    ends = [
        np.where((a == 0.0) | (b == 0.0), 0.0, np.nextafter(p, sign * np.inf))
        for sign in (-1, 1)
        for a, b, p in parts
    ]
    low = np.minimum.reduce(np.broadcast_arrays(*ends[:4]))
    high = np.maximum.reduce(np.broadcast_arrays(*ends[4:]))
    return enclosing(low, high, first.rests | second.rests)


def squared(one: Range) -> Range:
    """The entrywise x²."""
    both = multiplied(one, one)
    return enclosing(np.maximum(both.low, 0.0), both.high, one.rests)


def inverted(one: Range) -> Range:
    """The entrywise 1/x; nothing is known where the interval holds zero."""
    with np.errstate(all="ignore"):
        apart = (one.low > 0.0) | (one.high < 0.0)
        low = np.where(apart, np.nextafter(1.0 / one.high, -np.inf), -np.inf)
        high = np.where(apart, np.nextafter(1.0 / one.low, np.inf), np.inf)
    return enclosing(low, high, one.rests)


def hull(parts: Iterable[Range]) -> Range:
    """One interval that holds every entry of every part (for parts of any shapes)."""
    parts = list(parts)
    if not parts:
        return UNKNOWN
    low = min(float(part.low.min()) for part in parts)
    high = max(float(part.high.max()) for part in parts)
    return enclosing(low, high, resting(parts))


def joined(first: Range, second: Range) -> Range:
    """Entry by entry the interval that holds both."""
    first, second = _small_together(first, second)
    low, high = np.minimum(first.low, second.low), np.maximum(first.high, second.high)
    return enclosing(low, high, first.rests | second.rests)


def meet(first: Range, second: Range) -> Range:
    """What both say of one value; the first alone where the second adds nothing."""
    low, high = np.maximum(first.low, second.low), np.minimum(first.high, second.high)
    if not ((low > first.low).any() or (high < first.high).any()):
        return first
    found = enclosing(low, high, first.rests | second.rests, first.rows, first.sums)
    return found if found.bounded or not first.bounded else first


def middle_of(one: Range | None) -> Range:
    """One point of a range, entry by entry: its middle, or zero where it has none."""
    if one is None or not one.bounded:
        return enclosing(0.0, 0.0)
    middle = np.clip(0.5 * one.low + 0.5 * one.high, one.low, one.high)
    return enclosing(middle, middle)


def flat(one: Range) -> Range:
    """One interval for all entries: what survives any change of shape."""
    return enclosing(one.low.min(), one.high.max(), one.rests)


def with_zero(one: Range) -> Range:
    """The interval with zero in it: padding, masking."""
    return replace(one, low=np.minimum(one.low, 0.0), high=np.maximum(one.high, 0.0))


def scaled(one: Range, factor: float) -> Range:
    """factor times the value, with its slices' norms."""
    found = multiplied(one, enclosing(factor, factor))
    size = abs(factor)
    rows = None if one.rows is None else (one.rows[0], times_up(one.rows[1], size))
    sums = None if one.sums is None else (one.sums[0], times_up(one.sums[1], size))
    return enclosing(found.low, found.high, one.rests, rows, sums)


def along(one: Range, axis: int, size: int | None) -> float:
    """sup of the l2 norm over slices along `axis` (< 0) of `size` entries: what `rows` says, or
    √Σ max(|low|, |high|)² from the entries; the lesser."""
    best = one.rows[1] if one.rows is not None and one.rows[0] == axis else np.inf
    if one.sums is not None and one.sums[0] == axis:
        best = min(best, one.sums[1])
    return min(best, _over(one, axis, size, root_sum_squares_up, lambda n: root_up(float(n))))


def ends_along(one: Range, axis: int, size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The interval of each entry along `axis` (< 0), over all other axes; None where one is infinite."""
    if not one.bounded:
        return None
    ends = []
    for end, least in ((one.low, np.min), (one.high, np.max)):
        if -axis <= end.ndim and end.shape[axis] in (1, size):
            others = tuple(a for a in range(end.ndim) if a != end.ndim + axis)
            ends.append(np.broadcast_to(least(end, axis=others), (size,)))
        else:
            ends.append(np.full(size, least(end)))
    return ends[0], ends[1]


def summed(one: Range, axis: int, size: int | None) -> float:
    """sup of the l1 norm over slices along `axis` of `size` entries."""
    best = one.sums[1] if one.sums is not None and one.sums[0] == axis else np.inf
    if one.rows is not None and one.rows[0] == axis and size is not None:
        best = min(best, times_up(one.rows[1], root_up(float(size))))
    return min(best, _over(one, axis, size, lambda row: up(float(sum(row)) * (1 + len(row) * 2.0**-52)), float))


def _over(
    one: Range,
    axis: int,
    size: int | None,
    total: Callable[[list[float]], float],
    alike: Callable[[int], float],
) -> float:
    most = np.maximum(-one.low, one.high)
    if size is not None and -axis <= most.ndim and most.shape[axis] == size > 1:
        over = tuple(a for a in range(most.ndim) if a != most.ndim + axis)
        return total([float(x) for x in most.max(axis=over)])
    return np.inf if size is None else times_up(float(most.max()), alike(size))


def resting(parts: Iterable[Range]) -> frozenset[str]:
    """All that the parts rest on."""
    return frozenset().union(*(part.rests for part in parts))

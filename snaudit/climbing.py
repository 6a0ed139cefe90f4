"""The pair of points that a function stretches most, found with its gradients.

At a pair x, y with d = f(y) − f(x) and u dual to d, the vector-Jacobian products Jᵀu at both ends tell
all: their mean turns the direction y − x (a step of the power method on the mean Jacobian; for l1 and linf
that of Boyd 1974, Linear Algebra Appl. 9), and their difference moves the middle to where the same
direction is stretched more. A piecewise linear function has no such difference within a region: there
the climb goes over smooth functions near it, less and less smooth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from snaudit.ascent import Search, Spent, length
from snaudit.bound import Norm

_COST = 6
"""Evaluations that a pair with its two vector-Jacobian products counts for."""
_POWER = 12
_FEW = 16
"""Outputs up to which whole Jacobians are taken."""
_STEPS = 60
_LOOK = 6
"""Every so many steps over a smooth function the true one is looked at."""
_NEAR = 0.02
_SCALES = (1.0, 0.0, 0.1, 10.0, 100.0)
_REACH = 0.1
_AGAIN = ((0.03, False), (0.1, True), (0.1, False), (0.3, True))
"""How far to go and whether to start from somewhere beside the best pair, in turn."""
_WAYS = 3
"""Pairs to begin with of each size where there are few inputs, else one."""
_SMALL = 100
"""Entries up to which random steps lead somewhere."""
_ALIKE = 1e-4
"""Gains at far places that are so alike, relatively, are a linear function's."""


class Tape(Protocol):
    """f at a point, and u ↦ Jᵀu there."""

    value: np.ndarray

    def back(self, u: np.ndarray) -> np.ndarray: ...


At = Callable[[np.ndarray], Tape]


@dataclass(slots=True)
class Pair:
    """Two points about a middle, how much f stretches their difference, and what its gradients tell."""

    middle: np.ndarray
    direction: np.ndarray
    apart: float
    gain: float
    pull: np.ndarray
    """The mean of Jᵀu at both ends."""
    turn: np.ndarray
    """Their difference: the gain's gradient in the middle, times the distance."""


def climb(search: Search, at: At, smooth: Sequence[At] = ()) -> None:
    """Fill `search.best` with pairs. smooth: functions near `at`, ever nearer; none where it is smooth
    itself. Deterministic for a seed, as long as the time does not end it."""
    try:
        with np.errstate(all="ignore"):
            found = [pair for start in _starts(search) if (pair := _powered(search, at, *start)) is not None]
            if not found:
                return
            found.sort(key=lambda pair: -pair.gain)
            best = found[0]
            _measured(search, best)
            if found[-1].gain > best.gain * (1.0 - _ALIKE):
                _measured(search, _powered(search, at, best.middle, best.pull, best.apart, 0.0) or best)
                return
            for pair in found[: 2 * len(_SCALES)]:
                best = _better(search, best, _climbed(search, at, smooth or (at,), pair, _REACH))
            for reach, shaken in itertools.cycle(_AGAIN):
                if search.size <= _SMALL:
                    best = _better(search, best, _strolled(search, at, best))
                pair = _shaken(search, best) if shaken else best
                best = _better(search, best, _climbed(search, at, smooth or (at,), pair, reach))
    except Spent:
        pass


def _better(search: Search, best: Pair, pair: Pair) -> Pair:
    """The pair that is stretched more; a new one is run."""
    if pair.gain <= best.gain:
        return best
    _measured(search, pair)
    return pair


def _starts(search: Search) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """(middle, direction, distance) of first pairs: of several sizes, or all over a box."""
    rng, size = search.rng, search.size
    low, high = (search.point(np.full(size, end)) for end in (-np.inf, np.inf))
    if np.isfinite(low).all() and np.isfinite(high).all():
        width = float((high - low).max())
        for _ in range(len(_SCALES)):
            yield low + (high - low) * rng.random(size), rng.standard_normal(size), _NEAR * width
        return
    for scale in _SCALES:
        for _ in range(_WAYS if size <= _SMALL else 1):
            yield rng.standard_normal(size) * scale, rng.standard_normal(size), _NEAR * max(scale, 0.1)
    yield rng.random(size), rng.standard_normal(size), _NEAR


def _pair(search: Search, at: At, middle: np.ndarray, direction: np.ndarray, apart: float) -> Pair | None:
    """The pair with its gradients; None where f is not finite, or the points are one."""
    if search.over(search.evaluations - _COST, search.deadline):
        raise Spent
    search.seen += _COST
    middle = search.point(middle)
    half = direction * (apart / 2)
    ends = search.point(middle - half), search.point(middle + half)
    distance = length(ends[1] - ends[0], search.norm)
    if not distance or not math.isfinite(distance):
        return None
    x, y = at(ends[0]), at(ends[1])
    moved = y.value - x.value
    if not np.isfinite(moved).all():
        return None
    u = _outer(moved, search.norm)
    before, behind = x.back(u), y.back(u)
    gain = length(moved, search.norm) / distance
    return Pair(middle, direction, apart, gain, (before + behind) / 2, behind - before)


def _outer(moved: np.ndarray, norm: Norm) -> np.ndarray:
    """u with ‖u‖ = 1 in the dual norm and u·moved = ‖moved‖."""
    if norm == "l1":
        return np.sign(moved)
    if norm == "l2":
        return moved / (float(np.linalg.norm(moved)) or 1.0)
    return _largest(moved)


def _inner(pull: np.ndarray, norm: Norm) -> np.ndarray:
    """The direction of length one in which the functional `pull` is largest."""
    if norm == "linf":
        return np.where(pull < 0.0, -1.0, 1.0)
    if norm == "l2":
        return pull / (float(np.linalg.norm(pull)) or 1.0)
    return _largest(pull)


def _largest(vector: np.ndarray) -> np.ndarray:
    """±1 at the entry of largest size, with its sign, and 0 elsewhere."""
    one = np.zeros_like(vector)
    if one.size:
        place = int(np.abs(vector).argmax())
        one[place] = math.copysign(1.0, vector[place])
    return one


def _powered(
    search: Search, at: At, middle: np.ndarray, start: np.ndarray, apart: float, enough: float = 0.01
) -> Pair | None:
    """The pair about a middle in the direction that f stretches most there: from the whole Jacobian where
    few outputs have few rows, else what steps of the power method come to, while a step gains `enough`."""
    best = None
    direction = _exact(search, at, middle) if enough else None
    if direction is not None:
        return _pair(search, at, middle, direction, apart)
    direction = _inner(start, search.norm)
    for _ in range(_POWER if enough else 10 * _POWER):
        pair = _pair(search, at, middle, direction, apart)
        if pair is None or not pair.pull.any():
            break
        before = 0.0 if best is None else best.gain
        best = pair if pair.gain > before else best
        if pair.gain <= before * (1.0 + enough):
            break
        direction = _inner(pair.pull, search.norm)
    return best


def _exact(search: Search, at: At, middle: np.ndarray) -> np.ndarray | None:
    """The direction that the Jacobian at a point stretches most; None where it has many rows."""
    tape = at(search.point(middle))
    count = tape.value.size
    search.seen += 1 + count * (count <= _FEW)
    if count > _FEW:
        return None
    rows = np.stack([tape.back(u) for u in np.eye(count)])
    if search.norm == "l2":
        return _inner(np.linalg.svd(rows, full_matrices=False)[2][0], "l2")
    if search.norm == "l1":
        return _largest(np.abs(rows).sum(axis=0))
    return _inner(rows[int(np.abs(rows).sum(axis=1).argmax())], "linf")


def _climbed(search: Search, at: At, smooth: Sequence[At], pair: Pair, reach: float) -> Pair:
    """The best pair seen on a way up from a pair, in steps of `reach` times the middle's size and less."""
    best, middle, direction = pair, pair.middle, pair.direction
    stride = reach * max(float(np.linalg.norm(middle)), pair.apart * math.sqrt(middle.size))
    heading = np.zeros_like(middle)
    for step in range(_STEPS):
        near = _pair(search, smooth[step * len(smooth) // _STEPS], middle, direction, pair.apart)
        if near is None:
            break
        direction = _inner(near.pull, search.norm)
        heading = 0.7 * heading + 0.3 * near.turn / (float(np.linalg.norm(near.turn)) or 1.0)
        middle = near.middle + stride * (1.0 - step / _STEPS) * heading
        if step % _LOOK == _LOOK - 1:
            seen = _looked(search, at, middle, direction, pair.apart)
            direction = direction if seen is None else seen.direction
            best = seen if seen is not None and seen.gain > best.gain else best
    last = _powered(search, at, best.middle, best.pull, best.apart)
    return last if last is not None and last.gain > best.gain else best


def _looked(search: Search, at: At, middle: np.ndarray, direction: np.ndarray, apart: float) -> Pair | None:
    exact = _exact(search, at, middle)
    return _pair(search, at, middle, direction if exact is None else exact, apart)


def _strolled(search: Search, at: At, pair: Pair) -> Pair:
    """The best pair that random steps, long ones first, come to; each is kept where it helps."""
    size = float(np.abs(pair.middle).mean()) + pair.apart
    for step in np.geomspace(1.0, 0.01, _STEPS):
        middle = pair.middle + step * size * search.rng.standard_normal(search.size)
        seen = _looked(search, at, middle, pair.direction, pair.apart)
        pair = seen if seen is not None and seen.gain > pair.gain else pair
    return pair


def _shaken(search: Search, pair: Pair) -> Pair:
    """The pair, put somewhere else in its surroundings."""
    size = float(np.abs(pair.middle).mean()) + pair.apart
    middle = search.point(pair.middle + size * search.rng.standard_normal(search.size))
    return Pair(middle, pair.direction, pair.apart, 0.0, pair.pull, pair.turn)


def _measured(search: Search, pair: Pair) -> None:
    """Run the pair, and others about its middle that are nearer and farther: the nearer, the more a pair
    is stretched, and the more of that may be rounding."""
    for factor in (0.25, 1.0, 4.0, 16.0, 64.0):
        half = pair.direction * (pair.apart * factor / 2)
        x, y = search.point(pair.middle - half), search.point(pair.middle + half)
        search.ratio(x, y, search.at(x), search.at(y))

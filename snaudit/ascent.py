"""The pair of points that a function stretches most, found from its values alone.

Every step looks at f only. At a base point, differences along K directions give the columns of J·V
(V orthonormal); where K is the whole dimension that is the Jacobian, else the directions are waves
(products of cosines, from coarse to fine), among which convolutions have their extreme gains. The
best combination of columns is the top singular vector (l2), the signs of the largest row (linf), or
the largest column (l1). From the best pair seen, random moves that are kept where they help.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from snaudit.bound import Norm

Function = Callable[[np.ndarray], np.ndarray | None]
ORDERS: dict[Norm, float] = {"l2": 2.0, "l1": 1.0, "linf": math.inf}
NOISE = 2.0**-20
"""What float32 may be off, relative to its outputs: a pair so near that this matters ranks low."""
_STEP = 0.03
_APART = (0.02, 0.2, 2.0, 20.0, 200.0)
_BASES = (1.0, 0.0, 0.1, 10.0)
_DIRECTIONS = 3072
_ENTRIES = 1 << 24
_ROWS = 32
_PATIENCE = 300
_SMALL = 100
"""Entries up to which whole Jacobians are taken, whatever is known already."""


class Spent(Exception):
    """The evaluations or the time are used up."""


@dataclass(slots=True)
class Search:
    """A function of `sizes` (the shapes of its inputs, flattened and joined) and what was seen of it.

    point rounds a vector to what the function takes, and into the box where there is one.
    """

    function: Function
    shapes: Sequence[tuple[int, ...]]
    norm: Norm
    point: Callable[[np.ndarray], np.ndarray]
    rng: np.random.Generator
    evaluations: int
    deadline: float
    seen: int = 0
    best: dict[int, tuple[float, np.ndarray, np.ndarray]] = field(default_factory=dict)
    """By the decade of the pair's distance: (ratio less noise, x, y)."""

    @property
    def size(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    def at(self, x: np.ndarray) -> np.ndarray:
        """f(x); raises Spent instead of a value too many, and has NaN where the function fails."""
        if self.over(self.evaluations, self.deadline):
            raise Spent
        self.seen += 1
        value = self.function(x)
        return np.full(1, np.nan) if value is None else value

    def over(self, evaluations: int, deadline: float) -> bool:
        """Whether so much is used up."""
        return self.seen >= evaluations or time.process_time() > deadline

    def half_way(self) -> tuple[int, float]:
        """A little under half of what is left of evaluations and time."""
        now = time.process_time()
        return self.seen + (self.evaluations - self.seen) * 6 // 10, now + 0.4 * (self.deadline - now)

    def ratio(self, x: np.ndarray, y: np.ndarray, fx: np.ndarray, fy: np.ndarray) -> float:
        """‖f(x) − f(y)‖/‖x − y‖ less the noise, kept where it is the best of its decade."""
        distance = length(x - y, self.norm)
        if not distance or fx.shape != fy.shape:
            return 0.0
        moved = length(fx - fy, self.norm)
        found = (moved - NOISE * (length(fx, self.norm) + length(fy, self.norm))) / distance
        if not math.isfinite(found) or found <= 0.0:
            return 0.0
        decade = round(math.log10(distance))
        if found > self.best.get(decade, (0.0,))[0]:
            self.best[decade] = (found, x, y)
        return found

    def ranked(self) -> list[tuple[float, np.ndarray, np.ndarray]]:
        """The pairs kept, best first."""
        return sorted(self.best.values(), key=lambda kept: -kept[0])


def length(vector: np.ndarray, norm: Norm) -> float:
    """The norm of a vector."""
    return float(np.linalg.norm(vector, ORDERS[norm])) if vector.size else 0.0


def ascend(search: Search) -> None:
    """Fill `search.best`; from what is there, if something is. Deterministic for a seed, as long as the time
    does not end it."""
    try:
        with np.errstate(all="ignore"):
            started = bool(search.best) and search.size > _SMALL
            _glance(search)
            for scale in () if started else _BASES:
                _around(search, search.rng.standard_normal(search.size) * scale, max(scale, 0.1))
            before = 0.0
            while search.best and search.ranked()[0][0] > before * 1.002:
                before, x, y = search.ranked()[0]
                _wander(search, x, y)
                _, x, y = search.ranked()[0]
                _around(search, (x + y) / 2, max(float(np.abs(x - y).max()), 0.1))
    except Spent:
        pass


def _glance(search: Search) -> None:
    """Try one random pair, so that there is something whatever the time."""
    x, y = (search.point(search.rng.standard_normal(search.size)) for _ in range(2))
    search.ratio(x, y, search.at(x), search.at(y))


def _around(search: Search, base: np.ndarray, scale: float) -> None:
    """Try the best direction at a base point, at several distances."""
    base = search.point(base)
    direction = _direction(search, base, _STEP * scale)
    if direction is None:
        return
    for apart in _APART:
        x, y = (search.point(base + sign * 0.5 * apart * scale * direction) for sign in (-1.0, 1.0))
        search.ratio(x, y, search.at(x), search.at(y))


def _direction(search: Search, base: np.ndarray, step: float) -> np.ndarray | None:
    """The direction in which f seems to stretch most at base, of length one in l2 (linf: ±1)."""
    start = search.at(base)
    room = min(search.size, _DIRECTIONS, max(8, _ENTRIES // max(start.size, 1)))
    columns, ways = [], []
    limit = search.half_way()
    for way in _ways(search, room):
        if search.over(*limit):
            break
        column = search.at(search.point(base + step * _vector(search, way)))
        if column.shape == start.shape and np.isfinite(column).all() and np.isfinite(start).all():
            columns.append((column - start).astype(np.float32))
            ways.append(way)
    if not columns:
        return None
    matrix = np.stack(columns, axis=1).astype(np.float64) / step
    if search.norm == "l1":
        return _vector(search, ways[int(np.abs(matrix).sum(axis=0).argmax())])
    if search.norm == "linf":
        return _signs(search, matrix, ways)
    weights = _top_right(matrix, search.rng)
    return _mixed(search, ways, weights[None])[0]


def _top_right(matrix: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The top right singular vector: by the SVD where that is cheap, else by power iteration."""
    if min(matrix.shape) <= 256:
        return np.linalg.svd(matrix, full_matrices=False)[2][0]
    vector = rng.standard_normal(matrix.shape[1])
    for _ in range(60):
        vector = matrix.T @ (matrix @ vector)
        vector /= np.linalg.norm(vector) or 1.0
    return vector


def _signs(search: Search, matrix: np.ndarray, ways: Sequence[_Way]) -> np.ndarray:
    """The signs of the Jacobian's row of largest absolute sum, among its rows of largest length."""
    rows = np.argsort(-np.square(matrix).sum(axis=1), kind="stable")[:_ROWS]
    lifted = _mixed(search, ways, matrix[rows])
    row = lifted[int(np.abs(lifted).sum(axis=1).argmax())]
    return np.where(row < 0.0, -1.0, 1.0)


_Way = int | tuple[int, tuple[int, ...]]
"""A coordinate, or (an input's number, its frequencies)."""


def _ways(search: Search, room: int) -> Iterator[_Way]:
    """Up to `room` directions: coordinates where they are all (or the norm is l1), else waves."""
    if room >= search.size or search.norm == "l1":
        yield from (int(i) for i in search.rng.permutation(search.size)[:room])
        return
    each = max(1, room // len(search.shapes))
    for number, shape in enumerate(search.shapes):
        found: dict[tuple[int, ...], None] = {}
        level = 1
        while len(found) < min(each, math.prod(shape)):
            axes = [_frequencies(n, level) for n in shape]
            grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape)) if shape else [()]
            more = [tuple(int(f) for f in row) for row in search.rng.permutation(grid)[: 4 * each]]
            found |= dict.fromkeys(more)
            level += 1
            if level > 40:
                break
        yield from ((number, key) for key in list(found)[:each])


def _frequencies(length: int, level: int) -> np.ndarray:
    """2^level frequencies out of 0 … length−1, evenly spread, both ends among them."""
    return np.unique(np.linspace(0, length - 1, min(length, 2**level)).round())


def _vector(search: Search, way: _Way) -> np.ndarray:
    """The direction as a vector of length one."""
    whole = np.zeros(search.size)
    if isinstance(way, int):
        whole[way] = 1.0
        return whole
    number, frequencies = way
    start = sum(math.prod(shape) for shape in search.shapes[:number])
    wave = np.ones(())
    for n, frequency in zip(search.shapes[number], frequencies, strict=True):
        wave = np.multiply.outer(wave, np.cos(np.pi * (np.arange(n) + 0.5) * frequency / n))
    whole[start : start + wave.size] = wave.ravel() / np.linalg.norm(wave)
    return whole


def _mixed(search: Search, ways: Sequence[_Way], weights: np.ndarray) -> np.ndarray:
    """Σ weights[:, k]·direction k, without holding all directions at once."""
    total = np.zeros((len(weights), search.size))
    if ways and isinstance(ways[0], int):
        total[:, list(ways)] = weights
        return total
    for k, way in enumerate(ways):
        total += np.multiply.outer(weights[:, k], _vector(search, way))
    return total


def _wander(search: Search, x: np.ndarray, y: np.ndarray) -> None:
    """Random moves of the pair (both points alike, its direction, its distance), kept if better."""
    fx, fy = search.at(x), search.at(y)
    best, step, idle = search.ratio(x, y, fx, fy), 0.3, 0
    while idle < _PATIENCE:
        new_x, new_y = _moved(search, x, y, step)
        values = search.at(new_x), search.at(new_y)
        found = search.ratio(new_x, new_y, *values)
        if found > best:
            idle = 0 if found > best * 1.001 else idle + 1
            best, x, y, step = found, new_x, new_y, min(step * 1.5, 3.0)
        else:
            idle, step = idle + 1, max(step * 0.97, 1e-3)


def _moved(search: Search, x: np.ndarray, y: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    rng, middle, half = search.rng, (x + y) / 2, (y - x) / 2
    kind = int(rng.integers(3))
    if kind == 0:
        spread = max(float(np.abs(middle).mean()), float(np.abs(half).mean()), 0.1)
        middle = middle + step * spread * rng.standard_normal(search.size)
    elif kind == 1:
        half = half * 10.0 ** rng.uniform(-0.5, 0.5)
    elif search.norm == "l2":
        bend = rng.standard_normal(search.size) / math.sqrt(search.size)
        half = half + step * float(np.linalg.norm(half)) * bend
    elif search.norm == "linf":
        half = np.where(rng.random(search.size) < min(0.1 * step, 0.5), -half, half)
    else:
        half = np.roll(half, int(rng.integers(1, max(search.size, 2))))
    return search.point(middle - half), search.point(middle + half)

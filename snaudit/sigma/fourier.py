"""The l2 norm of a convolution over all input sizes: the supremum of its symbol's norm, enclosed.

With zero padding, a convolution at any input size is P·T·J, with J the embedding of the input into
ℓ²(Z^D), T the infinite convolution and P a restriction: so its norm is at most ‖T‖ = sup_ω ‖F(ω)‖₂,
and reaches it as the input grows. `Convolution.polyphase` brings groups, strides, dilations and
transposition to stride 1.

From a grid to all frequencies. Let M = ‖F(ω*)‖ be the largest on a line, p = uᴴFv with u, v the
singular vectors there. f = |p|² − M²/2 has |f| ≤ M²/2 = f(ω*) and exponential type τ along the line,
so f(ω*+t) ≥ (M²/2)·cos τt for |τt| ≤ π (Duffin and Schaeffer, *Some properties of functions of
exponential type*, 1938; for integer degree M. Riesz, 1914): |p| ≥ M·cos(τt/2). Hence
  grid, N_j > m_j points on each axis, axis after axis: sup ≤ max_grid ‖F‖ · ∏_j 1/cos(π m_j/2N_j);
  cell, centre c, half-widths h_j: if it holds the maximiser, ‖F(c)‖ ≥ sup · cos(½ Σ_j m_j h_j).
The first gives `_grid`; the second lets `_branch` drop cells and narrow down on peaks. What is known
of ‖F(c)‖ from above comes from a Cholesky factorization of tI − H(c) that completes, as for matrices.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np

from snaudit.bound import Bound, Grade, Norm, enclosed, exactly, root_up, up
from snaudit.linear import AnyMap, Convolution
from snaudit.rounding import U, largest_entry, unscale
from snaudit.sigma.interface import Method, Options
from snaudit.sigma.search import Search, cells_of, cost_of
from snaudit.symbol import symbol_of, taps_first

_WIDEST = 0.12  # relative width that is reached whatever the budget
_FLAT = 0.7  # share of frequencies that could hold the maximum, from which on cells are not tested


def fits(map: AnyMap, norm: Norm) -> bool:
    """Convolutions in l2."""
    return norm == "l2" and isinstance(map, Convolution)


def measure(map: AnyMap, norm: Norm, options: Options) -> Bound:
    """An enclosure of sup_ω‖F(ω)‖₂, the norm over all input sizes with zero padding, proved.

    Its width is at most options.rtol, or what options.budget allows (12% at the worst).
    Lower: ‖F(ω)ᴴu‖/‖u‖ at a frequency ω, which inputs of growing size approach; a small input may
    stay below it. Assumes IEEE arithmetic, conventional BLAS and LAPACK, and NumPy's cos and sin
    within 8 units in the last place; see `symbol`, `factorizing` and `rounding` for the rounding.
    """
    kernels = map.polyphase()
    if not kernels.any():
        return exactly(0.0, "exact")
    exponent = math.frexp(largest_entry(kernels))[1]
    kernels, kept = taps_first(kernels, exponent)
    rtol, budget = max(options.rtol, 1e-7), _seconds(kernels, options.budget)
    search = Search(symbol_of(kernels, kept, _in_single(kernels, kept, rtol, budget)), kept, rtol, options.seed)
    search.start()
    search.rtol = _aim(search, budget)
    upper, how = _branch(search, budget)
    lower, upper = unscale(search.lower, upper, exponent)
    return enclosed(lower, upper, Grade.PROVED, f"fourier ({how})")


METHOD = Method(
    "fourier",
    Grade.PROVED,
    "zero-padded convolutions are compressions of the infinite one, of norm sup‖F(ω)‖; Riesz' lemma",
    fits,
    measure,
)


def _seconds(kernels: np.ndarray, budget: float | None) -> float:
    """The nominal seconds for a layer: twice an SVD's of its matrix on top of the budget, or no limit."""
    groups, taps, order, columns = kernels.shape
    return math.inf if budget is None else budget + groups * 3.2e-10 * order**2 * columns * taps


def _in_single(kernels: np.ndarray, kept: tuple[int, ...], rtol: float, budget: float) -> bool:
    """Whether the width that the budget allows is far above what single precision loses."""
    groups, _, order, _ = kernels.shape
    if not 64 < order <= 4096:
        return False
    degree, lags = np.array(kept) - 1, (math.prod(2 * k - 1 for k in kept) + 1) // 2
    return _affordable(degree, groups * cost_of(order, lags, single=True), rtol, budget)[0] > 2.5e-6 * order


def _aim(search: Search, budget: float) -> float:
    """The width to narrow to: rtol, or an eighth, quarter or half of it that a tenth of the budget seems to reach."""
    degree, groups = search.symbol.degree, len(search.symbol.kernels)
    for part in (8, 4, 2) if budget < math.inf else ():
        narrow = replace(search, rtol=search.rtol / part)
        sizes = _first_sizes(degree, narrow.rtol)
        count = groups * math.prod(sizes.tolist()) // 2
        if _foreseen(narrow, count, sizes, budget / 10, False, search.cost, search.loss)[0] <= narrow.rtol:
            return narrow.rtol
    return search.rtol


def _branch(search: Search, budget: float) -> tuple[float, str]:
    """(an upper bound, how): halve cells and drop those that cannot hold the maximiser.

    Goes on while that promises a narrower enclosure for the budget than the product formula on a grid
    of all frequencies, or the width asked for in less time. While no cell can be dropped, nothing is
    factorized. Single precision is left where it stands in the way of the width.
    """
    degree, groups = search.symbol.degree, len(search.symbol.kernels)
    sizes, seconds, dropped = _first_sizes(degree, search.rtol), budget, False
    cells = cells_of(groups, sizes)
    while True:
        plan = _foreseen(search, len(cells), sizes, seconds, dropped, search.cost, search.loss)
        finest = _affordable(degree, groups * search.cost, max(search.rtol, 4.0 * search.loss), seconds)
        if search.symbol.single and min(plan[0], finest[0]) > search.rtol and 4.0 * search.loss > search.rtol:
            each = cost_of(search.symbol.order, len(search.symbol.lags), single=False)
            if _foreseen(search, len(cells), sizes, seconds, dropped, each, 0.0)[0] < min(plan[0], finest[0]):
                search.sharpen()
                continue
        if finest < plan[:2]:
            return _grid(search, finest[0])
        if plan[2] == 0:
            return _finished(search, cells, sizes, seconds)
        target = (search.lower * _factor(degree, sizes)) ** 2 * (1.0 - 4 * U)
        if dropped or np.mean(search.sample >= target) < _FLAT:
            seconds -= len(cells) * search.cost
            kept = _survivors(search, cells, sizes, target)
            dropped = dropped or len(kept) < len(cells)
            cells = kept
        cells, sizes = _split(cells, 2), 2 * sizes


def _foreseen(
    search: Search, count: int, sizes: np.ndarray, seconds: float, dropped: bool, each: float, loss: float
) -> tuple[float, float, int]:
    """(width, cost, after how many more halvings) that seem within reach, going by the sample's shares."""
    degree, cost, best = search.symbol.degree, 0.0, (math.inf, math.inf, 0)
    least = max(search.rtol, 4.0 * loss)
    for level in range(60):
        factor = _factor(degree, sizes)
        width = max((1.0 + loss + search.rtol / 20) / factor - 1.0, least) if factor > 0.0 else math.inf
        total = cost + count * each
        if total <= seconds and width < best[0]:
            best = width, total, level
        if width <= least or total > seconds:
            break
        share = float(np.mean(search.sample >= (search.lower * factor) ** 2))
        if dropped or share < _FLAT:
            cost = total
            count = min(count, math.ceil(0.5 * share * len(search.symbol.kernels) * math.prod(sizes.tolist())))
        count, sizes = count * 2 ** len(sizes), 2 * sizes
    return best


def _finished(search: Search, cells: np.ndarray, sizes: np.ndarray, seconds: float) -> tuple[float, str]:
    """An upper bound from these cells, each split once more into as many parts as help and are affordable."""
    degree, parts = search.symbol.degree, 1
    while _factor(degree, parts * sizes) == 0.0 or (
        len(cells) * (parts + 1) ** len(sizes) * search.cost <= seconds
        and (1.0 + search.loss + search.rtol / 20) / _factor(degree, parts * sizes) > 1.0 + search.rtol
        and 1.0 / _factor(degree, parts * sizes) - 1.0 > search.loss
    ):
        parts += 1
    width = 1.0 / _factor(degree, parts * sizes) - 1.0
    upper = _cap(search, _split(cells, parts), parts * sizes, min(max(width, search.rtol) / 10, 0.01))
    return up(upper / _factor(degree, parts * sizes)), "branch and bound"


def _factor(degree: np.ndarray, sizes: np.ndarray) -> float:
    """cos(½ Σ m_j h_j) for cells of half-widths π/N_j, from below; 0 where that is no bound."""
    angle = 0.5 * math.pi * float(np.sum(degree / sizes))
    return _cos_down(angle) if angle < 0.5 * math.pi else 0.0


def _first_sizes(degree: np.ndarray, rtol: float) -> np.ndarray:
    """At least 4m cells on each axis, of which some doubling just reaches rtol; an even number on the first."""
    needed = 0.5 * math.pi * len(degree) / math.acos(1.0 / (1.0 + 0.9 * rtol))
    doublings = max(0, math.floor(math.log2(needed / 4.0)))
    sizes = np.ceil(max(4.0, needed / 2**doublings) * degree).astype(np.int64)
    sizes[0] += sizes[0] % 2
    return sizes


def _survivors(search: Search, cells: np.ndarray, sizes: np.ndarray, target: float) -> np.ndarray:
    """The cells of which it is not proved that ‖F(centre)‖² ≤ target, below which none is the maximiser's.

    (`target` < (lower·cos)² strictly, so a maximiser's cell cannot be among the dropped.)
    """
    kept = []
    for part in search.parts(len(cells)):
        mine = cells[part]
        shift = target - 1.2 * (search.certified(target, search.lost * target) - target)
        if shift > 0.0:
            proved, bound = search.completes(mine[:, 0], 2 * mine[:, 1:] + 1, 2 * sizes, shift)
            mine = mine if bound > target else mine[~proved]
        kept.append(mine)
    return np.concatenate(kept)


def _cap(search: Search, cells: np.ndarray, sizes: np.ndarray, slack: float) -> float:
    """An upper bound of ‖F‖ at the centres of all cells; where one exceeds it, the search climbs there."""
    modulus, upper = 2 * sizes, 0.0
    shift = max(search.lower**2, search.symbol.lost) * (1.0 + slack)
    for part in search.parts(len(cells)):
        groups, points = cells[part, 0], 2 * cells[part, 1:] + 1
        while True:
            proved, bound = search.completes(groups, points, modulus, shift)
            upper = max(upper, bound)
            groups, points = groups[~proved], points[~proved]
            if len(groups) == 0:
                break
            index = int(np.argmax(search.estimates(groups, points, modulus)))
            theta = search.climb(int(groups[index]), points[index], modulus)
            slack = slack if max(theta, search.lower**2) > shift else 2.0 * slack
            shift = max(search.lower**2, theta, shift, search.symbol.lost) * (1.0 + slack)
    return root_up(upper)


def _grid(search: Search, width: float) -> tuple[float, str]:
    """The product formula on a grid fine enough for `width`; one of each pair ±ω, as K is real."""
    s = search.symbol
    sizes = _grid_sizes(s.degree, max(0.95 * width - search.loss, 0.5 * width))
    upper = _cap(search, cells_of(len(s.kernels), sizes), sizes, width / 10)
    for m, n in zip(s.degree, sizes, strict=True):
        upper = up(upper / _cos_down(0.5 * math.pi * float(m / n)))
    return upper, "grid " + "×".join(str(n) for n in sizes)


def _grid_sizes(degree: np.ndarray, width: float) -> np.ndarray:
    """Points on each axis for a total factor 1 + width, an even number on the first; the fewest in all."""
    least = math.ceil(_ratio(1.0 + width, len(degree)) * degree[0])
    best = None
    for first in range(max(int(degree[0]) + 1, least - 3), least + 2):
        left = (1.0 + width) * _cos_down(0.5 * math.pi * degree[0] / first)
        if first % 2 or left <= 1.0:
            continue
        others = np.ceil(_ratio(left, len(degree) - 1) * degree[1:]) if len(degree) > 1 else []
        sizes = np.array([first, *others], dtype=np.int64)
        if best is None or math.prod(sizes.tolist()) < math.prod(best.tolist()):
            best = sizes
    return best


def _ratio(factor: float, axes: int) -> float:
    """N/m on each of so many axes for a total factor of the inflation."""
    return 0.5 * math.pi / math.acos(factor ** (-1.0 / axes))


def _affordable(degree: np.ndarray, each: float, rtol: float, seconds: float) -> tuple[float, float]:
    """(width, cost) of the finest grid that the time allows, or of the coarsest that there is."""
    width = rtol
    while True:
        cost = 0.5 * math.prod(_grid_sizes(degree, 0.9 * width).tolist()) * each
        if cost <= seconds or width >= _WIDEST:
            return width, cost
        width = min(1.1 * width, max(_WIDEST, width))


def _split(cells: np.ndarray, parts: int) -> np.ndarray:
    """Each cell's parts, so many on each axis."""
    corners = np.array(list(itertools.product(range(parts), repeat=cells.shape[1] - 1)))
    children = parts * cells[:, None, 1:] + corners
    owners = np.broadcast_to(cells[:, None, :1], (*children.shape[:2], 1))
    return np.concatenate([owners, children], axis=2).reshape(-1, cells.shape[1])


def _cos_down(angle: float) -> float:
    """cos from below, for an angle in [0, π/2) computed with a few roundings."""
    return max(0.0, math.cos(angle * (1.0 + 16 * U)) - 4 * U)

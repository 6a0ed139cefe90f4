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
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from snaudit.arrays import top_eigenpair
from snaudit.bound import Bound, Grade, Norm, exactly, root_up, up
from snaudit.linear import AnyMap, Convolution
from snaudit.rounding import SAFE, U, cholesky_deficit, exponent_of, scale, unscale
from snaudit.sigma.interface import Method, Options
from snaudit.symbol import Symbol, hermitian, section, symbol_of, witness_down

_BUDGET = 3.0  # nominal seconds of one thread for a layer; then the enclosure stays wider than rtol
_CHUNK = 1 << 22  # complex numbers held at once: 64 MiB
_FINE = 1 << 30  # frequencies of witnesses are multiples of 2π/2³⁰
_WIDTHS = (2e-3, 3e-3, 5e-3, 7e-3, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.12)


def fits(map: AnyMap, norm: Norm) -> bool:
    """Convolutions in l2."""
    return norm == "l2" and isinstance(map, Convolution)


def measure(map: AnyMap, norm: Norm, options: Options) -> Bound:
    """An enclosure of sup_ω‖F(ω)‖₂, the norm over all input sizes with zero padding, proved.

    Its width is options.rtol, or what the work cap of a few seconds allows (12% at the worst).
    Lower: ‖F(ω)ᴴu‖/‖u‖ at a frequency ω, which inputs of growing size approach; a small input may
    stay below it. Assumes IEEE arithmetic, conventional BLAS and LAPACK, and NumPy's cos and sin
    within 8 units in the last place; see `symbol` and `rounding` for the rounding.
    """
    kernels = map.polyphase()
    if not kernels.any():
        return exactly(0.0, "exact")
    exponent = exponent_of(kernels)
    search = Search(symbol_of(scale(kernels, exponent)), max(options.rtol, 1e-7), options.seed)
    search.start()
    upper, how = _branch(search)
    lower, upper = unscale(search.lower, upper, exponent)
    return Bound(min(lower, upper), upper, Grade.PROVED, f"fourier ({how})")


METHOD = Method(
    "fourier",
    Grade.PROVED,
    "zero-padded convolutions are compressions of the infinite one, of norm sup‖F(ω)‖; Riesz' lemma",
    fits,
    measure,
)


@dataclass(slots=True)
class Search:
    """The state of one search: the symbol, and the largest value that was seen, rounded down.

    `sample` are estimates of ‖F‖² over a coarse grid: they steer the search and prove nothing.
    """

    symbol: Symbol
    rtol: float
    seed: int
    lower: float = 0.0
    sample: np.ndarray = None  # type: ignore[assignment]

    @property
    def slack(self) -> float:
        """By how much the square of a shift lies above the square of the lower end."""
        return self.rtol / 10

    @property
    def cost(self) -> float:
        """Nominal seconds of one thread to factorize H at one frequency."""
        n, lags = self.symbol.order, len(self.symbol.lags)
        if n == 1:
            return 2e-8 * lags
        return 2e-6 + 2e-8 * lags + n * n * (1e-8 + 5e-10 * lags) + 1.2e-10 * n**3

    def start(self) -> None:
        """Sample coarsely, at 0 and π too, and climb from the best of it."""
        s = self.symbol
        groups, axes = len(s.kernels), len(s.degree)
        coarse = 4 * s.degree
        cells = _cells(groups, coarse)
        corners = np.array(list(itertools.product(range(groups), *[(0, 1)] * axes)))
        centres = np.concatenate([_fine(2 * cells[:, 1:] + 1, 2 * coarse), _fine(corners[:, 1:], 0 * coarse + 2)])
        owners = np.concatenate([cells[:, 0], corners[:, 0]])
        modulus = np.full(axes, _FINE)
        values = [_estimates(h, self.seed) for _, h in _chunks(s, owners, centres, modulus)]
        self.sample = np.concatenate(values)
        for index in np.argsort(self.sample)[::-1][:3]:
            self.climb(int(owners[index]), centres[index])

    def climb(self, group: int, point: np.ndarray) -> None:
        """Raise the lower end by alternating between the vector at a frequency and the frequency."""
        s, modulus = self.symbol, np.full(len(point), _FINE)
        best = 0.0
        for _ in range(8):
            h = hermitian(s, np.array([group]), point[None], modulus)[0]
            _, u, _ = top_eigenpair(h, self.seed, 60)
            seen = witness_down(s, group, point, modulus, u.astype(np.complex128))
            self.lower = max(self.lower, seen)
            if seen <= best * (1.0 + self.rtol / 50):
                return
            best, width = seen, _FINE / (2.0 * s.degree)
            for _ in range(6):
                grid = np.array(list(itertools.product(range(-3, 4), repeat=len(point))))
                nearby = (point + np.rint(grid * width / 3).astype(np.int64)) % _FINE
                point = nearby[int(np.argmax(section(s, group, u, nearby, modulus)))]
                width = width / 3

    def certified(self, shift: float) -> float:
        """An upper bound of λmax(H) wherever the Cholesky factorization of shift·I − H completed.

        λmax(H) ≤ λmax(Ĥ) + lost; λmax(Ĥ) ≤ shift + u·max|Aᵢᵢ| + deficit, with Aᵢᵢ ≤ shift + lost since
        Hᵢᵢ ≥ 0.
        """
        s = self.symbol
        size = shift + s.lost
        deficit = cholesky_deficit(s.order, SAFE * s.order * size, is_complex=True)
        return up(shift + SAFE * (2 * U * size + deficit + s.lost))


def _branch(search: Search) -> tuple[float, str]:
    """(an upper bound, how): halve cells and drop those that cannot hold the maximiser.

    While no cell can be dropped, nothing is factorized; where the grid's product formula reaches the
    width for less, or the budget ends, the grid takes over.
    """
    s = search.symbol
    sizes, spent, dropped = 4 * s.degree, 0.0, False
    cells = _cells(len(s.kernels), sizes)
    while True:
        factor = _cos_down(0.5 * math.pi * float(np.sum(s.degree / sizes)))
        if (1.0 + search.slack) / factor <= 1.0 + search.rtol:
            points, modulus = 2 * cells[:, 1:] + 1, 2 * sizes
            return up(_cap(search, cells[:, 0], points, modulus) / factor), "branch and bound"
        target = (search.lower * factor) ** 2 * (1.0 - 4 * U)
        if dropped or np.mean(search.sample >= target) < 0.7:
            spent += len(cells) * search.cost
            kept = _survivors(search, cells, sizes, target)
            dropped = dropped or len(kept) < len(cells)
        else:
            kept = cells
        ahead = len(kept) * 2 ** len(sizes) * search.cost
        width, cost = _affordable(search, _BUDGET - spent)
        if spent + ahead > _BUDGET or (width <= search.rtol and cost < ahead):
            if 1.0 / factor <= 1.0 + width:
                points, modulus = 2 * kept[:, 1:] + 1, 2 * sizes
                return up(_cap(search, kept[:, 0], points, modulus) / factor), "branch and bound"
            return _grid(search, width)
        cells, sizes = _halved(kept), 2 * sizes


def _survivors(search: Search, cells: np.ndarray, sizes: np.ndarray, target: float) -> np.ndarray:
    """The cells of which it is not proved that ‖F(centre)‖² ≤ target, below which none is the maximiser's.

    (`target` < (lower·cos)² strictly, so a maximiser's cell cannot be among the dropped.)
    """
    shift = target - 2.0 * (search.certified(target) - target)
    if shift <= 0.0:
        return cells
    proved = [_completes(h, shift) for _, h in _chunks(search.symbol, cells[:, 0], 2 * cells[:, 1:] + 1, 2 * sizes)]
    return cells[~np.concatenate(proved)]


def _cap(search: Search, groups: np.ndarray, points: np.ndarray, modulus: np.ndarray) -> float:
    """An upper bound of ‖F‖ at all of these frequencies; where one exceeds it, the search climbs there."""
    slack = search.slack
    shift = search.lower**2 * (1.0 + slack)
    for start, h in _chunks(search.symbol, groups, points, modulus):
        open_ = np.flatnonzero(~_completes(h, shift))
        while len(open_):
            worst = int(open_[np.argmax(_estimates(h[open_], search.seed))])
            search.climb(int(groups[start + worst]), _fine(points[start + worst], modulus))
            theta, *_ = top_eigenpair(h[worst], search.seed, 60)
            slack = slack if theta > shift else 2.0 * slack
            shift = max(search.lower**2, theta, shift, search.symbol.lost) * (1.0 + slack)
            open_ = open_[~_completes(h[open_], shift)]
    return root_up(search.certified(shift))


def _grid(search: Search, width: float) -> tuple[float, str]:
    """The product formula on a grid fine enough for `width`; one of each pair ±ω, as K is real."""
    s = search.symbol
    sizes = _grid_sizes(s.degree, width)
    axes = [np.arange(sizes[0] // 2 + 1), *(np.arange(n) for n in sizes[1:])]
    every = np.stack(np.meshgrid(np.arange(len(s.kernels)), *axes, indexing="ij"), axis=-1)
    every = every.reshape(-1, 1 + len(sizes))
    upper = _cap(search, every[:, 0], every[:, 1:], sizes)
    for m, n in zip(s.degree, sizes, strict=True):
        upper = up(upper / _cos_down(0.5 * math.pi * float(m / n)))
    return upper, "grid " + "×".join(str(n) for n in sizes)


def _grid_sizes(degree: np.ndarray, width: float) -> np.ndarray:
    """Points on each axis for a total factor 1 + 0.9·width, the rest being the shift's slack."""
    angle = math.acos((1.0 + 0.9 * width) ** (-1.0 / len(degree)))
    return np.ceil(0.5 * math.pi * degree / angle).astype(np.int64)


def _affordable(search: Search, seconds: float) -> tuple[float, float]:
    """(width, cost) of the finest grid that the time allows, or of the coarsest that there is."""
    for width in (search.rtol, *(w for w in _WIDTHS if w > search.rtol)):
        sizes = _grid_sizes(search.symbol.degree, width)
        cost = 0.5 * math.prod(sizes.tolist()) * len(search.symbol.kernels) * search.cost
        if cost <= seconds:
            break
    return width, cost


def _cells(groups: int, sizes: np.ndarray) -> np.ndarray:
    """(cells, 1+D): group and index of each cell [2πj/N, 2π(j+1)/N), one of each pair ±ω (N even)."""
    axes = [np.arange(groups), np.arange(sizes[0] // 2), *(np.arange(n) for n in sizes[1:])]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 1 + len(sizes))


def _halved(cells: np.ndarray) -> np.ndarray:
    """Each cell's 2^D halves on all axes."""
    corners = np.array(list(itertools.product((0, 1), repeat=cells.shape[1] - 1)))
    children = 2 * cells[:, None, 1:] + corners
    owners = np.broadcast_to(cells[:, None, :1], (*children.shape[:2], 1))
    return np.concatenate([owners, children], axis=2).reshape(-1, cells.shape[1])


def _fine(points: np.ndarray, modulus: np.ndarray) -> np.ndarray:
    """About the same frequencies, as multiples of 2π/2³⁰."""
    return np.rint(points * (_FINE / modulus)).astype(np.int64) % _FINE


def _chunks(
    symbol: Symbol, groups: np.ndarray, points: np.ndarray, modulus: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """(start, H at the next frequencies), in pieces of bounded memory."""
    step = max(1, _CHUNK // max(symbol.order**2, 4 * len(symbol.lags)))
    for start in range(0, len(points), step):
        part = slice(start, start + step)
        yield start, hermitian(symbol, groups[part], points[part], modulus)


def _estimates(h: np.ndarray, seed: int) -> np.ndarray:
    """About λmax of each: an estimate from below that steers the search."""
    if h.shape[-1] == 1:
        return h[:, 0, 0]
    if h.shape[-1] <= 64:
        return np.linalg.eigvalsh(h)[:, -1]
    return np.array([top_eigenpair(one, seed, 12)[0] for one in h])


def _completes(h: np.ndarray, shift: float) -> np.ndarray:
    """For each H, whether the Cholesky factorization of shift·I − H completes in floating point."""
    order = h.shape[-1]
    shifted = -h
    np.einsum("kii->ki", shifted)[...] += shift
    if order > 16:
        return np.array([_factorizes(one) for one in shifted])
    alive = np.ones(len(h), dtype=bool)
    for k in range(order):  # column by column over all frequencies at once
        pivot = shifted[:, k, k].real
        alive &= pivot > 0.0
        column = shifted[:, k + 1 :, k] / np.sqrt(np.where(alive, pivot, 1.0))[:, None]
        shifted[:, k + 1 :, k + 1 :] -= column[:, :, None] * column.conj()[:, None, :]
        shifted[~alive] = 0.0
    return alive


def _factorizes(matrix: np.ndarray) -> bool:
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return True


def _cos_down(angle: float) -> float:
    """cos from below, for an angle in [0, π/2) computed with a few roundings."""
    return max(0.0, math.cos(angle * (1.0 + 16 * U)) - 4 * U)

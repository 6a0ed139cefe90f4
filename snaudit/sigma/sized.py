"""The l2 norm of a convolution at one input size: the operator itself, not the supremum over sizes.

Small layers: the matrix, and the certificate for matrices. Else, with zero padding, ω-circulants:

Let n be the input's size, M the output's, rows m read x[s·m + d·t − p] for t = 0…k−1, and let reads of
the rows that meet the input at all lie in [−l, n+r), so l, r ≤ d(k−1). Take N ≥ (n + max(l, r))/s,
L = sN, and any θ. Sequences with x[j+L] = e^{iθ}x[j] are mapped by the infinite convolution to such of
period N. In coordinates 0…L−1 and N consecutive rows, that map's entry for (m, j) is the sum of
e^{iθc}·W_t over reads j + cL of row m. For j in [0, n) and those rows, c ≠ 0 would be a read ≥ L ≥ n+r
or < n−L ≤ −l: there is none. The rows that meet the input span s(m₁−m₀) ≤ n + r + l − 1 − d(k−1) < L, so
fewer than N. So the layer is a submatrix (on several axes: axis by axis), and Bloch's theorem gives
  ‖layer‖ ≤ max_j ‖F(ω_j)‖, ω_j = (2πj + θ)/N, for every θ: without the inflation that all sizes need.
θ = 0 is the circulant of Sedghi, Gupta and Long (ICLR 2019) at a length that leaves room for the padding;
θ = π passes by a peak at ω = 0 (then exact for 3 taps alike). ω-circulants: Cline, Plemmons and Worm, 1974.
Dilation: T·Tᴴ has entries where s(m−m') = d(t'−t), hence m−m' = (d/g)·r, g = gcd(s, d), for lags r of the
undilated convolution of stride s/g: its symbol at frequency (d/g)·ω.

Padding that copies: layer = T·P with P the padding, ‖P‖ = ∏√(most copies of an entry) over the axes, T the
convolution of the padded array. Circular: entries of the circulant of length n, where rows m and m + n/gcd(s, n)
are equal: √(times a row repeats)·max_j ‖F(2πj/N)‖, N = n/s where s | n, else the stride-1 symbol at n points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from snaudit.arrays import top_eigenpair
from snaudit.bound import Bound, Grade, Norm, enclosed, exactly, root_up, sum_up, times_up, up
from snaudit.factorizing import factorizes
from snaudit.linear import AnyMap, BlockDiagonal, Convolution, Located
from snaudit.rounding import SAFE, U, cholesky_deficit, exponent_of, gamma, scale, unscale
from snaudit.sigma import certificate, fourier
from snaudit.sigma.interface import Method, Options
from snaudit.sigma.seen import kappa_up, stretch_down
from snaudit.symbol import Symbol, hermitian, mirrored, symbol_of, taps_first

_DENSE_ORDER = 2600
_DENSE_WORK = 3.5e10  # products for the Gram matrix: a second or two of one thread
_BUDGET = 3.0  # nominal seconds of one thread for a grid; then the supremum over all sizes stands in
_CHUNK = 1 << 22  # complex numbers held at once: 64 MiB
_NEAR = 4e-3  # all sizes together are so close to this one that a grid is not worth its price


def fits(map: AnyMap, norm: Norm) -> bool:
    """Convolutions at one input size in l2."""
    return norm == "l2" and isinstance(map, Located)


def measure(map: AnyMap, norm: Norm, options: Options) -> Bound:
    """An enclosure of the norm of the convolution at its size, proved.

    Upper: by the matrix where it is small, else the least of what the module's theorems give for
    less than the budget, and never more than the supremum over all sizes (times ‖P‖ where the padding
    copies). Lower: ‖Ax‖/‖x‖ for a Ritz vector x of the operator itself. Rounding: see `symbol`,
    `certificate`, `seen`.
    """
    assert isinstance(map, Located)
    kernel = map.convolution.kernel
    if not kernel.any():
        return exactly(0.0, "exact")
    where = "at " + "×".join(map_size(map))
    exponent = exponent_of(kernel)
    located = map.without_idle_taps()
    kernel = scale(located.convolution.kernel, exponent)
    located = replace(located, convolution=replace(located.convolution, kernel=kernel))
    if not kernel.any():
        return exactly(0.0, "exact")
    if _is_small(map):
        bound = _by_matrix(located, options)
        lower, upper, how = bound.lower, bound.upper, bound.method
    else:
        upper, how, start = _by_theorem(located, options)
        lower = stretch_down(located, start, options.seed) if options.lower else 0.0
    lower, upper = unscale(lower, upper, exponent)
    return enclosed(lower, upper, Grade.PROVED, f"{how} {where}")


METHOD = Method(
    "sized",
    Grade.PROVED,
    "a convolution at one size is a submatrix of ω-circulants; small ones by their matrix",
    fits,
    measure,
)


def map_size(map: Located) -> tuple[str, ...]:
    """The input's size as it is shown."""
    return tuple(str(n) for n in map.size)


def _is_small(map: Located) -> bool:
    groups = map.convolution.groups
    small, large = sorted(side // groups for side in map.shape)
    return small <= _DENSE_ORDER and 2.0 * groups * small * small * large <= _DENSE_WORK


def _by_matrix(map: Located, options: Options) -> Bound:
    """The certificate of the matrix; where taps meet in an entry, its rounding is added:
    each entry is a sum of at most Q numbers, of which tap by tap the norm is at most ‖W_t‖_F·‖P‖."""
    bound = certificate.measure(BlockDiagonal(map.blocks()), "l2", options)
    if not map.copies:
        return bound
    taps = math.prod(map.convolution.kernel.shape[2:])
    lost = SAFE * gamma(taps) * kappa_up(map.convolution.kernel) * _copying(map)
    return replace(bound, lower=max(0.0, bound.lower - 2 * lost), upper=sum_up((bound.upper, up(lost))))


def _copying(map: Located) -> float:
    """‖P‖: copies are counted in the padded array, which multiplies them over the axes."""
    counts = [int(np.bincount(source[source >= 0]).max()) for source in map.sources()]
    return root_up(float(math.prod(counts)))


_Start = tuple[np.ndarray, np.ndarray, int] | None
"""(vector over the output's channels, frequency for each axis, group) of a plane wave that is stretched most."""


def _by_theorem(map: Located, options: Options) -> tuple[float, str, _Start]:
    """(upper, how, where to look for the lower end)."""
    if not map.copies:
        return _zero_padded(map, options)
    inner = [len(source) - sum(zeros) for source, zeros in zip(map.sources(), map.outside, strict=True)]
    whole = replace(map, mode="zeros", size=tuple(inner), padding=map.outside, outside=map.outside)
    whole = replace(whole, outside=((0, 0),) * map.convolution.axes)
    upper, how, start = _zero_padded(whole, options)
    upper, how = times_up(upper, _copying(map)), f"{how}, {map.mode} padding counted"
    if map.mode == "circular" and not any(any(zeros) for zeros in map.outside):
        around = _circular(map, options)
        if around is not None and around[0] < upper:
            return around
    return upper, how, start


def _zero_padded(map: Located, options: Options) -> tuple[float, str, _Start]:
    conv = map.convolution.trimmed()
    kernels = conv.polyphase()
    if math.prod(kernels.shape[3:]) == 1:
        blocks = BlockDiagonal(kernels.reshape(kernels.shape[:3]))
        return certificate.measure(blocks, "l2", options).upper, "certificate", None
    grid = _grid(conv, _periods(map), options)
    if grid.gain > _NEAR and grid.cost <= _BUDGET:
        return grid.upper()
    bound = fourier.measure(conv, "l2", options)
    start = grid.coarse().best((0,) * len(grid.sizes))[1] if options.lower else None
    return bound.upper, f"{bound.method}, every size,", start


def _circular(map: Located, options: Options) -> tuple[float, str, _Start] | None:
    conv = map.convolution
    strides = [s if n % s == 0 else 1 for n, s in zip(map.size, conv.stride, strict=True)]
    rows = zip(map.output_size, map.size, conv.stride, strict=True)
    repeats = math.prod(-(-m // (n // math.gcd(s, n))) for m, n, s in rows)
    around = replace(conv, stride=tuple(strides))
    kernels = around.polyphase()
    if math.prod(kernels.shape[3:]) == 1:
        return None
    sizes = [n // s for n, s in zip(map.size, strides, strict=True)]
    grid = _grid(around, sizes, options, twisted=False)
    if grid.cost > _BUDGET:
        return None
    upper, _, start = grid.upper()
    start = start if strides == list(conv.stride) else None
    return times_up(upper, root_up(float(repeats))), "circulant", start


def _periods(map: Located) -> list[int]:
    """N on each axis, as the module says; a multiple of d/g, which cuts the axis into d/g equal parts."""
    found = []
    conv, (few, many) = map.convolution, map.ends
    rows = zip(few, many, conv.kernel.shape[2:], conv.stride, conv.dilation, map.sides(), strict=True)
    for (m, n, k, s, d, (before, _)), spread in zip(rows, _spreads(conv), strict=True):
        reach = d * (k - 1)
        last = s * (m - 1) + reach - before  # the last place that is read
        right = min(max(0, last - n + 1), reach)
        room = min(n, last + 1) + max(min(before, reach), right)
        found.append(-(-max(1, -(-room // s)) // spread) * spread)
    return found


def _spreads(conv: Convolution) -> list[int]:
    return [d // math.gcd(s, d) for s, d in zip(conv.stride, conv.dilation, strict=True)]


def _grid(conv: Convolution, sizes: list[int], options: Options, twisted: bool = True) -> Grid:
    """The grid with N = sizes[axis], of the axes on which the symbol varies."""
    kernels = conv.polyphase()
    kept = np.array([q > 1 for q in kernels.shape[3:]])
    symbol, spreads = symbol_of(*taps_first(kernels, 0)), np.array(_spreads(conv))
    return Grid(symbol, np.array(sizes)[kept], spreads[kept], kept, kernels.shape[1] > kernels.shape[2], options, twisted)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The frequencies (2πj + θ)/N, times the spread d/g, of a symbol; θ is 0 or π on each axis.

    kept: the spatial axes that it is about; flipped: the symbol is the adjoint's, at −ω.
    """

    symbol: Symbol
    sizes: np.ndarray
    spreads: np.ndarray
    kept: np.ndarray
    flipped: bool
    options: Options
    twisted: bool

    @property
    def gain(self) -> float:
        """By how much the supremum may lie above the grid's maximum."""
        angles = 0.5 * math.pi * self.symbol.degree * self.spreads / self.sizes
        return math.inf if (angles >= 1.5).any() else float(1.0 / np.prod(np.cos(angles))) - 1.0

    @property
    def cost(self) -> float:
        """Nominal seconds of one thread."""
        n, lags = self.symbol.order, len(self.symbol.lags)
        points = self.sizes // np.gcd(self.sizes, self.spreads)
        count = 0.5 * len(self.symbol.kernels) * math.prod(points.tolist())
        if n == 1:
            return 2e-7 * lags * count
        trials = 2 if self.twisted else 1
        each = n * n * (2e-8 + 5e-10 * lags)
        return count * (2e-6 + trials * (each + 3e-8 * n * n) + each + 1.2e-10 * n**3)

    def points(self, twist: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(groups, frequencies in units of π/N before the spread): one of each pair ±ω."""
        axes = []
        for a, size, spread in zip(twist, self.sizes, self.spreads, strict=True):
            axes.append(2 * np.arange(size // math.gcd(size, spread)) + a)
        every = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
        lengths = np.array([2 * len(axis) for axis in axes])
        mirrored = -every % lengths
        keys = np.ravel_multi_index(every.T, lengths), np.ravel_multi_index(mirrored.T, lengths)
        every = every[keys[0] <= keys[1]]
        count = len(self.symbol.kernels)
        return np.repeat(np.arange(count), len(every)), np.tile(every, (count, 1))

    def chunks(self, twist: tuple[int, ...]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(groups, frequencies as `points` gives them, H there), in pieces of bounded memory."""
        groups, points = self.points(twist)
        step = max(1, _CHUNK // max(self.symbol.order**2, 4 * len(self.symbol.lags)))
        for start in range(0, len(points), step):
            part = slice(start, start + step)
            shifted = points[part] * self.spreads % (2 * self.sizes)
            yield groups[part], points[part], mirrored(hermitian(self.symbol, groups[part], shifted, 2 * self.sizes))

    def best(self, twist: tuple[int, ...]) -> tuple[float, _Start]:
        """(about the largest λmax(H), the wave that has it)."""
        top, start = -1.0, None
        for groups, points, h in self.chunks(twist):
            values = _estimates(h, self.options.seed)
            index = int(np.argmax(values))
            if values[index] > top:
                theta, vector, _ = top_eigenpair(h[index], self.options.seed, 60)
                top = max(float(values[index]), theta)
                start = self.wave(int(groups[index]), points[index], vector)
        return top, start

    def wave(self, group: int, point: np.ndarray, vector: np.ndarray) -> _Start:
        """The plane wave of the convolution's outputs that belongs to an eigenvector of H."""
        frequency, phases = np.zeros(len(self.kept)), math.pi * point / self.sizes
        if self.flipped:
            turns = np.exp(-1j * self.symbol.taps @ (phases * self.spreads))
            vector = np.einsum("qnp,n,q->p", self.symbol.kernels[group], vector, turns)
        frequency[self.kept] = -phases if self.flipped else phases
        return vector, frequency, group

    def upper(self) -> tuple[float, str, _Start]:
        """The largest ‖F‖ on the grid, proved; how; and the wave that has it."""
        twist = self._twist() if self.twisted else (0,) * len(self.sizes)
        top, start = self.best(twist)
        signs = "".join("+-"[a] for a in twist)
        return self.capped(twist, top), f"grid {'×'.join(map(str, self.sizes))} {signs}", start

    def coarse(self) -> Grid:
        """A grid that is fine enough to see about where the symbol peaks."""
        return replace(self, sizes=np.minimum(self.sizes, 4 * self.symbol.degree * self.spreads))

    def _twist(self) -> tuple[int, ...]:
        """For each axis the θ whose grid keeps away from the symbol's peak: every one proves a bound,
        and that one the least, as far as one peak decides."""
        seen = replace(self.coarse(), twisted=False).best((0,) * len(self.sizes))[1]
        assert seen is not None
        turns = seen[1][self.kept] * self.sizes / (2 * math.pi)
        return tuple(int(abs(turn - round(turn)) < 0.25) for turn in turns.tolist())

    def capped(self, twist: tuple[int, ...], guess: float) -> float:
        """An upper bound of ‖F‖ on the grid: Cholesky of shift·I − H completes, or ‖H‖_F ≤ shift."""
        slack = self.options.rtol / 10
        shift = max(guess, self.symbol.lost) * (1.0 + slack)
        for _, _, h in self.chunks(twist):
            norms = np.sqrt(np.sum(h.real**2 + h.imag**2, axis=(1, 2)))
            h = h[norms > shift * (1.0 - 1e-9)]
            while len(h := h[~_completes(h, shift)]):  # what is proved stays so: the shift only rises
                worst = h[np.argsort(_estimates(h, self.options.seed))[-3:]]
                theta = max(top_eigenpair(one, self.options.seed, 60)[0] for one in worst)
                shift = max(theta, shift) * (1.0 + slack)
                slack *= 2.0
        size = shift + self.symbol.lost
        deficit = cholesky_deficit(self.symbol.order, SAFE * self.symbol.order * size, is_complex=True)
        return root_up(up(shift + SAFE * (2 * U * size + deficit + self.symbol.lost)))


def _estimates(h: np.ndarray, seed: int) -> np.ndarray:
    """About λmax of each: an estimate from below that steers and proves nothing."""
    order = h.shape[-1]
    if order == 1:
        return h[:, 0, 0].real
    if order <= 32:
        return np.linalg.eigvalsh(h)[:, -1]
    rng = np.random.default_rng(seed)
    block = rng.standard_normal((order, 3)) + 1j * rng.standard_normal((order, 3))
    block = np.broadcast_to(block, (len(h), order, 3))
    for _ in range(6):
        block = np.linalg.qr(h @ block)[0]
    return np.linalg.eigvalsh(block.conj().swapaxes(1, 2) @ h @ block)[:, -1]


def _completes(h: np.ndarray, shift: float) -> np.ndarray:
    """For each H, whether the Cholesky factorization of shift·I − H completes in floating point."""
    shifted = -h
    np.einsum("kii->ki", shifted)[...] += shift
    if h.shape[-1] <= 32 and factorizes(shifted):
        return np.ones(len(h), dtype=bool)
    return np.array([factorizes(one) for one in shifted], dtype=bool)

"""The search for the frequency with the largest ‖F(ω)‖: what was seen is a lower end, and steers the rest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from snaudit.bound import up
from snaudit.factorizing import U32, completes
from snaudit.rounding import SAFE, U
from snaudit.symbol import Symbol, hermitian, images, mirrored, section, symbol_of, witness_down

_HELD = 1 << 24  # bytes of matrices at once
_FINE = 1 << 30  # frequencies of witnesses are multiples of 2π/2³⁰
_STEPS = 24  # of Lanczos, from the last vector, for each step of a climb


@dataclass(slots=True)
class Search:
    """The state of one search: the symbol, and the largest value that was seen, rounded down.

    `sample` are estimates of ‖F‖² over a coarse grid, `lost` is about what a factorization loses of
    its shift: they steer the search and prove nothing.
    """

    symbol: Symbol
    kept: tuple[int, ...]
    rtol: float
    seed: int
    lower: float = 0.0
    lost: float = 0.0
    sample: np.ndarray = None  # type: ignore[assignment]

    @property
    def cost(self) -> float:
        """Nominal seconds of one thread for one frequency."""
        return cost_of(self.symbol.order, len(self.symbol.lags), self.symbol.single)

    @property
    def loss(self) -> float:
        """About what rounding adds to an upper bound, relative to it: a guess until something was factorized."""
        square = self.lower**2
        return 0.5 * (self.certified(square, self.lost * square) / square - 1.0) if square > 0.0 else 1.0

    def start(self) -> None:
        """Sample coarsely, at 0 and π too, and climb from the best of it."""
        s = self.symbol
        self.lost = s.order * (1.2e-6 if s.single else 1e-15)
        groups, axes = len(s.kernels), len(s.degree)
        coarse = (4 if s.order <= 128 else 2) * s.degree
        cells = cells_of(groups, coarse)
        corners = np.array(list(itertools.product(range(groups), *[(0, 1)] * axes)))
        centres = np.concatenate([_fine(2 * cells[:, 1:] + 1, 2 * coarse), _fine(corners[:, 1:], 0 * coarse + 2)])
        owners = np.concatenate([cells[:, 0], corners[:, 0]])
        modulus = np.full(axes, _FINE)
        values = [self.estimates(owners[part], centres[part], modulus) for part in self.parts(len(centres))]
        self.sample = np.concatenate(values)
        for index in np.argsort(self.sample)[::-1][:3]:
            self.climb(int(owners[index]), centres[index], modulus)

    def climb(self, group: int, point: np.ndarray, modulus: np.ndarray) -> float:
        """Raise the lower end by alternating between the vector at a frequency and the frequency.

        Returns about ‖F‖² at the frequency that it started from.
        """
        s, point, fine = self.symbol, _fine(point, modulus), np.full(len(point), _FINE)
        u = np.random.default_rng(self.seed).standard_normal(s.order).astype(complex)
        best, first = 0.0, 0.0
        around = np.array(list(itertools.product(range(-3, 4), repeat=len(point))))
        for turn in range(8):
            h = mirrored(hermitian(s, np.array([group]), point[None], fine))[0]
            theta, u = leading(h, u, 2 * _STEPS if turn == 0 else _STEPS)
            first = first or theta
            parts = images(s, group, u)
            width = _FINE / (2.0 * s.degree)
            for _ in range(6):
                nearby = (point + np.rint(around * width / 3).astype(np.int64)) % _FINE
                point = nearby[int(np.argmax(section(s, parts, nearby, fine)))]
                width = width / 3
            seen = witness_down(s, point, fine, u, parts)
            self.lower = max(self.lower, seen)
            if seen <= best * (1.0 + self.rtol / 50):
                break
            best = seen
        return first

    def sharpen(self) -> None:
        """Take the symbol in double precision from here on."""
        self.symbol, self.lost = symbol_of(self.symbol.kernels, self.kept), 1e-15 * self.symbol.order

    def completes(
        self, groups: np.ndarray, points: np.ndarray, modulus: np.ndarray, shift: float
    ) -> tuple[np.ndarray, float]:
        """(for each frequency, whether it is proved that λmax(H) ≤ bound; the bound, a little over `shift`)."""
        proved, lost = completes(hermitian(self.symbol, groups, points, modulus), shift)
        self.lost = max(self.lost, lost / shift)
        return proved, self.certified(shift, lost)

    def estimates(self, groups: np.ndarray, points: np.ndarray, modulus: np.ndarray) -> np.ndarray:
        """About λmax(H) at each frequency: an estimate from below that steers the search."""
        h = hermitian(self.symbol, groups, points, modulus)
        if h.shape[-1] == 1:
            return h[:, 0, 0]
        if h.shape[-1] <= 64:
            return np.linalg.eigvalsh(h)[:, -1]
        u = np.random.default_rng(self.seed).standard_normal(h.shape[-1]).astype(complex)
        return np.array([leading(mirrored(one[None])[0], u, 10)[0] for one in h])

    def parts(self, count: int) -> Iterator[slice]:
        """Pieces of so many frequencies whose matrices are of bounded memory."""
        s = self.symbol
        each = max(s.order**2 * (8 if s.single else 16), 64 * len(s.lags))
        step = max(1, _HELD // each)
        for start in range(0, count, step):
            yield slice(start, start + step)

    def certified(self, shift: float, factorization: float) -> float:
        """An upper bound of λmax(H) wherever the factorization of shift·I − H completed and lost so much.

        λmax(H) ≤ λmax(Ĥ) + lost; λmax(Ĥ) ≤ shift + 2u·size + what the factorization lost, with
        size = shift + lost ≥ Aᵢᵢ, since Hᵢᵢ ≥ 0: once u for the shift in its precision, once for its
        difference from Hᵢᵢ.
        """
        s = self.symbol
        unit = U32 if s.single else U
        return up(shift + SAFE * (2.1 * unit * (shift + s.lost) + factorization + s.lost))


def cost_of(order: int, lags: int, single: bool) -> float:
    """Nominal seconds of one thread to build and factorize H at one frequency (measured, 3 GHz, AVX2)."""
    if order == 1:
        return 2e-8 * lags
    if single:
        return order**2 * (4e-9 + 1.2e-10 * lags) + 2e-11 * order**3
    return 2e-6 + 2e-8 * lags + order**2 * (6e-9 + 2.5e-10 * lags) + 4.5e-11 * order**3


def cells_of(groups: int, sizes: np.ndarray) -> np.ndarray:
    """(cells, 1+D): group and index of each cell [2πj/N, 2π(j+1)/N), one of each pair ±ω (N₁ even)."""
    axes = [np.arange(groups), np.arange(sizes[0] // 2), *(np.arange(n) for n in sizes[1:])]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 1 + len(sizes))


def leading(h: np.ndarray, start: np.ndarray, steps: int) -> tuple[float, np.ndarray]:
    """(θ, u): the largest Ritz value of a Hermitian matrix and its unit vector; by LAPACK up to order 64."""
    if len(h) <= 64:
        values, vectors = np.linalg.eigh(h)
        return float(values[-1]), vectors[:, -1].astype(complex)
    steps = min(steps, len(h))
    basis = np.zeros((steps, len(h)), complex)  # in double: lost orthogonality shows as false peaks
    alpha, beta = np.zeros(steps), np.zeros(steps)
    vector = start / np.linalg.norm(start)
    for k in range(steps):
        basis[k] = vector
        image = (h @ vector.astype(h.dtype)).astype(complex)
        alpha[k] = float(np.vdot(vector, image).real)
        for _ in range(2):  # once would lose orthogonality
            image -= basis[: k + 1].T @ (basis[: k + 1].conj() @ image)
        beta[k] = float(np.linalg.norm(image))
        if beta[k] <= 1e-6 * np.abs(alpha).max():
            steps = k + 1
            break
        vector = image / beta[k]
    off = np.diag(beta[: steps - 1], 1)
    values, vectors = np.linalg.eigh(np.diag(alpha[:steps]) + off + off.T)
    u = vectors[:, -1] @ basis[:steps]
    return float(values[-1]), u / np.linalg.norm(u)


def _fine(points: np.ndarray, modulus: np.ndarray) -> np.ndarray:
    """About the same frequencies, as multiples of 2π/2³⁰."""
    if math.prod(int(n) == _FINE for n in modulus):
        return points
    return np.rint(points * (_FINE / modulus)).astype(np.int64) % _FINE

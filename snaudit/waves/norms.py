"""The largest norm among many matrices, one for each frequency, proved."""

from __future__ import annotations

import math

import numpy as np

from snaudit.bound import root_up, sum_up, up
from snaudit.factorizing import completes
from snaudit.rounding import SAFE, TINY, U, gamma

_STEPS = 12
_AT_ONCE = 1 << 22
"""Entries of Gram matrices that are factorized at once."""


def squares(rows: np.ndarray) -> np.ndarray:
    """‖A‖_F² of each matrix of a stack, from above."""
    flat = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.float64)
    return SAFE * np.einsum("ki,ki->k", flat, flat) + TINY


def largest(rows: np.ndarray, lost: float) -> float:
    """An upper bound of the norms of all matrices within `lost` of those of the stack (F, m, n).

    ‖A‖² = λmax(AAᴴ), of the shorter side. fl(AAᴴ) is within √2·γ_{2n+4}‖A‖_F² of it, and what
    Cholesky factorizations of tI − fl(AAᴴ) prove of λmax is `largest_eigenvalue`'s.
    """
    if rows.size == 0:
        return lost
    sizes = float(squares(rows).max())
    if not math.isfinite(sizes) or sizes > 1e200:
        return math.inf
    if sizes < 1e-200:
        return sum_up((lost, 1e-100))
    if rows.shape[1] > rows.shape[2]:
        rows = rows.conj().swapaxes(1, 2)
    rounded = SAFE * math.sqrt(2.0) * gamma(2 * rows.shape[2] + 4) * sizes
    step = max(1, _AT_ONCE // rows.shape[1] ** 2)
    squared = 0.0
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        squared = max(squared, largest_eigenvalue(part @ part.conj().swapaxes(1, 2), squared))
    return sum_up((root_up(up(squared + rounded)), lost))


def largest_eigenvalue(h: np.ndarray, least: float = 0.0) -> float:
    """An upper bound of the eigenvalues of all Hermitian positive semidefinite matrices of a stack, or `least`.

    Only lower triangles count. Power steps say which matrices may have the largest eigenvalue, LAPACK
    what it is, and Cholesky factorizations of all the others that theirs are less; with
    t = shift, λmax ≤ t + what they lost + 2u·t for fl(t − H_ii).
    """
    if h.shape[-1] == 1:
        return max(least, float(h[:, 0, 0].real.max(initial=0.0)))
    estimates, slack = rayleigh(h), 1e-10
    left = np.arange(len(h))
    first = np.argsort(estimates)[-2:]
    shift = max(least, _exact(h[first]) * (1.0 + slack), 1e-290)
    found = least
    while len(left):
        fits, lost = completes(np.array(h[left], dtype=np.complex128, order="C"), shift)
        if fits.any():
            found = max(found, up(shift + SAFE * (lost + 2.1 * U * shift)))
        left = left[~fits]
        if len(left) == 0:
            break
        worst = left[np.argsort(estimates[left])[-2:]]
        raised = _exact(h[worst])
        if not math.isfinite(raised):
            return math.inf
        if raised * (1.0 + slack) <= shift:
            slack *= 10.0
        shift = max(shift, raised) * (1.0 + slack)
    return found


def _exact(h: np.ndarray) -> float:
    """LAPACK's largest eigenvalue: an estimate like any other."""
    return max(0.0, float(np.linalg.eigvalsh(h).max())) if np.isfinite(h).all() else math.inf


def rayleigh(h: np.ndarray) -> np.ndarray:
    """What power iteration sees of the largest eigenvalue of each matrix."""
    vectors = np.random.default_rng(0).standard_normal((len(h), h.shape[-1], 1)).astype(h.dtype)
    size = np.ones(len(h))
    for _ in range(_STEPS):
        vectors = h @ vectors
        size = np.sqrt(np.square(np.abs(vectors)).sum(axis=(1, 2)))
        vectors /= np.maximum(size, 1e-300)[:, None, None]
    return size

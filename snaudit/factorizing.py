"""Whether shift·I − H is positive definite, for stacks of Hermitian H: by Cholesky, with what it has lost.

In complex128 LAPACK's; in complex64 a blocked one on whole stacks, for which products run three times
as fast, with this bound. Let u = 2⁻²⁴, ε = √2·γ_{2B+4}, A the matrix in single precision, L the factor,
B the block, b the panel. Each entry of A loses in turn, and so A = LLᴴ − Δ₁ − Δ₂:

- updates A ← A − L_K·L_Kᴴ over at most B columns K: k complex products of which real and imaginary
  part are sums of 2k real ones lose √2·γ_{2k}|L_K||L_K|ᵀ; over all K together √2·γ_{2B}|L||L|ᵀ;
- c ≤ n/B + 2 subtractions for each entry: each u·(|A| + |L||L|ᵀ)(1+…), and |A| ≤ |L||L|ᵀ + |Δ₁| + |Δ₂|;
- diagonal blocks by LAPACK: 4·γ_{b+4}|L_s||L_s|ᵀ, as in `rounding.cholesky_deficit`. So altogether
  |Δ₁| ≤ (ε + 3cu)|L||L|ᵀ + 2cu|Δ₂|, and ‖|L||L|ᵀ‖₂ is at most the largest entry of |L|(|L|ᵀ·1), its
  largest row sum, which costs little to form: for flat symbols a tenth of the trace of A;
- panels below: L = fl(P·X) with X ≈ L_s⁻ᴴ. Whatever X is, P − L·L_sᴴ is the computed residual R but for
  √2·γ_{2b}|L||L_s|ᵀ, which is of the updates' kind and within ε, and u|R|: ‖Δ₂‖_F² ≤ 2(1+u)²·Σ_s‖R_s‖_F².

Then λmin(A) ≥ −‖Δ₁‖₂ − ‖Δ₂‖_F.
"""

from __future__ import annotations

import math

import numpy as np

from snaudit.rounding import SAFE, cholesky_deficit

U32 = 2.0**-24
BLOCK = 64  # columns of an update, and rows of the symbol's tables
_PANEL = 16
_TINY32 = 1e-14  # what single precision's underflow can take of sums of squares, for entries of order one


def gamma32(k: int) -> float:
    """γ_k in single precision, with a margin of 1%; infinite where k·u is no longer small."""
    return SAFE * k * U32 if k * U32 < 1e-3 else math.inf


def completes(h: np.ndarray, shift: float) -> tuple[np.ndarray, float]:
    """(for each H, whether the factorization of A = fl(shift·I − H) completes; ε with λmin(A) ≥ −ε of those).

    Only the lower triangles are read; `h` is overwritten.
    """
    order = h.shape[-1]
    np.negative(h, out=h)
    diagonal = np.einsum("kii->ki", h)
    diagonal += h.dtype.type(shift)
    if h.dtype == np.complex64:
        return _blocked(h)
    lost = cholesky_deficit(order, float(diagonal.real.sum(axis=1).max()), is_complex=True)
    if order <= 16:
        return _by_columns(h), lost
    try:
        np.linalg.cholesky(h)
    except np.linalg.LinAlgError:
        return np.array([factorizes(one) for one in h]), lost
    return np.ones(len(h), dtype=bool), lost


def _by_columns(shifted: np.ndarray) -> np.ndarray:
    """Column by column over all frequencies at once."""
    order = shifted.shape[-1]
    alive = np.ones(len(shifted), dtype=bool)
    for k in range(order):
        pivot = shifted[:, k, k].real
        alive &= pivot > 0.0
        column = shifted[:, k + 1 :, k] / np.sqrt(np.where(alive, pivot, 1.0))[:, None]
        shifted[:, k + 1 :, k + 1 :] -= column[:, :, None] * column.conj()[:, None, :]
        shifted[~alive] = 0.0
    return alive


def factorizes(matrix: np.ndarray) -> bool:
    """Whether LAPACK's Cholesky factorization completes; of a stack, for all of it."""
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return True


def _blocked(a: np.ndarray) -> tuple[np.ndarray, float]:
    """`completes` in complex64, in place: updates by blocks to the right, panels of a block to the left."""
    order = a.shape[-1]
    alive, panels = np.ones(len(a), dtype=bool), np.zeros(len(a))
    sums = np.zeros((len(a), order, 1), np.float32)
    for start in range(0, order, BLOCK):
        stop = min(start + BLOCK, order)
        for left in range(start, stop, _PANEL):
            right = min(left + _PANEL, stop)
            if left > start:
                a[:, left:, left:right] -= a[:, left:, start:left] @ _adjoint(a[:, left:right, start:left])
            panels += _panel(a, left, right, alive)
            a[:, left:right, right:stop] = 0.0
            if not alive.any():
                return alive, 0.0
        sums[:, start:] += _products(a[:, start:, start:stop])
        done = a[:, stop:, start:stop]
        for left in range(stop, order, BLOCK):
            right = min(left + BLOCK, order)
            a[:, left:, left:right] -= done[:, left - stop :] @ _adjoint(done[:, left - stop : right - stop])
    rate = math.sqrt(2.0) * gamma32(2 * BLOCK + 4) + 3 * gamma32(order // BLOCK + 2)
    lost = rate * sums.max(axis=(1, 2)) + np.sqrt(2.0 * panels)
    alive &= np.isfinite(lost)
    return alive, SAFE * SAFE * float(np.max(lost, where=alive, initial=0.0)) + _TINY32


def _products(columns: np.ndarray) -> np.ndarray:
    """|L|·(|L|ᵀ·1), for columns of L whose diagonal block is in front, zero above its diagonal."""
    size = np.sqrt(np.square(columns.real) + np.square(columns.imag))
    return size @ size.sum(axis=1)[:, :, None]


def _panel(a: np.ndarray, left: int, right: int, alive: np.ndarray) -> np.ndarray:
    """Factorize columns left…right, updated already; ‖P − L·L_sᴴ‖_F² of each matrix."""
    block = a[:, left:right, left:right]
    try:
        factor = np.linalg.cholesky(block)
    except np.linalg.LinAlgError:
        for index, one in enumerate(block):
            if not (alive[index] and factorizes(one)):
                alive[index] = False
                a[index] = np.eye(a.shape[-1])
        factor = np.linalg.cholesky(block)
    block[...] = factor
    if right == a.shape[-1]:
        return np.zeros(len(a))
    turned = _adjoint(factor)
    given = a[:, right:, left:right]
    below = given @ np.linalg.inv(turned)
    residual = given - below @ turned
    a[:, right:, left:right] = below
    entries = residual.view(np.float32).reshape(len(a), -1)
    return np.einsum("ki,ki->k", entries, entries).astype(np.float64)  # within 1%, up to an order of 4096


def _adjoint(stack: np.ndarray) -> np.ndarray:
    return stack.conj().swapaxes(-1, -2)

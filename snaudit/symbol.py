"""The symbol of a convolution: F(ω) = Σ_q K_q e^{i⟨ω,q⟩}, its Hermitian square, and what both have lost.

‖F(ω)‖² = λmax(H(ω)) with H = F·Fᴴ = Σ_r C_r e^{i⟨ω,r⟩}, C_r = Σ_q K_{q+r} K_qᵀ on the shorter side.
Frequencies are exact: ω_j = 2π·J_j/N_j with integers J_j, N_j. Rounding, with κ = Σ_q‖K_q‖_F (of
the group with the largest), Q taps, p columns of K_q, L lags, u = 2⁻⁵³:

- fl(C_r): sums of at most pQ products, so ‖error‖_F ≤ γ_{pQ}·Σ_q‖K_{q+r}‖_F‖K_q‖_F; over all r: γ_{pQ}κ².
- phases: each J·r mod N is exact, its quotient within u/2, the sum of D of them within
  (D/2 + (D²+D−2)/4)u, times 2π, plus 2u·π for the angle, plus cos and sin within 8 units in the
  last place (NumPy tests for 4): together less than ε = (32 + 16D²)u. As Σ_r‖C_r‖_F ≤ κ²: εκ².
- H = Σ_{r≥0} cos·(C_r+C_rᵀ) + i·sin·(C_r−C_rᵀ): two sums of L products, 2γ_{L+2}κ².
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from snaudit.rounding import SAFE, TINY, U, frobenius_up, gamma, norm_enclosed


@dataclass(frozen=True, slots=True, eq=False)
class Symbol:
    """K as (groups, n, p, Q) with n ≤ p, its taps (Q, D), and the autocorrelation by lags.

    even[g, l] = C_r + C_rᵀ and odd[g, l] = C_r − C_rᵀ (n·n) for lag r = lags[l]; C_0 itself for r = 0.
    `lost` bounds ‖computed H(ω) − H(ω)‖₂ at every ω, `kappa` the sum of the taps' Frobenius norms.
    """

    kernels: np.ndarray
    taps: np.ndarray
    lags: np.ndarray
    even: np.ndarray
    odd: np.ndarray
    kappa: float
    lost: float

    @property
    def order(self) -> int:
        """n, the order of H."""
        return self.kernels.shape[1]

    @property
    def degree(self) -> np.ndarray:
        """The symbol's degree m_j on each axis."""
        return self.taps.max(axis=0)


def symbol_of(kernels: np.ndarray) -> Symbol:
    """The symbol of stride-1 kernels (groups, rows, columns, Q₁…Q_D), entries of order one.

    Axes with one tap are left out; with more rows than columns, that of the adjoint at −ω.
    """
    kept = tuple(size for size in kernels.shape[3:] if size > 1)
    if kernels.shape[1] > kernels.shape[2]:
        kernels = kernels.swapaxes(1, 2)
    groups, order, columns = kernels.shape[:3]
    kernels = np.ascontiguousarray(kernels).reshape(groups, order, columns, *kept)
    lags = [r for r in itertools.product(*(range(1 - k, k) for k in kept)) if r >= (0,) * len(kept)]
    even = np.empty((groups, len(lags), order * order))
    odd = np.zeros_like(even)
    for index, lag in enumerate(lags):
        ahead = tuple(slice(max(r, 0), k + min(r, 0)) for r, k in zip(lag, kept, strict=True))
        behind = tuple(slice(max(-r, 0), k - max(r, 0)) for r, k in zip(lag, kept, strict=True))
        first = kernels[(..., *ahead)].reshape(groups, order, -1)
        second = kernels[(..., *behind)].reshape(groups, order, -1)
        product = first @ second.swapaxes(1, 2)
        if any(lag):
            even[:, index] = (product + product.swapaxes(1, 2)).reshape(groups, -1)
            odd[:, index] = (product - product.swapaxes(1, 2)).reshape(groups, -1)
        else:
            even[:, index] = product.reshape(groups, -1)
    flat = kernels.reshape(groups, order, columns, -1)
    taps = np.indices(kept).reshape(len(kept), -1).T
    kappa = SAFE * max(sum(frobenius_up(flat[g, :, :, q]) for q in range(len(taps))) for g in range(groups))
    rates = gamma(columns * len(taps)) + 2 * gamma(len(lags) + 2) + _phase_error(len(kept))
    return Symbol(flat, taps, np.array(lags), even, odd, kappa, SAFE * rates * kappa**2 + TINY)


def hermitian(symbol: Symbol, groups: np.ndarray, points: np.ndarray, modulus: np.ndarray) -> np.ndarray:
    """H (cells, n, n) at ω_j = 2π·points[:, j]/modulus[j], each of its own group; real where n = 1."""
    angles = _angles(symbol.lags, points, modulus)
    n = symbol.order
    if n == 1:
        return np.einsum("cl,cl->c", np.cos(angles), symbol.even[groups, :, 0])[:, None, None]
    cos, sin = np.cos(angles), np.sin(angles)
    result = np.empty((len(points), n * n), dtype=np.complex128)
    for group in np.unique(groups):
        mine = groups == group
        result.real[mine] = cos[mine] @ symbol.even[group]
        result.imag[mine] = sin[mine] @ symbol.odd[group]
    return result.reshape(-1, n, n)


def witness_down(symbol: Symbol, group: int, point: np.ndarray, modulus: np.ndarray, u: np.ndarray) -> float:
    """‖F(ω)ᴴu‖/‖u‖ from below: at most the sup of ‖F‖, which is the norm over all input sizes.

    fl(K_qᵀu) is within γ_n‖K_q‖_F‖u‖, its sum over taps with phases within (√2·γ_{2Q} + ε)κ‖u‖.
    """
    kernel = symbol.kernels[group]
    flat = kernel.reshape(len(kernel), -1)
    parts = np.stack([u.real, u.imag]) @ flat
    each = (parts[0] + 1j * parts[1]).reshape(kernel.shape[1:])
    angles = _angles(symbol.taps, point[None], modulus)[0]
    image = each @ np.exp(-1j * angles)
    rate = gamma(len(kernel)) + math.sqrt(2.0) * gamma(2 * len(angles) + 2) + _phase_error(len(point))
    (below, _), (_, above) = norm_enclosed(image), norm_enclosed(u)
    return max(0.0, (below / above) * (1.0 - 4 * U) - SAFE * SAFE * rate * symbol.kappa - TINY)


def section(symbol: Symbol, group: int, u: np.ndarray, points: np.ndarray, modulus: np.ndarray) -> np.ndarray:
    """uᴴH(ω)u at many frequencies, about: a scalar trigonometric polynomial, cheap to maximise."""
    n, (a, b) = symbol.order, (u.real, u.imag)
    even, odd = (table[group].reshape(-1, n, n) for table in (symbol.even, symbol.odd))
    cosines = (even @ a) @ a + (even @ b) @ b
    sines = -2.0 * ((odd @ b) @ a)
    angles = _angles(symbol.lags, points, modulus)
    return np.cos(angles) @ cosines + np.sin(angles) @ sines


def _angles(lags: np.ndarray, points: np.ndarray, modulus: np.ndarray) -> np.ndarray:
    """⟨ω, r⟩ modulo 2π, in [−π, π], (cells, lags)."""
    turns = np.zeros((len(points), len(lags)))
    for axis, size in enumerate(modulus):
        turns += ((points[:, axis, None] * lags[:, axis] + size // 2) % size - size // 2) / size
    return 2.0 * math.pi * (turns - np.rint(turns))


def _phase_error(axes: int) -> float:
    return (32 + 16 * axes**2) * U

"""The symbol of a convolution: F(ω) = Σ_q K_q e^{i⟨ω,q⟩}, its Hermitian square, and what both have lost.

‖F(ω)‖² = λmax(H(ω)) with H = F·Fᴴ = Σ_r C_r e^{i⟨ω,r⟩}, C_r = Σ_q K_{q+r} K_qᵀ on the shorter side.
Frequencies are exact: ω_j = 2π·J_j/N_j with integers J_j, N_j. Rounding, with κ = Σ_q‖K_q‖_F and
s = Σ_r‖C_r‖_F over all r (each of the group with the largest), Q taps, p columns of K_q, L lags r ≥ 0:

- fl(C_r), in float64: sums of at most pQ products, in any order, so ‖error‖_F ≤
  γ_{pQ}·Σ_q‖K_{q+r}‖_F‖K_q‖_F; over all r: γ_{pQ}κ². s is taken of fl(C_r), with a margin of 1%.
- phases: each J·r mod N is exact, its quotient within u/2, the sum of D of them within
  (D/2 + (D²+D−2)/4)u, times 2π, plus 2u·π for the angle, plus cos and sin within 8 units in the
  last place (NumPy tests for 4): together less than ε = (32 + 16D²)u. Over all r: ε·s.
- H = Σ_{r≥0} cos·E_r + i·sin·O_r with E_r = C_r+C_rᵀ, O_r = C_r−C_rᵀ (E_0 = C_0), each rounded once:
  two sums of L products. ‖·‖_F of the errors is at most γ_{L+4}·Σ(|cos|‖E_r‖_F + |sin|‖O_r‖_F), and as
  ‖E_r‖_F² + ‖O_r‖_F² = 4‖C_r‖_F², at most γ_{L+4}·s. In single precision γ is of u = 2⁻²⁴, and two of
  the L+4 are for the tables and the phases rounded to it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from snaudit.factorizing import BLOCK, gamma32
from snaudit.rounding import SAFE, TINY, U, frobenius_up, gamma, norm_enclosed

_TINY32 = 1e-24  # single precision's underflow, for entries of order one


@dataclass(frozen=True, slots=True, eq=False)
class Symbol:
    """K as (groups, Q, n, p) with n ≤ p, its taps (Q, D), and the autocorrelation by lags.

    even[b][g, l] = C_r + C_rᵀ and odd[b][g, l] = C_r − C_rᵀ for lag r = lags[l] (C_0 itself for r = 0),
    rows of block b and the columns that its lower triangle needs; in float32 or float64.
    `lost` bounds ‖computed H(ω) − H(ω)‖₂ at every ω, `kappa` the sum of the taps' Frobenius norms.
    """

    kernels: np.ndarray
    taps: np.ndarray
    lags: np.ndarray
    even: tuple[np.ndarray, ...]
    odd: tuple[np.ndarray, ...]
    kappa: float
    lost: float

    @property
    def order(self) -> int:
        """n, the order of H."""
        return self.kernels.shape[2]

    @property
    def degree(self) -> np.ndarray:
        """The symbol's degree m_j on each axis."""
        return self.taps.max(axis=0)

    @property
    def single(self) -> bool:
        """Whether H is in single precision."""
        return self.even[0].dtype == np.float32


def taps_first(kernels: np.ndarray, exponent: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """(2⁻ᵉ·K as (groups, Q, n, p) with n ≤ p, the taps on each axis) of (groups, rows, columns, Q₁…Q_D).

    Axes with one tap are left out; with more rows than columns, it is the adjoint's symbol at −ω.
    """
    kept = tuple(size for size in kernels.shape[3:] if size > 1)
    rows, columns = (2, 1) if kernels.shape[1] > kernels.shape[2] else (1, 2)
    view = kernels.transpose(0, *range(3, kernels.ndim), rows, columns)
    moved = np.ldexp(view, -exponent, order="C")
    return moved.reshape(len(kernels), -1, *moved.shape[-2:]), kept


def symbol_of(kernels: np.ndarray, kept: tuple[int, ...], single: bool = False) -> Symbol:
    """The symbol of what `taps_first` returns, entries of order one."""
    groups, _, order, columns = kernels.shape
    lags = [r for r in itertools.product(*(range(1 - k, k) for k in kept)) if r >= (0,) * len(kept)]
    number = np.arange(math.prod(kept)).reshape(kept)
    rows = [(start, min(start + BLOCK, order)) for start in range(0, order, BLOCK)]
    kind = np.float32 if single else np.float64
    even = tuple(np.empty((groups, len(lags), stop - start, stop), kind) for start, stop in rows)
    odd = tuple(np.zeros_like(table) for table in even)
    size = np.zeros(groups)
    for index, lag in enumerate(lags):
        ahead = tuple(slice(max(r, 0), k + min(r, 0)) for r, k in zip(lag, kept, strict=True))
        behind = tuple(slice(max(-r, 0), k - max(r, 0)) for r, k in zip(lag, kept, strict=True))
        product = _correlated(kernels, number[ahead].ravel(), number[behind].ravel())
        doubled = any(lag)
        size += (2.0 if doubled else 1.0) * np.sqrt(np.einsum("gij,gij->g", product, product))
        turned = product.swapaxes(1, 2)
        for (start, stop), e, o in zip(rows, even, odd, strict=True):
            mine = slice(start, stop), slice(0, stop)
            e[:, index] = product[:, *mine] + turned[:, *mine] if doubled else product[:, *mine]
            if doubled:
                o[:, index] = product[:, *mine] - turned[:, *mine]
    taps = np.indices(kept).reshape(len(kept), -1).T
    kappa = SAFE * max(sum(frobenius_up(tap) for tap in group) for group in kernels)
    built = gamma32(len(lags) + 4) if single else gamma(len(lags) + 4)
    spread = SAFE * float(size.max()) * (built + phase_error(len(kept)))
    lost = SAFE * (gamma(columns * len(taps)) * kappa**2 + spread) + (_TINY32 if single else TINY)
    return Symbol(kernels, taps, np.array(lags), even, odd, kappa, lost)


def _correlated(kernels: np.ndarray, ahead: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Σ K_a K_bᵀ over the pairs, in each group: one product where copies are cheap, one for each pair else."""
    groups, _, order, columns = kernels.shape
    if order * columns < 1 << 14:
        first, second = (kernels[:, side].swapaxes(1, 2).reshape(groups, order, -1) for side in (ahead, behind))
        return first @ second.swapaxes(1, 2)
    total = np.zeros((groups, order, order))
    for a, b in zip(ahead, behind, strict=True):
        total += kernels[:, a] @ kernels[:, b].swapaxes(1, 2)
    return total


def hermitian(symbol: Symbol, groups: np.ndarray, points: np.ndarray, modulus: np.ndarray) -> np.ndarray:
    """H (cells, n, n) at ω_j = 2π·points[:, j]/modulus[j], each of its own group; real where n = 1.

    What lies above the diagonal is arbitrary where n > BLOCK: see `mirrored`.
    """
    angles = angles_of(symbol.lags, points, modulus)
    n, kind = symbol.order, symbol.even[0].dtype
    if n == 1:
        return np.einsum("cl,cl->c", np.cos(angles), symbol.even[0][groups, :, 0, 0])[:, None, None]
    cos, sin = np.cos(angles).astype(kind, copy=False), np.sin(angles).astype(kind, copy=False)
    result = np.zeros((len(points), n, n), np.result_type(kind, np.complex64))
    for mine, group in _by_group(groups):
        for e, o in zip(symbol.even, symbol.odd, strict=True):
            height, stop = e.shape[2:]
            at = (mine, slice(stop - height, stop), slice(0, stop))
            result.real[at] = (cos[mine] @ e[group].reshape(len(symbol.lags), -1)).reshape(-1, height, stop)
            result.imag[at] = (sin[mine] @ o[group].reshape(len(symbol.lags), -1)).reshape(-1, height, stop)
    return result


def mirrored(h: np.ndarray) -> np.ndarray:
    """H in full, of the lower triangles of a stack."""
    if h.shape[-1] <= BLOCK:
        return h
    lower = np.tril(h, -1)
    result = lower + lower.conj().swapaxes(-1, -2)
    np.einsum("kii->ki", result)[...] = np.einsum("kii->ki", h).real
    return result


def _by_group(groups: np.ndarray) -> Iterator[tuple[slice | np.ndarray, int]]:
    """(which cells, their group), as a slice where all are of one."""
    present = np.unique(groups)
    for group in present:
        yield (slice(None) if len(present) == 1 else np.flatnonzero(groups == group)), int(group)


def images(symbol: Symbol, group: int, u: np.ndarray) -> np.ndarray:
    """(Q, p): K_qᵀu for each tap."""
    parts = np.stack([u.real, u.imag]).astype(np.float64) @ symbol.kernels[group]
    return parts[:, 0] + 1j * parts[:, 1]


def section(symbol: Symbol, parts: np.ndarray, points: np.ndarray, modulus: np.ndarray) -> np.ndarray:
    """‖F(ω)ᴴu‖² at many frequencies, about, from u's `images`: a scalar polynomial, cheap to maximise."""
    phases = np.exp(-1j * angles_of(symbol.taps, points, modulus))
    gram = parts.conj() @ parts.T
    return np.einsum("cq,cq->c", phases.conj() @ gram, phases).real


def witness_down(
    symbol: Symbol, point: np.ndarray, modulus: np.ndarray, u: np.ndarray, parts: np.ndarray
) -> float:
    """‖F(ω)ᴴu‖/‖u‖ from below: at most the sup of ‖F‖, which is the norm over all input sizes.

    fl(K_qᵀu) is within γ_n‖K_q‖_F‖u‖, its sum over taps with phases within (√2·γ_{2Q} + ε)κ‖u‖.
    """
    angles = angles_of(symbol.taps, point[None], modulus)[0]
    image = np.exp(-1j * angles) @ parts
    rate = gamma(symbol.order) + math.sqrt(2.0) * gamma(2 * len(angles) + 2) + phase_error(len(point))
    (below, _), (_, above) = norm_enclosed(image), norm_enclosed(u.astype(np.complex128))
    return max(0.0, (below / above) * (1.0 - 4 * U) - SAFE * SAFE * rate * symbol.kappa - TINY)


def angles_of(lags: np.ndarray, points: np.ndarray, modulus: np.ndarray) -> np.ndarray:
    """⟨ω, r⟩ modulo 2π, in [−π, π], (cells, lags)."""
    turns = np.zeros((len(points), len(lags)))
    for axis, size in enumerate(modulus):
        turns += ((points[:, axis, None] * lags[:, axis] + size // 2) % size - size // 2) / size
    return 2.0 * math.pi * (turns - np.rint(turns))


def phase_error(axes: int) -> float:
    return (32 + 16 * axes**2) * U

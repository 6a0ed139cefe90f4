"""The proof of a section's bound on tori from its channels' multipliers: one Cholesky for each unit and frequency.

Stage by stage, with covariances S that are stored, exactly Hermitian floats. Let V(s) = sᴴS⁻¹s (the
supremum over ε > 0 of sᴴ(S + ε)⁻¹s where S is singular); at first S = I and V(x) = ‖x‖².

- A linear map s' = T·s: V'(s') ≤ V(s) if S' ⪰ TSTᴴ, summed over the frequencies that fold.
- A unit, p(z − p) ≥ 0 with w = αz + gp: for Λ ≥ 0, V(s) ≥ V(s) − Σ Λp(z − p) ≥ V'(s') if S' is at least the
  covariance of s' = Ēs + F̄p under that form, which is so if
      K = [[S' − ĒSĒᴴ, ½ĒSHᵀΛ + F̄], [·, Λ − ¼ΛHSHᵀΛ]] ⪰ 0, Λ > 0
  (Schur complement of its lower right block, which Cholesky proves to be definite with it).
- At the end ‖y‖² ≤ λmax(S)·V(y), so ‖δy‖² ≤ ρ‖δx‖² with ρ the largest eigenvalue over the frequencies.

Rounding of a linear map: let t_i = Σ_k|T_ik|√S_kk, δ_i = Σ_k lost_ik√S_kk, n the order, ε for the two sums of
products. As |S_kl| ≤ √(S_kk S_ll), entry ij of fl(TSTᴴ) is within εt_it_j + δ_it_j + t_iδ_j + δ_iδ_j =: B_ij of
the exact one. With t̂ = t + δ > 0, diag_i(t̂_i Σ_j B_ij/t̂_j) − M ⪰ 0 for every Hermitian |M| ≤ B (scaled by t̂
it is diagonally dominant), and Σ_j B_ij/t̂_j ≤ n(εt̂_i + 2δ_i) + t_i Σ_j δ_j/t̂_j: that is added to S'.
1e-20 of the largest entry is added too, so that dead channels do not leave the floats' range.
Of K: each entry is within 8u of the sizes of itself and of what is added up in it. Scaled by powers of two to
S'_ii and Λ_i near one, all errors together are less than 16u·n times the largest sum of sizes, and c = that +
`cholesky_deficit` is taken from the diagonal (Rump, *Verification of positive definiteness*, BIT 46, 2006).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from snaudit.bound import root_up
from snaudit.rounding import SAFE, TINY, U, cholesky_deficit, gamma
from snaudit.waves.norms import largest_eigenvalue
from snaudit.waves.recursion import Recursion, activated, adjoint, folded, rows_after, spread, symmetric
from snaudit.waves.stages import Activation, Linear

_SLACKS = (1e-9, 1e-7, 1e-5, 1e-3)
_AT_ONCE = 1 << 22
Multiplier = Callable[[int, Activation, np.ndarray], np.ndarray]
"""multiplier(number of the unit, the unit, S) → Λ, one for each channel."""


def prove(recursion: Recursion, multipliers: list[np.ndarray]) -> float:
    """An upper bound of the section's Lipschitz constant for these multipliers, any numbers > 0; ∞ if none is proved."""
    stages, number = recursion.stages, 0
    covariance = recursion.start()
    for linear, unit in stages.pairs:
        if linear is not None:
            covariance = _mapped(linear, covariance)
        if not np.isfinite(covariance).all() or not _in_range(np.einsum("kii->ki", covariance).real):
            return math.inf
        if unit is not None:
            after = _activated(unit, covariance, multipliers[number])
            if after is None:
                return math.inf
            covariance, number = after, number + 1
    rho = largest_eigenvalue(covariance)
    return root_up(rho) if 1e-200 < rho < 1e200 else math.inf


def _in_range(diagonal: np.ndarray) -> bool:
    return bool((diagonal > 1e-200).all() and (diagonal < 1e200).all())


def _mapped(linear: Linear, covariance: np.ndarray) -> np.ndarray:
    """A Hermitian S' ⪰ Σ_a T_a S(ω_a) T_aᴴ for the exact T."""
    times, rows, columns = linear.numbers.shape[1], linear.lost.shape[1], len(linear.columns)
    roots = np.sqrt(np.einsum("faii->fai", spread(linear, covariance)).real)
    size = SAFE * linear.sizes(roots) + 1e-150
    shares = np.stack([roots[..., linear.columns == k].sum(axis=(1, 2)) for k in range(linear.lost.shape[2])], axis=-1)
    off = SAFE * np.einsum("fik,fk->fi", linear.lost, shares) + 1e-160
    rate = 2 * math.sqrt(2.0) * gamma(2 * times * columns + 8) + 8 * U
    whole = size + off
    added = whole * (rows * (rate * whole + 2 * off) + size * (off / whole).sum(axis=1, keepdims=True))
    after = symmetric(folded(linear, covariance))
    diagonal = np.einsum("kii->ki", after)
    diagonal += SAFE * SAFE * added + 1e-20 * float(diagonal.real.max())
    return after


def _activated(unit: Activation, covariance: np.ndarray, multiplier: np.ndarray) -> np.ndarray | None:
    """A Hermitian S' after a unit, proved; None where it is not."""
    try:
        after, _ = activated(unit, covariance, multiplier, margin=0.0)
    except np.linalg.LinAlgError:
        return None
    diagonal = np.einsum("kii->ki", after)
    if not np.isfinite(after).all() or not _in_range(diagonal.real) or not _in_range(multiplier):
        return None
    exact, done = diagonal.real.copy(), 0.0
    for slack in _SLACKS:
        diagonal += (slack - done) * exact
        done = slack
        step = max(1, _AT_ONCE // (after.shape[1] + len(multiplier)) ** 2)
        starts = range(0, len(after), step)
        if all(_proved(unit, covariance[s : s + step], multiplier, after[s : s + step]) for s in starts):
            return after
    return None


def _proved(unit: Activation, before: np.ndarray, multiplier: np.ndarray, after: np.ndarray) -> bool:
    """Whether the matrices K are proved to be positive semidefinite; Λ's block is eliminated first."""
    reads = before[:, :, unit.read]
    across = 0.5 * rows_after(unit, reads) * multiplier
    diagonal = np.arange(len(multiplier))
    across[:, len(unit.kept) + diagonal, diagonal] += unit.width
    inner = -0.25 * (multiplier[:, None] * reads[:, unit.read] * multiplier)
    inner[:, diagonal, diagonal] += multiplier
    outer = after - symmetric(adjoint(rows_after(unit, adjoint(rows_after(unit, before)))))
    matrix = np.concatenate(
        [np.concatenate([inner, adjoint(across)], axis=2), np.concatenate([across, outer], axis=2)], axis=1
    )
    sizes = np.concatenate(
        [np.broadcast_to(multiplier, (len(after), len(multiplier))), np.einsum("kii->ki", after).real], axis=1
    )
    scale = np.ldexp(1.0, -(np.frexp(sizes)[1] // 2))
    matrix *= scale[:, :, None]
    matrix *= scale[:, None, :]
    parts = _largest_parts(unit, before, multiplier, scale) + SAFE * float(np.abs(matrix).max())
    order = matrix.shape[1]
    entries = np.einsum("kii->ki", matrix)
    trace = float(np.abs(entries.real).sum(axis=1).max())
    lowered = SAFE * SAFE * (16 * U * order * parts + cholesky_deficit(order, trace, is_complex=True)) + TINY
    if not math.isfinite(lowered):
        return False
    entries -= lowered
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return True


def _largest_parts(
    unit: Activation, before: np.ndarray, multiplier: np.ndarray, scale: np.ndarray
) -> float:
    """An upper bound of the sums of the sizes of what is added up in the scaled matrix' entries, S' apart, which
    is exact: as S ⪰ 0, its entry ij is at most √(S_ii S_jj), so the roots of its diagonal are enough."""
    count = len(multiplier)
    of_p, of_s = scale[:, :count], scale[:, count:]
    root = np.sqrt(np.einsum("kii->ki", before).real)
    read = root[:, unit.read] * multiplier * of_p
    moved = np.concatenate([root[:, unit.kept], np.abs(unit.low) * root[:, unit.read]], axis=1) * of_s
    made = (unit.width * of_p * of_s[:, len(unit.kept) :]).max(initial=0.0)
    tops = [part.max(initial=0.0) for part in (read, moved, multiplier * of_p**2)]
    return SAFE * float(tops[0] ** 2 + tops[0] * tops[1] + tops[1] ** 2 + tops[2] + made)

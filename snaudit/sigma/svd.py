"""σ₁ by LAPACK's singular value decomposition in float64: a theorem, its rounding not enclosed."""

from __future__ import annotations

import math

import numpy as np

from snaudit.arrays import arrays_on
from snaudit.bound import Bound, Grade, Norm
from snaudit.linear import AnyMap, BlockDiagonal, Dense, LowRank
from snaudit.rounding import U, exponent_of, scale, unscale
from snaudit.sigma.interface import Method, Options
from snaudit.sigma.scaling import scaled_map


def fits(map: AnyMap, norm: Norm) -> bool:
    """Any matrix in l2; a low-rank product through thin QR of both factors."""
    return norm == "l2" and isinstance(map, (Dense, BlockDiagonal, LowRank))


def measure(map: AnyMap, norm: Norm, options: Options) -> Bound:
    """σ₁ within LAPACK's usual error, 8(m+n)u·σ₁ to both sides, graded COMPUTED.

    The algorithm is backward stable: the computed values are those of W + E, ‖E‖ ≤ p(m,n)·u·σ₁
    (Golub and Van Loan, *Matrix Computations*, section 8.6; LAPACK Users' Guide, section 4.9), but
    p is not known, and 8(m+n) is a usual size and not a proof. Unbounded where it does not converge.
    """
    arrays = arrays_on(options.device)
    if isinstance(map, LowRank):
        scaled, exponent = scaled_map(map)
        matrix = np.linalg.qr(scaled.left, mode="r") @ np.linalg.qr(scaled.right.T, mode="r").T
    else:
        matrix = map.blocks.astype(np.float64, copy=False) if isinstance(map, BlockDiagonal) else map.dense()
        exponent = exponent_of(matrix)
        matrix = scale(matrix, exponent)
    try:
        value = float(np.max(arrays.singular_values(matrix), initial=0.0))
    except np.linalg.LinAlgError:
        return Bound(0.0, math.inf, Grade.COMPUTED, "svd (did not converge)")
    slack = 8 * sum(map.shape) * U
    lower, upper = unscale(value * (1.0 - slack), value * (1.0 + slack), exponent)
    return Bound(lower, upper, Grade.COMPUTED, "svd")


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """All singular values of a matrix in falling order, in float64; NaN where entries are not finite."""
    if not np.isfinite(matrix).all():
        return np.full(min(matrix.shape), np.nan)
    if matrix.size == 0:
        return np.zeros(min(matrix.shape))
    exponent = exponent_of(matrix)
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(np.linalg.svd(scale(matrix, exponent), compute_uv=False), exponent)


METHOD = Method("svd", Grade.COMPUTED, "singular values are backward stable (LAPACK)", fits, measure)

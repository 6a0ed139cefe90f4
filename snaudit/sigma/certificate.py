"""Proved enclosures of σ₁ of dense matrices, stacks of them, and low-rank products."""

from __future__ import annotations

import math

import numpy as np

from snaudit.arrays import Arrays, arrays_on, top_eigenpair
from snaudit.bound import Bound, Grade, Norm, exactly, root_up, sum_up, times_up, up
from snaudit.linear import AnyMap, BlockDiagonal, Dense, LowRank
from snaudit.rounding import (
    SAFE,
    TINY,
    U,
    cholesky_deficit,
    exponent_of,
    frobenius_up,
    gamma,
    largest_entry,
    magnitude_up,
    norm_enclosed,
    rayleigh_down,
    scale,
    unscale,
)
from snaudit.sigma.interface import Method, Options

NAME = "certificate"
_BATCH = 1 << 22  # entries of the Gram matrices and blocks that are held at once
_SLACK = 1e-9  # of the shift over the largest Ritz value; the enclosure is half as wide


def fits(map: AnyMap, norm: Norm) -> bool:
    """Any matrix in l2."""
    return norm == "l2" and isinstance(map, (Dense, BlockDiagonal, LowRank))


def measure(map: AnyMap, norm: Norm, options: Options) -> Bound:
    """An enclosure of σ₁, proved, about 1e-9 wide; unbounded where no factorization completed.

    Upper (`_upper`): a Cholesky factorization of tI − WᵀW that completes in floating point, with all
    its rounding and the Gram matrix's (Rump, BIT 46, 2006). Lower: ‖Wv‖/‖v‖ for the Ritz vector v.
    Exact for a map with at most one entry in each row and column; a vector's norm for one column.
    Assumes IEEE arithmetic and conventional (not Strassen's) BLAS and LAPACK; see `rounding`.
    """
    device = arrays_on(options.device)
    if isinstance(map, LowRank):
        return _low_rank(map, device, options.seed)
    blocks = map.blocks if isinstance(map, BlockDiagonal) else map.weight[None]
    if _monomial(blocks):
        return exactly(largest_entry(blocks), "exact")
    exponent = exponent_of(blocks)
    lower, upper = _enclose(scale(blocks, exponent), device, options.seed)[:2]
    return _bound(*unscale(lower, upper, exponent))


METHOD = Method(
    NAME,
    Grade.PROVED,
    "Cholesky of tI − WᵀW completes ⇒ σ₁² ≤ t + rounding (Demmel 1989; Rump 2006)",
    fits,
    measure,
)


def _bound(lower: float, upper: float) -> Bound:
    return Bound(min(lower, upper), upper, Grade.PROVED, NAME)


def _monomial(blocks: np.ndarray) -> bool:
    """Whether no row and no column of a block has two entries: then the norm is the largest entry."""
    if np.count_nonzero(blocks) > blocks.shape[0] * min(blocks.shape[1:]):
        return False
    there = blocks != 0.0
    return bool(there.sum(axis=1).max() <= 1 and there.sum(axis=2).max() <= 1)


def _enclose(blocks: np.ndarray, device: Arrays, seed: int) -> tuple[float, float, np.ndarray]:
    """(lower, upper, v) of the largest σ₁ of blocks (k, m, n) with entries of order one.

    v is a top right singular vector's approximation, of the block with the largest σ₁, on the
    shorter side. A block whose ‖·‖_F or √(‖·‖₁‖·‖∞) lies below the running lower end is done.
    """
    if blocks.shape[1] < blocks.shape[2]:
        blocks = blocks.swapaxes(1, 2)
    count, rows, columns = blocks.shape
    if columns == 1:
        return _vectors(blocks)
    step = max(1, _BATCH // (rows * columns)) if columns <= 64 else 1
    lower, upper, best = 0.0, 0.0, np.zeros(columns)
    for start in range(0, count, step):
        part = blocks[start : start + step]
        magnitude = max(magnitude_up(block) for block in part)
        if magnitude <= lower:
            upper = max(upper, magnitude)
            continue
        gram = device.gram(part)
        index, theta, vector = _top(gram, seed)
        seen = rayleigh_down(part[index], vector, magnitude)
        if seen > lower:
            lower, best = seen, vector
        upper = max(upper, _upper(gram, rows, magnitude, max(theta, lower * lower), seed))
    return lower, upper, best


def _vectors(blocks: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Of blocks with one column: the largest Euclidean norm."""
    ends = [norm_enclosed(block) for block in blocks]
    return max(low for low, _ in ends), max(high for _, high in ends), np.ones(1)


def _top(gram: np.ndarray, seed: int) -> tuple[int, float, np.ndarray]:
    """(which, θ, v) of the largest eigenvalue among a stack of Gram matrices, approximately."""
    if len(gram) == 1:
        return 0, *top_eigenpair(gram[0], seed)[:2]
    values = np.linalg.eigvalsh(gram)[:, -1]
    index = int(np.argmax(values))
    return index, *top_eigenpair(gram[index], seed)[:2]


def _upper(gram: np.ndarray, rows: int, magnitude: float, theta: float, seed: int) -> float:
    """An upper bound of σ₁ of every block W whose computed Gram matrix S = fl(WᵀW) is given.

    S has ‖S − WᵀW‖₂ ≤ γ_m‖|W|ᵀ|W|‖₂ ≤ γ_m·magnitude². A = fl(tI − S) is exact off the diagonal and
    within u·max|Aᵢᵢ| on it. If the Cholesky factorization of A completes, λmin(A) ≥ −deficit, and
    σ₁² ≤ λmax(S) + γ_m·magnitude² = t − λmin(tI − S) + … ≤ t + u·max|Aᵢᵢ| + deficit + γ_m·magnitude².
    Every shift t gives a true bound; a good θ ≈ λmax(S) only makes it tight. LAPACK reads one
    triangle, and the bound for S holds for that triangle mirrored. `gram` is overwritten.
    """
    order = gram.shape[-1]
    diagonal = np.einsum("kii->ki", gram).copy()
    shifted = np.negative(gram, out=gram)
    slack = min(_SLACK, 8 * order * gamma(order + 2)) if order <= 64 else _SLACK
    for attempt in range(12):
        shift = theta * (1.0 + slack) + TINY
        np.einsum("kii->ki", shifted)[...] = shift - diagonal
        try:
            np.linalg.cholesky(shifted)
        except np.linalg.LinAlgError:
            if attempt == 0 and order > 64:
                theta = max(theta, _exact_top(shifted, shift))
            slack *= 10.0
            continue
        traces = np.einsum("kii->k", shifted)
        deficit = cholesky_deficit(order, float(traces.max()))
        lost = SAFE * (U * largest_entry(np.einsum("kii->ki", shifted)) + gamma(rows) * magnitude**2)
        return root_up(sum_up((shift, deficit, lost, TINY)))
    return math.inf


def _exact_top(shifted: np.ndarray, shift: float) -> float:
    """λmax(S) by LAPACK, approximately: for when Lanczos settled on a lesser eigenvalue."""
    return max(shift - float(np.linalg.eigvalsh(block)[0]) for block in shifted)


def _low_rank(map: LowRank, device: Arrays, seed: int) -> Bound:
    """An enclosure of σ₁(BA), B (m, r), A (r, c), through a thin QR of Aᵀ, without forming BA.

    For any computed Q, R, with E = Aᵀ − QR and C = fl(BRᵀ): BA = (BRᵀ)Qᵀ + BEᵀ, hence
    σ₁(BA) ≤ (σ₁(C) + γ_r‖B‖‖R‖)·√(1 + ‖QᵀQ − I‖) + ‖B‖‖E‖, in Frobenius norms, each enclosed
    a posteriori: nothing is assumed about how Q and R came about. σ₁(C) by the certificate. Lower:
    ‖B(Av)‖/‖v‖. Its width, relative to σ₁, grows with ‖B‖‖A‖/σ₁(BA).
    """
    exponents = exponent_of(map.left), exponent_of(map.right)
    left, right = scale(map.left, exponents[0]), scale(map.right, exponents[1])
    if not left.any() or not right.any():
        return exactly(0.0, "exact")
    q, r = np.linalg.qr(right.T)
    core = left @ r.T
    _, high, vector = _enclose(core[None], device, seed)
    norms = [frobenius_up(x) for x in (left, right, q, r)]
    inner, middle = right.shape[0], r.shape[0]
    residual = frobenius_up(right.T - q @ r) + gamma(middle + 2) * SAFE * (norms[2] * norms[3] + norms[1])
    skew = frobenius_up(q.T @ q - np.eye(middle)) + gamma(q.shape[0] + 2) * SAFE * (norms[2] ** 2 + middle)
    core_up = sum_up((high, up(SAFE * gamma(inner) * norms[0] * norms[3])))
    upper = sum_up((times_up(core_up, root_up(up(1.0 + skew))), up(SAFE * norms[0] * residual), TINY))
    short = left.shape[0] < middle  # then the vector belongs to the core's rows
    lower = _low_rank_lower(left, right, q @ (core.T @ vector if short else vector), norms[0] * norms[1])
    return _bound(*unscale(lower, upper, sum(exponents)))


def _low_rank_lower(left: np.ndarray, right: np.ndarray, v: np.ndarray, sizes: float) -> float:
    """‖B(Av)‖/‖v‖ from below: z = fl(Av) and y = fl(Bz) have ‖y − BAv‖ ≤ (γ_r + γ_c)·1.01·‖B‖‖A‖‖v‖."""
    v = v / max(float(np.linalg.norm(v)), TINY)
    below, above = norm_enclosed(left @ (right @ v))[0], norm_enclosed(v)[1]
    lost = SAFE * SAFE * gamma(left.shape[1] + right.shape[1]) * sizes * above + TINY
    return max(0.0, (below - lost) / above * (1.0 - 4 * U))

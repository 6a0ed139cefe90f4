"""Proved enclosures of σ₁ of dense matrices, stacks of them, and low-rank products."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from snaudit.arrays import Arrays, Cpu, arrays_on, lanczos
from snaudit.bound import UNBOUNDED, Bound, Grade, Norm, enclosed, down, exactly, root_up, sum_up, times_up, up
from snaudit.linear import BLOCK, AnyMap, BlockDiagonal, Dense, LowRank
from snaudit.rounding import SAFE, TINY, U, frobenius_up, gamma, norm_enclosed, unscale
from snaudit.sigma.gram import Gram, gram_of, scaled_rows
from snaudit.sigma.interface import NOT_FINITE, Method, Options, PowerEstimate, Survey
from snaudit.sigma.power import from_quadrature, power_estimate
from snaudit.sigma.scaling import finite, frobenius, largest_of, scaled_map

NAME = "certificate"
_SMALL = 64  # order up to which stacks go through LAPACK at once
_STEPS = 300
_SLACK = 1e-9  # of the shift over the largest Ritz value; the enclosure is half as wide


def fits(map: AnyMap, norm: Norm) -> bool:
    """Any matrix in l2."""
    return norm == "l2" and isinstance(map, (Dense, BlockDiagonal, LowRank))


def measure(map: AnyMap, norm: Norm, options: Options) -> Bound:
    """An enclosure of σ₁, proved, about 1e-9 wide; unbounded where no factorization completed.

    Upper (`_upper`): a Cholesky factorization of tI − WᵀW that completes in floating point, with all
    its rounding and the Gram matrix's (Rump, BIT 46, 2006). Lower: ‖Wv‖/‖v‖ for the Ritz vector v.
    Exact for a map with at most one entry in each row and column.
    Assumes IEEE arithmetic and conventional (not Strassen's) BLAS and LAPACK; see `rounding`.
    """
    return survey(map, options).bound


METHOD = Method(
    NAME,
    Grade.PROVED,
    "Cholesky of tI − WᵀW completes ⇒ σ₁² ≤ t + rounding (Demmel 1989; Rump 2006)",
    fits,
    measure,
)


def survey(map: AnyMap, options: Options) -> Survey:
    """The enclosure, the power estimate and ‖W‖_F from one reading of a non-empty matrix, by its Gram
    matrix: WᵀW is summed over blocks of rows, so that a tall table never needs a second copy."""
    device = arrays_on(options.device)
    try:
        return _survey(map, device, options)
    except device.exhausted:
        found = _survey(map, Cpu(), options)
        return replace(found, notes=("does not fit into the memory of the GPU: measured on the CPU",))


def _survey(map: AnyMap, device: Arrays, options: Options) -> Survey:
    if isinstance(map, LowRank):
        if not finite(map):
            return Survey(replace(UNBOUNDED, method=NOT_FINITE), None, math.nan)
        bound = _low_rank(map, device, options)
        return Survey(bound, power_estimate(map, options.iterations, options.seed), frobenius(map))
    blocks = map.blocks if isinstance(map, BlockDiagonal) else map.weight[None]
    if _monomial(blocks):
        largest = largest_of(blocks)
        bound = exactly(largest, "exact") if math.isfinite(largest) else replace(UNBOUNDED, method=NOT_FINITE)
        return Survey(bound, power_estimate(map, options.iterations, options.seed), frobenius(map))
    if isinstance(map, Dense):
        blocks = _without_zeros(map.weight)[None]
    found = _enclose(blocks, device, options)
    if not found.finite:
        return Survey(replace(UNBOUNDED, method=NOT_FINITE), None, found.frobenius)
    return Survey(_bound(found.lower, found.upper), found.power, found.frobenius)


def _bound(lower: float, upper: float) -> Bound:
    return enclosed(lower, upper, Grade.PROVED, NAME)


def _monomial(blocks: np.ndarray) -> bool:
    """Whether no row and no column of a block has two entries: then the norm is the largest entry."""
    if any(np.count_nonzero(part) > 16 * len(blocks) for part in (blocks[:, :16], blocks[:, :, :16])):
        return False
    there = blocks != 0
    return bool(there.sum(axis=1).max() <= 1 and there.sum(axis=2).max() <= 1)


def _without_zeros(matrix: np.ndarray) -> np.ndarray:
    """The matrix without its zero rows and columns, where a look at some says that there are many
    (pruned weights): σ₁ is the same."""
    for axis in (0, 1) if matrix.size > 1 << 12 else ():
        sample = matrix[:64].any(axis=0) if axis else matrix[:, :64].any(axis=1)
        if np.count_nonzero(sample) > 0.9 * sample.size:
            continue
        rows = matrix.T if axis else matrix
        step = max(1, BLOCK // rows.shape[1])
        kept = np.flatnonzero(np.concatenate([rows[i : i + step].any(axis=1) for i in range(0, len(rows), step)]))
        if 0 < len(kept) <= 0.9 * len(rows):
            matrix = matrix.take(kept, axis)
    return matrix


@dataclass(frozen=True, slots=True)
class _Found:
    """The ends of the largest σ₁, its vector on the shorter side, power's estimate, ‖·‖_F, and whether
    all entries are finite (if not, the rest says nothing)."""

    lower: float
    upper: float
    vector: np.ndarray
    power: PowerEstimate
    frobenius: float
    finite: bool = True


def _enclose(blocks: np.ndarray, device: Arrays, options: Options) -> _Found:
    """What is found of a stack (k, m, n) with m, n > 0. A block whose ‖·‖_F lies below the running lower
    end needs no factorization."""
    if blocks.shape[1] < blocks.shape[2]:
        blocks = blocks.swapaxes(1, 2)
    count, rows, columns = blocks.shape
    step = max(1, BLOCK // (rows * columns)) if columns <= _SMALL else 1
    best = _Found(0.0, 0.0, np.zeros(columns), PowerEstimate(0.0, 0, True), 0.0)
    for start in range(0, count, step):
        found = _found(gram_of(blocks[start : start + step], device), best.lower, device, options)
        if not found.finite:
            return found
        size, upper = math.hypot(best.frobenius, found.frobenius), max(best.upper, found.upper)
        power = found.power if start == 0 else max(best.power, found.power, key=lambda one: one.estimate)
        best = replace(found if found.lower > best.lower else best, upper=upper, power=power, frobenius=size)
    return best


def _found(gram: Gram, known: float, device: Arrays, options: Options) -> _Found:
    """What the Gram matrices of a part of the stack tell, `known` being a lower end of the whole."""
    order, e = gram.diagonal.shape[1], gram.exponent
    if gram.largest is not None:  # all zero, or not finite
        nothing = PowerEstimate(0.0, options.iterations, True, 0.0)
        return _Found(0.0, 0.0, np.zeros(order), nothing, gram.largest, math.isfinite(gram.largest))
    index, theta, vector, power = _top(gram, device, options)
    power = replace(power, estimate=float(np.ldexp(power.estimate, e)))
    seen, size = _seen(gram, device, index, vector), root_up(gram.square)
    upper = size
    if unscale(0.0, size, e)[1] > known:
        upper = _upper(gram, device, max(theta, seen * seen))
    total = float(np.ldexp(math.sqrt(max(0.0, float(gram.diagonal.sum()))), e))
    return _Found(*unscale(min(seen, upper), upper, e), vector, power, total)


def _top(gram: Gram, device: Arrays, options: Options) -> tuple[int, float, np.ndarray, PowerEstimate]:
    """(which, θ, v, power's estimate) of the largest eigenvalue among the Gram matrices, approximately.

    Power iteration from the same start is read off the quadrature that Lanczos (or LAPACK) makes.
    """
    count, order = gram.diagonal.shape
    start = np.random.default_rng(options.seed).standard_normal(order)
    start /= np.linalg.norm(start)
    if order > _SMALL:
        found = lanczos(lambda x: device.times(gram.matrix, x), start, _STEPS, rtol=_SLACK / 10)
        power = from_quadrature(found.nodes, found.weights, options.iterations, order)
        return 0, found.theta, found.vector, power
    values, vectors = np.linalg.eigh(device.host(gram.matrix))
    index = int(np.argmax(values[:, -1]))
    weights = (start @ vectors) ** 2
    estimates = (from_quadrature(values[i], weights[i], options.iterations, order) for i in range(count))
    power = max(estimates, key=lambda one: one.estimate)
    return index, float(values[index, -1]), vectors[index, :, -1], power


def _seen(gram: Gram, device: Arrays, index: int, vector: np.ndarray) -> float:
    """‖Wv‖/‖v‖ from below, W one of the scaled blocks.

    By vᵀSv up to order 1024, which reads W no second time: |vᵀSv − ‖Wv‖²| ≤ γ_depth‖W‖_F²‖v‖², and
    the computed vᵀSv is within γ_2n|v|ᵀ|S||v| ≤ γ_2n‖W‖_F²‖v‖² (the 1% in γ and in `square` cover
    that S's own γ). Else by the product: fl(Wv) is within γ_n‖W‖_F‖v‖ of Wv.
    """
    order = vector.size
    length = norm_enclosed(vector)[1]
    if order <= 1024:
        image = device.times(gram.matrix, vector) if len(gram.diagonal) == 1 else device.host(gram.matrix)[index] @ vector
        quotient = down(float(vector @ image) / up(length * length))
        lost = SAFE * gamma(2 * order + gram.depth + 4) * gram.square + TINY
        return math.sqrt(max(0.0, quotient - lost)) * (1.0 - 4 * U)
    ends = [norm_enclosed(block[0] @ vector)[0] for block in scaled_rows(gram.blocks, gram.exponent)]
    seen = math.sqrt(math.fsum(end * end for end in ends)) * (1.0 - 4 * U)
    return max(0.0, down(down(seen / length) - SAFE * gamma(order) * root_up(gram.square)))


def _upper(gram: Gram, device: Arrays, theta: float) -> float:
    """An upper bound of σ₁ of every block W, from the computed Gram matrices S.

    ‖S − WᵀW‖₂ ≤ γ_depth‖|W|ᵀ|W|‖₂ ≤ γ_depth·‖W‖_F². If the Cholesky factorization of tI − S
    completes, λmin(tI − S) ≥ −deficit, and σ₁² ≤ λmax(S) + γ_depth‖W‖_F² ≤ t + deficit + γ_depth‖W‖_F².
    Every shift t gives a true bound; a good θ ≈ λmax(S) only makes it tight. LAPACK reads one
    triangle, and the bound for S holds for that triangle mirrored.
    """
    order = gram.diagonal.shape[1]
    slack = min(_SLACK, 8 * order * gamma(order + 2)) if order <= _SMALL else _SLACK
    for attempt in range(12):
        shift = theta * (1.0 + slack) + TINY
        deficit = device.deficit(gram.matrix, shift)
        if deficit is not None:
            return root_up(sum_up((shift, deficit, SAFE * gamma(gram.depth) * gram.square, TINY)))
        if attempt == 1 and order > _SMALL:  # Lanczos settled on a lesser eigenvalue
            theta, slack = max(theta, _exact_top(device.host(gram.matrix))), _SLACK / 10
        slack *= 10.0
    return math.inf


def _exact_top(gram: np.ndarray) -> float:
    """λmax(S) by LAPACK, approximately."""
    return max(float(np.linalg.eigvalsh(one)[-1]) for one in gram)


def _low_rank(map: LowRank, device: Arrays, options: Options) -> Bound:
    """An enclosure of σ₁(BA), B (m, r), A (r, c), through a thin QR of Aᵀ, without forming BA.

    For any computed Q, R, with E = Aᵀ − QR and C = fl(BRᵀ): BA = (BRᵀ)Qᵀ + BEᵀ, hence
    σ₁(BA) ≤ (σ₁(C) + γ_r‖B‖‖R‖)·√(1 + ‖QᵀQ − I‖) + ‖B‖‖E‖, in Frobenius norms, each enclosed
    a posteriori: nothing is assumed about how Q and R came about. σ₁(C) by the certificate. Lower:
    ‖B(Av)‖/‖v‖. Its width, relative to σ₁, grows with ‖B‖‖A‖/σ₁(BA).
    """
    scaled, exponent = scaled_map(map)
    left, right = scaled.left, scaled.right
    if not left.any() or not right.any():
        return exactly(0.0, "exact")
    q, r = np.linalg.qr(right.T)
    core = left @ r.T
    found = _enclose(core[None], device, options)
    norms = [frobenius_up(x) for x in (left, right, q, r)]
    inner, middle = right.shape[0], r.shape[0]
    residual = frobenius_up(right.T - q @ r) + gamma(middle + 2) * SAFE * (norms[2] * norms[3] + norms[1])
    skew = frobenius_up(q.T @ q - np.eye(middle)) + gamma(q.shape[0] + 2) * SAFE * (norms[2] ** 2 + middle)
    core_up = sum_up((found.upper, up(SAFE * gamma(inner) * norms[0] * norms[3])))
    upper = sum_up((times_up(core_up, root_up(up(1.0 + skew))), up(SAFE * norms[0] * residual), TINY))
    short = left.shape[0] < middle  # then the vector belongs to the core's rows
    vector = q @ (core.T @ found.vector if short else found.vector)
    lower = _low_rank_lower(left, right, vector, norms[0] * norms[1])
    return _bound(*unscale(lower, upper, exponent))


def _low_rank_lower(left: np.ndarray, right: np.ndarray, v: np.ndarray, sizes: float) -> float:
    """‖B(Av)‖/‖v‖ from below: z = fl(Av) and y = fl(Bz) have ‖y − BAv‖ ≤ (γ_r + γ_c)·1.01·‖B‖‖A‖‖v‖."""
    v = v / max(float(np.linalg.norm(v)), TINY)
    below, above = norm_enclosed(left @ (right @ v))[0], norm_enclosed(v)[1]
    lost = SAFE * SAFE * gamma(left.shape[1] + right.shape[1]) * sizes * above + TINY
    return max(0.0, (below - lost) / above * (1.0 - 4 * U))

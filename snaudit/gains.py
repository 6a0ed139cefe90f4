"""Norms of the elementary linear maps that ops are made of: copy, sum, select, scale, average.

Every function returns a Bound of the map's operator norm in l2, l1 or linf over the flattened
arrays. A map that acts on blocks separately has the norm of its worst block in all three norms, so
batch dimensions never matter. Entries computed in float64 are rounded outward here.
"""

from __future__ import annotations

import math

import numpy as np

from snaudit.bound import Bound, Grade, Norm, at_most, exactly, root_up, up

_EPS = 2.0**-52


def outward(x: float, roundings: int = 4) -> float:
    """x ≥ 0 enlarged by `roundings` relative float64 roundings: covers that many operations."""
    return up(x * (1.0 + (roundings + 1) * _EPS)) if x and math.isfinite(x) else x


def copies(count: int, norm: Norm) -> Bound:
    """The norm of a selection in which an entry appears at most `count` times: √count, count, 1.

    Each output coordinate is one input coordinate, so Σ|y|^p ≤ count·Σ|x|^p; attained on the entry
    that is copied most often.
    """
    if norm == "linf" or count <= 1:
        return exactly(1.0, "selection")
    return _counted(count, norm == "l1", "copies")


def sums(count: int, norm: Norm) -> Bound:
    """The norm of x ↦ Σ of `count` entries, disjointly: √count, 1, count (the adjoint of `copies`)."""
    if norm == "l1" or count <= 1:
        return exactly(1.0, "sum")
    return _counted(count, norm == "linf", "sum")


def _counted(count: int, whole: bool, method: str) -> Bound:
    size = float(count) if count <= 2**53 else up(float(count))
    return exactly(size, method) if whole else at_most(root_up(size), method)


def means(count: int, norm: Norm) -> Bound:
    """The norm of the mean over `count` entries, disjointly: 1/√count, 1/count, 1."""
    if norm == "linf" or count <= 1:
        return exactly(1.0, "mean")
    return at_most(outward(1.0 / (count if norm == "l1" else math.sqrt(count))), "mean")


def diagonal(factors: np.ndarray, copied: tuple[int, ...], norm: Norm) -> Bound:
    """The norm of y = c·x where x has one entry along the axes `copied` of c, and full axes elsewhere.

    The matrix has one non-zero in each row and, for an entry of x, a column that holds c along the
    copied axes: its l2, l1 or linf norm, then the largest. Exact but for rounding.
    Raises ValueError where c is not finite.
    """
    size = np.abs(factors.astype(np.float64))
    if not np.isfinite(size).all():
        raise ValueError("factors that are not finite")
    if size.size == 0:
        return exactly(0.0, "empty")
    largest = float(size.max())
    if norm == "linf" or not copied or largest == 0.0:
        return exactly(largest, "largest factor")
    terms = math.prod(size.shape[axis] for axis in copied)
    scale = math.ldexp(1.0, math.frexp(largest)[1])
    ratio = size / scale  # a power of two: exact, so that squares neither overflow nor vanish
    if norm == "l1":
        column = float(ratio.sum(axis=copied).max())
    else:
        column = math.sqrt(float(np.square(ratio).sum(axis=copied).max()))
    # Squares below the smallest normal number vanish; `terms` roundings of relative size cover that.
    return at_most(outward(scale * outward(column, 2 * terms + 4)), "scaled copies")


def non_negative(matrix: np.ndarray, norm: Norm) -> Bound:
    """The norm of a matrix with entries ≥ 0, each correct to a few roundings.

    l1 and linf: the largest column and row sum. l2: for any q > 0, ‖A‖₂² ≤ max_i (AᵀAq)_i/q_i
    (Collatz–Wielandt; Horn & Johnson, Matrix Analysis, 8.1.26), with q near the Perron vector.
    Every product and sum is of non-negative terms, so the relative error is counted in roundings.
    """
    rows, columns = matrix.shape
    if not matrix.any():
        return exactly(0.0, "zero map")
    roundings = 2 * (rows + columns) + 16
    if norm != "l2":
        return at_most(outward(float(matrix.sum(axis=0 if norm == "l1" else 1).max()), roundings), "sums")
    gram = matrix.T @ matrix
    perron = np.abs(np.linalg.eigh(gram)[1][:, -1])
    best = _ratio(gram, perron)
    vector = np.ones(columns)
    for _ in range(60):  # where the map falls into blocks, the eigenvector has zeros: iterate instead
        best = min(best, _ratio(gram, vector))
        vector = gram @ vector
        vector /= vector.max()
    return at_most(outward(math.sqrt(best), roundings), "Collatz–Wielandt")


def _ratio(gram: np.ndarray, vector: np.ndarray) -> float:
    """max_i (Gq)_i/q_i, over the entries that G reaches at all; ∞ where q is not positive there."""
    reached = gram.any(axis=1)
    if not (vector[reached] > 0.0).all():
        return math.inf
    return float(np.max((gram @ vector)[reached] / vector[reached]))


def signed(matrix: np.ndarray, norm: Norm) -> Bound:
    """The norm of any small matrix: exact sums in l1 and linf, LAPACK's σ₁ in l2 (COMPUTED)."""
    if norm != "l2":
        return non_negative(np.abs(matrix), norm)
    value = float(np.linalg.norm(matrix, 2))
    return at_most(outward(value, 64 * max(matrix.shape)), "svd", Grade.COMPUTED)

"""The proof of a section's bound from multipliers, wherever they come from: one Cholesky factorization."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from snaudit.bound import root_up, up
from snaudit.rounding import SAFE, TINY, U, cholesky_deficit, gamma
from snaudit.sections.interface import Section

_SLACKS = (1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
_FEW = (1e-8, 1e-6, 1e-4, 1e-3)
_LARGE = 1500
LARGEST = 5000
"""Rows of the largest matrix that is factorized."""


def prove(section: Section, multipliers: list[np.ndarray], squared: float) -> float:
    """An upper bound of the section's Lipschitz constant, √squared with the least slack that is proved; ∞ if none.

    multipliers: Λ_k of `sector`'s form Q, any numbers ≥ 0. In w = αz + (β−α)p, with λ = Λ/(β−α)², any
    float (all that counts is that the same λ stands at all its places),
        p(p − z)Λ = λ(w − αz)(w − βz) = λ(w² − (α+β)zw + αβz²),
    so ‖δy‖² ≤ ρ‖δx‖² for all slopes in [α, β] if the form
        ‖x‖² + Σ_k [w_kᵀλ_kw_k − z_kᵀ(α+β)λ_kw_k + z_kᵀαβλ_kz_k] − ‖y‖²/ρ,  z_k = Σ_j A_kj w_j, w₀ = x,
    is non-negative, or, by a Schur complement, if the symmetric matrix in (x, w₁, …, w_K, y) with blocks
        (0,0): I   (k,k): λ_k   (y,y): ρI   (k,j): −½λ_k(α+β)A_kj   (y,j): −A_yj   (i,j): += Σ_k A_kiᵀλ_kαβA_kj
    is positive semidefinite. Its off-diagonal entries are rounded thrice at most and once more for each
    Gram term that is added, Gram terms (of units with αβ ≠ 0) are within γ_{n+4}·|A|ᵀλ|αβ||A|, and blocks
    that are products of weights carry their radius.
    Scaled by powers of two (exact) to a diagonal near one, lowered by c = row sums of all these errors +
    `cholesky_deficit` + one rounding of the diagonal: if LAPACK's Cholesky completes, the exact matrix is
    positive semidefinite (Rump, *Verification of positive definiteness*, BIT 46, 2006).
    """
    if order_of(section) > LARGEST:
        return math.inf
    weights = [_weight(unit.high - unit.low, m) for unit, m in zip(section.units, multipliers, strict=True)]
    if not all(np.isfinite(w).all() for w in weights) or not 1e-200 < squared < 1e200:
        return math.inf
    matrix, places = _matrix(section, weights)
    ends = places[-1]
    for slack in _SLACKS if len(matrix) < _LARGE else _FEW:
        rho = squared * (1.0 + slack)
        matrix[np.arange(ends.start, ends.stop), np.arange(ends.start, ends.stop)] = rho
        if _positive(section, weights, matrix, places):
            return root_up(rho)
    return math.inf


def order_of(section: Section) -> int:
    """The order of the section's matrix."""
    return sum(section.sizes) + section.outputs


def _weight(width: np.ndarray, multiplier: np.ndarray) -> np.ndarray:
    return np.maximum(multiplier, 0.0) / width**2


def _places(section: Section) -> list[slice]:
    ends = np.cumsum([0, *section.sizes, section.outputs])
    return [slice(int(a), int(b)) for a, b in pairwise(ends)]


def _matrix(section: Section, weights: list[np.ndarray]) -> tuple[np.ndarray, list[slice]]:
    """(the matrix with ρ still missing, where its blocks are); only the lower triangle counts."""
    places = _places(section)
    matrix = np.zeros((order_of(section),) * 2)
    matrix[places[0], places[0]] = np.eye(section.inputs)
    for k, (unit, weight) in enumerate(zip(section.units, weights, strict=True), start=1):
        np.fill_diagonal(matrix[places[k], places[k]], weight)
        both = -0.5 * (weight * (unit.low + unit.high))
        for j, block in unit.blocks.items():
            matrix[places[k], places[j]] = both[:, None] * block.centre
        curved = weight * (unit.low * unit.high)
        if curved.any():
            for i, left in unit.blocks.items():
                for j, right in unit.blocks.items():
                    if j <= i:
                        matrix[places[i], places[j]] += left.centre.T @ (curved[:, None] * right.centre)
    for j, block in section.output.items():
        matrix[places[-1], places[j]] = -block.centre
    return matrix, places


def _positive(
    section: Section, weights: list[np.ndarray], matrix: np.ndarray, places: list[slice]
) -> bool:
    """Whether the exact matrix is proved to be positive semidefinite."""
    diagonal = np.diagonal(matrix)
    if not (np.isfinite(diagonal).all() and (diagonal > 1e-200).all() and (diagonal < 1e200).all()):
        return False
    scale = np.ldexp(1.0, -(np.frexp(diagonal)[1] // 2))
    scaled = matrix * scale[:, None]
    scaled *= scale
    top = float(np.max(np.diagonal(scaled)))
    lost = float(np.max(scale * _errors(section, weights, matrix, places, scale)))
    order = len(matrix)
    lowered = SAFE * (lost + cholesky_deficit(order, float(np.trace(scaled))) + 2 * U * top) + TINY
    if not math.isfinite(lowered):
        return False
    scaled[np.arange(order), np.arange(order)] -= up(lowered)
    try:
        np.linalg.cholesky(scaled)
    except np.linalg.LinAlgError:
        return False
    return True


def _errors(
    section: Section, weights: list[np.ndarray], matrix: np.ndarray, places: list[slice], scale: np.ndarray
) -> np.ndarray:
    """N·s for an entrywise bound N of the matrix's error: symmetric, so max s·(Ns) bounds its norm."""
    parts = [scale[place] for place in places]
    roundings = (4 + len(section.units)) * U
    found = np.concatenate([np.ones(section.inputs), *weights, np.zeros(section.outputs)]) * scale * roundings
    for k, (unit, weight) in enumerate(zip(section.units, weights, strict=True), start=1):
        both = weight * np.abs(unit.low + unit.high)
        curved = weight * np.abs(unit.low * unit.high)
        inner, blurred = np.zeros(unit.size), np.zeros(unit.size)
        for j, block in unit.blocks.items():
            size = np.abs(block.centre)
            blur = roundings * size if block.radius is None else roundings * size + block.radius
            found[places[k]] += both * (blur @ parts[j])
            found[places[j]] += blur.T @ (both * parts[k])
            inner += size @ parts[j]
            blurred += blur @ parts[j]
        if curved.any():
            slack = gamma(unit.size + 6 + 4 * len(unit.blocks) + 2 * len(section.units))
            for j, block in unit.blocks.items():
                size = np.abs(block.centre)
                blur = 0.0 * size if block.radius is None else block.radius
                found[places[j]] += size.T @ (curved * (slack * inner + 2 * blurred))
                found[places[j]] += 2 * (blur.T @ (curved * (inner + blurred)))
    for j, block in section.output.items():
        if block.radius is not None:
            found[places[-1]] += block.radius @ parts[j]
            found[places[j]] += block.radius.T @ parts[-1]
    return SAFE * found + len(found) * TINY * float(scale.max())

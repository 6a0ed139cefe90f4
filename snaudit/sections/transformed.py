"""LipLT: every activation as its mean slope plus a rest, and the rests' contributions added up."""

from __future__ import annotations

from collections.abc import Sequence

import math

import numpy as np

from snaudit.bound import UNBOUNDED, Bound, Grade, at_most, sum_up, times_up, up
from snaudit.enclosed import Enclosed, product, scaled, total
from snaudit.rounding import exponent_of, magnitude_up, scale
from snaudit.sections.interface import Blocks, Effort, Method, Section, Unit

_NORM, _PRODUCT = 2e7, 1e6
"""What a norm and a product take in operations however small they are: a millisecond and a twentieth, mostly of calls."""


def measure(section: Section, effort: Effort) -> Bound:
    """t_y, where t_k = ‖G_k0‖ + Σ_{j<k} ‖G_kj‖·h_j·t_j bounds ‖δz_k‖/‖δx‖ (Fazlyab, Entesari, Roy &
    Chellappa, *Certified robustness via dynamic margin maximization and improved Lipschitz
    regularization*, NeurIPS 2023: LipLT, here on any DAG).

    With a = (α+β)/2 and h = max(β−a, a−α) of a unit, δw = a·δz + δr and ‖δr‖ ≤ h‖δz‖. Put that in for
    all units: z_k = G_k0 x + Σ_j G_kj r_j with G_k = A_k0·(x) + Σ_j A_kj(a_j G_j + r_j), products of
    weights and no longer of their norms. The products' rounding is enclosed, their norms are proved
    uppers. Never above the product of norms where 0 ≤ α; loose by what the triangle inequality loses.
    """
    if _work(section) > 4 * effort.work:
        return UNBOUNDED
    seen: list[Blocks | None] = []
    reach: list[float] = []
    rest: list[float] = []
    grade = Grade.PROVED
    middles = [(0.5 * unit.low + 0.5 * unit.high) for unit in section.units]
    for row in section.rows:
        through = transfer(row, seen, middles)
        terms = []
        for j, matrix in through.items():
            bound = _norm(matrix, effort)
            if not bound.bounded:
                return UNBOUNDED  # products that leave the floats
            grade = min(grade, bound.grade)
            terms.append(bound.upper if j == 0 else times_up(times_up(bound.upper, rest[j - 1]), reach[j - 1]))
        reach.append(sum_up(terms))
        if len(seen) < len(section.units):
            unit = section.units[len(seen)]
            rest.append(_rest(unit, middles[len(seen)]))
        seen.append(through)
    return at_most(reach[-1], METHOD.name, grade)


def _rest(unit: Unit, middle: np.ndarray) -> float:
    return up(float(np.maximum(unit.high - middle, middle - unit.low).max(initial=0.0)))


def transfer(row: Blocks, seen: Sequence[Blocks | None], middles: list[np.ndarray]) -> dict[int, Enclosed]:
    """The blocks of a row with every w_j replaced by a_j z_j + r_j: block j now acts on r_j."""
    found: dict[int, Enclosed] = {}
    for j, matrix in row.items():
        parts = [(j, matrix)]
        if j:
            slope = scaled(matrix, middles[j - 1], columns=True)
            parts += [(i, product(slope, inner)) for i, inner in seen[j - 1].items()]
        for i, part in parts:
            found[i] = total(found[i], part) if i in found else part
    return found


def _norm(matrix: Enclosed, effort: Effort) -> Bound:
    """‖centre‖ + ‖radius‖."""
    bound = effort.norm(matrix.centre)
    if matrix.radius is None:
        return bound
    exponent = exponent_of(matrix.radius)
    spread = up(float(np.ldexp(magnitude_up(scale(matrix.radius, exponent)), exponent)))
    if not bound.bounded or not math.isfinite(spread):
        return UNBOUNDED
    return at_most(sum_up((bound.upper, spread)), bound.method, bound.grade)


def _work(section: Section) -> float:
    sizes, total = section.sizes, 0.0
    for row in section.rows:
        total += _NORM * (1 + max(row, default=0))
        for j in row:
            total += 6.0 * next(iter(row.values())).shape[0] * sizes[j] * sum(sizes[:j]) + _PRODUCT * (1 + j)
    return total


METHOD = Method("LipLT", Grade.PROVED, "loop transformation (Fazlyab et al. 2023)", measure)

"""A section with a wide input as one with a narrow input that has no lesser Lipschitz constant."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from snaudit.enclosed import Enclosed
from snaudit.rounding import SAFE, TINY, U, cholesky_deficit, gamma
from snaudit.sections.interface import Blocks, Section

_SHIFTS = (1e-11, 1e-9, 1e-7)


def narrowed(section: Section) -> Section:
    """A section whose Lipschitz constant is an upper bound of this one's, larger by about 1e-11 of itself.

    All that reads x together is A, of shape (rows, inputs). If CCᵀ − AAᵀ ⪰ 0 then A = CK with ‖K‖ ≤ 1
    (Douglas, *On majorization, factorization and range inclusion*, Proc. AMS 17, 1966): for every δx
    there is a δx' = Kδx, no longer, with Cδx' = Aδx. C is the Cholesky factor of fl(AAᵀ) + shift; that
    CCᵀ − AAᵀ is positive semidefinite is proved in turn by a Cholesky factorization, with the rounding
    of both Gram matrices (γ·‖·‖_F²) and of the difference enclosed. The section itself where it has no
    wide input, where A is a product of weights, or where no shift is proved.
    """
    reading = [row[0] for row in section.rows if 0 in row]
    rows = sum(len(block.centre) for block in reading)
    if not reading or 2 * rows > section.inputs or any(block.radius is not None for block in reading):
        return section
    factor = _majorant(np.concatenate([block.centre for block in reading]))
    if factor is None:
        return section
    parts = iter(np.split(factor, np.cumsum([len(block.centre) for block in reading])[:-1]))

    def renewed(row: Blocks) -> Blocks:
        return {j: Enclosed(next(parts)) if j == 0 else block for j, block in row.items()}

    units = tuple(replace(unit, blocks=renewed(unit.blocks)) for unit in section.units)
    return Section(rows, units, renewed(section.output))


def _majorant(matrix: np.ndarray) -> np.ndarray | None:
    """C, square, with CCᵀ ⪰ AAᵀ; None where that is not proved."""
    gram = matrix @ matrix.T
    order = len(gram)
    size = float(np.trace(gram))
    if not 1e-100 < size < 1e100:
        return None
    for shift in _SHIFTS:
        try:
            factor = np.linalg.cholesky(gram + shift * size * np.eye(order))
            rest = factor @ factor.T - gram
            top = float(np.abs(rest).max())
            lost = SAFE * (gamma(matrix.shape[1] + 2) * size + gamma(order + 2) * float(np.square(factor).sum()))
            lost += 2 * U * order * top + cholesky_deficit(order, float(np.abs(np.diagonal(rest)).sum())) + TINY
            np.linalg.cholesky(rest - SAFE * SAFE * lost * np.eye(order))
        except np.linalg.LinAlgError:
            continue
        return factor
    return None

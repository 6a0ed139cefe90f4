"""Enclosed: a matrix known entry by entry up to a radius, for products of weights that float64 rounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from snaudit.rounding import SAFE, TINY, U, gamma


@dataclass(frozen=True, slots=True, eq=False)
class Enclosed:
    """All matrices X with |X − centre| ≤ radius, entry by entry; radius None: the centre itself."""

    centre: np.ndarray
    radius: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.centre.shape  # type: ignore[return-value]

    def magnitude(self) -> np.ndarray:
        """An entrywise upper bound of |X| (within one rounding)."""
        size = np.abs(self.centre)
        return size if self.radius is None else (size + self.radius) * (1 + 2 * U)

    def __getitem__(self, rows: np.ndarray) -> Enclosed:
        return Enclosed(self.centre[rows], None if self.radius is None else self.radius[rows])


def selects(matrix: np.ndarray) -> bool:
    """Whether each column has at most one entry that is not zero, and that is ±1: products with it from
    the left copy entries, so that they are exact."""
    there = matrix != 0.0
    return bool(there.sum(axis=0).max(initial=0) <= 1 and (np.abs(matrix[there]) == 1.0).all())


def product(left: Enclosed, right: Enclosed) -> Enclosed:
    """The enclosure of all products XY: fl(LR) is within γ_k·|L||R| of LR (Higham, (3.13)).

    Exact where the right factor only selects (an identity, a permutation).
    """
    if right.radius is None and _is_identity(right.centre):
        return left
    centre = left.centre @ right.centre
    terms = []
    if not selects(right.centre):
        terms.append(gamma(left.shape[1] + 2) * (np.abs(left.centre) @ np.abs(right.centre)))
    if right.radius is not None:
        terms.append(left.magnitude() @ right.radius)
    if left.radius is not None:
        terms.append(left.radius @ np.abs(right.centre))
    return Enclosed(centre, _widest(terms))


def _is_identity(matrix: np.ndarray) -> bool:
    square = matrix.shape[0] == matrix.shape[1]
    return square and bool((np.diagonal(matrix) == 1.0).all()) and np.count_nonzero(matrix) == len(matrix)


def total(first: Enclosed, second: Enclosed, sign: float = 1.0) -> Enclosed:
    """The enclosure of all X ± Y; exact where at each place one of the two is zero."""
    centre = first.centre + sign * second.centre
    terms = [m.radius for m in (first, second) if m.radius is not None]
    if (np.logical_and(first.centre, second.centre)).any():
        terms.append(U * np.abs(centre))
    return Enclosed(centre, _widest(terms))


def scaled(matrix: Enclosed, factors: np.ndarray, relative: float = 0.0, columns: bool = False) -> Enclosed:
    """The enclosure of diag(s)·X (columns: X·diag(s)) for all s within `relative` of the factors, which
    is exact for powers of two, as long as nothing underflows."""
    scale = factors[None, :] if columns else factors[:, None]
    centre = matrix.centre * scale
    terms = []
    if relative or not (np.abs(np.frexp(factors)[0]) % 0.5 == 0.0).all():
        terms.append((relative + 2 * U) * np.abs(centre))
    if matrix.radius is not None:
        terms.append((1.0 + relative) * matrix.radius * np.abs(scale))
    there = (matrix.centre != 0.0) & (scale != 0.0)
    if not terms and (np.abs(centre[there]) < 2.0**-1000).any():
        terms.append(np.zeros_like(centre))  # a power of two may underflow as well
    return Enclosed(centre, _widest(terms))


def block(matrices: list[Enclosed], axis: int) -> Enclosed:
    """The matrices side by side (axis 1) or below each other (axis 0)."""
    if all(m.radius is None for m in matrices):
        return Enclosed(np.concatenate([m.centre for m in matrices], axis=axis))
    radii = [np.zeros(m.shape) if m.radius is None else m.radius for m in matrices]
    return Enclosed(*(np.concatenate(parts, axis=axis) for parts in ([m.centre for m in matrices], radii)))


def _widest(terms: list[np.ndarray]) -> np.ndarray | None:
    """The sum of error terms, with what their own rounding and underflow may have lost."""
    if not terms:
        return None
    found = terms[0] if len(terms) == 1 else sum(terms[1:], terms[0])
    return SAFE * found + TINY

"""The frequencies of a torus, one of each pair ±ω, and how those of a finer torus fall on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Frequencies ω_j = 2π·J_j/N_j of a torus with N_j places on each axis.

    points: (F, D), the J of one frequency of each pair ±ω. What real maps do at −ω is the conjugate of
    what they do at ω. number: for each J in C order, which row of `points` it is or is the negative of;
    turned: whether it is the negative.
    """

    sides: tuple[int, ...]
    points: np.ndarray
    number: np.ndarray
    turned: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    def flat(self, indices: np.ndarray) -> np.ndarray:
        """The place in C order of each J (…, D), taken modulo the sides."""
        place = np.zeros(indices.shape[:-1], dtype=np.int64)
        for axis, side in enumerate(self.sides):
            place = place * side + indices[..., axis] % side
        return place

    def opposite(self, places: np.ndarray) -> np.ndarray:
        """The places of the negatives."""
        return self.flat(-np.stack(np.unravel_index(places, self.sides), axis=-1))

    def finer(self, other: Grid) -> np.ndarray:
        """(F, A): the places in the finer torus `other` of the frequencies that this one's stand for."""
        times = tuple(n // m for n, m in zip(other.sides, self.sides, strict=True))
        shifts = np.indices(times).reshape(len(times), -1).T * np.array(self.sides)
        return other.flat(self.points[:, None, :] + shifts)


@lru_cache(maxsize=8)  # 8 MB each at the most places of a source
def grid(sides: tuple[int, ...]) -> Grid:
    """The frequencies of a torus."""
    places = np.arange(math.prod(sides))
    indices = np.stack(np.unravel_index(places, sides), axis=-1)
    opposite = np.ravel_multi_index(tuple((-indices % np.array(sides)).T), sides)
    kept = np.minimum(places, opposite)
    mine = np.flatnonzero(kept == places)
    number = np.searchsorted(mine, kept)
    return Grid(sides, indices[mine], number, kept != places)

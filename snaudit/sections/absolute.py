"""The |W| bound: a network of absolute values dominates every one with the same weights' sizes."""

from __future__ import annotations

import math

import numpy as np

from snaudit.bound import UNBOUNDED, Bound, Grade, at_most, up
from snaudit.rounding import SAFE, gamma, largest_entry
from snaudit.sections.interface import Effort, Method, Section

_STEPS = 100


class Absolute:
    """T, the matrix of the section with |A| for A and max(|α|, |β|) for φ; only its products."""

    def __init__(self, section: Section) -> None:
        self.section = section
        self.rows = [{j: m.magnitude() for j, m in row.items()} for row in section.rows]
        self.slopes = [np.maximum(np.abs(u.low), np.abs(u.high)) for u in section.units]

    def forward(self, x: np.ndarray) -> list[np.ndarray]:
        """x, then every |z_k|, then T·x, for x ≥ 0."""
        values, found = [x], [x]
        for k, row in enumerate(self.rows):
            z = sum((m @ values[j] for j, m in row.items()), np.zeros(self._size(k)))
            found.append(z)
            if k < len(self.slopes):
                values.append(self.slopes[k] * z)
        return found

    def backward(self, y: np.ndarray) -> list[np.ndarray]:
        """Tᵀ·y, then the adjoint of every w_k, for y ≥ 0."""
        found = [np.zeros(n) for n in self.section.sizes]
        for k in range(len(self.rows) - 1, -1, -1):
            z = y if k == len(self.slopes) else self.slopes[k] * found[k + 1]
            for j, matrix in self.rows[k].items():
                found[j] += matrix.T @ z
        return found

    def perron(self) -> np.ndarray:
        """q > 0 near the Perron vector of TᵀT."""
        q = np.ones(self.section.inputs)
        for _ in range(_STEPS):
            q = self.backward(self.forward(q)[-1])[0]
            largest = float(q.max(initial=0.0))
            if not 0.0 < largest < math.inf:
                return np.ones(self.section.inputs)
            q = np.maximum(q / largest, 1e-12)
        return q

    def _size(self, k: int) -> int:
        return self.section.units[k].size if k < len(self.slopes) else self.section.outputs


def measure(section: Section, effort: Effort) -> Bound:
    """√max_i (TᵀTq)_i/q_i for a q > 0 (Collatz–Wielandt; Horn & Johnson, *Matrix Analysis*, 8.1.26; the
    bound ‖ |W_L|⋯|W_1| ‖: Combettes & Pesquet, SIAM J. Math. Data Sci. 2, 2020).

    |δz_k| ≤ Σ|A_kj||δw_j| and |δw| ≤ max(|α|, |β|)|δz|, entry by entry, so ‖δy‖ ≤ ‖T|δx|‖. Exact where
    the weights' signs let no path cancel; useless for deep nets of random signs. All terms are
    non-negative: the relative rounding is at most one γ over the sums' lengths, added up along the walk.
    """
    matrices = [m.centre for row in section.rows for m in row.values()]
    sizes = [size for matrix in matrices if (size := largest_entry(matrix))]
    absolute = Absolute(section)
    growth = [size * sum(section.sizes) for size in (*sizes, *map(largest_entry, absolute.slopes))]
    if sum(math.log2(max(1.0, size)) for size in growth) > 250.0:
        return UNBOUNDED  # what underflows (2⁻¹⁰²²) could grow to more than the slack below
    q = absolute.perron()
    image = absolute.backward(absolute.forward(q)[-1])[0]
    ratio = float(np.max(image / q)) if image.size else math.inf
    if not 1e-80 < ratio < 1e200:
        return UNBOUNDED
    terms = 2 * (sum(section.sizes) + section.outputs + 8 * (len(section.rows) + 1))
    return at_most(up(math.sqrt(ratio * (1.0 + SAFE * gamma(terms))) * (1 + 2.0**-50)), METHOD.name)


METHOD = Method("|W| bound", Grade.PROVED, "Perron vector of the absolute network", measure)

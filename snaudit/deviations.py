"""Deviations: how far the entries inside a section move from what they are at one point of the box.

Interval arithmetic forgets what depends on what, and explodes with depth. Here a unit's z stays an affine form. At a
point c of the box z_k = z_k(c) + Σ_j A_kj δw_j with w₀ = x, and for any number a the function φ(z) − a·z moves by some
r in an interval, so δw = a·δz + r; put in for all units,
    δz_k = G_k0 δx + Σ_j G_kj r_j,   G as in LipLT (`sections.transformed`),
an interval for each entry: the sum of those of δx and of all r_j times products of weights, not of their sizes.
(A zonotope: Singh, Gehr, Mirman, Püschel & Vechev, *Fast and effective robustness certification*, NeurIPS 2018.)

With slopes in [α, β] on z's interval, a = (α+β)/2 and |r| ≤ max(β − a, a − α)·|δz|. For two lines that meet at zero,
slope b below and t above, a is the chord's slope and φ(z) − a·z takes its extrema at the interval's ends and at zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from snaudit.enclosed import Enclosed
from snaudit.rounding import TINY, U, gamma
from snaudit.sections.interface import Blocks
from snaudit.sections.transformed import transfer

Ends = tuple[np.ndarray, np.ndarray]
_MOST_WORK = 2e10
"""Multiplications that the products of weights may take together."""


@dataclass(slots=True, eq=False)
class Deviations:
    """The affine forms of the units after one source, which moves by δx in [low, high] on the box that `rests` names."""

    source: Ends
    rests: frozenset[str] = frozenset()
    seen: list[Blocks | None] = field(default_factory=list)
    middles: list[np.ndarray] = field(default_factory=list)
    spare: list[Ends] = field(default_factory=list)
    work: float = 0.0

    def of(self, blocks: Blocks) -> tuple[Blocks, Ends] | None:
        """(the form of δz, its interval) for z = Σ blocks·(x, w₁, …); None where a unit's is not known or it is
        too much work."""
        if not blocks or any(j and self.seen[j - 1] is None for j in blocks):
            return None
        for j, matrix in blocks.items():
            inner = self.seen[j - 1] if j else None
            self.work += sum(matrix.centre.size * m.shape[1] for m in (inner or {}).values())
        if self.work > _MOST_WORK:
            return None
        with np.errstate(all="ignore"):
            form = transfer(blocks, self.seen, self.middles)
            parts = [_image(m, *(self.spare[j - 1] if j else self.source)) for j, m in form.items()]
            middle = sum(part[0] for part in parts)
            radius = sum(part[1] for part in parts)
            radius = radius + 4 * len(parts) * U * (sum(np.abs(part[0]) for part in parts) + radius) + TINY
            return form, (middle - radius, middle + radius)

    def add(self, form: Blocks | None, middle: np.ndarray, spare: Ends) -> None:
        """The next unit: the form of its δz, and δw = middle·δz + r with r in `spare`."""
        self.seen.append(form)
        self.middles.append(middle)
        self.spare.append(spare)


def _image(matrix: Enclosed, low: np.ndarray, high: np.ndarray) -> Ends:
    """(m, r): all Xv, X enclosed, v in [low, high], lie within m ± r."""
    middle = 0.5 * low + 0.5 * high
    radius = np.maximum(high - middle, middle - low) * (1.0 + 4.0 * U) + TINY
    most = np.abs(middle) + radius
    lost = gamma(matrix.shape[1] + 4)
    spread = np.abs(matrix.centre) @ (radius + lost * most)
    if matrix.radius is not None:
        spread = spread + matrix.radius @ most
    return matrix.centre @ middle, spread * (1.0 + 2.0 * lost) + TINY


def sloped(low: np.ndarray, high: np.ndarray, moved: Ends) -> tuple[np.ndarray, Ends]:
    """(a, [r]) for slopes in [low, high] and δz in `moved`."""
    middle = 0.5 * low + 0.5 * high
    size = np.maximum(high - middle, middle - low) * np.maximum(np.maximum(-moved[0], moved[1]), 0.0)
    size = size * (1.0 + 8.0 * U) + TINY
    return middle, (-size, size)


def bent(below: np.ndarray, above: np.ndarray, at: Ends, ends: Ends) -> tuple[np.ndarray, Ends]:
    """(a, [r]) for two lines that meet at zero, z(c) in `at` and z in `ends`, zero strictly inside the latter."""
    low, high = ends
    middle = (above * high - below * low) / (high - low)

    def rest(z: np.ndarray) -> Ends:
        value = np.where(z > 0.0, above - middle, below - middle) * z
        slack = 8.0 * U * (np.abs(above) + np.abs(below) + np.abs(middle)) * np.abs(z) + TINY
        return value - slack, value + slack

    corners = [rest(low), rest(high)]
    least = np.minimum(0.0, np.minimum(corners[0][0], corners[1][0]))
    most = np.maximum(0.0, np.maximum(corners[0][1], corners[1][1]))
    here = [rest(at[0]), rest(at[1])]
    straddles = (at[0] < 0.0) & (at[1] > 0.0)
    bottom = np.minimum(here[0][0], here[1][0])
    top = np.maximum(here[0][1], here[1][1])
    bottom, top = np.where(straddles, np.minimum(bottom, 0.0), bottom), np.where(straddles, np.maximum(top, 0.0), top)
    r_low, r_high = least - top, most - bottom
    slack = 2.0 * U * (np.abs(r_low) + np.abs(r_high)) + TINY
    return middle, (r_low - slack, r_high + slack)

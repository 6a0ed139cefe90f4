"""What a way to bound a section of a network must provide, and what a section is.

A section is what lies between two cuts of a graph: one value (`source`) goes in, one comes out, and
in between there are only affine maps and entrywise functions of bounded slope. With constants dropped,
    z_k = A_k0 x + Σ_{j<k} A_kj w_j,   w_k = φ_k(z_k),   y = A_y0 x + Σ_j A_yj w_j:
residuals, concatenations and shared weights are all in the blocks A.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from snaudit.bound import Bound, Grade
from snaudit.enclosed import Enclosed

Blocks = Mapping[int, Enclosed]
"""An affine function's linear part: block 0 acts on x, block j ≥ 1 on w_j; absent: zero."""


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """A layer of entrywise functions w = φ(z), z = blocks·(x, w₁, …), slopes of φᵢ in [lowᵢ, highᵢ]."""

    blocks: Blocks
    low: np.ndarray
    high: np.ndarray

    @property
    def size(self) -> int:
        return self.low.size


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """A section: the size of x, the units in the order in which they run (unit k is at k−1), and y."""

    inputs: int
    units: tuple[Unit, ...]
    output: Blocks

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of x, w₁, …, w_K."""
        return (self.inputs, *(unit.size for unit in self.units))

    @property
    def outputs(self) -> int:
        return next(iter(self.output.values())).shape[0] if self.output else 0

    @property
    def rows(self) -> tuple[Blocks, ...]:
        """The blocks of z₁, …, z_K and y."""
        return (*(unit.blocks for unit in self.units), self.output)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much work a method may do, in floating-point operations: counted, not timed, so that the
    same model gives the same number everywhere. norm: measures a matrix's l2 norm."""

    norm: Callable[[np.ndarray], Bound]
    work: float = 1e11


@dataclass(frozen=True, slots=True)
class Method:
    """A way to bound a section's Lipschitz constant in l2.

    measure(section, effort) → a Bound of at most `grade`; infinite where it does not fit or gave up.
    """

    name: str
    grade: Grade
    theorem: str
    measure: Callable[[Section, Effort], Bound]

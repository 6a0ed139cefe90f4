"""What a method that encloses a norm must provide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from snaudit.bound import Bound, Grade, Norm
from snaudit.linear import AnyMap


NOT_FINITE = "not finite"
"""The method of the bound of a weight that holds NaN or infinities: it is unbounded and keeps no limit."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure: `rtol` is the width that an enclosure of a convolution is narrowed to.

    `budget` is the nominal seconds of one thread that narrowing may take, on top of twice those of an
    SVD of its matrix; what they do not reach stays wider. None: as long as rtol needs. Without
    `lower` a method may spare itself the search for a lower end.
    """

    method: str = "auto"
    device: str = "cpu"
    rtol: float = 1e-3
    iterations: int = 20
    seed: int = 0
    budget: float | None = 0.3
    lower: bool = True


@dataclass(frozen=True, slots=True)
class Method:
    """A way to enclose the operator norm of a linear map.

    fits(map, norm) → whether it applies; measure(map, norm, options) → the enclosure, of at most
    `grade`. A map with entries that are not finite never reaches a method: `sigma.measure` returns
    an unbounded Bound for it.
    """

    name: str
    grade: Grade
    theorem: str
    fits: Callable[[AnyMap, Norm], bool]
    measure: Callable[[AnyMap, Norm, Options], Bound]


@dataclass(frozen=True, slots=True)
class PowerEstimate:
    """k steps of power iteration from a seeded random vector: an estimate from below, no bound.

    estimate = ‖W v_k‖ (dimensionless); `converged` is whether the last step changed it by less
    than 1e-6 of itself, which is no proof that it is σ₁. `low_by_tenth` bounds the probability, over
    random starts, that the estimate lies below 0.9·σ₁ (None: the start was not random).
    """

    estimate: float
    iterations: int
    converged: bool
    low_by_tenth: float | None = None


@dataclass(frozen=True, slots=True)
class Survey:
    """All that one reading of a matrix tells: the enclosure, and what comes with it.

    why: which method was taken, for what reason; notes: what the user should see of how it went.
    """

    bound: Bound
    power: PowerEstimate | None
    frobenius: float
    why: str = ""
    notes: tuple[str, ...] = ()

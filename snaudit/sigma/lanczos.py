"""Golub–Kahan–Lanczos on any linear map: a witness from below, and an upper end that holds with a
stated probability over random starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from snaudit.arrays import Ritz, lanczos
from snaudit.bound import Bound, Grade, Norm
from snaudit.linear import AnyMap, Convolution, LinearMap, Located
from snaudit.rounding import U, norm_enclosed, unscale
from snaudit.sigma.interface import Method, Options
from snaudit.sigma.scaling import arrays_of, product_lost, scaled_map

FAILURE = 1e-12
"""The probability, over random starts, with which the upper end may lie below σ₁."""
_STEPS, _CYCLES, _KEPT = 120, 8, 1e-9


def fits(map: AnyMap, norm: Norm) -> bool:
    """Any matrix in l2."""
    return norm == "l2" and not isinstance(map, (Convolution, Located))


def measure(map: AnyMap, norm: Norm, options: Options) -> Bound:
    """[a proven lower end, an upper end that fails with probability 1e-12 over random starts] of σ₁.

    ESTIMATED: no theorem makes the upper end a bound for one given start, and its rounding is not
    enclosed. The lower end holds for the stored weights: the products' rounding is taken off.
    """
    map, exponent = scaled_map(map)
    if not any(array.any() for array in arrays_of(map)):
        return Bound(0.0, 0.0, Grade.PROVED, "exact")
    found = search(map, options.seed)
    length = norm_enclosed(found.vector)[1]
    below = norm_enclosed(map.matvec(found.vector))[0] - product_lost(map) * length
    lower, upper = unscale(below / length * (1.0 - 4 * U), found.upper, exponent)
    name = f"lanczos, {found.steps} steps, fails with probability {FAILURE:g} over starts"
    return Bound(lower, max(lower, upper), Grade.ESTIMATED, name)


METHOD = Method(
    "lanczos",
    Grade.ESTIMATED,
    "the Lanczos polynomial at σ₁² is at most ‖b‖/|⟨b,v₁⟩|, b random (van Dorsselaer, Hochstenbach & van der Vorst 2000)",
    fits,
    measure,
)


@dataclass(frozen=True, slots=True)
class Top:
    """The search's outcome: σ ≈ the largest singular value, `vector` ≈ its right singular vector (unit),
    `upper` as `upper_end` says, and how many products with L and with Lᵀ it took."""

    sigma: float
    vector: np.ndarray
    upper: float
    steps: int


def search(map: LinearMap, seed: int = 0, failure: float = FAILURE) -> Top:
    """The top of any linear map L, by Lanczos on LᵀL from a seeded Gaussian vector.

    One vector at a time, reorthogonalised in full on the shorter side only (Simon & Zha 2000). The
    probability is that of the first cycle of 120 steps, whose start is random; then it is
    restarted from its Ritz vector (Saad, *Numerical Methods for Large Eigenvalue Problems*, ch. 6), which
    can only raise the lower end.
    """
    rows, columns = map.shape
    forward, back = (map.matvec, map.rmatvec) if columns <= rows else (map.rmatvec, map.matvec)

    def normal(x: np.ndarray) -> np.ndarray:
        return back(forward(x))

    order = min(rows, columns)
    found = lanczos(normal, np.random.default_rng(seed).standard_normal(order), _STEPS, rtol=0.0)
    upper, steps = upper_end(found, order, failure), len(found.nodes)
    for _ in range(_CYCLES):
        if found.settled:
            break
        found = lanczos(normal, found.vector, _STEPS, rtol=_KEPT)
        steps += len(found.nodes)
    vector = found.vector if columns <= rows else back_to_columns(map, found.vector)
    sigma = math.sqrt(max(0.0, found.theta))
    return Top(sigma, vector, max(sigma, upper), steps)


def back_to_columns(map: LinearMap, left: np.ndarray) -> np.ndarray:
    """The unit right singular vector of an approximate left one."""
    vector = map.rmatvec(left)
    return vector / (float(np.linalg.norm(vector)) or 1.0)


def upper_end(found: Ritz, order: int, failure: float) -> float:
    """What σ₁ exceeds with probability at most `failure`, over uniform starts b, after k Lanczos steps.

    The Lanczos polynomial p_k(x) = Π(x−θᵢ)/Πβᵢ has ‖p_k(LᵀL)b‖ = ‖b‖, so p_k(σ₁²)·|⟨b,v₁⟩| ≤ ‖b‖; and
    |⟨b,v₁⟩| ≥ δ‖b‖ but for probability δ√(2n/π). Hence σ₁² ≤ the root x > θmax of p_k(x) = 1/δ, found
    by bisection of Σlog(x−θᵢ) − Σlog βᵢ + log δ. In exact arithmetic; its rounding is not enclosed.
    """
    theta = found.theta
    if order == 1 or found.beta[-1] <= 1e-13 * theta:
        return math.sqrt(max(0.0, theta) * (1.0 + 1e-13))
    goal = float(np.log(found.beta).sum()) - math.log(failure / math.sqrt(2 * order / math.pi))

    def excess(x: float) -> float:
        return float(np.log(np.maximum(x - found.nodes, 1e-300)).sum()) - goal

    low, high = theta, 2.0 * theta
    while excess(high) < 0.0:
        high *= 2.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0.0 else (low, middle)
    return math.sqrt(high)

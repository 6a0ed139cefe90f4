"""Power iteration: what a k-step estimate sees of σ₁, from below."""

from __future__ import annotations

import math

import numpy as np

from snaudit.bound import Bound, Grade, Norm
from snaudit.linear import AnyMap, BlockDiagonal, Convolution, LowRank
from snaudit.rounding import SAFE, TINY, U, exponent_of, frobenius_up, gamma, norm_enclosed, scale, unscale
from snaudit.sigma.interface import Method, Options, PowerEstimate


def fits(map: AnyMap, norm: Norm) -> bool:
    """Any matrix in l2."""
    return norm == "l2" and not isinstance(map, Convolution)


def measure(map: AnyMap, norm: Norm, options: Options) -> Bound:
    """‖Wv‖/‖v‖ for the last v of k steps, taken for σ₁: ESTIMATED, for no theorem bounds σ₁ by it.

    The lower end holds for the stored weights: the products' rounding is taken off (`_lost`).
    """
    scaled, exponent = _scaled(map)
    vector = _iterate(scaled, options.iterations, options.seed)[0]
    below, _ = norm_enclosed(scaled.matvec(vector))
    length = norm_enclosed(vector)[1]
    lower = (below - _lost(scaled) * length) / length * (1.0 - 4 * U)
    below = unscale(lower, 0.0, exponent)[0]
    seen = power_estimate(map, options.iterations, options.seed).estimate
    return Bound(below, max(below, seen), Grade.ESTIMATED, "power")


METHOD = Method("power", Grade.ESTIMATED, "‖Wv‖/‖v‖ ≤ σ₁ for every v (Rayleigh)", fits, measure)


def power_estimate(map: AnyMap, iterations: int, seed: int) -> PowerEstimate:
    """‖Wv_k‖ after k steps v ← WᵀWv/‖·‖ from a seeded Gaussian start, without any claim.

    Not for a Convolution, which is no one matrix: pass its reshaped kernel. A map with entries that
    are not finite gives NaN.
    """
    if isinstance(map, Convolution):
        raise TypeError("power_estimate needs a matrix: pass Convolution.matrix()")
    if not all(np.isfinite(part).all() for part in _parts(map)):
        return PowerEstimate(math.nan, 0, False)
    if any(part.size == 0 for part in _parts(map)):
        return PowerEstimate(0.0, 0, True)
    scaled, exponent = _scaled(map)
    _, estimate, steps, converged = _iterate(scaled, iterations, seed)
    with np.errstate(over="ignore"):
        return PowerEstimate(float(np.ldexp(estimate, exponent)), steps, converged)


def _iterate(map: AnyMap, iterations: int, seed: int) -> tuple[np.ndarray, float, int, bool]:
    """(v, ‖Wv‖, steps, whether the last step changed it by less than 1e-6 of itself)."""
    vector = np.random.default_rng(seed).standard_normal(map.shape[1])
    vector /= np.linalg.norm(vector)
    image = map.matvec(vector)
    estimate, converged = float(np.linalg.norm(image)), False
    for _ in range(iterations):
        back = map.rmatvec(image)
        length = float(np.linalg.norm(back))
        if length == 0.0:  # Wv = 0: nothing to follow
            return vector, estimate, iterations, True
        vector = back / length
        image = map.matvec(vector)
        before, estimate = estimate, float(np.linalg.norm(image))
        converged = abs(estimate - before) < 1e-6 * estimate
    return vector, estimate, iterations, converged


def _parts(map: AnyMap) -> tuple[np.ndarray, ...]:
    if isinstance(map, LowRank):
        return map.left, map.right
    return (map.blocks,) if isinstance(map, BlockDiagonal) else (map.dense(),)


def _scaled(map: AnyMap) -> tuple[AnyMap, int]:
    """(2⁻ᵉ·map with entries of order one, e)."""
    parts = _parts(map)
    exponents = [exponent_of(part) for part in parts]
    if not any(exponents):
        return map, 0
    scaled = [scale(part, e) for part, e in zip(parts, exponents, strict=True)]
    return type(map)(*scaled), sum(exponents)


def _lost(map: AnyMap) -> float:
    """‖fl(Wv) − Wv‖ ≤ this·‖v‖: γ_n‖W‖_F for a matrix or stack (n its columns); for a product BA,
    γ_c‖B‖‖A‖ from z = fl(Av) and γ_r‖B‖‖z‖ from fl(Bz), with ‖z‖ ≤ 1.01·‖A‖‖v‖.
    """
    sizes = [frobenius_up(part) for part in _parts(map)]
    terms = sum(part.shape[-1] for part in _parts(map))
    return SAFE * SAFE * gamma(terms + 2) * math.prod(sizes) + TINY

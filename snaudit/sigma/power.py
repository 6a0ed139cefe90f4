"""Power iteration: what a k-step estimate sees of σ₁, from below."""

from __future__ import annotations

import math

import numpy as np

from snaudit.bound import Bound, Grade, Norm
from snaudit.linear import AnyMap, BlockDiagonal, Convolution, Dense, Located, LowRank
from snaudit.rounding import U, norm_enclosed, unscale
from snaudit.sigma.interface import Method, Options, PowerEstimate
from snaudit.sigma.scaling import finite, product_lost, scaled_map


def fits(map: AnyMap, norm: Norm) -> bool:
    """Any matrix in l2."""
    return norm == "l2" and not isinstance(map, (Convolution, Located))


def measure(map: AnyMap, norm: Norm, options: Options) -> Bound:
    """‖Wv‖/‖v‖ for the last v of k steps, taken for σ₁: ESTIMATED, for no theorem bounds σ₁ by it.

    The lower end holds for the stored weights: the products' rounding is taken off (`product_lost`).
    """
    ends = [_measured(part, options) for part in _parts(map)]
    below = max(low for low, _ in ends)
    return Bound(below, max(below, *(seen for _, seen in ends)), Grade.ESTIMATED, "power")


METHOD = Method("power", Grade.ESTIMATED, "‖Wv‖/‖v‖ ≤ σ₁ for every v (Rayleigh)", fits, measure)


def power_estimate(map: AnyMap, iterations: int, seed: int, u: np.ndarray | None = None) -> PowerEstimate:
    """‖Wv_k‖ after k steps v ← WᵀWv/‖·‖ from a seeded Gaussian start, without any claim.

    The start lies on the shorter side (for W of fewer rows than columns, W is its transpose in all of
    this). With `u`, a vector of outputs, the start is a warm one: k rounds of v ← Wᵀu/‖·‖, u ← Wv/‖·‖
    and then uᵀWv, which is what `torch.nn.utils.spectral_norm` takes for σ, with its `weight_u` for u
    (its successor in `parametrizations` begins at the other side: pass Wᵀ and its `_v`).
    A stack: the largest of its blocks' estimates, each from a start of its own. Not for a Convolution,
    which is no one matrix: pass its reshaped kernel. Entries that are not finite give NaN.
    """
    if isinstance(map, Convolution):
        raise TypeError("power_estimate needs a matrix: pass Convolution.matrix()")
    if not finite(map):
        return PowerEstimate(math.nan, 0, False)
    if isinstance(map, BlockDiagonal) and u is not None:
        raise TypeError("a stack has no one start: pass one block")
    best = PowerEstimate(0.0, 0, True)
    for part in _parts(map):
        found = _estimate(part, iterations, seed, u)
        best = found if found.estimate >= best.estimate else best
    return best


def from_quadrature(nodes: np.ndarray, weights: np.ndarray, iterations: int, order: int) -> PowerEstimate:
    """What k steps of power iteration give, from the start's spectral measure w at nodes θ of WᵀW.

    ‖Wv_k‖² = Σwθ^{2k+1}/Σwθ^{2k}: nothing is iterated. The nodes are eigenvalues, or Ritz values of
    more than k Lanczos steps from the same start, whose quadrature is exact for those degrees.
    """
    top = float(nodes.max(initial=0.0))
    if top <= 0.0:
        return PowerEstimate(0.0, iterations, True, 0.0)
    kept = (nodes > 0.0) & (weights > 0.0)
    logs, weights = np.log(nodes[kept] / top), np.log(weights[kept])

    def seen(k: int) -> float:
        shares = weights + 2 * k * logs
        shares = np.exp(shares - shares.max(initial=-math.inf))
        return math.sqrt(top * float(shares @ np.exp(logs)) / max(float(shares.sum()), 1e-300))

    value = seen(iterations)
    converged = iterations > 0 and abs(value - seen(iterations - 1)) < 1e-6 * value
    return PowerEstimate(value, iterations, converged, chance_low(order, iterations))


def chance_low(order: int, iterations: int, factor: float = 0.9) -> float:
    """A bound on the probability that k steps from a uniformly random direction end below factor·σ₁.

    With tᵢ = λᵢ/λ₁ and ε = 1 − factor², ξ < (1−ε)λ₁ needs ε·b₁² < Σ_{i>1} tᵢ^{2k}(1−ε−tᵢ)bᵢ² ≤
    c·Σ_{i>1}bᵢ² with c = max_t t^{2k}(1−ε−t); and P(|b₁|/‖b‖ < η) ≤ η√(2n/π) for a uniform direction
    b in Rⁿ. (Kuczyński & Woźniakowski 1992, theorem 4.1, before the last simplification.) It is about
    starts: of one seed, and a matrix made against it, it says nothing.
    """
    if order <= 1:
        return 0.0
    keep, k = factor**2, 2 * iterations
    peak = keep * k / (k + 1)
    ratio = (peak**k if k else 1.0) * (keep - peak) / (1.0 - keep)
    return min(1.0, math.sqrt(2 * order / math.pi * ratio / (1.0 + ratio)))


def _parts(map: AnyMap) -> tuple[Dense | LowRank, ...]:
    assert not isinstance(map, Convolution)
    return tuple(Dense(block) for block in map.blocks) if isinstance(map, BlockDiagonal) else (map,)


def _measured(map: Dense | LowRank, options: Options) -> tuple[float, float]:
    """(below, seen): a true lower end of σ₁ and the estimate itself."""
    map, exponent = scaled_map(map)
    vector, seen, *_ = _iterate(_tall(map), options.iterations, options.seed)
    length = norm_enclosed(vector)[1]
    below = norm_enclosed(_tall(map).matvec(vector))[0] - product_lost(map) * length
    low, _ = unscale(below / length * (1.0 - 4 * U), 0.0, exponent)
    with np.errstate(over="ignore"):
        return low, float(np.ldexp(seen, exponent))


def _estimate(map: Dense | LowRank, iterations: int, seed: int, u: np.ndarray | None) -> PowerEstimate:
    if 0 in map.shape:
        return PowerEstimate(0.0, 0, True)
    map, exponent = scaled_map(map)
    if u is None:
        found = _iterate(_tall(map), iterations, seed)
    else:
        found = _iterate(map, max(iterations - 1, 0), seed, map.rmatvec(u))
    _, estimate, converged = found
    chance = chance_low(min(map.shape), iterations) if u is None else None
    with np.errstate(over="ignore"):
        return PowerEstimate(float(np.ldexp(estimate, exponent)), iterations, converged, chance)


def _tall(map: Dense | LowRank) -> Dense | LowRank:
    """The map, or its transpose: whichever has no more columns than rows."""
    if map.shape[0] >= map.shape[1]:
        return map
    return Dense(map.weight.T) if isinstance(map, Dense) else LowRank(map.right.T, map.left.T)


def _iterate(
    map: Dense | LowRank, iterations: int, seed: int, start: np.ndarray | None = None
) -> tuple[np.ndarray, float, bool]:
    """(v, ‖Wv‖, whether the last step changed it by less than 1e-6 of itself)."""
    vector = np.random.default_rng(seed).standard_normal(map.shape[1]) if start is None else start
    vector = vector / (float(np.linalg.norm(vector)) or 1.0)
    image = map.matvec(vector)
    estimate, converged = float(np.linalg.norm(image)), False
    for _ in range(iterations):
        back = map.rmatvec(image)
        length = float(np.linalg.norm(back))
        if length == 0.0:  # Wv = 0: nothing to follow
            return vector, estimate, True
        vector = back / length
        image = map.matvec(vector)
        before, estimate = estimate, float(np.linalg.norm(image))
        converged = abs(estimate - before) < 1e-6 * estimate
    return vector, estimate, converged

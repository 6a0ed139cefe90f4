"""Maps by powers of two: with entries of order one, so that squares neither over- nor underflow."""

from __future__ import annotations

import math

import numpy as np

from snaudit.linear import AnyMap, Convolution, Dense, Located, LowRank, float64_rows
from snaudit.rounding import SAFE, TINY, exponent_of, frobenius_up, gamma, largest_entry, scale


def arrays_of(map: AnyMap) -> tuple[np.ndarray, ...]:
    """The arrays that hold the map, in their stored dtypes."""
    if isinstance(map, Located):
        return (map.convolution.kernel,)
    if isinstance(map, Convolution):
        return (map.kernel,)
    if isinstance(map, LowRank):
        return map.left, map.right
    return (map.weight,) if isinstance(map, Dense) else (map.blocks,)


def largest_of(array: np.ndarray) -> float:
    """max |aᵢ| in float64, NaN where there is one; without a copy of the whole."""
    ends = [largest_entry(block) for block in float64_rows(array)]
    return math.nan if any(math.isnan(end) for end in ends) else max(ends, default=0.0)


def finite(map: AnyMap) -> bool:
    """Whether all entries are finite numbers."""
    return all(math.isfinite(largest_of(array)) for array in arrays_of(map))


def scaled_map(map: Dense | LowRank) -> tuple[Dense | LowRank, int]:
    """(2⁻ᵉ·map with entries of order one, e); the map itself where e is 0."""
    arrays = arrays_of(map)
    exponents = [exponent_of(np.float64(largest_of(array))) for array in arrays]
    if not any(exponents):
        return map, 0
    pairs = zip(arrays, exponents, strict=True)
    return type(map)(*(scale(array.astype(np.float64), e) for array, e in pairs)), sum(exponents)


def product_lost(map: AnyMap) -> float:
    """‖fl(Wv) − Wv‖ ≤ this·‖v‖, for entries of order one, and of Wᵀ alike: γ_n‖W‖_F for a matrix or
    stack (n its longer side); for a product BA, γ_c‖B‖‖A‖ from z = fl(Av) and γ_r‖B‖‖z‖ from fl(Bz),
    with ‖z‖ ≤ 1.01·‖A‖‖v‖."""
    sizes = [math.hypot(*(frobenius_up(block) for block in float64_rows(part))) for part in arrays_of(map)]
    terms = sum(max(part.shape[-2:]) for part in arrays_of(map))
    return SAFE * SAFE * SAFE * gamma(terms + 2) * math.prod(sizes) + TINY


def frobenius(map: AnyMap) -> float:
    """‖W‖_F to about float64's precision; of a low-rank product through its Gram matrices."""
    with np.errstate(all="ignore"):
        if isinstance(map, LowRank):
            gram = (map.left.T @ map.left) * (map.right @ map.right.T)
            return float(np.sqrt(max(0.0, float(np.sum(gram)))))
        (array,) = arrays_of(map)
        largest = largest_of(array)
        if largest == 0.0 or not math.isfinite(largest):
            return largest
        return math.hypot(*(largest * float(np.linalg.norm((b / largest).ravel())) for b in float64_rows(array)))

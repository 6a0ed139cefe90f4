"""Ways to enclose the operator norm of a linear map, and the choice among them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from snaudit.arrays import arrays_on
from snaudit.bound import UNBOUNDED, Bound, Norm, exactly
from snaudit.errors import UsageError
from snaudit.linear import AnyMap, BlockDiagonal, Convolution, Dense, Located, LowRank
from snaudit.sigma import certificate, fourier, power, sized, sums, svd
from snaudit.sigma.interface import NOT_FINITE, Method, Options, PowerEstimate
from snaudit.sigma.power import power_estimate
from snaudit.sigma.svd import singular_values

METHODS: tuple[Method, ...] = (
    certificate.METHOD,
    fourier.METHOD,
    sized.METHOD,
    sums.METHOD,
    svd.METHOD,
    power.METHOD,
)
"""All methods; "auto" takes the first that fits. The order is of trust."""

__all__ = ["METHODS", "Method", "Options", "PowerEstimate", "choose", "measure", "power_estimate", "singular_values"]


def measure(map: AnyMap, norm: Norm = "l2", options: Options = Options()) -> Bound:  # noqa: B008  frozen
    """An enclosure of the operator norm: of a Convolution, over all input sizes with zero padding;
    of a Located one, at its size.

    A map with entries that are not finite is unbounded ("not finite"), one of size zero is 0. Where
    the certificate fails, LAPACK's SVD stands in, graded COMPUTED. Raises UsageError for a method or
    a device that does not exist.
    """
    arrays_on(options.device)
    arrays = _arrays(map)
    choose(map, norm, options)
    if any(array.size == 0 for array in arrays):
        return exactly(0.0, "empty")
    with np.errstate(all="ignore"):  # infinities, underflow: accounted for
        if not all(np.isfinite(array).all() for array in arrays):
            return replace(UNBOUNDED, method=NOT_FINITE)
        map = _without_taps(map, norm)
        method, _ = choose(map, norm, options)
        bound = method.measure(map, norm, options)
        if math.isinf(bound.upper) and method is certificate.METHOD:
            stand_in = svd.METHOD.measure(map, norm, options)
            if stand_in.bounded:  # else σ itself is beyond the floats
                return replace(stand_in, method=f"{stand_in.method} (no certificate)")
    return bound


def choose(map: AnyMap, norm: Norm = "l2", options: Options = Options()) -> tuple[Method, str]:  # noqa: B008
    """(the method that `measure` takes for the map, why). Raises UsageError for an unknown name."""
    name, map = options.method, _without_taps(map, norm)
    named = {method.name: method for method in METHODS}
    if name != "auto" and name not in named:
        raise UsageError(f"unknown method {name!r}: auto, {', '.join(named)}")
    if name != "auto" and named[name].fits(map, norm):
        return named[name], f"{name} was asked for"
    first = next(method for method in METHODS if method.fits(map, norm))
    kind = type(map).__name__
    if name == "auto":
        return first, f"the best graded method for {kind} in {norm}"
    return first, f"{name} does not apply to {kind} in {norm}"


def _without_taps(map: AnyMap, norm: Norm) -> AnyMap:
    """In l2, a convolution whose symbol is constant (1×1, patches) as the matrices that it applies."""
    if norm != "l2" or not isinstance(map, Convolution):
        return map
    kernels = map.polyphase()
    if math.prod(kernels.shape[3:]) != 1:
        return map
    return BlockDiagonal(kernels.reshape(kernels.shape[:3]))


def _arrays(map: AnyMap) -> tuple[np.ndarray, ...]:
    if isinstance(map, Located):
        return (map.convolution.kernel,)
    if isinstance(map, Convolution):
        return (map.kernel,)
    if isinstance(map, LowRank):
        return map.left, map.right
    return (map.weight,) if isinstance(map, Dense) else (map.blocks,)

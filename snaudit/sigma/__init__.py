"""Ways to enclose the operator norm of a linear map, and the choice among them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from snaudit.arrays import arrays_on
from snaudit.bound import UNBOUNDED, Bound, Norm, exactly
from snaudit.errors import UsageError
from snaudit.linear import AnyMap, BlockDiagonal, Convolution, Located
from snaudit.sigma import certificate, fourier, lanczos, power, sized, sums, svd
from snaudit.sigma.interface import NOT_FINITE, Method, Options, PowerEstimate, Survey
from snaudit.sigma.power import power_estimate
from snaudit.sigma.scaling import arrays_of, finite, frobenius
from snaudit.sigma.svd import singular_values

METHODS: tuple[Method, ...] = (
    certificate.METHOD,
    fourier.METHOD,
    sized.METHOD,
    sums.METHOD,
    svd.METHOD,
    lanczos.METHOD,
    power.METHOD,
)
"""All methods; "auto" takes the first that fits. The order is of trust."""

__all__ = [
    "METHODS", "Method", "Options", "PowerEstimate", "Survey",
    "choose", "measure", "power_estimate", "singular_values", "survey",
]  # fmt: skip


def measure(map: AnyMap, norm: Norm = "l2", options: Options = Options()) -> Bound:  # noqa: B008  frozen
    """An enclosure of the operator norm: of a Convolution, over all input sizes with zero padding;
    of a Located one, at its size.

    A map with entries that are not finite is unbounded ("not finite"), one of size zero is 0. Where
    the certificate fails, LAPACK's SVD stands in, graded COMPUTED. Raises UsageError for a method or
    a device that does not exist.
    """
    return _enclosed(map, norm, options)[0].bound


def survey(map: AnyMap, options: Options = Options()) -> Survey:  # noqa: B008  frozen
    """The enclosure of a matrix's σ₁ with the power estimate, ‖W‖_F and the reason for the method; all
    from one reading where the certificate is taken. Not for a Convolution, which is no one matrix."""
    if isinstance(map, (Convolution, Located)):
        raise TypeError("survey needs a matrix: pass Convolution.matrix()")
    found, whole = _enclosed(map, "l2", options)
    if whole or found.bound.method == NOT_FINITE:
        return found
    with np.errstate(all="ignore"):
        return replace(
            found, power=power_estimate(map, options.iterations, options.seed), frobenius=frobenius(map)
        )


def _enclosed(map: AnyMap, norm: Norm, options: Options) -> tuple[Survey, bool]:
    """(what was found, whether the power estimate and ‖·‖_F are in it)."""
    arrays_on(options.device)
    map = _without_taps(map, norm)
    method, why = choose(map, norm, options)
    if any(array.size == 0 for array in arrays_of(map)):
        return Survey(exactly(0.0, "empty"), None, 0.0, "it is empty"), False
    with np.errstate(all="ignore"):  # infinities, underflow: accounted for
        if method is certificate.METHOD:  # it sees by itself what is not finite
            found = replace(certificate.survey(map, options), why=why)
            if not math.isinf(found.bound.upper) or found.bound.method == NOT_FINITE:
                return found, True
            stand_in = svd.METHOD.measure(map, norm, options)
            if stand_in.bounded:  # else σ itself is beyond the floats
                why = f"no Cholesky factorization completed, so LAPACK's SVD stands in for {why}"
                bound = replace(stand_in, method=f"{stand_in.method} (no certificate)")
                return replace(found, bound=bound, why=why), True
            return found, True
        if not finite(map):
            return Survey(replace(UNBOUNDED, method=NOT_FINITE), None, math.nan, why), False
        return Survey(method.measure(map, norm, options), None, math.nan, why), False


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
        return first, f"{first.name}: the best graded method for {kind} in {norm}"
    return first, f"{name} does not apply to {kind} in {norm}"


def _without_taps(map: AnyMap, norm: Norm) -> AnyMap:
    """In l2, a convolution whose symbol is constant (1×1, patches) as the matrices that it applies."""
    if norm != "l2" or not isinstance(map, Convolution):
        return map
    map = map.trimmed()
    kernels = map.polyphase()
    if math.prod(kernels.shape[3:]) != 1:
        return map
    return BlockDiagonal(kernels.reshape(kernels.shape[:3]))

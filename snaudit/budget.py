"""How to share a network's bound among its layers: the scales that change the weights least.

The bound B as a function of the layers' log-scales t (layer i scaled by e^(−tᵢ)) is built from the
layers' norms by products, sums, maxima and roots of sums of squares with non-negative coefficients:
a generalized posynomial, so log B is convex in t (Boyd, Kim, Vandenberghe & Hassibi, *A tutorial on
geometric programming*, Optim. Eng. 8, 2007). Minimized is Σtᵢ², the squared log-scales: a layer
scaled by e^(−t) moves by 1 − e^(−t) of itself, about t, and the sum of squares spreads a change over
the layers where their norms' product would not care. The problem is convex; where the bound takes a
maximum it has kinks, so it is solved by cutting planes (Kelley, J. SIAM 8, 1960).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

_ROUNDS = 40
_STEP = 1e-4
_SETTLED = 1e-6
_FAR = 40.0
"""A scale of e⁻⁴⁰ stands for a layer that is not there."""


def shares(log_bound: Callable[[np.ndarray], float], count: int, log_limit: float) -> np.ndarray | None:
    """(count,) log-scales t ≥ 0 with log_bound(t) ≤ log_limit and about the least Σt²; None if there are none.

    log_bound: convex and falling in each tᵢ, finite. Called about `count` times in each of a few rounds.
    """
    t = np.zeros(count)
    value = log_bound(t)
    if value <= log_limit:
        return t
    if log_bound(np.full(count, _FAR)) > log_limit:
        return None
    cuts: list[tuple[np.ndarray, float]] = []
    for _ in range(_ROUNDS):
        fall = np.array([max(0.0, value - log_bound(t + _STEP * unit)) for unit in np.eye(count)]) / _STEP
        if not fall.any():
            return None
        cuts.append((fall, value - log_limit + float(fall @ t)))  # fall·s ≥ that, wherever log B(s) ≤ limit
        t = _least(cuts)
        value = log_bound(t)
        if value <= log_limit + _SETTLED:
            break
    return _inside(log_bound, t, value, log_limit)


def _least(cuts: list[tuple[np.ndarray, float]]) -> np.ndarray:
    """The shortest t with fall·t ≥ wanted for each cut (Hildreth, *A quadratic programming procedure*,
    Naval Res. Logist. Q. 4, 1957). It has no negative entry, as no fall has."""
    t, multipliers = np.zeros(len(cuts[0][0])), [0.0] * len(cuts)
    for _ in range(2000):
        moved = 0.0
        for index, (fall, wanted) in enumerate(cuts):
            step = max(-multipliers[index], (wanted - float(fall @ t)) / float(fall @ fall))
            multipliers[index] += step
            t = t + step * fall
            moved = max(moved, abs(step) * float(np.linalg.norm(fall)))
        if moved <= 1e-10:
            break
    return np.maximum(t, 0.0)


def _inside(
    log_bound: Callable[[np.ndarray], float], t: np.ndarray, value: float, log_limit: float
) -> np.ndarray | None:
    """t, stretched as little as need be until the limit is kept."""
    if value <= log_limit:
        return t
    low, high = 0.0, max(1e-9, 2.0 * (value - log_limit))
    ones = np.where(t > 0.0, 1.0, 0.0) if t.any() else np.ones_like(t)
    while log_bound(t + high * ones) > log_limit:
        low, high = high, 2.0 * high
        if high > 2 * _FAR:
            return None
    for _ in range(40):
        middle = 0.5 * (low + high)
        if log_bound(t + middle * ones) > log_limit:
            low = middle
        else:
            high = middle
        if high - low < 1e-9:
            break
    return t + high * ones


def log_of(bound: float) -> float:
    """log of a bound, −∞ for zero."""
    return math.log(bound) if bound > 0.0 else -math.inf

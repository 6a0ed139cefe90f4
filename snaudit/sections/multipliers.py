"""LipSDP's bound with multipliers in closed form and with those of a first-order search, each proved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from snaudit.bound import UNBOUNDED, Bound, Grade, at_most
from snaudit.sections.absolute import Absolute
from snaudit.sections.certificate import LARGEST, order_of, prove
from snaudit.sections.interface import Effort, Method, Section
from snaudit.sections.narrowing import narrowed
from snaudit.sections.sector import Recursion

_STEPS = 400
_MEMORY = 20
_SMOOTHINGS = ((30, 0.6), (300, 0.6), (3000, 1.0))
"""Powers of the Schatten norm in turn, and the share of the remaining steps that each may take."""
_LESS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""By how much multipliers are lowered in turn until they have a proof: the best may lie at the very edge."""
_FEWEST = 3
"""Steps of a search below which it is not begun."""
_ONE_WAY = 0.4
"""The share of `Recursion.work` that the way forward takes."""
_EXACT = 128
_Rule = Callable[[np.ndarray], np.ndarray]


def _largest(matrix: np.ndarray) -> float:
    """λmax, about; of large matrices by power iteration on a shifted matrix, where too little is no harm."""
    if len(matrix) <= _EXACT:
        return float(np.linalg.eigvalsh(matrix)[-1])
    shift = float(np.abs(matrix).sum(axis=1).max()) * 0.1
    vector, value = np.ones(len(matrix)) / np.sqrt(len(matrix)), 0.0
    for _ in range(40):
        image = matrix @ vector + shift * vector
        value = float(np.linalg.norm(image))
        if value == 0.0:
            return 0.0
        vector = image / value
    return 1.01 * (value - shift)


def _spectral(c: float) -> _Rule:
    """T = c/λmax(Γ)·I: c = 1 is ECLipsE-Fast."""
    return lambda gamma: np.full(len(gamma), c / max(_largest(gamma), 1e-300))


def _circles(c: float) -> _Rule:
    """T_ii = c/Σ_j|Γ_ij| (Gershgorin)."""
    return lambda gamma: c / np.maximum(np.abs(gamma).sum(axis=1), 1e-300)


def _shifted(c: float) -> _Rule:
    """T_ii = 1/(D_ii + c·λmax(Γ/2 − D)), D = diag(Γ)/2."""

    def rule(gamma: np.ndarray) -> np.ndarray:
        half = 0.5 * np.diag(gamma)
        top = max(_largest(0.5 * gamma - np.diag(half)), 1e-12 * float(half.max(initial=0.0)))
        return 1.0 / np.maximum(half + c * top, 1e-300)

    return rule


def _diagonal(c: float) -> _Rule:
    """T = c/(λmax(D^-½ΓD^-½)·D), D = diag(Γ)."""

    def rule(gamma: np.ndarray) -> np.ndarray:
        d = np.maximum(np.diag(gamma), 1e-12 * float(np.diag(gamma).max(initial=0.0)) + 1e-300)
        root = np.sqrt(d)
        return c / (_largest(gamma / np.outer(root, root)) * d)

    return rule


CLOSED: dict[str, _Rule] = {
    "Shift 1.5": _shifted(1.5),
    "GC 1.5": _circles(1.5),
    "Diag 1.5": _diagonal(1.5),
    "GC 1.99": _circles(1.99),
    "SN 1.5": _spectral(1.5),
    "Shift 1.7": _shifted(1.7),
    "GC 1.7": _circles(1.7),
    "SN 1.3": _spectral(1.3),
    "Shift 1.3": _shifted(1.3),
    "Diag 1.9": _diagonal(1.9),
    "SN 1": _spectral(1.0),
}
"""T = Λ/2 from Γ, the covariance of a unit's z; feasible for λmax(T^½ΓT^½) < 2 (Syed & Hu, *Improved scalable
Lipschitz bounds for deep neural networks*, arXiv 2503.14297, 2025; Xu & Sivaranjani, *ECLipsE*, NeurIPS 2024). Those
that are seldom the best come last: wide sections try only as many as the effort allows."""


def closed_forms(section: Section, effort: Effort) -> Bound:
    """The least bound of the closed forms of Syed & Hu (2025) and of multipliers from Perron vectors."""
    section = _narrowed(section)
    recursion = _recursion(section)
    if recursion is None or _ONE_WAY * recursion.work > 2 * effort.work:
        return UNBOUNDED
    _, multipliers, squared = best_closed(section, recursion, effort)
    return at_most(prove(section, multipliers, squared), "LipSDP, closed form")


def searched(section: Section, effort: Effort) -> Bound:
    """The bound of the multipliers that a first-order search finds, from the best closed form on.

    Any multipliers give a true bound, and the best ones LipSDP-Neuron's optimum; the search descends on
    log ρ(Λ) (quasi-convex) by L-BFGS with a backtracking line search (Nocedal & Wright, *Numerical
    Optimization*, 2nd ed., algorithm 7.4), as many steps as `effort` allows. The gradient is written
    out (`Recursion.backward`): no autograd, no SDP solver.
    """
    section = _narrowed(section)
    recursion = _recursion(section)
    budget = 0 if recursion is None else int(min(_STEPS, effort.work / recursion.work))
    if recursion is None or budget < _FEWEST:
        return UNBOUNDED
    _, multipliers, squared = best_closed(section, recursion, effort)
    if not np.isfinite(squared):
        return UNBOUNDED
    logs = np.log(np.maximum(np.concatenate(multipliers), 1e-300))
    for recursion.power, share in _SMOOTHINGS:  # ever closer to the largest eigenvalue itself
        found = minimize(recursion.descend, logs, int(share * budget))
        budget -= found.steps
        if found.squared <= squared:
            squared, logs = found.squared, found.point
    multipliers = np.split(np.exp(np.clip(logs, -300, 300)), np.cumsum(recursion.sizes)[:-1])
    return at_most(_proved(section, recursion, multipliers), "LipSDP, first-order search")


def _proved(section: Section, recursion: Recursion, multipliers: list[np.ndarray]) -> float:
    """The bound of the multipliers, or of those a little lower of which the certificate is positive definite."""
    for less in _LESS:
        lowered = [each * (1.0 - less) for each in multipliers]
        found = prove(section, lowered, recursion.bound(lowered))
        if np.isfinite(found):
            return found
    return float("inf")


_narrowed = lru_cache(maxsize=2)(narrowed)


@lru_cache(maxsize=2)
def _recursion(section: Section) -> Recursion | None:
    """The section's recursion; None where there is nothing to choose or its certificate would be too large."""
    return Recursion(section) if section.units and order_of(section) <= LARGEST else None


@lru_cache(maxsize=2)
def best_closed(
    section: Section, recursion: Recursion, effort: Effort
) -> tuple[str, list[np.ndarray], float]:
    """(name, multipliers, ρ) of the best closed form; ρ in plain floats."""
    budget = 0.5 * effort.work / (_ONE_WAY * recursion.work)
    tried = [(name, *_walk(recursion, rule)) for name, rule in list(CLOSED.items())[: max(1, int(budget))]]
    if budget > len(CLOSED):
        tried += [("Perron", m, recursion.bound(m)) for m in _perron(section)]
    return min(tried, key=lambda item: item[2])


def _walk(recursion: Recursion, rule: _Rule) -> tuple[list[np.ndarray], float]:
    """The multipliers that a closed form gives stage by stage, and ρ."""
    covariance, found = np.eye(recursion.inputs), []
    for stage in recursion.stages:
        seen = recursion.seen(stage, covariance)
        try:
            multiplier = np.clip(2.0 * rule(seen[1]), 1e-250, 1e250)
            covariance, _ = recursion.forward(stage, covariance, multiplier, seen)
        except np.linalg.LinAlgError:
            return [np.ones(n) for n in recursion.sizes], float("inf")
        found.append(multiplier)
    try:
        return found, recursion.gain(covariance)[0]
    except np.linalg.LinAlgError:
        return found, float("inf")


def _perron(section: Section) -> Iterator[list[np.ndarray]]:
    """Multipliers in the proportions of the absolute network's Perron vectors, l_i/r_i: with
    D² = l/r the product ∏‖D_iW_iD_{i−1}⁻¹‖ is at most the |W| bound, and 2w(z−w) ≤ z²−w² makes the
    same Λ feasible for LipSDP."""
    absolute = Absolute(section)
    q = absolute.perron()
    values = absolute.forward(q)
    adjoints = absolute.backward(values[-1])
    squared = float(np.max(adjoints[0] / q, initial=0.0))
    if not 0.0 < squared < 1e200:
        return
    for factor in (2.0, 1.8, 1.5):
        found = []
        for k, unit in enumerate(section.units):
            width = unit.high - unit.low
            ratio = adjoints[k + 1] * width / np.maximum(values[k + 1], 1e-12 * float(values[k + 1].max()) + 1e-300)
            found.append(np.clip(factor * ratio / squared, 1e-250, 1e250))
        yield found


class Found(NamedTuple):
    """The least ρ that a search has seen, where, and after how many evaluations it ended."""

    squared: float
    point: np.ndarray
    steps: int


def minimize(
    function: Callable[[np.ndarray], tuple[float, float, np.ndarray]], start: np.ndarray, budget: int
) -> Found:
    """Minimize a function that returns (ρ, what to descend on, its gradient)."""
    point, given = start, budget
    if budget < 2:
        return Found(float("inf"), start, 0)
    budget -= 1
    top, value, slope = function(point)
    best = (top, point)
    pairs: list[tuple[np.ndarray, np.ndarray, float]] = []
    while budget > 0:
        direction = -_inverse_hessian(slope, pairs)
        if float(direction @ slope) >= 0.0:
            pairs, direction = [], -slope
        step = 1.0 if pairs else 0.5 / max(float(np.abs(direction).max()), 1e-300)
        step = min(step, 3.0 / max(float(np.abs(direction).max()), 1e-300))
        moved = None
        while budget > 0:
            budget -= 1
            trial = point + step * direction
            top, new, after = function(trial)
            if top < best[0]:
                best = (top, trial)
            if new <= value + 1e-4 * step * float(direction @ slope):
                moved = trial
                break
            step *= 0.4
            if step < 1e-8:
                break
        if moved is None:
            if not pairs:
                break
            pairs = []
            continue
        change, turn = moved - point, after - slope
        if float(change @ turn) > 1e-12 * float(np.linalg.norm(change) * np.linalg.norm(turn)):
            pairs = [*pairs[-_MEMORY + 1 :], (change, turn, float(change @ turn))]
        if value - new < 1e-9:
            break
        point, value, slope = moved, new, after
    return Found(*best, given - budget)


def _inverse_hessian(
    slope: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray, float]]
) -> np.ndarray:
    """L-BFGS's two-loop product H·slope."""
    found, weights = slope.copy(), []
    for change, turn, both in reversed(pairs):
        weights.append(float(change @ found) / both)
        found -= weights[-1] * turn
    if pairs:
        change, turn, both = pairs[-1]
        found *= both / float(turn @ turn)
    for (change, turn, both), weight in zip(pairs, reversed(weights), strict=True):
        found += change * (weight - float(turn @ found) / both)
    return found


CLOSED_FORM = Method("LipSDP, closed form", Grade.PROVED, "LipSDP-Neuron (Fazlyab et al. 2019), one Cholesky", closed_forms)
SEARCH = Method("LipSDP, first-order search", Grade.PROVED, "LipSDP-Neuron (Fazlyab et al. 2019), one Cholesky", searched)

"""LipSDP's bound on tori, one multiplier for each channel, in closed form and searched; each is proved."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from snaudit.bound import UNBOUNDED, Bound, Grade, at_most
from snaudit.sections.multipliers import minimize
from snaudit.waves.certificate import prove
from snaudit.waves.interface import Kernel, Method, Sum, Torus, Unit
from snaudit.waves.norms import rayleigh
from snaudit.waves.recursion import Recursion, activated, folded, symmetric
from snaudit.waves.stages import sizes_of, stages_of, steps_of
from snaudit.waves.symbols import frequencies, symbol_cost

_MOST_HELD = 1 << 25
"""Complex entries of symbols and covariances that are held at once."""
_STEPS = 400
_FEWEST = 8
"""Steps of a search below which it is not begun."""
_ENTRYWISE = 300.0
"""What passes over the entries of one covariance take, in operations of products."""
_EACH = 5e6
"""What a stage takes in operations however small it is: a quarter of a millisecond, mostly of calls."""
_PROOF, _BOTH_WAYS = 2.0, 2.5
"""What a proof, and a step of a search, take: in ways forward."""
_LESS = (0.0, 1e-6, 1e-4, 1e-2)
"""By how much multipliers are lowered in turn until they have a proof: the best may lie at the very edge."""
_SMOOTHINGS = ((30, 0.6), (300, 1.0))
_Rule = Callable[[np.ndarray], np.ndarray]


def _top(stack: np.ndarray) -> float:
    """The largest eigenvalue over all frequencies, about."""
    if stack.shape[-1] == 1:
        return float(stack.real.max())
    worst = np.argsort(rayleigh(stack))[-4:]
    return float(np.linalg.eigvalsh(stack[worst]).max())


def _diagonal_of(gamma: np.ndarray) -> np.ndarray:
    """The variance of each channel, averaged over frequencies: that of one place."""
    found = np.einsum("kii->i", gamma).real / len(gamma)
    return np.maximum(found, 1e-12 * float(found.max(initial=0.0)) + 1e-250)


def _spectral(c: float) -> _Rule:
    """T = c/max_ω λmax(Γ)·I."""
    return lambda gamma: np.full(gamma.shape[1], c / max(_top(gamma), 1e-250))


def _circles(c: float) -> _Rule:
    """T_ii = c/max_ω Σ_j|Γ_ij| (Gershgorin)."""

    def rule(gamma: np.ndarray) -> np.ndarray:
        sums = np.abs(gamma).sum(axis=2).max(axis=0)
        return c / np.maximum(sums, 1e-12 * float(sums.max(initial=0.0)) + 1e-250)

    return rule


def _shifted(c: float) -> _Rule:
    """T_ii = 1/(D_ii + c·max_ω λmax(Γ/2 − D)), D half the channels' variances."""

    def rule(gamma: np.ndarray) -> np.ndarray:
        half = 0.5 * _diagonal_of(gamma)
        top = max(_top(0.5 * gamma - np.diag(half) + half.max() * np.eye(len(half))) - half.max(), 0.02 * half.max())
        return 1.0 / (half + c * top)

    return rule


def _scaled(c: float) -> _Rule:
    """T = c/(max_ω λmax(D^-½ΓD^-½)·D), D the channels' variances."""

    def rule(gamma: np.ndarray) -> np.ndarray:
        d = _diagonal_of(gamma)
        root = np.sqrt(d)
        return c / (_top(gamma / np.outer(root, root)) * d)

    return rule


CLOSED: tuple[_Rule, ...] = (
    _scaled(1.2), _circles(1.7), _shifted(1.7), _spectral(1.2), _scaled(1.35), _scaled(1.0), _shifted(1.5), _circles(1.9),
)  # fmt: skip
"""T = Λ/2 from Γ, as in `sections.multipliers`, the same at all frequencies: feasible for λmax(T^½ΓT^½) < 2 at each.
What is the best for deep networks comes first: large sections try only as many as the work allows."""


def closed_forms(torus: Torus, work: float = float("inf")) -> Bound:
    """The least bound of closed forms, as Syed & Hu (2025) have them for neurons, here for channels: of as many
    as the work allows."""
    recursion = _recursion(torus)
    if recursion is None:
        return UNBOUNDED
    multipliers, squared = best_closed(recursion, _affordable(torus, work))
    return at_most(prove(recursion, multipliers), CLOSED_FORM.name) if np.isfinite(squared) else UNBOUNDED


def _affordable(torus: Torus, work: float) -> int:
    """How many closed forms can be tried."""
    symbols, forward = _pass_cost(torus)
    return int(max(1.0, min(len(CLOSED), (work - symbols) / forward - _PROOF)))


def searched(torus: Torus, work: float = float("inf")) -> Bound:
    """The bound of the multipliers that L-BFGS finds from the best closed form on, with a written-out gradient."""
    recursion = _recursion(torus)
    if recursion is None or not recursion.sizes:
        return UNBOUNDED
    count = _affordable(torus, 0.4 * work)
    multipliers, squared = best_closed(recursion, count)
    if not np.isfinite(squared):
        return UNBOUNDED
    symbols, forward = _pass_cost(torus)
    budget = int(min(_STEPS, (work - symbols - (count + _PROOF) * forward) / (_BOTH_WAYS * forward)))
    logs = np.log(np.concatenate(multipliers))
    for recursion.power, share in _SMOOTHINGS:
        found = minimize(recursion.descend, logs, int(share * budget))
        budget -= found.steps
        if found.squared <= squared:
            squared, logs = found.squared, found.point
    multipliers = np.split(np.exp(np.clip(logs, -300, 300)), np.cumsum(recursion.sizes)[:-1])
    proofs = (prove(recursion, [each * (1.0 - less) for each in multipliers]) for less in _LESS)
    return at_most(next(filter(np.isfinite, proofs), float("inf")), SEARCH.name)


@lru_cache(maxsize=1)
def _recursion(torus: Torus) -> Recursion | None:
    stages = stages_of(torus)
    return None if stages is None else Recursion(stages)


@lru_cache(maxsize=1)
def best_closed(recursion: Recursion, count: int) -> tuple[list[np.ndarray], float]:
    """(multipliers, ρ) of the best of so many closed forms; ρ in plain floats."""
    return min((_walk(recursion, rule) for rule in CLOSED[:count]), key=lambda item: item[1])


def _walk(recursion: Recursion, rule: _Rule) -> tuple[list[np.ndarray], float]:
    """The multipliers that a closed form gives stage by stage, and ρ."""
    covariance, found = recursion.start(), []
    try:
        for linear, unit in recursion.stages.pairs:
            if linear is not None:
                covariance = symmetric(folded(linear, covariance))
            if unit is not None:
                gamma = covariance[:, unit.read[:, None], unit.read]
                multiplier = np.clip(2.0 * rule(gamma), 1e-250, 1e250)
                covariance, _ = activated(unit, covariance, multiplier)
                found.append(multiplier)
        return found, recursion.gain(covariance)[0]
    except np.linalg.LinAlgError:
        return found, float("inf")


def _pass_cost(torus: Torus, traced: bool = False) -> tuple[float, float]:
    """(operations of the symbols, of one way forward), about; infinite where it does not fit: `traced`, with what
    the way back needs."""
    steps = steps_of(torus)
    if steps is None:
        return float("inf"), float("inf")
    held, symbols, forward = 0.0, 0.0, 0.0
    for s in sizes_of(torus, steps):
        held += s.count * (s.folds * s.entries + (s.unit * (2 * s.stay + 3 * s.unit) if traced else 0))
        forward += 8.0 * s.count * s.folds * s.entries * (s.columns + s.rows)
        forward += s.count * (16.0 * s.unit**3 + 8.0 * s.stay * s.unit * (s.unit + s.stay))
        forward += _ENTRYWISE * s.count * (s.folds * s.columns**2 + s.rows**2) + _EACH
        if held + 4 * s.count * (s.folds * s.columns * s.rows + s.stay**2) > _MOST_HELD:
            return float("inf"), float("inf")
    for number, step in enumerate(torus.steps, start=1):
        for i, each in step.terms if isinstance(step, Sum) else ():
            if isinstance(each, Kernel):
                symbols += symbol_cost(each, torus.values[i])
                symbols += 8.0 * frequencies(torus.values[i]) * each.weight[..., 0].size * torus.values[number].channels
    return symbols, forward


def closed_cost(torus: Torus) -> float:
    """The fewest operations of `closed_forms`, about."""
    symbols, forward = _pass_cost(torus)
    return symbols + (1 + _PROOF) * forward


def search_cost(torus: Torus) -> float:
    """The fewest operations of `searched` that are worth it, about."""
    if not any(isinstance(step, Unit) for step in torus.steps):
        return float("inf")
    symbols, forward = _pass_cost(torus, traced=True)
    return symbols + (1 + _PROOF + _BOTH_WAYS * _FEWEST) * forward


_THEOREM = "LipSDP (Fazlyab et al. 2019) on tori, one Cholesky for each unit and frequency"
CLOSED_FORM = Method("LipSDP by frequencies, closed form", Grade.PROVED, _THEOREM, closed_cost, closed_forms)
SEARCH = Method("LipSDP by frequencies, first-order search", Grade.PROVED, _THEOREM, search_cost, searched)

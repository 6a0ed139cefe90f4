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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from snaudit.bound import Bound, chain, exactly, scaled
from snaudit.errors import ConstraintError
from snaudit.findings import LayerResult
from snaudit.layers import Extraction, Layer
from snaudit.measuring import Meter, result_of
from snaudit.model import Model
from snaudit.network import Composer, network_of

_ROUNDS = 40
_STEP = 1e-4
_SETTLED = 1e-6
_TRIES = 12
_NEAR = 0.97
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


@dataclass(slots=True)
class Goals:
    """The goals for the composition that bring the written network's bound just under its limit: secant
    steps on the logarithms, kept between what was seen to be too much and too little."""

    limit: float
    goal: float | None
    _tries: int = 0
    _much: float = math.inf
    _little: float = 0.0
    _last: tuple[float, float] | None = None

    def accepts(self, upper: float, is_shared: bool) -> bool:
        """Whether a file with this bound will do: always under the limit, and near it while tries last."""
        near = upper >= _NEAR * self.limit or not is_shared or self._tries >= _TRIES
        return upper <= self.limit and near

    def move(self, upper: float) -> None:
        """Choose the next goal after one that gave this bound; None where none is left."""
        assert self.goal is not None
        self._tries += 1
        here = math.log(self.goal), math.log(upper / self.limit)
        if upper > self.limit:
            self._much = min(self._much, self.goal)
        else:
            self._little = max(self._little, self.goal)
        slope = 1.0
        if self._last is not None and self._last[0] != here[0]:
            slope = min(3.0, max(0.2, (here[1] - self._last[1]) / (here[0] - self._last[0])))
        self._last = here
        goal = math.exp(here[0] - (here[1] + 1e-3) / slope)
        if not self._little < goal < self._much:
            goal = math.sqrt(self._little * self._much) if self._little else 0.5 * self._much
        if self._tries >= _TRIES:
            goal = self._little
        self.goal = goal if goal > 0.0 and self._tries <= _TRIES else None


def bound_of(model: Model, extraction: Extraction, meter: Meter) -> Bound:
    """The network's bound, as an audit has it."""
    return network_of(model, extraction, _results(extraction, meter), meter)[0].bound


def _results(extraction: Extraction, meter: Meter) -> tuple[LayerResult, ...]:
    pairs = zip(extraction.layers, meter.measure_all(extraction.layers), strict=True)
    return tuple(result_of(layer, measured) for layer, measured in pairs)


@dataclass(slots=True)
class Budget:
    """One network whose bound is to be shared among the chosen layers.

    before  its bound as an audit has it
    slack   what the composition over the graph is above that: a goal for the one is a goal for the other
    """

    model: Model
    extraction: Extraction
    chosen: tuple[Layer, ...]
    meter: Meter
    before: Bound = field(init=False)
    slack: float = field(init=False)
    notes: tuple[str, ...] = field(init=False, default=())
    _norms: dict[str, Bound] = field(init=False)
    _compose: Callable[[Mapping[str, float]], Bound] = field(init=False)

    def __post_init__(self) -> None:
        layers = self.extraction.layers
        results = _results(self.extraction, self.meter)
        self._norms = {result.name: result.norm for result in results}
        self.before = network_of(self.model, self.extraction, results, self.meter)[0].bound
        if self.model.graph is None:
            self._compose = self._as_chain
            self.notes = ("the network's bound is that of a plain chain of the layers: a bare checkpoint has no graph",)
        else:
            compose = Composer(self.model, layers, self._norms, self.meter)
            self._compose = lambda factors: compose((), factors).bound
        whole = self._compose({})
        if not self.before.known or not whole.known:
            raise ConstraintError(
                "the network has no finite bound to bring under a limit: `snaudit inspect` names the gaps"
            )
        self.slack = max(1.0, 10.0 ** min(300.0, whole.log10_upper - self.before.log10_upper))

    def _as_chain(self, factors: Mapping[str, float]) -> Bound:
        bound = exactly(1.0)
        for layer in self.extraction.layers:
            if layer.in_chain:
                bound = chain(bound, scaled(self._norms[layer.name], factors.get(layer.name, 1.0)))
        for _, gain in self.extraction.scales:
            bound = bound if gain is None else scaled(bound, gain)
        return bound

    def caps(self, goal: float) -> dict[str, float]:
        """The cap of each layer that must change so that the composition is at most `goal`.

        Raises ConstraintError where no scales of the chosen layers do it.
        """
        names = [layer.name for layer in self.chosen if self._norms[layer.name].upper > 0.0]

        def log_bound(t: np.ndarray) -> float:
            return self._compose(dict(zip(names, np.exp(-t).tolist(), strict=True))).log10_upper * math.log(10.0)

        found = shares(log_bound, len(names), math.log(goal) - 1e-9)
        if found is None:
            least = self._compose(dict.fromkeys(names, 0.0)).upper
            raise ConstraintError(
                f"without the chosen layers the network's bound is {least:.6g} still, above the limit: ways past "
                "them (residuals, skipped layers, norms that it does not count by layers) keep it there"
            )
        pairs = zip(names, found.tolist(), strict=True)
        return {name: self._norms[name].upper * math.exp(-t) for name, t in pairs if t > 0.0}

"""LipSDP on tori, one multiplier for each channel: the covariance recursion at every frequency.

As in `sections.sector`, with one multiplier for all places of a channel: then the quadratic form is
block diagonal by frequencies, and so are the covariances S(ω). A linear map to a coarser torus folds
frequencies: S'(ω) = Σ_a T_a(ω) S(ω_a) T_a(ω)ᴴ. A unit on z = Hs with multipliers Λ = d² and slopes in
[α, β], g = β − α, makes of s the kept rows and w = αz + gp, with Ē, F̄ the maps of s and p to those:
    S' = ĒSĒᴴ + URUᴴ, U = ½ĒSHᵀd + F̄d⁻¹, R = (I − ¼dΓd)⁻¹, Γ = HSHᵀ,
and at the end ρ = max over ω of λmax(S(ω)). Plain float64, only a search: nothing here is a proof.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from snaudit.waves.stages import Activation, Linear, Stages

_MARGIN = 1e-5
"""How far a search stays from multipliers that are too large, so that what it finds has a proof."""


def adjoint(stack: np.ndarray) -> np.ndarray:
    return stack.conj().swapaxes(-1, -2)


def symmetric(stack: np.ndarray) -> np.ndarray:
    """Exactly Hermitian."""
    return 0.5 * (stack + adjoint(stack))


def spread(stage: Linear, covariance: np.ndarray) -> np.ndarray:
    """S(ω_a), (F, A, n, n)."""
    if stage.stays:
        return covariance[:, None]
    found = covariance[stage.numbers]
    found[stage.turned] = found[stage.turned].conj()
    return found


def folded(stage: Linear, covariance: np.ndarray) -> np.ndarray:
    """Σ_a T_a S(ω_a) T_aᴴ, of a Hermitian S."""
    return stage.times(adjoint(stage.times(spread(stage, covariance)))).sum(axis=1)


def unfolded(stage: Linear, slope: np.ndarray, count: int) -> np.ndarray:
    """∂/∂S of what `folded` makes, from ∂/∂S'."""
    wide = np.broadcast_to(slope[:, None], (len(slope), stage.numbers.shape[1], *slope.shape[1:]))
    each = stage.back(adjoint(stage.back(wide)))
    if stage.stays:
        return each[:, 0]
    each[stage.turned] = each[stage.turned].conj()
    found = np.zeros((count, *each.shape[2:]), complex)
    np.add.at(found, stage.numbers, each)
    return found


@dataclass(slots=True, eq=False)
class Trace:
    """What the way back needs of one unit."""

    reads: np.ndarray
    gamma: np.ndarray
    inverse: np.ndarray
    sides: np.ndarray
    count: int


def rows_after(unit: Activation, stack: np.ndarray) -> np.ndarray:
    """Ē·stack: the kept rows, then α times those that the unit reads."""
    found = np.zeros((len(stack), len(unit.kept) + len(unit.read), stack.shape[2]), stack.dtype)
    found[:, : len(unit.kept)] = stack[:, unit.kept]
    if unit.low.any():
        found[:, len(unit.kept) :] = unit.low[:, None] * stack[:, unit.read]
    return found


def rows_before(unit: Activation, stack: np.ndarray, order: int) -> np.ndarray:
    """Ēᴴ·stack."""
    found = np.zeros((len(stack), order, stack.shape[2]), stack.dtype)
    stay = len(unit.kept)
    found[:, unit.kept] = stack[:, :stay]
    found[:, unit.read] += unit.low[:, None] * stack[:, stay:]
    return found


def activated(
    unit: Activation, covariance: np.ndarray, multiplier: np.ndarray, margin: float = _MARGIN
) -> tuple[np.ndarray, Trace]:
    """The covariance after a unit. Raises LinAlgError for multipliers that are too large."""
    d = np.sqrt(multiplier)
    reads = covariance[:, :, unit.read]
    gamma = reads[:, unit.read]
    core = np.eye(len(d)) - 0.25 * (d[:, None] * gamma * d)
    np.linalg.cholesky(core - margin * np.eye(len(d)))
    inverse = np.linalg.inv(core)
    diagonal, stay = np.arange(len(d)), len(unit.kept)
    sides = 0.5 * rows_after(unit, reads) * d
    sides[:, stay + diagonal, diagonal] += unit.width / d
    after = sides @ inverse @ adjoint(sides)
    if unit.low.any():
        after += adjoint(rows_after(unit, adjoint(rows_after(unit, covariance))))
    elif stay:
        after[:, :stay, :stay] += covariance[:, unit.kept[:, None], unit.kept]
    return symmetric(after), Trace(reads, gamma, inverse, sides, covariance.shape[1])


def deactivated(
    unit: Activation, trace: Trace, multiplier: np.ndarray, slope: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(∂/∂S, ∂/∂log Λ) before a unit, from ∂/∂S' after it, Hermitian."""
    d, stay = np.sqrt(multiplier), len(unit.kept)
    joint = slope @ trace.sides @ trace.inverse
    inner = trace.inverse @ adjoint(trace.sides) @ joint
    on_d = (joint.conj() * rows_after(unit, trace.reads)).real.sum(axis=(0, 1))
    diagonal = np.arange(len(d))
    on_d -= 2.0 * unit.width / d**2 * joint[:, stay + diagonal, diagonal].real.sum(axis=0)
    on_d += 0.5 * np.einsum("fij,j,fji->i", trace.gamma, d, inner).real
    before = np.zeros((len(slope), trace.count, trace.count), complex)
    if stay or unit.low.any():
        before += rows_before(unit, adjoint(rows_before(unit, slope, trace.count)), trace.count)
    half = 0.5 * rows_before(unit, joint, trace.count) * d
    before[:, :, unit.read] += half
    before[:, unit.read] += adjoint(half)
    before[:, unit.read[:, None], unit.read] += 0.25 * (d[:, None] * inner * d)
    return before, 0.5 * d * on_d


class Recursion:
    """The stages of a section; power: of the Schatten norm that stands for the largest eigenvalue."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.sizes = [len(unit.low) for _, unit in stages.pairs if unit is not None]
        self.power = 30

    def start(self) -> np.ndarray:
        return np.broadcast_to(np.eye(self.stages.inputs, dtype=complex), (self.stages.first, *(self.stages.inputs,) * 2))

    def gain(self, covariance: np.ndarray) -> tuple[float, float, np.ndarray]:
        """(ρ, a smooth upper envelope of log ρ, its slope by the last covariance)."""
        values, vectors = np.linalg.eigh(covariance)
        top = max(float(values.max()), 1e-300)
        share = np.clip(values / top, 0.0, None)
        weights = self.stages.weights[:, None] * share ** (self.power - 1)
        total = float(np.sum(weights * share))
        slope = (vectors * (weights / (total * top))[:, None, :]) @ adjoint(vectors)
        return top, float(np.log(top) + np.log(total) / self.power), slope

    def bound(self, multipliers: list[np.ndarray]) -> float:
        """ρ for these multipliers; infinite where they are too large."""
        return self.descend(np.log(np.concatenate(multipliers)), forward=True)[0]

    def descend(self, logs: np.ndarray, forward: bool = False) -> tuple[float, float, np.ndarray]:
        """(ρ, smoothed log ρ, its gradient) at the logarithms of all multipliers; infinite outside."""
        covariance, traces, counts = self.start(), [], []
        rest = iter(np.split(np.exp(np.clip(logs, -300, 300)), np.cumsum(self.sizes)[:-1]))
        multipliers = list(rest)
        try:
            for k, (linear, unit) in enumerate(self.stages.pairs):
                counts.append(len(covariance))
                if linear is not None:
                    covariance = symmetric(folded(linear, covariance))
                if unit is not None:
                    covariance, trace = activated(unit, covariance, multipliers[k])
                    if not forward:
                        traces.append(trace)
            if not np.isfinite(covariance).all():
                raise np.linalg.LinAlgError
            top, smooth, slope = self.gain(covariance)
        except np.linalg.LinAlgError:
            return float("inf"), float("inf"), np.zeros_like(logs)
        if forward:
            return top, smooth, np.zeros_like(logs)
        parts = []
        for k in range(len(self.stages.pairs) - 1, -1, -1):
            linear, unit = self.stages.pairs[k]
            if unit is not None:
                slope, part = deactivated(unit, traces[k], multipliers[k], slope)
                parts.append(part)
            if linear is not None and k:
                slope = unfolded(linear, slope, counts[k])
        return top, smooth, np.concatenate(parts[::-1])

"""The symbols of maps on tori at their frequencies, and what float64 has lost of them.

With the unitary transform x̂(ω) = N^(−D/2) Σ x[n]e^{−i⟨ω,n⟩}, the map y[m] = Σ_t W_t x[d·t + f + m] is
ŷ(ω) = Ŵ(ω)x̂(ω), Ŵ(ω) = Σ_t W_t e^{i⟨ω, d·t + f⟩}. A stride s keeps each s-th place, a torus of side N/s,
and folds the s^D frequencies ω_a = ω + 2πa/s onto one: ŷ(sω) = s^(−D/2) Σ_a Ŵ(ω_a) x̂(ω_a).
Rounding: the phases are within ε = `phase_error`, a sum of T products within √2·γ_{T+2}, the weights
within `relative`; so |error| ≤ (ε + √2γ_{T+2} + relative)·Σ_t|W_t| entry by entry, at every ω.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from snaudit.rounding import SAFE, TINY, U, frobenius_up, gamma
from snaudit.symbol import angles_of, phase_error
from snaudit.waves.grid import Grid, grid
from snaudit.waves.interface import Kernel, Moved, Value


@dataclass(frozen=True, slots=True, eq=False)
class Symbol:
    """Ŵ at a torus' frequencies, (F or 1, groups, O/groups, I/groups).

    lost ≥ ‖computed − exact‖₂ and norm ≥ ‖exact‖₂, frobenius ≥ ‖computed‖_F of each group, at every ω,
    (F or 1,) each.
    """

    values: np.ndarray
    lost: float
    norm: np.ndarray
    frobenius: np.ndarray

    def times(self, rows: np.ndarray) -> np.ndarray:
        """Ŵ·rows for (F, I, columns)."""
        _, groups, outer, inner = self.values.shape
        count, _, columns = rows.shape
        split = rows.reshape(count, groups, inner, columns)
        if inner == 1:
            found = self.values * split
        else:
            found = self.values @ split
        return found.reshape(-1, groups * outer, columns)

    def times_lost(self) -> np.ndarray:
        """ε with ‖fl(Ŵ·X) − Ŵ·X‖_F ≤ ε‖X‖_F: |error| ≤ √2γ_{2n+2}|Ŵ||X|, for real or complex factors."""
        return math.sqrt(2.0) * gamma(2 * self.values.shape[-1] + 4) * self.frobenius

    def whole(self) -> np.ndarray:
        """Ŵ as (F or 1, O, I)."""
        count, groups, outer, inner = self.values.shape
        found = np.zeros((count, groups, outer, groups, inner), self.values.dtype)
        for g in range(groups):
            found[:, g, :, g] = self.values[:, g]
        return found.reshape(count, groups * outer, groups * inner)


def symbol_of(kernel: Kernel, source: Value) -> Symbol:
    """The symbol of a map at the frequencies of its source's torus (the folding by its stride apart)."""
    weight, groups = kernel.weight, kernel.groups
    outer, inner = weight.shape[0] // groups, weight.shape[1]
    taps = np.indices(weight.shape[2:]).reshape(weight.ndim - 2, -1).T
    lags = taps * np.array(kernel.dilation) + np.array(kernel.offset)
    flat = weight.reshape(groups, outer, inner, -1)
    total = np.abs(flat).sum(axis=-1)
    spread = phase_error(len(source.sides)) + math.sqrt(2.0) * gamma(len(taps) + 4) + kernel.relative
    if not (lags % np.array(source.sides)).any():
        values = flat.sum(axis=-1)[None]
    else:
        angles = angles_of(lags, grid(source.sides).points, np.array(source.sides))
        stacked = flat.reshape(-1, len(taps)).T
        values = (np.cos(angles) @ stacked) + 1j * (np.sin(angles) @ stacked)
        values = values.reshape(-1, groups, outer, inner)
    lost = SAFE * SAFE * spread * max(frobenius_up(part) for part in total) + TINY
    size = np.abs(values)
    frobenius = SAFE * np.sqrt(np.square(size).sum(axis=(2, 3)).max(axis=1)) + TINY
    mixed = SAFE * np.sqrt((size.sum(axis=3).max(axis=2) * size.sum(axis=2).max(axis=2)).max(axis=1)) + TINY
    return Symbol(values, lost, np.minimum(frobenius, mixed) + lost, frobenius)


def symbol_cost(kernel: Kernel, source: Value) -> float:
    """Operations of `symbol_of`, about."""
    return 4.0 * kernel.weight.size * frequencies(source)


def frequencies(value: Value) -> int:
    """How many frequencies of its torus are computed: those of `grid`."""
    return (math.prod(value.sides) + math.prod(2 - n % 2 for n in value.sides)) // 2


def factors_of(moved: Moved) -> tuple[np.ndarray, float]:
    """(the channels' factors, how far they may be off, relative to the largest: scaling's rounding included)."""
    exact = moved.relative == 0.0 and bool((np.abs(np.frexp(moved.factors)[0]) % 0.5 == 0.0).all())
    largest = float(np.abs(moved.factors).max(initial=0.0))
    return moved.factors, 0.0 if exact else SAFE * (moved.relative + 4 * U) * largest


def folding_of(fine: Grid, coarse: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each coarse frequency, the A fine ones that a stride folds onto it: (their places, their rows
    among the fine grid's points, whether conjugated), (F, A) each."""
    places = coarse.finer(fine)
    return places, fine.number[places], fine.turned[places]

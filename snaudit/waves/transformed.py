"""LipLT on tori: every activation as its mean slope plus a rest, products of symbols for each path."""

from __future__ import annotations

import math

import numpy as np

from snaudit.bound import UNBOUNDED, Bound, Grade, at_most, sum_up, times_up, up
from snaudit.waves.blocks import Block, identity, scaled, summed
from snaudit.waves.interface import Kernel, Method, Torus, Unit
from snaudit.waves.norms import largest
from snaudit.waves.symbols import frequencies, symbol_cost

_MOST_HELD = 1 << 24
"""Complex entries of blocks that are held at once."""
_EACH = 1e7
"""What a norm, or a step, takes in operations however small it is: half a millisecond, mostly of calls."""


def measure(torus: Torus, work: float = math.inf) -> Bound:
    """t_y, where t_k = ‖G_k0‖ + Σ_{j<k} ‖G_kj H_j‖·t_j bounds ‖δz_k‖/‖δx‖ (Fazlyab, Entesari, Roy &
    Chellappa, *Certified robustness via dynamic margin maximization and improved Lipschitz
    regularization*, NeurIPS 2023: LipLT, here on tori and any DAG).

    With a = (α+β)/2 and h = max(β−a, a−α) of a channel, δw = a·δz + H·δr and ‖δr‖ ≤ ‖δz‖, H = diag(h), on
    the whole torus, the places that a mask sets to zero included: there d = 0 is in [α, β]. Put in for all
    units, z_k = G_k0 x + Σ_j G_kj H_j r_j. Every G is a map of tori (a convolution with strides), so its
    norm is the largest of those of its symbols, products of the layers' symbols: `largest` proves it.
    """
    blocks: dict[int, dict[int, Block]] = {0: {0: identity(torus.values[0], np.ones(torus.values[0].channels))}}
    reach: dict[int, float] = {0: 1.0}
    last = torus.last_uses()
    for number, step in enumerate(torus.steps, start=1):
        if isinstance(step, Unit):
            before = blocks[step.source]
            middle = 0.5 * step.low + 0.5 * step.high
            rest = np.nextafter(np.maximum(step.high - middle, middle - step.low), np.inf)
            reach[number] = _reached(before, reach)
            after = {j: scaled(block, middle, 0.0) for j, block in before.items()}
            blocks[number] = after | {number: identity(torus.values[number], rest)}
        else:
            blocks[number] = summed(torus, number, step, blocks)
        for i in torus.reads(number):
            if last[i] == number:
                blocks.pop(i, None)
    bound = _reached(blocks[len(torus.steps)], reach)
    return at_most(bound, METHOD.name) if math.isfinite(bound) else UNBOUNDED


def _reached(blocks: dict[int, Block], reach: dict[int, float]) -> float:
    terms = []
    for j, block in blocks.items():
        if block.rows is None:
            norm = float(np.abs(block.diagonal).max()) + float(block.lost.max())
            norm = norm if float(block.lost.max()) == 0.0 else up(norm)
        else:
            norm = largest(block.rows, float(block.lost.max()))
        terms.append(times_up(norm, reach[j]))
    return sum_up(terms)


def cost(torus: Torus) -> float:
    """Operations of `measure`, about; infinite where its blocks would take too much memory."""
    total, columns = 0.0, {0: {0: torus.values[0].channels}}
    last = torus.last_uses()
    for number, step in enumerate(torus.steps, start=1):
        value = torus.values[number]
        count = frequencies(value)
        if isinstance(step, Unit):
            total += sum(_norm_cost(count, value.channels, n) for n in columns[step.source].values())
            columns[number] = columns[step.source] | {number: value.channels}
        else:
            wide: dict[int, int] = {}
            for i, each in step.terms:
                source = torus.values[i]
                times = math.prod(source.sides) // math.prod(value.sides)
                if isinstance(each, Kernel):
                    every = sum(columns[i].values())
                    total += symbol_cost(each, source)
                    total += 8.0 * frequencies(source) * each.weight.shape[0] * each.weight.shape[1] * every
                wide |= {j: n * times for j, n in columns[i].items()}
            columns[number] = wide
        held = sum(frequencies(torus.values[i]) * torus.values[i].channels * sum(c.values()) for i, c in columns.items())
        if held > _MOST_HELD:
            return math.inf
        for i in torus.reads(number):
            if last[i] == number:
                columns.pop(i, None)
    final = torus.values[-1]
    return total + sum(_norm_cost(frequencies(final), final.channels, n) for n in columns[len(torus.steps)].values())


def _norm_cost(count: int, channels: int, columns: int) -> float:
    less, more = sorted((channels, columns))
    return 8.0 * count * less**2 * (more + less) + _EACH


METHOD = Method("LipLT by frequencies", Grade.PROVED, "loop transformation (Fazlyab et al. 2023) on tori", cost, measure)

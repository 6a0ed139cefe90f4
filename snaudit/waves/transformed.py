"""LipLT on tori: every activation as its mean slope plus a rest, products of symbols for each path."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from snaudit.bound import UNBOUNDED, Bound, Grade, at_most, sum_up, times_up, up
from snaudit.rounding import SAFE, U
from snaudit.waves.grid import grid
from snaudit.waves.interface import Kernel, Map, Method, Moved, Sum, Torus, Unit, Value
from snaudit.waves.norms import largest, squares
from snaudit.waves.symbols import Symbol, factors_of, folding_of, frequencies, symbol_cost, symbol_of

_MOST_HELD = 1 << 24
"""Complex entries of blocks that are held at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """How a value depends on an earlier one at each frequency: (F, C, A·c), the A finer frequencies that
    fold onto it in the order of their `places` (F, A) in the torus with `sides`.

    rows None: diag(diagonal), exact. lost: (F,) with ‖rows − exact‖₂ ≤ lost.
    """

    sides: tuple[int, ...]
    places: np.ndarray
    rows: np.ndarray | None
    lost: np.ndarray
    diagonal: np.ndarray | None = None

    def filled(self) -> np.ndarray:
        if self.rows is not None:
            return self.rows
        return np.broadcast_to(np.diag(self.diagonal).astype(complex), (len(self.lost), *(len(self.diagonal),) * 2))


def measure(torus: Torus) -> Bound:
    """t_y, where t_k = ‖G_k0‖ + Σ_{j<k} ‖G_kj H_j‖·t_j bounds ‖δz_k‖/‖δx‖ (Fazlyab, Entesari, Roy &
    Chellappa, *Certified robustness via dynamic margin maximization and improved Lipschitz
    regularization*, NeurIPS 2023: LipLT, here on tori and any DAG).

    With a = (α+β)/2 and h = max(β−a, a−α) of a channel, δw = a·δz + H·δr and ‖δr‖ ≤ ‖δz‖, H = diag(h), on
    the whole torus, the places that a mask sets to zero included: there d = 0 is in [α, β]. Put in for all
    units, z_k = G_k0 x + Σ_j G_kj H_j r_j. Every G is a map of tori (a convolution with strides), so its
    norm is the largest of those of its symbols, products of the layers' symbols: `largest` proves it.
    Rounding: ‖fl(Ŵ·G) − exact‖ ≤ ‖Ŵ‖·lost(G) + lost(Ŵ)·‖G‖_F + `Symbol.times_lost`·‖G‖_F.
    """
    blocks: dict[int, dict[int, Block]] = {0: {0: _identity(torus.values[0], np.ones(torus.values[0].channels))}}
    reach: dict[int, float] = {0: 1.0}
    last = torus.last_uses()
    for number, step in enumerate(torus.steps, start=1):
        if isinstance(step, Unit):
            before = blocks[step.source]
            middle = 0.5 * step.low + 0.5 * step.high
            rest = np.nextafter(np.maximum(step.high - middle, middle - step.low), np.inf)
            reach[number] = _reached(before, reach)
            after = {j: _scaled(block, middle, 0.0) for j, block in before.items()}
            blocks[number] = after | {number: _identity(torus.values[number], rest)}
        else:
            blocks[number] = _summed(torus, number, step, blocks)
        for i in torus.reads(number):
            if last[i] == number:
                blocks.pop(i, None)
    bound = _reached(blocks[len(torus.steps)], reach)
    return at_most(bound, METHOD.name) if math.isfinite(bound) else UNBOUNDED


def _identity(value: Value, diagonal: np.ndarray) -> Block:
    mine = grid(value.sides)
    return Block(value.sides, mine.flat(mine.points)[:, None], None, np.zeros(len(mine)), diagonal)


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


def _summed(torus: Torus, number: int, step: Sum, blocks: dict[int, dict[int, Block]]) -> dict[int, Block]:
    found: dict[int, Block] = {}
    for i, each in step.terms:
        symbol = symbol_of(each, torus.values[i]) if isinstance(each, Kernel) else None
        for j, block in blocks[i].items():
            part = _mapped(each, symbol, block, torus.values[i], torus.values[number])
            found[j] = _added(found[j], part) if j in found else part
    return found


def _mapped(each: Map, symbol: Symbol | None, block: Block, source: Value, target: Value) -> Block:
    """The block of a map of a value from the value's."""
    if isinstance(each, Moved):
        factors, relative = factors_of(each)
        if each.exact and each.same(source.channels):
            return block
        if each.same(source.channels):
            return _scaled(block, factors, relative / max(float(np.abs(factors).max()), 1e-300))
        rows = block.filled()
        size = np.sqrt(squares(rows))
        moved = rows[:, each.index] * factors[:, None]
        lost = SAFE * (block.lost * float(np.abs(factors).max(initial=0.0)) * _copies(each) + relative * _copies(each) * size)
        return Block(block.sides, block.places, moved, lost)
    if block.rows is None:
        rows = symbol.whole() * block.diagonal
        rows = np.broadcast_to(rows, (len(block.lost), *rows.shape[1:])).astype(complex)
        exact = bool((block.diagonal == 1.0).all())
        top = float(np.abs(block.diagonal).max())
        size = np.sqrt(squares(rows))
        lost = SAFE * (symbol.norm * block.lost + symbol.lost * top + (0.0 if exact else 2 * U) * size)
    else:
        rows = symbol.times(block.rows)
        size = np.sqrt(squares(block.rows))
        lost = SAFE * (symbol.norm * block.lost + (symbol.lost + symbol.times_lost()) * size)
    lost = np.broadcast_to(lost, block.lost.shape)
    folded = Block(block.sides, block.places, rows, lost)
    return folded if source.sides == target.sides else _folded(folded, source, target)


def _copies(moved: Moved) -> float:
    """√ of how often one channel is copied at most: the norm of the choice of channels, from above."""
    used = moved.index[moved.index >= 0]
    return math.sqrt(float(np.bincount(used).max(initial=1))) * (1 + 4 * U) if used.size else 1.0


def _folded(block: Block, source: Value, target: Value) -> Block:
    """What a stride makes of a block: the frequencies that fold onto one side by side, over √ of their number."""
    fine, coarse, origin = grid(source.sides), grid(target.sides), grid(block.sides)
    _, numbers, turned = folding_of(fine, coarse)
    count, times = numbers.shape
    rows = block.rows[numbers]
    rows[turned] = rows[turned].conj()
    places = block.places[numbers]
    places = np.where(turned[..., None], origin.opposite(places), places).reshape(count, -1)
    channels = rows.shape[2]
    rows = rows.reshape(count, times, channels, block.places.shape[1], -1).transpose(0, 2, 1, 3, 4)
    rows = rows.reshape(count, channels, places.shape[1], -1)
    order = np.argsort(places, axis=1)
    rows = np.take_along_axis(rows, order[:, None, :, None], axis=2).reshape(count, channels, -1)
    rows *= 1.0 / math.sqrt(times)
    lost = np.sqrt(np.square(block.lost)[numbers].sum(axis=1)) / math.sqrt(times) + 4 * U * np.sqrt(squares(rows))
    return Block(block.sides, np.take_along_axis(places, order, axis=1), rows, SAFE * lost)


def _scaled(block: Block, factors: np.ndarray, relative: float) -> Block:
    """diag(factors)·block."""
    top = float(np.abs(factors).max(initial=0.0))
    exact = relative == 0.0 and bool((np.abs(np.frexp(factors)[0]) % 0.5 == 0.0).all())
    if block.rows is None:
        size = top * float(np.abs(block.diagonal).max())
        lost = SAFE * (block.lost * top + (0.0 if exact else (relative + 2 * U) * size))
        return Block(block.sides, block.places, None, lost, block.diagonal * factors)
    rows = block.rows * factors[:, None]
    lost = SAFE * (block.lost * top + (relative + 2 * U) * np.sqrt(squares(block.rows)) * top)
    return Block(block.sides, block.places, rows, lost)


def _added(first: Block, second: Block) -> Block:
    assert first.sides == second.sides and np.array_equal(first.places, second.places)
    rows = first.filled() + second.filled()
    lost = SAFE * (first.lost + second.lost + 2 * U * np.sqrt(squares(rows)))
    return Block(first.sides, first.places, rows, lost)


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
    return 8.0 * count * less**2 * (more + less)


METHOD = Method("LipLT by frequencies", Grade.PROVED, "loop transformation (Fazlyab et al. 2023) on tori", cost, measure)

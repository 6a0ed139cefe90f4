"""How values on tori depend on earlier ones at each frequency, with what float64 has lost of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from snaudit.rounding import SAFE, U
from snaudit.waves.grid import grid
from snaudit.waves.interface import Kernel, Map, Moved, Sum, Torus, Value
from snaudit.waves.norms import squares
from snaudit.waves.symbols import Symbol, factors_of, folding_of, symbol_of


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


def identity(value: Value, diagonal: np.ndarray) -> Block:
    mine = grid(value.sides)
    return Block(value.sides, mine.flat(mine.points)[:, None], None, np.zeros(len(mine)), diagonal)


def summed(torus: Torus, number: int, step: Sum, blocks: Mapping[int, Mapping[int, Block]]) -> dict[int, Block]:
    """The blocks of a sum of maps.

    Rounding: ‖fl(Ŵ·G) − exact‖ ≤ ‖Ŵ‖·lost(G) + lost(Ŵ)·‖G‖_F + `Symbol.times_lost`·‖G‖_F.
    """
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
            return scaled(block, factors, relative / max(float(np.abs(factors).max()), 1e-300))
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


def scaled(block: Block, factors: np.ndarray, relative: float) -> Block:
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

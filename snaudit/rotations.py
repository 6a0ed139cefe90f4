"""Rotations: values whose entries are sums of a few multiples of entries of one source, as rotary embeddings are.

Exporters write x·cos + rotate_half(x)·sin in parts: slices, negations, concatenations, products with tables. Each move
is run on entry numbers, so whatever the layout, the map is known entry by entry: y_e = Σ_t c_t[e]·x[i_t[e]].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from snaudit.attributes import attribute
from snaudit.bound import root_up
from snaudit.domains import is_default
from snaudit.rounding import TINY, U, gamma

Fold = Callable[[ir.Value], np.ndarray | None]
Move = Callable[[ir.Node, ir.Value, np.ndarray, Fold], np.ndarray | None]
_DEPTH = 24
"""Nodes in a row that are looked at: a rotary embedding as exporters write it has ten; each takes three frames."""
_TERMS = 4
"""Terms of one entry: a rotation has two, one of a rotation's halves put together again four; they grow as 2^depth."""
_ENTRIES, _EACH = 1 << 28, 1 << 21
"""Entries that one walk may write, and what a node counts at the least: 128 nodes of any graph, however it is woven."""
_PAIRS = 1 << 23
"""Products of two terms beyond which the cheaper bound of the norm is taken."""


@dataclass(frozen=True, slots=True, eq=False)
class Combination:
    """A value as a combination of a root's entries: `numbers[t]` say which, `factors[t]` times what."""

    root: ir.Value
    numbers: tuple[np.ndarray, ...]
    factors: tuple[np.ndarray, ...]
    roundings: int = 0

    def moved(self, change: Callable[[np.ndarray], np.ndarray | None]) -> Combination | None:
        parts = [change(array) for array in (*self.numbers, *self.factors)]
        count = len(self.numbers)
        if any(part is None for part in parts):
            return None
        return Combination(self.root, tuple(parts[:count]), tuple(parts[count:]), self.roundings)

    def times(self, factor: np.ndarray | float, roundings: int) -> Combination | None:
        factors = tuple(own * factor for own in self.factors)
        if any(f.shape != n.shape for f, n in zip(factors, self.numbers, strict=True)):
            return None
        return Combination(self.root, self.numbers, factors, self.roundings + roundings)


@dataclass(slots=True)
class _Walk:
    """One walk backwards: what more than one value reads is found once, and what it may still take."""

    moves: dict[str, Move]
    fold: Fold
    numbers_of: Callable[[ir.Value], np.ndarray | None]
    known: dict[ir.Value, Combination | None] = field(default_factory=dict)
    left: int = field(default_factory=lambda: _ENTRIES)

    def find(self, value: ir.Value, depth: int) -> Combination | None:
        if value not in self.known:
            found = self._found(value, depth)
            if len(value.uses()) < 2:
                return found
            self.known[value] = found
        return self.known[value]

    def _found(self, value: ir.Value, depth: int) -> Combination | None:
        node, found = value.producer(), None
        if node is not None and is_default(node) and depth and self.left > 0:
            self.left -= _EACH
            found = _made(node, value, lambda v: self.find(v, depth - 1), self.moves, self.fold)
        if found is None:
            numbers = self.numbers_of(value)
            found = None if numbers is None else Combination(value, (numbers,), (np.ones(numbers.shape),))
        self.left -= 0 if found is None else len(found.numbers) * found.numbers[0].size
        return found


def combination(
    value: ir.Value, moves: dict[str, Move], fold: Fold, numbers_of: Callable[[ir.Value], np.ndarray | None]
) -> Combination | None:
    """The value as a combination of entries of one root, as far back as its makers only move, scale and add them.

    numbers_of: the entry numbers of a value, in its shape; None where that is not known.
    """
    return _Walk(moves, fold, numbers_of).find(value, _DEPTH)


def _made(
    node: ir.Node, value: ir.Value, inner: Callable[[ir.Value], Combination | None], moves: dict[str, Move], fold: Fold
) -> Combination | None:
    op = node.op_type
    if op in moves:
        found = inner(node.inputs[0])
        return None if found is None else found.moved(lambda array: moves[op](node, value, array, fold))
    if op == "Neg":
        found = inner(node.inputs[0])
        return None if found is None else found.times(-1.0, 0)
    if op == "Mul":
        for data, other in (node.inputs, node.inputs[::-1]):
            table = fold(other)
            if table is not None:
                found = inner(data)
                numbers = table.astype(np.float64)
                return found.times(numbers, 1) if found is not None and np.isfinite(numbers).all() else None
        return None
    if op in ("Add", "Sub") and all(fold(v) is None for v in node.inputs):
        first, second = (inner(v) for v in node.inputs)
        return _sum(first, second if op == "Add" or second is None else second.times(-1.0, 0))
    if op == "Concat":
        return _beside([inner(v) for v in node.inputs], int(attribute(node, "axis", 0)))
    return None


def _sum(first: Combination | None, second: Combination | None) -> Combination | None:
    if first is None or second is None or first.root is not second.root:
        return None
    if first.numbers[0].shape != second.numbers[0].shape or len(first.numbers) + len(second.numbers) > _TERMS:
        return None
    most = max(first.roundings, second.roundings)
    return Combination(first.root, first.numbers + second.numbers, first.factors + second.factors, most)


def _beside(parts: list[Combination | None], axis: int) -> Combination | None:
    """Put side by side; where one has fewer terms than another, its first one again, times zero."""
    if not parts or any(one is None or one.root is not parts[0].root for one in parts):
        return None
    count = max(len(one.numbers) for one in parts)
    numbers, factors = [], []
    for t in range(count):
        chosen = [(t, 1.0) if t < len(one.numbers) else (0, 0.0) for one in parts]
        numbers.append(np.concatenate([one.numbers[i] for one, (i, _) in zip(parts, chosen, strict=True)], axis))
        factors.append(np.concatenate([one.factors[i] * by for one, (i, by) in zip(parts, chosen, strict=True)], axis))
    return Combination(parts[0].root, tuple(numbers), tuple(factors), max(one.roundings for one in parts))


def norm_up(one: Combination) -> float:
    """‖T‖₂ from above for the map y = Tx: the largest row sum of |TᵀT| (Gershgorin), of which a rotation's is
    c² + s²; or, where that is too many products, √(‖T‖₁‖T‖∞)."""
    numbers = np.stack([n.ravel() for n in one.numbers])
    factors = np.stack([f.ravel() for f in one.factors])
    count, size = numbers.shape
    relative = (one.roundings + 1) * 2.0 * U
    if count * count * size > _PAIRS:
        columns = np.bincount(numbers.ravel(), np.abs(factors).ravel())
        squared = float(columns.max(initial=0.0)) * float(np.abs(factors).sum(axis=0).max(initial=0.0))
        return root_up(squared * (1.0 + relative + gamma(numbers.size + 8)) + TINY)
    width = int(numbers.max(initial=0)) + 1
    keys = (numbers[:, None, :] * width + numbers[None, :, :]).ravel()
    products = (factors[:, None, :] * factors[None, :, :]).ravel()
    places, where, met = np.unique(keys, return_inverse=True, return_counts=True)
    sums = np.abs(np.bincount(where, products))
    lost = (gamma(int(met.max(initial=1)) + 4) + 2.0 * relative) * np.bincount(where, np.abs(products))
    rows = np.bincount(places // width, sums + lost)
    return root_up(float(rows.max(initial=0.0)) * (1.0 + gamma(len(places) + 8)) + TINY)

"""Sections of a graph on tori: the stretches between cuts that are convolutions and entrywise functions.

As in `cuts`, each value is followed as a function of one source, as long as every op is understood;
where that ends, a section ends. Sections that are too much work are taken apart where all goes through
one value. What a section is and why its tori bound it: `waves.interface`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from snaudit import cuts, folding, patterns
from snaudit.domains import is_default
from snaudit.linearized.interface import Coefficients
from snaudit.waves import Torus, ops
from snaudit.waves.building import Builder
from snaudit.waves.seen import Seen

_MOST_CHANNELS, _MOST_PLACES = 1 << 13, 1 << 18
"""Of a source: the weights of 8192 channels squared, and the frequencies of 512 × 512 places, still fit the memory."""
_HALVINGS = 12
"""After 4096 parts a network is left to composition."""
_MOST_BUILT = 1 << 15
"""Values of all sections that are built to see what they cost; what is not built by then is left to composition."""
_NARROWEST = 2.0**-20
"""The narrowest interval of slopes, of their size: a proof divides by widths, and wider is only safer."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A section of the graph: `output` is a function of `source` alone."""

    source: ir.Value
    output: ir.Value
    torus: Torus
    rests: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Walk:
    opset: int
    known: dict[ir.Value, Seen] = field(default_factory=dict)
    ends: dict[ir.Value, None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """All that was followed from one source to one end, and the graph's values on the way, by number."""

    builder: Builder
    output: int
    names: dict[int, ir.Value]

    def within(self, first: int, last: int) -> Cut | None:
        """The section from one value to another, if it holds two convolutions or more."""
        values = self.builder.values
        if values[last].depth - values[first].depth < 2:
            return None
        torus = self.builder.torus(first, last)
        return None if torus is None else Cut(self.names[first], self.names[last], torus)

    def passes(self) -> list[int]:
        """The values through which all goes, from the source to the output."""
        used = self.builder.used(0, self.output)
        reads = {i: self.builder.values[i].reads for i in used}
        furthest, found = 0, []
        last = {i: i for i in used} | {i: k for k in used for i in reads[k]}
        for i in used:
            if furthest <= i and i in self.names:
                found.append(i)
            furthest = max(furthest, last[i])
        return found


def find_stretches(
    model: ir.Model, outputs: Sequence[ir.Value] | None = None, nodes: Container[ir.Node] | None = None,
    fixed: frozenset[ir.Value] = frozenset(),
) -> Iterator[Stretch]:  # fmt: skip
    """What can be followed on tori in the main graph; the arguments are those of `cuts.find_sections`."""
    walk = _Walk(model.graph.opset_imports.get("", 0) or model.graph.opset_imports.get("ai.onnx", 0))
    own = {name for _, name, *_ in model.functions} if model.functions else set()
    for node in model.graph:
        if (nodes is not None and node not in nodes) or all(folding.is_constant(o) or o in fixed for o in node.outputs):
            continue
        data = [v for v in dict.fromkeys(node.inputs) if v is not None and not folding.is_constant(v)]
        if node.op_type in own or any(v in fixed for v in data) or not _follow(walk, node, data):
            walk.ends.update(dict.fromkeys(v for v in data if v in walk.known))
    walk.ends.update(dict.fromkeys(model.graph.outputs if outputs is None else outputs))
    for value in walk.ends:
        if value in walk.known and walk.known[value].number:
            seen = walk.known[value]
            names = {s.number: v for v, s in reversed(walk.known.items()) if s.builder is seen.builder}
            yield Stretch(seen.builder, seen.number, names | {seen.number: value})


def _follow(walk: _Walk, node: ir.Node, data: list[ir.Value]) -> bool:
    """Put down what a node's outputs are; False where a section ends before it."""
    held = [_of(walk, value) for value in data]
    if not held or any(seen is None for seen in held) or len({id(seen.builder) for seen in held}) != 1:
        return False
    inputs = {i: walk.known[v] for i, v in enumerate(node.inputs) if v is not None and v in data}
    if is_default(node):
        results = ops.apply(node, inputs, walk.opset)
        if any(result is not None for result in results):
            for output, result in zip(node.outputs, results, strict=True):
                if result is not None:
                    walk.known[output] = result
            return True
    before, ends = inputs[next(iter(inputs))], None
    if len(inputs) == 1:
        ends = cuts.ends_of(node, next(iter(inputs)), _shown(before))
    else:
        for found in patterns.find(node, cuts.fold, "l2", walk.opset):
            source = walk.known.get(found.source)
            if found.slopes is not None and source is not None and source.builder is before.builder:
                before, ends = source, found.slopes
    if ends is None or not cuts.keeps_shape(node, _shown(before)):
        return False
    wide = (np.broadcast_to(np.asarray(end, np.float64), before.shape).ravel() for end in ends)
    low, high = (before.by_channel(end) for end in wide)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return False
    low, high = low.min(axis=1), high.max(axis=1)
    least = _NARROWEST * np.maximum(np.maximum(np.abs(low), np.abs(high)), _NARROWEST)
    unit = before.builder.applied(before.number, low, np.maximum(high, low + least))
    walk.known[node.outputs[0]] = before.again(unit)
    return True


def _shown(seen: Seen) -> Coefficients:
    return Coefficients(seen.shape, True, {})


def _of(walk: _Walk, value: ir.Value) -> Seen | None:
    """What is known of a value; one of which nothing is known is a source, if it is a map of channels."""
    if value not in walk.known:
        shape = value.shape
        real = value.dtype is None or value.dtype.is_floating_point()
        if shape is None or not real or len(shape) < 3:
            return None
        batch, channels, *sizes = (d if isinstance(d, int) and d > 0 else None for d in shape)
        if channels is None or None in sizes or channels > _MOST_CHANNELS or math.prod(sizes) > _MOST_PLACES:
            return None
        builder = Builder(channels, tuple(sizes))
        walk.known[value] = Seen(builder, 0, tuple(range(1 + len(sizes))), False, batch)
    return walk.known[value]


@dataclass(slots=True)
class _Prices:
    """What sections between two values cost, each found once; None where there is no section."""

    cost: Callable[[Torus], float]
    known: dict[tuple[int, int, int], float | None] = field(default_factory=dict)
    left: int = field(default_factory=lambda: _MOST_BUILT)

    def of(self, stretch: Stretch, first: int, last: int) -> float | None:
        key = (id(stretch), first, last)
        if key not in self.known:
            cut = stretch.within(first, last) if self.left > 0 else None
            self.left -= last - first
            self.known[key] = None if cut is None else self.cost(cut.torus)
        return self.known[key]


def affordable(
    stretches: Sequence[Stretch], cost: Callable[[Torus], float], work: float
) -> list[tuple[Cut, float]]:
    """(section, its share of the work): sections that together cost no more than `work`: whole stretches where that is affordable, else parts."""
    limit, prices = work, _Prices(cost)
    for _ in range(_HALVINGS):
        found = [(stretch, *part) for stretch in stretches for part in _parts(stretch, prices, limit)]
        total = math.fsum(price for *_, price in found)
        if total <= work:
            return [(stretch.within(first, last), work * price / total) for stretch, first, last, price in found]
        limit /= 2.0
    return []


def _parts(stretch: Stretch, prices: _Prices, limit: float) -> Iterator[tuple[int, int, float]]:
    """(first, last, cost) of the longest sections, one after another, of which none costs more than the limit."""
    passes = stretch.passes()
    start = 0
    while start < len(passes) - 1:
        best = _longest(passes[start:], stretch, prices, limit)
        if best is None:
            start += 1
        else:
            yield passes[start], passes[start + best[0]], best[1]
            start += best[0]


def _longest(passes: list[int], stretch: Stretch, prices: _Prices, limit: float) -> tuple[int, float] | None:
    """(at which pass the longest section from the first one on ends, its cost), by bisection: costs grow with length."""
    best, low, beyond, stop = None, 0, len(passes), len(passes) - 1
    while low < stop:
        price = prices.of(stretch, passes[0], passes[stop])
        if price is not None and price > limit:
            beyond = stop
        else:
            low, best = stop, best if price is None else (stop, price)
        stop = min(2 * low + 1, (low + beyond) // 2)
    return best

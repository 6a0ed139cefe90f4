"""Sections of a graph: the stretches between cuts that are affine maps and entrywise functions alone.

Walking along the graph, each value is followed as an affine function of one source and of the units
after it, as long as every op is understood and no more than one source is involved. Where that ends
(an op that is none of both, a value of two sources, a value that is too large, an output of the graph)
a section ends, and what comes after starts a new one. `lipschitz.compose` multiplies at the cuts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir

from snaudit import folding, linearized, patterns, slopes
from snaudit.attributes import attribute
from snaudit.confined import Box, Place, gated_at, place_of, rest_of, slopes_at
from snaudit.deviations import Deviations
from snaudit.domains import is_default
from snaudit.enclosed import Enclosed, scaled
from snaudit.linearized import LARGEST, Coefficients
from snaudit.sections.interface import Section, Unit

_MOST_NEURONS = 4000
"""Entries of a section's units together: its certificate is a matrix of about that order."""
_SMALL = 256
_NARROWEST = 2.0**-20
_MOST_WORK = 2e10
"""Multiplications that all products of weights may take together: counted, so that no clock decides."""
_MOST_HELD = 1 << 26
"""Entries of coefficients that are held at once."""
_Ends = tuple[float | np.ndarray, float | np.ndarray]
_Interval = tuple[np.ndarray, np.ndarray]
_Local = Callable[[_Interval, Place], tuple[_Interval, _Interval | None]]
"""(slopes anywhere, where the entries lie) → (slopes there, the two slopes of lines that meet at zero)."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A section of the graph: `output` is a function of `source` alone, on the box that `rests` names."""

    source: ir.Value
    output: ir.Value
    section: Section
    rests: frozenset[str] = frozenset()


@dataclass(slots=True, eq=False)
class _Trunk:
    """A source and the units that have been met after it."""

    source: ir.Value
    size: int
    forms: Deviations | None = None
    units: list[Unit] = field(default_factory=list)
    rests: frozenset[str] = frozenset()

    @property
    def neurons(self) -> int:
        return sum(unit.size for unit in self.units)


@dataclass(slots=True)
class _Walk:
    model: ir.Model
    opset: int
    box: Box
    fixed: frozenset[ir.Value] = frozenset()
    factors: Mapping[ir.Value, float] = field(default_factory=dict)
    known: dict[ir.Value, tuple[_Trunk, Coefficients]] = field(default_factory=dict)
    ends: dict[ir.Value, None] = field(default_factory=dict)
    uses: dict[ir.Value, int] = field(default_factory=dict)
    idle: list[ir.Value] = field(default_factory=list)
    work: float = 0.0
    held: int = 0


def find_sections(
    model: ir.Model, outputs: Sequence[ir.Value] | None = None, nodes: Container[ir.Node] | None = None,
    fixed: frozenset[ir.Value] = frozenset(), box: Box | None = None, factors: Mapping[ir.Value, float] = {},
) -> Iterator[Cut]:  # fmt: skip
    """The longest sections of the main graph that hold two linear maps or more.

    outputs: what the bound is about, and `nodes` those that it depends on; None: all. fixed: values that are
    constants of which nothing is known but their shape; then the box must have no centre, at which they are others.
    factors: by which values are multiplied, as if their layers' weights were; then, too.
    """
    opset = model.graph.opset_imports.get("", 0) or model.graph.opset_imports.get("ai.onnx", 0)
    walk = _Walk(model, opset, box or Box(), fixed, factors)
    own = {name for _, name, *_ in model.functions} if model.functions else set()
    alive = [node for node in model.graph if nodes is None or node in nodes]
    outputs = model.graph.outputs if outputs is None else outputs
    for node in alive:
        for value in node.inputs:
            if value is not None:
                walk.uses[value] = walk.uses.get(value, 0) + 1
    for output in outputs:
        walk.uses[output] = walk.uses.get(output, 0) + 1
    for node in alive:
        if all(folding.is_constant(output) or output in fixed for output in node.outputs):
            continue
        data = [v for v in dict.fromkeys(node.inputs) if v is not None and not folding.is_constant(v)]
        found = None if node.op_type in own else _follow(walk, node, data)
        if found is None:
            walk.ends.update(dict.fromkeys(v for v in data if v in walk.known))
        _forget(walk, node)
    walk.ends.update(dict.fromkeys(outputs))
    for value in walk.ends:
        if value in walk.known:
            trunk, coefficients = walk.known[value]
            section = _section(trunk, coefficients)
            if section is not None and value is not trunk.source:
                yield Cut(trunk.source, value, section, trunk.rests)


def _forget(walk: _Walk, node: ir.Node) -> None:
    """Drop what no later node reads and where no section ends."""
    for value in node.inputs:
        if value is None:
            continue
        walk.uses[value] -= 1
        if not walk.uses[value]:
            walk.idle.append(value)
    while walk.held > _MOST_HELD // 4 and walk.idle:  # until then, an activation in parts may look back
        value = walk.idle.pop(0)
        if value in walk.known and value not in walk.ends:
            walk.held -= _entries(walk.known.pop(value)[1])


def _entries(coefficients: Coefficients) -> int:
    return sum(m.centre.size * (1 if m.radius is None else 2) for m in coefficients.blocks.values())


def _hold(walk: _Walk, value: ir.Value, trunk: _Trunk, found: Coefficients) -> None:
    walk.known[value] = trunk, found
    walk.held += _entries(found)


def _follow(walk: _Walk, node: ir.Node, data: list[ir.Value]) -> _Trunk | None:
    """Put down what a node's outputs are; None where a section ends before it."""
    found = {value: _of(walk, value) for value in data}
    trunks = {id(item[0]): item[0] for item in found.values() if item is not None and item[0] is not None}
    if any(item is None for item in found.values()) or len(trunks) != 1:
        return None
    (trunk,) = trunks.values()
    if not all(_goes_with(trunk, value, item) for value, item in found.items()):
        return None
    if walk.work > _MOST_WORK or walk.held > _MOST_HELD:
        return None
    inputs = {i: found[v][1] for i, v in enumerate(node.inputs) if v is not None and v in found}
    if is_default(node):
        results = linearized.apply(node, inputs, walk.opset)
        if any(result is not None for result in results):
            for output, result in zip(node.outputs, results, strict=True):
                if result is not None:
                    result = result.times(np.array(walk.factors[output])) if output in walk.factors else result
                    _hold(walk, output, trunk, result)
                    if result.depth > max(item.depth for item in inputs.values()):
                        walk.work += result.size * sum(_entries(item) for item in inputs.values())
            return trunk
    index, before = next(iter(inputs.items()))
    ends, source = None, node.inputs[index]
    local: _Local | None = partial(slopes_at, node, walk.opset, before)
    if len(inputs) == 1:
        ends = ends_of(node, index, before)
    else:
        for short in patterns.find(node, fold, "l2", walk.opset):
            if short.slopes is not None and short.source in walk.known and walk.known[short.source][0] is trunk:
                before, ends, source = walk.known[short.source][1], short.slopes, short.source
                local = None if short.gated is None else partial(gated_at, short.gated)
    if ends is None or not keeps_shape(node, before):
        return None
    result = _applied(walk, trunk, node, source, before, ends, local)
    if result is None:
        return None
    _hold(walk, node.outputs[0], trunk, result)
    return trunk


def _applied(
    walk: _Walk, trunk: _Trunk, node: ir.Node, source: ir.Value, before: Coefficients, ends: _Ends, local: _Local | None
) -> Coefficients | None:
    """What a node makes of `before` that applies a function with these slopes to each entry: a new unit, less the
    entries that have one slope only where they lie."""
    low, high = (np.broadcast_to(np.asarray(end, np.float64), before.shape).ravel() for end in ends)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return None
    place, knee = place_of(walk.box, trunk.forms, source, before), None
    if place is not None and local is not None:
        (least, most), knee = local((low, high), place)
        if (least > low).any() or (most < high).any():
            trunk.rests |= place.rests
        low, high = least, most
    varies = low < high
    count = int(varies.sum())
    if trunk.neurons + count > _MOST_NEURONS:
        return None
    blocks: dict[int, Enclosed] = {}
    if count < low.size and np.where(varies, 0.0, low).any():
        blocks = {j: scaled(matrix, np.where(varies, 0.0, low)) for j, matrix in before.blocks.items()}
    if count:
        least = _NARROWEST * np.maximum(np.maximum(np.abs(low), np.abs(high)), _NARROWEST)
        high = np.where(varies, np.maximum(high, low + least), high)
        inside = {j: matrix[varies] for j, matrix in before.blocks.items()}
        trunk.units.append(Unit(inside, low[varies], high[varies]))
        blocks[len(trunk.units)] = Enclosed(np.eye(low.size)[:, varies])
        if trunk.forms is not None:
            trunk.forms.add(*rest_of(place, (low, high), knee, varies))
    return Coefficients(before.shape, before.batched, dict(sorted(blocks.items())), before.depth)


def _of(walk: _Walk, value: ir.Value) -> tuple[_Trunk | None, Coefficients] | None:
    """What is known of a value; one of which nothing is known is a source, if its size is. One that is held
    fixed depends on nothing, and goes with any trunk."""
    if value not in walk.known:
        shape = _shape(value)
        real = value.dtype is None or value.dtype.is_floating_point()
        if shape is None or not real or not 0 < math.prod(shape[0]) <= LARGEST:
            return None
        sizes, batched = shape
        if value in walk.fixed:
            return None, Coefficients(sizes, batched, {})
        size = math.prod(sizes)
        start = Coefficients(sizes, batched, {0: Enclosed(np.eye(size))})
        _hold(walk, value, _Trunk(value, size, walk.box.forms(value, sizes, batched)), start)
    return walk.known[value]


def _goes_with(trunk: _Trunk, value: ir.Value, item: tuple[_Trunk | None, Coefficients]) -> bool:
    """Whether a value's batch, where it has one, is the trunk's: another size would copy entries."""
    if item[0] is trunk or not item[1].batched:
        return True
    first, own = (getattr(v.shape[0], "value", v.shape[0]) for v in (trunk.source, value))
    named = isinstance(own, int) or (own or "").replace("_", "").isalnum()  # exporters write "?" for unlike ones
    return named and own == first


def _shape(value: ir.Value) -> tuple[tuple[int, ...], bool] | None:
    """(sizes, batched): of two axes or more, the first is a batch, written 1, if its size is open or
    makes the value large; a small value is one whole, so that ops may also mix along its first axis."""
    if value.shape is None or len(value.shape) == 0:
        return None
    first, *rest = (d if isinstance(d, int) and d > 0 else None for d in value.shape)
    if None in rest or (not rest and first is None):
        return None
    batched = bool(rest) and first != 1 and (first is None or first * math.prod(rest) > _SMALL)
    return (1 if batched else first, *rest), batched


def fold(value: ir.Value) -> np.ndarray | None:
    return folding.evaluate(value) if folding.is_constant(value) else None


def ends_of(node: ir.Node, index: int, before: Coefficients) -> _Ends | None:
    if any(a.is_ref() for a in node.attributes.values()):
        return None
    try:
        return _interval(node, index, before)
    except (ValueError, TypeError, AttributeError):  # attributes that make no sense
        return None


def keeps_shape(node: ir.Node, before: Coefficients) -> bool:
    """Whether a node's one output has an entry for each of `before`."""
    shape = node.outputs[0].shape
    if shape is None or len(shape) != len(before.shape) or len(node.outputs) != 1:
        return False
    pairs = list(zip(shape, before.shape, strict=True))[1 if before.batched else 0 :]
    return all(told == n for told, n in pairs)


def _interval(node: ir.Node, index: int, before: Coefficients) -> _Ends | None:
    """The slopes of the node's function; arrays where they differ between entries."""
    others = [folding.evaluate(v) for v in node.inputs if v is not None and folding.is_constant(v)]
    for array in others:
        with np.errstate(invalid="ignore"):  # a signalling NaN
            undefined = bool(np.isnan(array.astype(np.float64)).any())
        if undefined:
            return None
        if array.ndim > len(before.shape) or np.broadcast_shapes(array.shape, before.shape) != before.shape:
            return None
        if before.batched and array.ndim == len(before.shape) and array.shape[0] != 1:
            return None
    default = is_default(node)
    if default and node.op_type in ("Max", "Min") and others:
        return 0.0, 1.0  # of x and constants: either x itself or a constant
    if index != 0 or (default and node.op_type == "PRelu"):
        return None if index or len(others) != 1 else _prelu(others[0].astype(np.float64))
    if others and not (default and node.op_type == "Clip"):
        return None
    return slopes.interval(node.domain, node.op_type, partial(attribute, node))


def _prelu(slope: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.minimum(slope, 1.0), np.maximum(slope, 1.0)


def _section(trunk: _Trunk, coefficients: Coefficients) -> Section | None:
    """The section that ends in these coefficients, with only the units that they rest on."""
    if coefficients.depth < 2:
        return None
    used, stack = set(), [j for j in coefficients.blocks if j]
    while stack:
        j = stack.pop()
        if j not in used:
            used.add(j)
            stack += [i for i in trunk.units[j - 1].blocks if i]
    if not coefficients.blocks or any(not trunk.units[j - 1].blocks for j in used):
        return None
    places = {0: 0} | {j: k for k, j in enumerate(sorted(used), start=1)}

    def renamed(blocks: dict[int, Enclosed]) -> dict[int, Enclosed]:
        return {places[j]: matrix for j, matrix in sorted(blocks.items())}

    units = tuple(Unit(renamed(u.blocks), u.low, u.high) for u in (trunk.units[j - 1] for j in sorted(used)))
    return Section(trunk.size, units, renamed(coefficients.blocks))

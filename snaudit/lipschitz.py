"""compose(graph, norms of its layers) → a bound of the network: one walk, one lookup for each node."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from snaudit import joint, loops, numerals, patterns, rules
from snaudit.attention import Finder
from snaudit.bound import UNBOUNDED, Bound, Grade, Norm, at_most, exactly, larger
from snaudit.broadcasting import dims
from snaudit.conclusions import assumptions_of, contributions_of, final_of, reached_from, rests_of
from snaudit.findings import Gap
from snaudit.pairs import Pair
from snaudit.matching import Shortcut
from snaudit.quantized_nodes import picked_rows, source_of
from snaudit.ranges import UNKNOWN, Range
from snaudit.ranges_walk import note_ranges, step_of
from snaudit.rules import quantized
from snaudit.rules.interface import CONSTANT, SURROGATE, Unbounded, Value, through, unmeasured
from snaudit.shapes_walk import note_shapes
from snaudit.walk import (
    MALFORMED,
    UNROUNDED,
    Walk,
    bodies_of,
    branches_of,
    is_default,
    range_of,
    reads_of,
    value_of,
    where_is,
)

__all__ = ["Composition", "Partial", "Shortcut", "compose"]

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
SHAPE_ONLY = frozenset({"Shape", "Size"})
_EVAL = "export the model in eval mode, or take the randomness out of it"


@dataclass(frozen=True, slots=True)
class Partial:
    """The bound of one stretch of a graph with gaps: from inputs or gaps (`start`, jointly) to what a
    gap reads or to an output (`end`)."""

    start: tuple[str, ...]
    end: str
    bound: Bound


@dataclass(frozen=True, slots=True)
class Composition:
    """The network's bound: all outputs jointly, with respect to all real inputs jointly.

    outputs       each graph output by itself
    rests         of each, what the rules could not check on its way
    gaps          the nodes at which the bound ends; empty if it is finite
    assumptions   what the bound is about (which inputs vary) and what it takes for granted
    contributions (name, factor) of each layer and op that scales the bound, in the graph's order
    partials      where there are gaps, the bounds between them
    nodes         those that the outputs depend on
    held          values that are constant because one input alone varies
    ranges        where the entries of each value lie, as far as the walk came to know
    """

    bound: Bound
    outputs: tuple[tuple[str, Bound], ...]
    gaps: tuple[Gap, ...]
    assumptions: tuple[str, ...]
    contributions: tuple[tuple[str, float], ...]
    partials: tuple[Partial, ...] = ()
    nodes: frozenset[ir.Node] = frozenset()
    held: frozenset[ir.Value] = frozenset()
    ranges: Mapping[ir.Value, Range] = field(default_factory=dict, repr=False)
    rests: tuple[tuple[str, ...], ...] = ()


def compose(
    model: ir.Model,
    norm: Norm,
    operators: Mapping[ir.Value, Bound],
    names: Mapping[ir.Value, str],
    shortcuts: Sequence[Shortcut] = (),
    fold: Callable[[ir.Value], np.ndarray | None] = lambda value: None,
    stated: Mapping[str, Range] = {},
    measure: Callable[[np.ndarray], Bound] = unmeasured,
    pair: Pair | None = None,
    narrower: Mapping[ir.Value, Range] = {},
) -> Composition:
    """The network's bound by composition: Lip(f∘g) ≤ Lip f·Lip g at every node of the DAG.

    operators  for a node's first output, the measured norm of the node's own linear map
    names      for a node's first output, the layer's name
    shortcuts  measured bounds past several nodes; each value keeps the lesser of rule and shortcut
    fold       the array of a constant value, or None
    stated     for a graph input's name, the range within which the bound is to hold
    measure    encloses the norm of a matrix that a rule puts together (a gate's, a head's)
    pair       the outputs, and the one input, that the bound is about; None: all
    narrower   ranges of values that hold on the stated box too, and may be narrower than the ops' rules'

    A node without a rule, or whose rule refuses, leaves its outputs unbounded and becomes a Gap; the
    walk goes on, so all gaps are found. Only nodes that the outputs depend on count, and a node that
    a shortcut passes does not.
    """
    pair = pair or Pair(tuple(model.graph.outputs))
    inputs = frozenset(model.graph.inputs)
    walk = Walk(model, norm, operators, names, {}, fold, inputs, measure=measure, narrower=narrower)
    for shortcut in shortcuts:
        walk.shortcuts.setdefault(shortcut.output, []).append(shortcut)
    order = _walked(walk, pair, stated)
    if pair.only is not None:
        prior = {v: one for v, one in walk.ranges.items() if _in_main_graph(v, model.graph)}
        walk = _again(walk, only=pair.only, prior=prior)
        order = _walked(walk, pair, stated)
    found = _conclude(walk, order, pair)
    if SURROGATE in found.assumptions and found.bound.bounded:
        found = replace(found, assumptions=(*found.assumptions, _rounding(walk, order, pair.outputs)))
    return found if not found.gaps else replace(found, partials=tuple(_partials(walk, stated, pair.outputs)))


def _walked(walk: Walk, pair: Pair, stated: Mapping[str, Range]) -> list[ir.Node]:
    """The nodes that the pair's outputs depend on, in order, after a walk over them."""
    walk.ranges.update({v: stated[v.name] for v in walk.model.graph.inputs if v.name in stated})
    order = list(_order(walk, pair.outputs))
    for node in order:
        _visit(walk, node)
    return order


def _in_main_graph(value: ir.Value, graph: ir.Graph) -> bool:
    """Whether a value is made once: in a loop's body, each step makes it anew."""
    return value.producer() is not None and value.producer().graph is graph


def _again(walk: Walk, **changes: Any) -> Walk:
    """The same walk before its first step, with these changes."""
    return replace(walk, values={}, taken={}, gaps={}, integers=set(), embeddings=[], shaped_by_data=set(),
                   codes=set(), ranges={}, held=set(), **changes)  # fmt: skip


def _rounding(walk: Walk, order: list[ir.Node], outputs: Sequence[ir.Value]) -> str:
    """What rounding adds to the bound, in words: a second walk, on which lips are errors."""
    second = Walk(
        walk.model, walk.norm, walk.operators, walk.names, walk.shortcuts, walk.fold, walk.inputs,
        measure=walk.measure, errors=True,
    )  # fmt: skip
    for node in order:
        _visit(second, node)
    error = joint.stack([final_of(second, output) for output in outputs], walk.norm).lip.upper
    if math.isinf(error):
        reached = reached_from(second, outputs)
        reasons = ["it exceeds the largest float64", *(second.gaps[v].reason for v in reached if v in second.gaps)]
        why = reasons[-1]  # the first on the way from the inputs
        return f"rounding adds to ‖f(x) − f(y)‖ ≤ L·‖x − y‖ an error that is not known: {why}"
    free = {d for v in walk.model.graph.inputs for d in dims(v) or () if isinstance(d, str)}
    sizes = f", for {', '.join(f'{name} = 1' for name in sorted(free))}" if free else ""
    return f"with rounding, ‖f(x) − f(y)‖ ≤ L·‖x − y‖ + δ with δ = {numerals.at_most(2 * error)}{sizes}"


def _partials(walk: Walk, stated: Mapping[str, Range], outputs: Sequence[ir.Value]) -> Iterator[Partial]:
    """The bounds between cuts: a second walk in which what each gap makes is an input of its own.

    A stretch that starts at several places has one bound with respect to all of them jointly. Of a cut
    value nothing is known but that it is real: no range before a gap holds behind it.
    """
    cuts = {v: where_is(v.producer()) for v in walk.gaps if v.producer() is not None and v not in walk.taken}
    again = _again(walk, starts=cuts, narrower={})
    again.ranges.update({v: stated[v.name] for v in walk.model.graph.inputs if v.name in stated})
    nodes = list(dict.fromkeys(value.producer() for value in cuts))
    before = [v for node in nodes for v in reads_of(walk, node)]
    for node in _order(again, [*before, *outputs]):
        _visit(again, node)
    ends = [(where_is(node), reads_of(walk, node)) for node in nodes]
    for name, reads in [*ends, *((output.name or "?", [output]) for output in outputs)]:
        varying = [v for v in dict.fromkeys(reads) if not value_of(again, v).is_constant]
        if all(v in cuts or v in walk.inputs for v in varying):
            continue  # nothing lies between
        found = joint.stack((value_of(again, v) for v in varying), walk.norm)
        if found.lip.known:
            yield Partial(tuple(sorted(found.sources)), name, found.lip)


def _order(walk: Walk, outputs: Sequence[ir.Value]) -> Iterator[ir.Node]:
    """The nodes that the outputs depend on, each once, after all that it depends on."""
    done: set[ir.Node] = set()
    stack: list[tuple[ir.Node, bool]] = []
    for output in outputs:
        if output.producer() is not None and output not in walk.starts:
            stack.append((output.producer(), False))
        while stack:
            node, ready = stack.pop()
            if ready:
                yield node
            elif node not in done:
                done.add(node)
                stack.append((node, True))
                producers = (v.producer() for v in reads_of(walk, node) if v not in walk.starts)
                stack.extend((p, False) for p in producers if p is not None and p not in done)


def _visit(walk: Walk, node: ir.Node) -> None:
    """Judge a node's outputs, by its rule and by the shortcuts that end at it."""
    reads = reads_of(walk, node)
    known = [value_of(walk, value) for value in reads]
    if not (is_default(node) and node.op_type in SHAPE_ONLY) and any(v in walk.integers for v in reads):
        walk.integers.update(node.outputs)
    if any(v in walk.held for v in reads) and all(value.is_constant for value in known):
        walk.held.update(node.outputs)
    try:
        results = _judge(walk, node, reads, known)
        gap = None
    except Unbounded as refusal:
        results, gap = (), Gap(refusal.code, where_is(node), node.op_type, str(refusal), refusal.remedy)
        if refusal.code == "unknown-shape" and any(not value.lip.known for value in known):
            gap = None  # a shape that is missing behind another gap is that one's fault
    except MALFORMED as error:
        reason = f"its attributes or inputs make no sense ({type(error).__name__})"
        results, gap = (), Gap("malformed", where_is(node), node.op_type, reason, "repair the node")
    if results and len(results) < len(node.outputs):
        reason = f"output {len(results)} has no rule"
        gap = Gap("no-rule", where_is(node), node.op_type, reason, "use its first output only")
    sources = frozenset().union(*(v.sources for v in known)) or frozenset({f"<{where_is(node)}>"})
    for index, output in enumerate(node.outputs):
        if output in walk.starts:
            continue
        if index < len(results):
            walk.values[output] = results[index]
        else:
            walk.values[output] = Value(UNBOUNDED, sources)
            if gap is not None:
                walk.gaps[output] = gap
    if quantized.makes_codes(node, any(v in walk.codes for v in reads)):
        walk.codes.update(node.outputs[:1] if node.op_type == "DynamicQuantizeLinear" else node.outputs)
    note_shapes(walk, node, reads, gap)
    note_ranges(walk, node, gap)
    if any(not v.is_constant for v in known):
        _shorten(walk, node)


def _shorten(walk: Walk, node: ir.Node) -> None:
    """Take the shortcuts to a node's outputs that are better than its rule's result."""
    opset = walk.model.graph.opset_imports.get("", 0)
    written_out = list(patterns.find(node, walk.fold, walk.norm, opset))
    written_out += _dynamically_quantized(walk, node)
    if walk.norm == "l2":
        written_out += _attended(walk, node, opset)
    for shortcut in (*(s for o in node.outputs for s in walk.shortcuts.get(o, ())), *written_out):
        ends = [end for part, _ in shortcut.parts for end in part]
        if shortcut.output in walk.starts or (walk.starts and any(end not in walk.values for end in ends)):
            continue  # cut between
        beside = [joint.side_by_side((value_of(walk, end) for end in part), walk.norm) for part, _ in shortcut.parts]
        parts, current = list(zip(beside, shortcut.parts, strict=True)), walk.values[shortcut.output]
        if current.jumps or any(value.jumps for value in beside):
            continue
        varying = [through(replace(v, part=None), bound) for v, (_, bound) in parts if not v.is_constant]
        short = joint.add(varying, walk.norm)
        trusted = short.lip.grade >= current.lip.grade
        closer = (short.lip.size < current.lip.size and trusted) or not current.lip.known
        if varying and closer and all(bound.bounded for _, bound in shortcut.parts):
            walk.values[shortcut.output] = Value(short.lip, short.sources, assumes=shortcut.assumes)
            walk.taken[shortcut.output] = shortcut


def _attended(walk: Walk, node: ir.Node, opset: int) -> Iterator[Shortcut]:
    """The shortcut past an attention to the tokens that it is about."""
    known = (lambda value: UNKNOWN) if walk.errors else (lambda value: range_of(walk, value))
    held = lambda value: value_of(walk, value).is_constant  # noqa: E731
    with np.errstate(all="ignore"):  # what leaves the floats is unbounded
        yield from Finder(walk.fold, walk.measure, known, held, opset).at(node)


def _dynamically_quantized(walk: Walk, node: ir.Node) -> Iterator[Shortcut]:
    """The shortcut past a quantizer that chooses its scale by its input, the product of its codes and the
    scaling of that: without rounding, the product of the real input with the real weight."""
    source = None if walk.errors else source_of(node)
    if source is None:
        return
    output = node.outputs[0]
    norm = exactly(1.0, "identity") if node.op_type == "DequantizeLinear" else walk.operators.get(output)
    if norm is not None and norm.bounded:
        bound = at_most(norm.upper, norm.method, Grade.ASSUMED)
        yield Shortcut(output, source, bound, walk.names.get(output) or where_is(node), (SURROGATE,))


def _judge(walk: Walk, node: ir.Node, reads: list[ir.Value], known: list[Value]) -> tuple[Value, ...]:
    """The Values of a node's outputs. Raises Unbounded."""
    op, domain = node.op_type, "" if is_default(node) else node.domain
    if any(key[0] in (node.domain, domain) and key[1] == op for key in walk.model.functions):
        reason = "a function of the model's own is not looked into yet"
        raise Unbounded(reason, "inline the model's functions", "no-rule")
    nested = [n for graph in bodies_of(node) for n in ir.traversal.RecursiveGraphIterator(graph)]
    if any(is_default(n) and n.op_type in RANDOM for n in (node, *nested) if op != "If"):
        raise Unbounded(f"{op} is random: it has no one value", _EVAL, "random")
    varying = [value for value in known if not value.is_constant]
    if not varying and not (not domain and op in ("Dropout", "If")):
        return _constant(walk, node)
    if not domain and op in SHAPE_ONLY:
        return _shape_of(walk, node, varying[0])
    if not domain and op == "If":
        return _chosen(walk, node)
    if not domain and op in ("Loop", "Scan") and walk.model.graph.opset_imports.get("", 0) >= 9:
        inside = set(ir.traversal.RecursiveGraphIterator(node.attributes["body"].as_graph()))
        body = [n for n in _order(walk, node.attributes["body"].as_graph().outputs) if n in inside]
        return loops.unrolled(walk, node, body, lambda inner: _visit(walk, inner))
    row = rules.lookup(domain, op)
    if row is None or walk.norm not in row.norms or nested:
        raise rules.without_row(node, op, domain)
    if any(v in walk.codes for v in reads) and not quantized.takes_codes(node):
        reason = f"{op} computes with quantized integers, which rounds or overflows"
        raise Unbounded(reason, "dequantize before it", "step")
    jumps = [value.jumps for value in varying if value.jumps]
    if len(jumps) == len(varying) and jumps:
        sources = frozenset().union(*(value.sources for value in varying))
        return (Value(UNBOUNDED, sources, jumps=jumps[0]),) * len(node.outputs)
    if jumps:
        reason = f"{op} uses {jumps[0]}, a step function of the network's input"
        raise Unbounded(
            reason, "replace the step by a continuous function, or take it out of the model", "step"
        )
    step = step_of(walk, node)
    if not step.opset and not domain:
        raise Unbounded("the model does not say its opset", "repair the model", "malformed")
    return row.rule(step)


def _shape_of(walk: Walk, node: ir.Node, value: Value) -> tuple[Value, ...]:
    """A shape is constant, unless something before it makes shapes out of numbers (NonZero, an op
    that nobody knows): then it jumps."""
    if node.inputs[0] not in walk.shaped_by_data:
        return (CONSTANT,)
    return (Value(UNBOUNDED, value.sources, jumps=where_is(node)),)


def _constant(walk: Walk, node: ir.Node) -> tuple[Value, ...]:
    """CONSTANT for each output, but for an embedding: rows of a table that an integer input picks."""
    rows = picked_rows(node) or node  # of numbers, or of codes that become numbers here
    if is_default(rows) and rows.op_type == "Gather":
        table, index = rows.inputs[:2]
        kind = node.outputs[0].dtype or table.dtype
        real = rows is not node or kind is None or kind.is_floating_point()
        if index in walk.integers and table not in walk.integers and real:
            name = where_is(node)
            if walk.errors:
                walk.embeddings.append(name)
                return (UNROUNDED,)
            if walk.only is not None:
                walk.held.update(node.outputs)
                return (CONSTANT,)
            walk.embeddings.append(name)
            return (Value(exactly(1.0, "embedding"), frozenset({f"embedding {name}"})),)
    return (CONSTANT,) * len(node.outputs)


def _chosen(walk: Walk, node: ir.Node) -> tuple[Value, ...]:
    """An If whose condition does not vary: the larger of the branches that may run."""
    if not value_of(walk, node.inputs[0]).is_constant:
        reason = "a condition that depends on the network's input switches between two functions"
        raise Unbounded(reason, "take the condition out of the model", "control-flow")
    branches = [[value_of(walk, value) for value in graph.outputs] for graph in branches_of(walk, node)]
    return tuple(_larger(pair) for pair in zip(*branches, strict=True))


def _larger(values: Sequence[Value]) -> Value:
    if all(value.is_constant for value in values):
        return CONSTANT
    sources = frozenset().union(*(value.sources for value in values))
    jumps = next((value.jumps for value in values if value.jumps), None)
    return Value(larger((v.lip for v in values), "the larger branch"), sources, jumps)


def _conclude(walk: Walk, order: list[ir.Node], pair: Pair) -> Composition:
    graph = walk.model.graph
    finals = [final_of(walk, output) for output in pair.outputs]
    reached = reached_from(walk, pair.outputs)
    gaps = [walk.gaps[v] for v in reached if v.producer() is None and v in walk.gaps]
    for node in order:
        gaps += [
            walk.gaps[o] for o in node.outputs if o in reached and o in walk.gaps and o not in walk.taken
        ]
    stacked = joint.stack(finals, walk.norm)
    bound = stacked.lip
    name = graph.name or "graph"
    if all(value.is_constant for value in finals) and pair.only is None:
        reason = "no output depends on a real-valued input"
        gaps.append(Gap("no-real-input", name, "graph", reason, "audit the part after its integer inputs"))
        bound = UNBOUNDED
    if not bound.known and not gaps:
        reason = "a norm on the way exceeds the largest float64"
        gaps.append(Gap("overflow", name, "graph", reason, "look at the layers with the largest norms"))
    return Composition(
        bound if bound.known else UNBOUNDED,
        tuple((o.name or "?", f.lip) for o, f in zip(pair.outputs, finals, strict=True)),
        tuple(dict.fromkeys(gaps)),
        assumptions_of(walk, order, reached, stacked, pair),
        tuple(contributions_of(walk, order, reached)),
        nodes=frozenset(order),
        held=frozenset(v for v in walk.held if value_of(walk, v).is_constant),
        ranges=walk.ranges,
        rests=tuple(rests_of(walk, order, reached_from(walk, [output])) for output in pair.outputs),
    )

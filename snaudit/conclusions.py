"""What a finished walk rests on: the values reached, the assumptions in words, each factor's share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from snaudit.bound import UNBOUNDED
from snaudit.findings import Gap
from snaudit.pairs import Pair
from snaudit.rules.interface import Value
from snaudit.walk import Walk, reads_of, value_of, where_is


def final_of(walk: Walk, output: ir.Value) -> Value:
    """What is known of a graph output; a step function has no bound there either."""
    value = value_of(walk, output)
    if value.jumps is None:
        return value
    op = output.producer().op_type if output.producer() is not None else "output"
    reason = f"output {output.name} is a step function of the network's input"
    walk.gaps[output] = Gap("step", value.jumps, op, reason, "take this output out of the model")
    return Value(UNBOUNDED, value.sources)


def reached_from(walk: Walk, outputs: Sequence[ir.Value]) -> dict[ir.Value, None]:
    """The values that the bound rests on: behind a shortcut only its source."""
    reached: dict[ir.Value, None] = {}
    stack = list(outputs)
    while stack:
        value = stack.pop()
        if value in reached or value_of(walk, value).is_constant:
            continue
        reached[value] = None
        if value in walk.taken:
            stack += (end for ends, _ in walk.taken[value].parts for end in ends)
        elif value.producer() is not None:
            stack.extend(reads_of(walk, value.producer()))
    return reached


def assumptions_of(
    walk: Walk, order: list[ir.Node], reached: dict[ir.Value, None], stacked: Value, pair: Pair
) -> tuple[str, ...]:
    graph = walk.model.graph
    found = []
    if pair.only is not None:
        held = f"; the others are held fixed, at whatever value: {', '.join(pair.others)}" if pair.others else ""
        found.append(f"the input {pair.only.name} alone varies{held}")
    if len(pair.outputs) < len(graph.outputs):
        found.append(f"the output {', '.join(v.name or '?' for v in pair.outputs)} alone counts")
    real = [v.name or "?" for v in graph.inputs if v.name in stacked.sources]
    held = [v.name or "?" for v in graph.inputs if v in walk.integers]
    if len(real) > 1:
        found.append(f"the real inputs {', '.join(real)} vary together: one norm over all of them")
    if held:
        found.append(f"the integer inputs {', '.join(held)} are held fixed")
    embeddings = [name for name in walk.embeddings if f"embedding {name}" in stacked.sources]
    if embeddings:
        found.append(f"the bound starts at the output of the embedding {', '.join(embeddings)}")
    if len(pair.outputs) > 1:
        found.append(f"the {len(pair.outputs)} outputs count together: one norm over all of them")
    return tuple(dict.fromkeys([*found, *rests_of(walk, order, reached)]))


def rests_of(walk: Walk, order: list[ir.Node], reached: dict[ir.Value, None]) -> tuple[str, ...]:
    """What the rules could not check on the way to these values."""
    said = (s for node in order for o in node.outputs if o in reached for s in walk.values[o].assumes)
    return tuple(dict.fromkeys(said))


_SEVERAL = frozenset({"LSTM", "GRU", "RNN"})
"""Ops of several matrices: no norm of one of them is the node's factor."""


def contributions_of(
    walk: Walk, order: list[ir.Node], reached: dict[ir.Value, None]
) -> Iterator[tuple[str, float]]:
    """The factors along the way: each layer's norm, each shortcut's, and what other ops multiply by."""
    for node in order:
        output = next((o for o in node.outputs if o in reached), None)
        if output is None:
            continue
        name = walk.names.get(output) or where_is(node)
        varying = [v for v in map(walk.values.get, node.inputs) if v is not None and not v.is_constant]
        if output in walk.taken:
            yield from ((walk.taken[output].name, bound.upper) for _, bound in walk.taken[output].parts)
        elif output in walk.operators and node.op_type not in _SEVERAL:
            yield name, walk.operators[output].upper
        elif len(varying) == 1 and varying[0].lip.bounded and walk.values[output].lip.bounded:
            before, after = varying[0].lip.upper, walk.values[output].lip.upper
            if before > 0.0 and abs(after / before - 1.0) > 1e-9:
                yield name, after / before

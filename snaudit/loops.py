"""Loop and Scan with a known number of steps: the body is walked once for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx_ir as ir

from snaudit import joint
from snaudit.domains import is_default
from snaudit.ranges import UNKNOWN, Range, flat
from snaudit.rules.interface import CONSTANT, Unbounded, Value
from snaudit.walk import Walk, range_of, value_of

MOST_NODES = 20_000
"""Nodes that one loop may come to, all steps counted."""
_Known = tuple[Value, Range]


def unrolled(walk: Walk, node: ir.Node, nodes: Sequence[ir.Node], visit: Callable[[ir.Node], None]) -> tuple[Value, ...]:
    """The Values of a Loop's or Scan's outputs: states pass through the body step by step, what each step
    puts out is stacked. `nodes` are the body's, in order. Raises Unbounded where the number of steps is not
    known, the condition may end it before, or a node of the body has no constant.

    What a Scan cuts its inputs into are disjoint pieces: joined as functions of different inputs are.
    """
    body = node.attributes["body"].as_graph()
    if node.op_type == "Loop":
        count = _trips(walk, node, body)
        states, heads, slices = list(node.inputs[2:]), 2, []
    else:
        slices, states, count = _scanned(node)
        heads = 0
    if count * max(1, len(nodes)) > MOST_NODES:
        reason = f"{node.op_type} of {count} steps over {len(nodes)} nodes: more than {MOST_NODES} in all"
        raise Unbounded(reason, "audit a shorter sequence with --input-size", "control-flow")
    kept: list[_Known] = [(value_of(walk, v), range_of(walk, v)) for v in states]
    first = 1 if node.op_type == "Loop" else 0
    put_out: list[list[Value]] = [[] for _ in body.outputs[first + len(states) :]]
    for step in range(count):
        given = [(CONSTANT, UNKNOWN)] * heads + kept + [_piece(walk, v, axis, step) for v, axis in slices]
        for value, (known, where) in zip(body.inputs, given, strict=True):
            walk.values[value], walk.ranges[value] = known, where
        for inner in nodes:
            visit(inner)
        results = body.outputs[first:]
        kept = [(value_of(walk, v), range_of(walk, v)) for v in results[: len(states)]]
        for found, value in zip(put_out, results[len(states) :], strict=True):
            found.append(value_of(walk, value))
    _refuse(walk, node, nodes)
    return (*(value for value, _ in kept), *(joint.stack(found, walk.norm) for found in put_out))


def _trips(walk: Walk, node: ir.Node, body: ir.Graph) -> int:
    """The number of steps of a Loop whose condition stays true."""
    limit, condition = node.inputs[:2]
    count = None if limit is None else walk.fold(limit)
    goes = None if condition is None else walk.fold(condition)
    if goes is not None and not goes.any():
        return 0
    if count is None or count.size != 1 or (condition is not None and goes is None):
        raise Unbounded(
            "Loop repeats its body as often as its input says", "export a fixed number of steps", "control-flow"
        )
    last = body.outputs[0]
    while last.producer() is not None and last.producer().op_type == "Identity" and is_default(last.producer()):
        last = last.producer().inputs[0]
    stays = walk.fold(last)
    if last is not body.inputs[1] and (stays is None or not stays.all()):
        raise Unbounded("Loop may end at a condition", "export a fixed number of steps", "control-flow")
    return max(0, int(count.ravel()[0]))


def _scanned(node: ir.Node) -> tuple[list[tuple[ir.Value, int]], list[ir.Value], int]:
    """(what a Scan goes through, with the axis; its states; the number of steps)."""
    width = int(node.attributes["num_scan_inputs"].value)
    slices = list(node.inputs[len(node.inputs) - width :])
    axes = node.attributes["scan_input_axes"].value if "scan_input_axes" in node.attributes else [0] * width
    for value, axis in zip(slices, axes, strict=True):
        size = None if value is None or value.shape is None else value.shape[axis]
        if isinstance(size, int):
            pieces = [(v, int(a)) for v, a in zip(slices, axes, strict=True)]
            return pieces, list(node.inputs[: len(node.inputs) - width]), size
    raise Unbounded("Scan over a length that is not known", "give the input's size with --input-size", "control-flow")


def _piece(walk: Walk, value: ir.Value, axis: int, step: int) -> _Known:
    known = value_of(walk, value)
    if not known.is_constant and known.jumps is None and known.part is None:
        known = replace(known, part=((value, axis), step))
    return known, flat(range_of(walk, value))


def _refuse(walk: Walk, node: ir.Node, nodes: Sequence[ir.Node]) -> None:
    """Report the body's first gap at the loop: the body's nodes are walked many times."""
    for inner in nodes:
        for output in inner.outputs:
            gap = walk.gaps.get(output)
            if gap is not None and output not in walk.taken:
                raise Unbounded(f"in its body, at {gap.where} ({gap.op}): {gap.reason}", gap.remedy, gap.code)

"""Ranges on a walk: where the entries of each value lie, noted node by node beside the constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from snaudit import images, patterns
from snaudit.bound import root_up
from snaudit.curves import curve_of
from snaudit.findings import Gap
from snaudit.ranges import UNKNOWN, Range, enclosing, flat, joined, meet, multiplied
from snaudit.rules.interface import Step
from snaudit.walk import (
    MALFORMED,
    Walk,
    bodies_of,
    branches_of,
    is_default,
    range_of,
    value_of,
    where_is,
)


_SCALES = 1e-12
"""More than what scales that are products of a few floats may be off by."""


def step_of(walk: Walk, node: ir.Node) -> Step:
    """A node as rules see it. On a walk about errors without ranges: what rounding moved may lie outside."""
    inputs = tuple(None if v is None else value_of(walk, v) for v in node.inputs)
    imports = walk.model.graph.opset_imports
    opset = imports.get("" if is_default(node) else node.domain) or imports.get("ai.onnx", 0)
    operator = walk.operators.get(node.outputs[0])
    known = (lambda value: UNKNOWN) if walk.errors else (lambda value: range_of(walk, value))
    return Step(node, inputs, walk.norm, opset, operator, walk.fold, walk.errors, known, walk.measure)


_NO_FUNCTION = frozenset({"random", "malformed", "training-mode", "bad-attribute", "bad-constant"})
"""Gaps of nodes that are not what their op says: nothing follows about where their results lie."""


def note_ranges(walk: Walk, node: ir.Node, gap: Gap | None) -> None:
    """Note where the entries of a node's outputs lie; unknown where its op has no rule for that."""
    outputs = [output for output in node.outputs if output not in walk.starts]
    if walk.errors or all(walk.values[output].is_constant for output in outputs):
        for output in outputs:
            walk.ranges.pop(output, None)  # read when asked for; in a body, it may have varied a step ago
            if output in walk.held and output in walk.prior:
                walk.ranges[output] = walk.prior[output]
        if gap is None and not walk.errors and any(_is_open(walk, output) for output in outputs):
            _note_images(walk, node)
        return
    found = () if gap is not None and gap.code in _NO_FUNCTION else _ranges_of(walk, node)
    table = f"the embedding {where_is(node)} stays within the range of its table"
    for index, output in enumerate(node.outputs):
        if output in outputs:
            one = found[index] if index < len(found) else UNKNOWN
            one = meet(one, walk.narrower[output]) if output in walk.narrower else one
            one = _gated(walk, node, _normalized(walk, node, one))
            starts = walk.values[output].sources == {f"embedding {where_is(node)}"} and one.known
            walk.ranges[output] = replace(one, rests=one.rests | {table}) if starts else one


def _normalized(walk: Walk, node: ir.Node, one: Range) -> Range:
    """The range, where a node ends a normalization written out: u/√(mean(u²) + ε) over d entries has ‖·‖₂ ≤ √d."""
    core = patterns.core_of(node, walk.fold, walk.model.graph.opset_imports.get("", 0)) if is_default(node) else None
    shape = node.outputs[0].shape
    sizes = [None] if core is None or shape is None else [shape[axis] for axis in core[0]]
    if core is None or not all(isinstance(d, int) for d in sizes):
        return one
    most = root_up(float(math.prod(sizes)))
    rows = (core[0][0] % len(shape) - len(shape), most) if len(sizes) == 1 else None
    found = meet(one, enclosing(-most, most))
    closer = rows is not None and (found.rows is None or (found.rows[0] == rows[0] and rows[1] < found.rows[1]))
    return replace(found, rows=rows) if closer else found


def _gated(walk: Walk, node: ir.Node, one: Range) -> Range:
    """The range, where a node ends a function x·g(x) written out: its image instead of the product's."""
    if not is_default(node) or node.op_type != "Mul":
        return one
    for short in patterns.find(node, walk.fold, "l2", walk.model.graph.opset_imports.get("", 0)):
        curve = None if short.gated is None else curve_of(short.gated.op, short.gated.attributes.get)
        source = range_of(walk, short.source)
        if curve is not None and short.gated.slack == 0.0 and source.known:
            inner, outer = short.gated.inner, short.gated.outer / short.gated.inner
            near = multiplied(source, enclosing(*sorted((inner * (1 - _SCALES), inner * (1 + _SCALES)))))
            image = multiplied(curve.image(near), enclosing(*sorted((outer * (1 - _SCALES), outer * (1 + _SCALES)))))
            one = meet(one, replace(image, rows=None, sums=None))
    return one


def _is_open(walk: Walk, value: ir.Value) -> bool:
    """Whether a real constant is of an open size: then it is no array that can be folded."""
    sizes = (None,) if value.shape is None else value.shape
    real = value.dtype is not None and value.dtype.is_floating_point()
    return real and value not in walk.ranges and not all(isinstance(d, int) for d in sizes) and walk.fold(value) is None


def _note_images(walk: Walk, node: ir.Node) -> None:
    """Note where the entries of constants of open sizes lie, zeros for a batch of any size among them."""
    for output, one in zip(node.outputs, _ranges_of(walk, node), strict=False):
        if output not in walk.starts and _is_open(walk, output):
            walk.ranges[output] = one


def _ranges_of(walk: Walk, node: ir.Node) -> Sequence[Range]:
    try:
        return _found(walk, node)
    except MALFORMED:
        return ()  # attributes that make no sense: unknown


def _found(walk: Walk, node: ir.Node) -> Sequence[Range]:
    if is_default(node) and node.op_type == "If":
        branches = [[range_of(walk, value) for value in graph.outputs] for graph in branches_of(walk, node)]
        return [pair[0] if len(pair) == 1 else flat(joined(flat(pair[0]), flat(pair[1])))
                for pair in zip(*branches, strict=True)]  # fmt: skip
    if any(key[1] == node.op_type for key in walk.model.functions) or bodies_of(node):
        return ()
    return images.images(step_of(walk, node))
